/**
 * Checks of the way to the relay, from the name to being let in. Each asks by itself, through the proxy
 * where there is one, so that a failure in the middle is seen beside what still works. Nothing secret is
 * sent but where the relay has proven its identity.
 */
import { utf8 } from '../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import { formatKey } from '../core/key.ts'
import { compareVersions } from '../core/release.ts'
import type { Conn } from '../core/socket.ts'
import type { Check, Finding } from './doctor.ts'
import { fail, failed, ok, skipped, warning } from './doctor.ts'
import { enquire } from './enquiry.ts'
import { hostOf, join } from './join.ts'
import type { RelayChoice } from './join.ts'
import { isLoopback } from './loopback.ts'
import {
  connectClearOut,
  connectDuplexOut,
  connectOut,
  connectTlsOut,
  environmentCa,
  openLinkOut,
  readCa,
} from './outward.ts'
import type { OutTarget } from './outward.ts'
import { Profile } from './profile.ts'
import { describeProxy, proxyFor } from './proxy.ts'
import type { Proxy } from './proxy.ts'
import { exchangeOnce, parseResponse } from './relay_api.ts'
import type { Answer } from './relay_api.ts'
import { VERSION } from './version.ts'
import type { NetAddress, World } from './world.ts'

const CONNECT_MS = 6_000
const EXCHANGE_MS = 6_000
const ANSWER_BYTES_MAX = 262_144
/** More than one packet on any path; less than a relay takes of a head. */
const LARGE_BYTES = 6_000
/** A server that refuses says so sooner. */
const SILENCE_MS_MIN = 2_000
const SKEW_MS_WARN = 10_000
const SKEW_MS_MAX = 120_000
/** RFC 8200 §5: what every path of IPv6 carries. */
const MTU_MIN = 1280
const DAY_MS = 86_400_000
const EXPIRY_MS_WARN = 7 * DAY_MS

export interface RelayChecks {
  relay: URL
  choice: RelayChoice
}

export function relayChecks(world: World, { relay, choice }: RelayChecks): Check[] {
  const secure = relay.protocol === 'https:'
  const host = hostOf(relay)
  const target = { host, port: Number(relay.port) || (secure ? 443 : 80) }
  const way: Way = { world, relay, target, secure, choice, proxy: undefined }
  try {
    way.proxy = proxyFor(world.env, { ...target, secure })
  } catch (error) {
    const found = failed(error)
    return [{ name: 'proxy', title: 'proxy', run: () => Promise.resolve(found) }]
  }
  // Asked once, by whichever check comes first.
  let asked: Promise<Reached> | undefined
  const reached = (): Promise<Reached> => asked ??= reach(way)
  // One failure is told once, not by all that needs what failed.
  const whenOpen = (run: (way: Way) => Promise<Finding>) => async (way: Way): Promise<Finding> =>
    (await reached()).open ? await run(way) : skipped('the relay is not reached')
  let shown: Promise<Finding> | undefined
  const tls = (): Promise<Finding> => shown ??= checkTls(way)
  const whenTls = (run: (way: Way) => Promise<Finding>) =>
    whenOpen(async (way) => {
      const came = await tls().then(() => true, () => false)
      return came ? await run(way) : skipped('TLS does not come about')
    })
  const steps: [string, string, (way: Way) => Promise<Finding>][] = [
    ['proxy', 'proxy', checkProxy],
    ['dns', 'DNS', async () => (await reached()).dns],
    ['tcp', 'TCP', async () => (await reached()).tcp],
    ['ipv6', 'IPv6', checkIpv6],
    ['tls', 'TLS', whenOpen(tls)],
    ['http', 'relay', whenTls(checkHttp)],
    ['websocket', 'WebSocket', whenTls(checkWebSocket)],
    ['clock', 'clock', whenTls(checkClock)],
    ['mtu', 'MTU', whenOpen(checkMtu)],
    ['version', 'version', whenTls(checkVersion)],
    ['admission', 'admission', whenTls(checkAdmission)],
  ]
  return steps.map(([name, title, run]) => ({ name, title, run: () => run(way) }))
}

interface Way {
  world: World
  relay: URL
  target: OutTarget
  secure: boolean
  choice: RelayChoice
  proxy: Proxy | undefined
}

/** Whether there is somebody to ask; each finding says its own part of why not. */
async function reach(way: Way): Promise<Reached> {
  const { world, target, secure, proxy } = way
  let names: readonly NetAddress[] | undefined
  const place = `${target.host}:${target.port}`
  if (!proxy && !isAddress(target.host)) {
    try {
      names = await world.probes.resolve(target.host)
    } catch (error) {
      const { code } = asTunnelError(error, 'net/unknown-host')
      const dns = fail(
        `${target.host} has no address`,
        `Check the name, and the DNS server of this machine: nslookup ${target.host}`,
        { code },
      )
      return { dns, tcp: skipped('there is no address to connect to'), open: false }
    }
  }
  const list = names?.map(({ address }) => address) ?? []
  const dns = proxy
    ? skipped('the proxy resolves names')
    : names
    ? ok(`${target.host} is ${list.slice(0, 4).join(', ')}`, { addresses: list })
    : skipped(`${target.host} is an address`)
  const started = world.clock.monotonic()
  try {
    const conn = await (secure ? connectOut(world, target) : connectClearOut(world, target))
    conn.abort()
    const ms = Math.round(world.clock.monotonic() - started)
    return { dns, tcp: ok(`${place} answers in ${ms} ms`, { ms }), open: true }
  } catch (error) {
    const { message, code, hint } = asTunnelError(error, 'net/failed')
    const remedy = hint ??
      (code === 'net/refused'
        ? `Start the relay, or check the port in ${place}.`
        : `A firewall between here and ${place} may drop it; try another network.`)
    return { dns, tcp: fail(message, remedy, { code }), open: false }
  }
}

interface Reached {
  dns: Finding
  tcp: Finding
  open: boolean
}

function checkProxy({ proxy }: Way): Promise<Finding> {
  const words = proxy && describeProxy(proxy)
  return Promise.resolve(ok(words ?? 'none on the way', { proxy: words ?? null }))
}

async function checkIpv6({ world, target }: Way): Promise<Finding> {
  const own = world.probes.interfaces()
    .filter(({ family, internal, address }) => family === 6 && !internal && /^[23]/.test(address))
  let remote: NetAddress | undefined
  try {
    remote = (await world.probes.resolve(target.host)).find(({ family }) => family === 6)
  } catch {
    // DNS says it.
  }
  if (!remote) {
    return ok(
      own.length === 0 ? 'not used: neither here nor at the relay' : 'here; not at the relay',
      { own: own.length > 0, relay: false },
    )
  }
  if (own.length === 0 && remote.address !== '::1') {
    return ok('the relay has it, this machine not; IPv4 is used', { own: false, relay: true })
  }
  try {
    const conn = await world.net.connect({
      host: remote.address,
      port: target.port,
      timeoutMs: CONNECT_MS,
    })
    conn.abort()
    return ok(`${remote.address} answers`, { own: true, relay: true })
  } catch (error) {
    if (isLoopback(target.host)) return ok('not used by the relay on this machine')
    return warning(
      `the relay does not answer over IPv6: ${asTunnelError(error, 'net/failed').message}`,
      'Connections begin slower. Mend the route, or take the AAAA record away.',
    )
  }
}

async function checkTls(way: Way): Promise<Finding> {
  const { world, target, secure, choice } = way
  if (!secure) return skipped('the relay on this machine speaks http')
  const ca = choice.ca ? await readCa(world, choice.ca, '--ca') : await environmentCa(world)
  const carrier = await connectDuplexOut(world, target)
  const { version, problem, certificates } = await world.probes.tlsChain(carrier, {
    servername: target.host,
    timeoutMs: CONNECT_MS,
    ...(ca ? { ca } : {}),
  })
  const leaf = certificates[0]
  const facts = { tls: version, problem: problem ?? null, certificates }
  if (!leaf) return fail('the server shows no certificate', 'Is it a relay?', facts)
  const nowMs = world.clock.now()
  const day = new Date(leaf.notAfterMs).toISOString().slice(0, 10)
  if (problem === undefined) {
    const issuer = certificates.at(-1)?.issuer || leaf.issuer
    const words = `${version}, vouched for by ${issuer}, until ${day}`
    return leaf.notAfterMs - nowMs < EXPIRY_MS_WARN
      ? warning(words, 'It ends soon: see that the relay renews it.', facts)
      : ok(words, facts)
  }
  if (nowMs < leaf.notBeforeMs || nowMs > leaf.notAfterMs) {
    const from = new Date(leaf.notBeforeMs).toISOString().slice(0, 10)
    return fail(
      `its certificate holds from ${from} until ${day}, and it is ${
        new Date(nowMs).toISOString().slice(0, 10)
      } here`,
      'Set the clock of this machine, or renew the certificate of the relay.',
      facts,
    )
  }
  const names = leaf.names.join(', ') || leaf.subject
  if (/ALTNAME|Hostname|does not match/i.test(problem)) {
    return fail(
      `the certificate is for ${names}, not for ${target.host}`,
      'Use the name that the certificate has, or have the relay get one for this name.',
      facts,
    )
  }
  const pinned = choice.fingerprint !== undefined ||
    (await new Profile(world).knownRelays().find(way.relay.host)).length > 0
  if (pinned || isLoopback(target.host)) {
    return ok(`${version}, self-signed; the relay's pinned identity vouches for it`, facts)
  }
  return fail(
    `no CA vouches for the certificate of ${names}, from ${leaf.issuer || 'itself'} (${problem})`,
    'Pin the relay by --relay-fingerprint SHA256:…, or name its CA by --ca PATH. On a strange network, somebody may be reading along.',
    facts,
  )
}

async function checkHttp(way: Way): Promise<Finding> {
  const { status, body } = await get(way, '/v1/relay')
  const said = facts(body)
  if (status === 200 && typeof said['fingerprint'] === 'string') {
    return ok(`sotto ${said['version']} on ${said['runtime']}, ${said['fingerprint']}`, said)
  }
  return fail(
    `what answers is no relay: HTTP status ${status}`,
    `Something else listens at ${way.relay.origin}, or a portal of the network answers in its place.`,
    { status },
  )
}

async function checkWebSocket({ world, relay, choice }: Way): Promise<Finding> {
  const { crypto } = world
  // Nobody's: the upgrade is answered before anything is proven.
  const key = formatKey(crypto.ed25519Public(crypto.randomBytes(32)))
  const url = `${relay.origin.replace(/^http/, 'ws')}/v1/link/${key}`
  const ca = choice.ca ? await readCa(world, choice.ca, '--ca') : undefined
  try {
    const { socket } = await openLinkOut(world, url, {
      trust: 'admission',
      timeoutMs: CONNECT_MS,
      ...(ca ? { ca } : {}),
    })
    socket.terminate()
    return ok('the upgrade is answered')
  } catch (error) {
    return failed(
      error,
      'A proxy or firewall may not let WebSockets pass; try another network, or port 443.',
    )
  }
}

async function checkClock(way: Way): Promise<Finding> {
  const { clock } = way.world
  const before = clock.now()
  const { fields } = await get(way, '/healthz')
  const middle = (before + clock.now()) / 2
  const date = Date.parse(fields.get('date') ?? '')
  if (!Number.isFinite(date)) return skipped('the relay does not say what time it is')
  // The header counts whole seconds, cut off.
  const skewMs = Math.round(middle - date - 500)
  const seconds = Math.round(Math.abs(skewMs) / 1000)
  const words = `${seconds} s ${skewMs > 0 ? 'ahead of' : 'behind'} the relay`
  if (Math.abs(skewMs) < SKEW_MS_WARN) return ok('as the relay has it', { skewMs })
  const remedy = 'Set the clock of this machine, or of the relay: timedatectl set-ntp true'
  return Math.abs(skewMs) < SKEW_MS_MAX
    ? warning(words, remedy, { skewMs })
    : fail(words, remedy, { skewMs })
}

async function checkMtu(way: Way): Promise<Finding> {
  const { world, target, proxy } = way
  let mtu: number | undefined
  if (!proxy) {
    const [first] = await world.probes.resolve(target.host).catch(() => [])
    mtu = first && await world.probes.pathMtu(first)
  }
  const vanish = fail(
    'small packets pass, large ones vanish',
    'A smaller MTU helps: ip link set dev DEVICE mtu 1280. On a router: clamp the MSS to the path MTU.',
    { mtu: mtu ?? null },
  )
  const started = world.clock.monotonic()
  try {
    await get(way, '/healthz')
  } catch (error) {
    // The first words of TLS fill more than a packet by themselves, with the keys of ML-KEM in them.
    const isLate = world.clock.monotonic() - started > SILENCE_MS_MIN
    if (
      isLate && isTunnelError(error) && error.code.startsWith('tls/') && await answersLittle(way)
    ) {
      return vanish
    }
    return skipped('the relay does not answer')
  }
  try {
    await get(way, '/healthz', { 'x-sotto-doctor': 'x'.repeat(LARGE_BYTES) })
  } catch (error) {
    if (isTunnelError(error, 'doctor/silence')) return vanish
    throw error
  }
  if (mtu !== undefined && mtu < MTU_MIN) {
    return warning(`packets of ${mtu} bytes`, `Direct paths want ${MTU_MIN}.`, { mtu })
  }
  return ok(
    mtu === undefined ? 'large packets pass' : `packets of ${mtu} bytes, large ones pass`,
    { mtu: mtu ?? null },
  )
}

async function checkVersion(way: Way): Promise<Finding> {
  const said = facts((await get(way, '/v1/relay')).body)
  const relayVersion = typeof said['version'] === 'string' ? said['version'] : undefined
  // Which is said here is checked by its signature when it is installed.
  const signature = await get(way, '/download/SHA256SUMS.minisig')
  const offered = signature.status === 200
    ? /^trusted comment: sotto (\S{1,64})$/m.exec(new TextDecoder().decode(signature.body))?.[1]
    : undefined
  const known = { version: VERSION, relay: relayVersion ?? null, offered: offered ?? null }
  if (offered !== undefined && isNewer(offered)) {
    return warning(`${VERSION}; the relay offers ${offered}`, 'sotto update', known)
  }
  if (relayVersion !== undefined && isNewer(relayVersion)) {
    return warning(`${VERSION}; the relay runs ${relayVersion}`, 'Update this agent.', known)
  }
  return ok(`${VERSION}; the relay runs ${relayVersion ?? 'an unknown one'}`, known)
}

function isNewer(version: string): boolean {
  try {
    return compareVersions(version, VERSION) > 0
  } catch {
    return false
  }
}

async function checkAdmission({ world, choice }: Way): Promise<Finding> {
  const profile = new Profile(world)
  if (!await world.files.info(profile.identityPath)) {
    return skipped('no identity yet', 'The first tunnel makes one.')
  }
  const joining = await join(world, choice, () => {})
  try {
    const scope = await enquire(world, joining, ({ up }) => Promise.resolve(up?.welcome.scope))
    return ok(`let in${scope === undefined ? '' : `, to the scope ${scope}`}`, { scope })
  } catch (error) {
    return failed(error)
  }
}

/** One GET over a connection of its own; whoever answers is not believed for anything. */
async function get(
  way: Way,
  path: string,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const { world, target, secure, relay } = way
  const conn: Conn = secure
    ? await connectTlsOut(world, target, {
      servername: target.host,
      alpn: ['http/1.1'],
      verify: () => {},
      timeoutMs: CONNECT_MS,
    })
    : await connectClearOut(world, target)
  const lines = [
    `GET ${path} HTTP/1.1`,
    `Host: ${relay.host}`,
    'Connection: close',
    `User-Agent: sotto/${VERSION}`,
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
  ]
  const { received } = await exchangeOnce(conn, utf8(`${lines.join('\r\n')}\r\n\r\n`), {
    clock: world.clock,
    ms: EXCHANGE_MS,
    bytesMax: ANSWER_BYTES_MAX,
  })
  if (received.length === 0) {
    throw new TunnelError('doctor/silence', `Cannot ask ${relay.host}: no answer came`, {
      hint: 'It closed the connection, or packets are lost on the way.',
    })
  }
  return parseResponse(received, relay.host)
}

/** Whether a few bytes that are no TLS get any answer, be it the end. */
async function answersLittle({ world, target }: Way): Promise<boolean> {
  const conn = await connectOut(world, target)
  return await new Promise((resolve) => {
    const done = (answered: boolean): void => {
      late.cancel()
      conn.abort()
      resolve(answered)
    }
    const late = world.clock.after(EXCHANGE_MS, () => done(false))
    conn.handle({ data: () => done(true), end: () => done(true), closed: () => done(true) })
    conn.write(utf8('GET / HTTP/1.0\r\n\r\n'))
  })
}

function facts(body: Uint8Array): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(body))
    return typeof value === 'object' && value !== null ? value as Record<string, unknown> : {}
  } catch {
    return {}
  }
}

function isAddress(host: string): boolean {
  return /^\d+\.\d+\.\d+\.\d+$/.test(host) || host.includes(':')
}
