/**
 * Configuration files of WireGuard: what wg(8) and wg-quick(8) read, and the sections that wireproxy adds for what
 * runs over the tunnel. Read strictly, each mistake with its line; written so that all of them read it. Commands
 * that a file wants run (PostUp and its like) are never run: they are named in `ignored`.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import { utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { fromBase64, toBase64 } from '../base64.ts'
import { masked, routeText } from './exit_policy.ts'
import { placeText } from './network.ts'
import type { Place } from './network.ts'
import { hostName } from './socks.ts'

const FILE_LENGTH_MAX = 1_048_576
const PEERS_MAX = 4_096
const LIST_MAX = 1_024
const TUNNELS_MAX = 256
const KEY_BYTES = 32
/** IPv6's least, and the most that fits into a length of 16 bits. */
const MTU_MIN = 1_280
const MTU_MAX = 65_535
const SHOWN_LENGTH_MAX = 60

export interface QuickPeer {
  readonly publicKey: Uint8Array
  readonly presharedKey?: Uint8Array
  readonly allowed: readonly Range[]
  /** Undefined: it comes to us. A name may change what it leads to. */
  readonly endpoint?: Place
  /** 0: none. */
  readonly keepaliveSeconds: number
}

export interface QuickConfig {
  readonly privateKey: Uint8Array
  /** Each with the bits that were written; an address alone has all of them. */
  readonly addresses: readonly Range[]
  readonly listenPort?: number
  readonly dns: readonly string[]
  readonly searchDomains: readonly string[]
  readonly mtu?: number
  readonly peers: readonly QuickPeer[]
  /** wireproxy's sections. */
  readonly socks: readonly QuickProxy[]
  readonly http: readonly QuickProxy[]
  readonly clientTunnels: readonly { readonly bind: Place; readonly target: Place }[]
  readonly serverTunnels: readonly { readonly port: number; readonly target: Place }[]
  readonly udpTunnels: readonly { readonly bind: Place; readonly target: Place }[]
  readonly stdioTarget?: Place
  /** Keys that were read and have no meaning here, such as PostUp, with their lines. */
  readonly ignored: readonly { readonly key: string; readonly line: number }[]
}

export interface QuickProxy {
  readonly bind: Place
  readonly user?: string
  readonly password?: string
}

interface Entry {
  readonly key: string
  readonly value: string
  readonly line: number
}

interface Section {
  readonly name: string
  readonly line: number
  readonly entries: Entry[]
}

const KEYS: Readonly<Record<string, readonly string[]>> = {
  interface: ['privatekey', 'address', 'listenport', 'dns', 'mtu'],
  peer: ['publickey', 'presharedkey', 'allowedips', 'endpoint', 'persistentkeepalive'],
  socks5: ['bindaddress', 'username', 'password'],
  http: ['bindaddress', 'username', 'password'],
  tcpclienttunnel: ['bindaddress', 'target'],
  tcpservertunnel: ['listenport', 'target'],
  udpproxytunnel: ['bindaddress', 'target'],
  stdiotunnel: ['target'],
  resolve: [],
}
/**
 * wg-quick's own, and wireproxy's, for what we do not do: routes, commands, marks, health checks, how long a UDP port
 * may be quiet, which kind of address comes first.
 */
const IGNORED: Readonly<Record<string, RegExp>> = {
  interface: /^(table|fwmark|(pre|post)(up|down)|saveconfig|checkalive|checkaliveinterval)$/,
  udpproxytunnel: /^inactivitytimeout$/,
  resolve: /^resolvestrategy$/,
}
/** AmneziaWG's, whose packets WireGuard cannot read. */
const OBFUSCATED = /^(jc|jmin|jmax|[sh][1-4]|i[1-5])$/
const LISTS = /^(address|dns|allowedips)$/

const IMPORT = /^[ \t]*WGConfig[ \t]*=[ \t]*([^\r\n]*?)[ \t]*$/im

/** wireproxy's `WGConfig = FILE`, before any section: the file that has [Interface] and [Peer]. */
export function importedFile(words: string): string | undefined {
  const [, path] = IMPORT.exec(words.split(/^[ \t]*\[/m)[0]!) ?? []
  return path || undefined
}

/** The file with what it imports in its front; `lines` of it are that. */
export function withImported(words: string, imported: string): { words: string; lines: number } {
  const front = imported.replace(/^\ufeff/, '')
  return {
    words: `${front}\n${words.replace(/^\ufeff/, '').replace(IMPORT, '')}`,
    lines: front.split(/\r\n|[\n\r]/).length,
  }
}

/**
 * `env` answers `$NAME` as a whole value, as wireproxy has it. Throws `wgconfig/…`, whose message begins with the
 * line and never repeats a key.
 */
export function parseQuickConfig(
  words: string,
  { env = {} }: { env?: Readonly<Record<string, string | undefined>> } = {},
): QuickConfig {
  if (words.length > FILE_LENGTH_MAX) {
    throw problem('size', 1, `found ${words.length} letters, expected at most ${FILE_LENGTH_MAX}`)
  }
  const { sections, ignored } = readSections(words, env)
  const named = (name: string): Section[] => sections.filter((one) => one.name === name)
  const [own, second] = named('interface')
  if (!own) throw problem('missing', lastLine(words), 'found no [Interface] section, expected one')
  if (second) {
    throw problem('twice', second.line, 'found a second [Interface] section, expected one')
  }
  const peers = named('peer')
  if (peers.length > PEERS_MAX) {
    throw problem('size', peers[PEERS_MAX]!.line, `found more than ${PEERS_MAX} peers`)
  }
  const tunnels = sections.length - peers.length - 1
  if (tunnels > TUNNELS_MAX) {
    throw problem(
      'size',
      own.line,
      `found ${tunnels} other sections, expected at most ${TUNNELS_MAX}`,
    )
  }
  const [stdio, secondStdio] = named('stdiotunnel')
  if (secondStdio) throw problem('twice', secondStdio.line, 'found a second [STDIOTunnel] section')
  return {
    ...readInterface(own),
    peers: readPeers(peers),
    socks: named('socks5').map(readProxy),
    http: named('http').map(readProxy),
    clientTunnels: named('tcpclienttunnel').map((section) => ({
      bind: bindOf(section),
      target: placeOf(must(section, 'Target')),
    })),
    serverTunnels: named('tcpservertunnel').map((section) => ({
      port: numberOf(must(section, 'ListenPort'), { min: 1, max: 65_535 }),
      target: placeOf(must(section, 'Target')),
    })),
    udpTunnels: named('udpproxytunnel').map((section) => ({
      bind: bindOf(section),
      target: placeOf(must(section, 'Target')),
    })),
    ...(stdio ? { stdioTarget: placeOf(must(stdio, 'Target')) } : {}),
    ignored,
  }
}

function readSections(
  words: string,
  env: Readonly<Record<string, string | undefined>>,
): { sections: Section[]; ignored: Entry[] } {
  const sections: Section[] = []
  const ignored: Entry[] = []
  for (const [i, raw] of words.replace(/^\ufeff/, '').split(/\r\n|[\n\r]/).entries()) {
    const line = i + 1
    const bare = raw.replace(/#.*$/, '').trim()
    if (bare === '' || bare.startsWith(';')) continue
    const [, section] = /^\[\s*([^[\]]*?)\s*\]$/.exec(bare) ?? []
    if (section !== undefined) {
      const name = section.toLowerCase()
      if (!KEYS[name]) {
        throw problem('section', line, `found the section [${shown(section)}], which is unknown`)
      }
      sections.push({ name, line, entries: [] })
      continue
    }
    const [, key, value] = /^([A-Za-z0-9]+)\s*=\s*(.*)$/.exec(bare) ?? []
    if (key === undefined) {
      throw problem('syntax', line, 'expected [Section] or Key = Value')
    }
    const entry = { key, line, value: fromEnv(value!, { env, line }) }
    const last = sections.at(-1)
    if (!last) throw problem('section', line, `found ${key} before any section`)
    if (takes(last, entry)) last.entries.push(entry)
    else ignored.push(entry)
  }
  return { sections, ignored: ignored.map(({ key, line }) => ({ key, line, value: '' })) }
}

/** False: it is known and means nothing here. */
function takes({ name, entries }: Section, { key, value, line }: Entry): boolean {
  const word = key.toLowerCase()
  if (!KEYS[name]!.includes(word)) {
    if (IGNORED[name]?.test(word)) return false
    const hint = OBFUSCATED.test(word)
      ? 'It is of AmneziaWG, whose packets are not those of WireGuard'
      : undefined
    throw problem('key', line, `found ${shown(key)}, which this section does not have`, hint)
  }
  if (value === '' && word !== 'allowedips' && word !== 'dns') {
    throw problem('value', line, `found ${key} without a value`)
  }
  if (!LISTS.test(word) && entries.some((one) => one.key.toLowerCase() === word)) {
    throw problem('twice', line, `found ${key} a second time in its section`)
  }
  return true
}

function fromEnv(
  value: string,
  { env, line }: { env: Readonly<Record<string, string | undefined>>; line: number },
): string {
  const [, name] = /^\$([A-Za-z_][A-Za-z0-9_]*)$/.exec(value) ?? []
  if (name === undefined) return value
  const found = env[name]
  if (!found) {
    throw problem('value', line, `found $${shown(name)}, which the environment does not have`)
  }
  return found.trim()
}

function readInterface(
  section: Section,
): Pick<QuickConfig, 'privateKey' | 'addresses' | 'listenPort' | 'dns' | 'searchDomains' | 'mtu'> {
  const port = one(section, 'ListenPort')
  const mtu = one(section, 'MTU')
  const names = list(section, 'DNS')
  return {
    privateKey: keyOf(must(section, 'PrivateKey')),
    addresses: list(section, 'Address').map((entry) => rangeOf(entry, { keepsHost: true })),
    ...(port ? { listenPort: numberOf(port, { min: 0, max: 65_535 }) } : {}),
    dns: names.flatMap(({ value }) => normal(value) ?? []),
    searchDomains: names.flatMap((entry) => {
      if (normal(entry.value) !== undefined) return []
      const domain = hostName(utf8(entry.value))
      if (domain !== undefined) return [domain]
      throw problem('value', entry.line, `found DNS = ${shown(entry.value)}, expected an address`)
    }),
    ...(mtu ? { mtu: numberOf(mtu, { min: MTU_MIN, max: MTU_MAX }) } : {}),
  }
}

const EVERYTHING: readonly Range[] = [
  { bytes: new Uint8Array(4), bits: 0 },
  { bytes: new Uint8Array(16), bits: 0 },
]

function readPeers(sections: readonly Section[]): QuickPeer[] {
  const seen = new Set<string>()
  // As wireproxy has it: one peer alone needs not say that all is for it.
  const isAlone = sections.length === 1 && !one(sections[0]!, 'AllowedIPs')
  return sections.map((section) => {
    const key = must(section, 'PublicKey')
    const publicKey = keyOf(key)
    const name = toBase64(publicKey)
    if (seen.has(name)) throw problem('twice', key.line, 'found a peer a second time')
    seen.add(name)
    const preshared = one(section, 'PresharedKey')
    const endpoint = one(section, 'Endpoint')
    const keepalive = one(section, 'PersistentKeepalive')
    return {
      publicKey,
      ...(preshared ? { presharedKey: keyOf(preshared) } : {}),
      allowed: isAlone
        ? EVERYTHING
        : list(section, 'AllowedIPs').map((entry) => rangeOf(entry, { keepsHost: false })),
      ...(endpoint ? { endpoint: placeOf(endpoint) } : {}),
      keepaliveSeconds: !keepalive || keepalive.value.toLowerCase() === 'off'
        ? 0
        : numberOf(keepalive, { min: 0, max: 65_535 }),
    }
  })
}

function readProxy(section: Section): QuickProxy {
  const user = one(section, 'Username')
  const password = one(section, 'Password')
  if (!user !== !password) {
    throw problem('missing', section.line, 'expected Username and Password together, or neither')
  }
  return { bind: bindOf(section), ...(user ? { user: user.value, password: password!.value } : {}) }
}

function bindOf(section: Section): Place {
  const entry = must(section, 'BindAddress')
  // Go's ":1080" is every address; wireproxy's users write it for this machine.
  const words = entry.value.startsWith(':') ? `127.0.0.1${entry.value}` : entry.value
  return placeOf({ ...entry, value: words }, { portMin: 0 })
}

function one(section: Section, name: string): Entry | undefined {
  return section.entries.find(({ key }) => key.toLowerCase() === name.toLowerCase())
}

function must(section: Section, name: string): Entry {
  const found = one(section, name)
  if (!found) {
    throw problem('missing', section.line, `found no ${name} in this section, expected one`)
  }
  return found
}

/** Values between commas, over all entries of that key. */
function list(section: Section, name: string): Entry[] {
  const all = section.entries.filter(({ key }) => key.toLowerCase() === name.toLowerCase())
    .flatMap((entry) => entry.value.split(',').map((value) => ({ ...entry, value: value.trim() })))
    .filter((entry, _, every) => {
      if (entry.value !== '') return true
      // `AllowedIPs =` alone is none at all.
      if (every.filter(({ line }) => line === entry.line).length === 1) return false
      throw problem('value', entry.line, `found nothing between two commas of ${name}`)
    })
  if (all.length > LIST_MAX) {
    throw problem('size', all[LIST_MAX]!.line, `found more than ${LIST_MAX} of ${name}`)
  }
  return all
}

function keyOf({ key, value, line }: Entry): Uint8Array {
  let bytes = new Uint8Array(0)
  try {
    bytes = new Uint8Array(fromBase64(value))
  } catch {
    // The same as one of another length.
  }
  if (bytes.length === KEY_BYTES && toBase64(bytes) === value) return bytes
  throw problem(
    'value',
    line,
    `found no ${key}, expected 44 letters of base64, as "wg genkey" writes them`,
  )
}

function rangeOf({ key, value, line }: Entry, { keepsHost }: { keepsHost: boolean }): Range {
  const [, host = '', bits] = /^([0-9a-fA-F:.]{2,45})(?:\/(\d{1,3}))?$/.exec(value) ?? []
  const bytes = parseAddress(host)
  const length = bits === undefined ? (bytes?.length ?? 0) * 8 : Number(bits)
  if (!bytes || length > bytes.length * 8) {
    throw problem(
      'value',
      line,
      `found ${key} = ${shown(value)}, expected a network such as 10.0.0.0/24`,
    )
  }
  return { bytes: keepsHost ? bytes : masked(bytes, length), bits: length }
}

function placeOf({ key, value, line }: Entry, { portMin = 1 }: { portMin?: number } = {}): Place {
  const [, six, name, digits] =
    /^(?:\[([0-9a-fA-F:.]{2,45})\]|([^:[\]]{1,253})):(\d{1,5})$/.exec(value) ?? []
  const host = hostName(utf8(six ?? name ?? ''))
  const port = Number(digits)
  if (host !== undefined && port >= portMin && port <= 65_535) return { host, port }
  throw problem('value', line, `found ${key} = ${shown(value)}, expected HOST:PORT or [IPV6]:PORT`)
}

function numberOf(
  { key, value, line }: Entry,
  { min, max }: { min: number; max: number },
): number {
  const number = /^\d{1,9}$/.test(value) ? Number(value) : NaN
  if (number >= min && number <= max) return number
  throw problem('value', line, `found ${key} = ${shown(value)}, expected ${min} to ${max}`)
}

function normal(address: string): string | undefined {
  const bytes = parseAddress(address)
  return bytes ? formatAddress(bytes) : undefined
}

function shown(value: string): string {
  return JSON.stringify(value.slice(0, SHOWN_LENGTH_MAX)).slice(1, -1)
}

function lastLine(words: string): number {
  return words.split('\n').length
}

type Reason = 'size' | 'missing' | 'twice' | 'section' | 'syntax' | 'key' | 'value'

function problem(reason: Reason, line: number, found: string, hint?: string): TunnelError {
  return new TunnelError(
    `wgconfig/${reason}`,
    `Cannot read line ${line}: ${found}`,
    hint === undefined ? {} : { hint },
  )
}

/** A file that wg-quick, wireproxy and the apps read, ending in a line feed. `note` goes on top as a comment. */
export function printQuickConfig(
  config: Pick<QuickConfig, 'privateKey' | 'addresses' | 'peers'> & Partial<QuickConfig>,
  { note }: { note?: string } = {},
): string {
  const lines: string[] = note === undefined ? [] : note.split('\n').map((one) => `# ${one}`)
  const put = (key: string, value: string | number | undefined): void => {
    if (value !== undefined && value !== '') lines.push(`${key} = ${value}`)
  }
  lines.push('[Interface]')
  put('PrivateKey', toBase64(config.privateKey))
  put('Address', config.addresses.map(routeText).join(', '))
  put('ListenPort', config.listenPort)
  put('DNS', [...config.dns ?? [], ...config.searchDomains ?? []].join(', '))
  put('MTU', config.mtu)
  for (const peer of config.peers) {
    lines.push('', '[Peer]')
    put('PublicKey', toBase64(peer.publicKey))
    if (peer.presharedKey) put('PresharedKey', toBase64(peer.presharedKey))
    put('AllowedIPs', peer.allowed.map(routeText).join(', '))
    if (peer.endpoint) put('Endpoint', placeText(peer.endpoint))
    if (peer.keepaliveSeconds > 0) put('PersistentKeepalive', peer.keepaliveSeconds)
  }
  const proxies = [['Socks5', config.socks], ['http', config.http]] as const
  for (const [name, all] of proxies) {
    for (const { bind, user, password } of all ?? []) {
      lines.push('', `[${name}]`)
      put('BindAddress', placeText(bind))
      put('Username', user)
      put('Password', password)
    }
  }
  for (const { bind, target } of config.clientTunnels ?? []) {
    lines.push('', '[TCPClientTunnel]')
    put('BindAddress', placeText(bind))
    put('Target', placeText(target))
  }
  for (const { port, target } of config.serverTunnels ?? []) {
    lines.push('', '[TCPServerTunnel]')
    put('ListenPort', port)
    put('Target', placeText(target))
  }
  for (const { bind, target } of config.udpTunnels ?? []) {
    lines.push('', '[UDPProxyTunnel]')
    put('BindAddress', placeText(bind))
    put('Target', placeText(target))
  }
  if (config.stdioTarget) {
    lines.push('', '[STDIOTunnel]')
    put('Target', placeText(config.stdioTarget))
  }
  return `${lines.join('\n')}\n`
}
