/**
 * The agreement on a WireGuard tunnel, inside a session of service `wg`: keys, addresses, routes and
 * ways, so that nobody between the two identities can put a key of their own in the place of one.
 *
 *   propose  client, first    version 2 (1), key 32, nonce 32, channel 16, taken networks1, endpoints
 *   agreed   server           key 32, nonce 32, IPv4 4, bits 1, IPv6 16, bits 1, relay MTU 2,
 *                             direct MTU 2, DNS count 1 (0 to 4) and addresses, routes networks2,
 *                             endpoints
 *   refused  server, last     reason 1, words text8
 *   renew    client           nonce 32
 *   renewed  server           nonce 32
 *
 * networks1, networks2: a count of 1 or 2 bytes, then each a family 1 (4 or 6), bits 1, the address,
 * whose bits beyond are zero; strictly ascending as bytes. endpoints: count 1 (0 to 16), then each a
 * family 1, the address, port 2; the preferred first, none twice. An address is a family 1 and 4 or
 * 16 bytes. Each message is an envelope (§10) on the session's only stream; one set of facts has one
 * encoding. Integers are big-endian. docs/protocol.md §17.
 */
import { formatAddress, isWithin, type Network } from './address.ts'
import { ByteReader, ByteWriter, concat, utf8 } from './bytes.ts'
import { KEY_BYTES } from './crypto.ts'
import { encodeEnvelope, EnvelopeReader, type EnvelopeSizes } from './envelope.ts'
import { asTunnelError, TunnelError } from './errors.ts'

// Specification constants.
export const AGREEMENT_VERSION = 1
export const AGREEMENT_NONCE_BYTES = 32
export const AGREEMENT_CHANNEL_BYTES = 16
export const AGREEMENT_PSK_BYTES = 32
export const TAKEN_MAX = 32
export const ROUTES_MAX = 256
export const ENDPOINTS_MAX = 16
export const DNS_MAX = 4
/** Of packets inside the tunnel: what IPv6 demands, and what one datagram of a frame carries. */
export const MTU_MIN = 1280
export const MTU_MAX = 65_400
const PSK_LABEL = 'wireguard psk'

/** Every message with its body's fields; numbers are never reused. */
export const AGREEMENT = Object.freeze({
  propose: 0x30, // version, key, nonce, channel, taken networks, endpoints; client, first
  agreed: 0x31, // key, nonce, addresses, MTUs, DNS, routes, endpoints; server
  refused: 0x32, // reason 1, words text8; server, its last
  renew: 0x33, // nonce 32; client
  renewed: 0x34, // nonce 32; server
})

export type AgreementName = keyof typeof AGREEMENT

/** Why a server refuses; retired numbers stay. */
export const REFUSAL = Object.freeze({
  version: 1, // it speaks another version
  full: 2, // it has no address left, or as many members as it takes
  subnet: 3, // its networks cannot be told from those of the client
  order: 4, // a message that cannot be read, or has no place
  revoked: 5, // its owner has taken the right back
  fault: 6, // anything else
})

export type RefusalName = keyof typeof REFUSAL

/** Where WireGuard datagrams may be sent to directly. */
export interface TunnelEndpoint {
  /** 4 or 16. */
  address: Uint8Array
  port: number
}

export interface Proposal {
  kind: 'propose'
  /** WireGuard public key of the client, 32 bytes. */
  key: Uint8Array
  nonce: Uint8Array
  /** 16 bytes: names the packet channel that the client opens over the relay. */
  channel: Uint8Array
  /** IPv4 networks of 100.64.0.0/10 and below that the client's machine has already. */
  taken: Network[]
  endpoints: TunnelEndpoint[]
}

export interface Agreed {
  kind: 'agreed'
  /** WireGuard public key of the server, 32 bytes. */
  key: Uint8Array
  nonce: Uint8Array
  /** The client's own address, and how long the prefix of its network is. */
  address4: Network
  address6: Network
  /** Of packets inside, where the relay carries the datagrams, and where UDP does. */
  relayMtu: number
  directMtu: number
  /** Resolvers inside the tunnel, 4 or 16 bytes each. */
  dns: Uint8Array[]
  /** What the server lets the client reach. */
  routes: Network[]
  endpoints: TunnelEndpoint[]
}

export interface Refused {
  kind: 'refused'
  reason: RefusalName
  /** For people. */
  words: string
}

export interface Renewal {
  kind: 'renew' | 'renewed'
  nonce: Uint8Array
}

export type AgreementMessage = Proposal | Agreed | Refused | Renewal

const NETWORK_BYTES_MAX = 18
const ENDPOINT_BYTES_MAX = 19
const PROPOSE_BYTES_MIN = 2 + KEY_BYTES + AGREEMENT_NONCE_BYTES + AGREEMENT_CHANNEL_BYTES + 2
const AGREED_BYTES_MIN = KEY_BYTES + AGREEMENT_NONCE_BYTES + 5 + 17 + 4 + 1 + 2 + 1

const SIZES: EnvelopeSizes = new Map([
  [AGREEMENT.propose, [
    PROPOSE_BYTES_MIN,
    PROPOSE_BYTES_MIN + TAKEN_MAX * NETWORK_BYTES_MAX + ENDPOINTS_MAX * ENDPOINT_BYTES_MAX,
  ]],
  [AGREEMENT.agreed, [
    AGREED_BYTES_MIN,
    AGREED_BYTES_MIN + DNS_MAX * 17 + ROUTES_MAX * NETWORK_BYTES_MAX +
    ENDPOINTS_MAX * ENDPOINT_BYTES_MAX,
  ]],
  [AGREEMENT.refused, [2, 257]],
  [AGREEMENT.renew, [AGREEMENT_NONCE_BYTES, AGREEMENT_NONCE_BYTES]],
  [AGREEMENT.renewed, [AGREEMENT_NONCE_BYTES, AGREEMENT_NONCE_BYTES]],
])

/**
 * One whole envelope. Networks are put in order. Throws `agreement/…` on what `decodeAgreement`
 * would refuse.
 */
export function encodeAgreement(message: AgreementMessage): Uint8Array {
  const writer = new ByteWriter(256)
  if (message.kind === 'propose') {
    writer.u16(AGREEMENT_VERSION).bytes(message.key).bytes(message.nonce).bytes(message.channel)
    writeNetworks(writer.u8(message.taken.length), message.taken)
    writeEndpoints(writer, message.endpoints)
  } else if (message.kind === 'agreed') {
    const { address4, address6, dns } = message
    writer.bytes(message.key).bytes(message.nonce)
    writer.bytes(address4.bytes).u8(address4.bits).bytes(address6.bytes).u8(address6.bits)
    writer.u16(message.relayMtu).u16(message.directMtu).u8(dns.length)
    for (const address of dns) writer.u8(familyOf(address)).bytes(address)
    writeNetworks(writer.u16(message.routes.length), message.routes)
    writeEndpoints(writer, message.endpoints)
  } else if (message.kind === 'refused') {
    writer.u8(REFUSAL[message.reason]).text8(cut(message.words))
  } else writer.bytes(message.nonce)
  const body = writer.done()
  decodeAgreement(AGREEMENT[message.kind], body)
  return encodeEnvelope(AGREEMENT[message.kind], body)
}

/**
 * The message of one envelope. Arrays are copies. Throws `agreement/truncated`, `agreement/trailing`,
 * `agreement/envelope`, `agreement/version`, `agreement/key`, `agreement/network`,
 * `agreement/address`, `agreement/endpoint`, `agreement/mtu`, `agreement/reason`, `bytes/utf8`.
 */
export function decodeAgreement(type: number, body: Uint8Array): AgreementMessage {
  const bounds = SIZES.get(type)
  if (!bounds || body.length > bounds[1]) {
    throw wrong('envelope', `type ${type} with ${body.length} bytes`, 'one of the table')
  }
  const reader = new ByteReader(Uint8Array.from(body), 'agreement', 'the agreement')
  const message = read(type, reader)
  reader.end()
  return message
}

function read(type: number, reader: ByteReader): AgreementMessage {
  if (type === AGREEMENT.propose) return readProposal(reader)
  if (type === AGREEMENT.agreed) return readAgreed(reader)
  if (type === AGREEMENT.refused) {
    const number = reader.u8()
    const reason = Object.entries(REFUSAL).find(([, one]) => one === number)?.[0]
    if (reason === undefined) throw wrong('reason', `reason ${number}`, 'one of the table')
    return { kind: 'refused', reason: reason as RefusalName, words: reader.text8() }
  }
  const kind = type === AGREEMENT.renew ? 'renew' : 'renewed'
  return { kind, nonce: reader.bytes(AGREEMENT_NONCE_BYTES) }
}

function readProposal(reader: ByteReader): Proposal {
  const version = reader.u16()
  if (version !== AGREEMENT_VERSION) {
    throw wrong('version', `version ${version}`, `version ${AGREEMENT_VERSION}`)
  }
  return {
    kind: 'propose',
    key: readKey(reader),
    nonce: reader.bytes(AGREEMENT_NONCE_BYTES),
    channel: reader.bytes(AGREEMENT_CHANNEL_BYTES),
    taken: readNetworks(reader, reader.u8(), TAKEN_MAX),
    endpoints: readEndpoints(reader),
  }
}

function readAgreed(reader: ByteReader): Agreed {
  const key = readKey(reader)
  const nonce = reader.bytes(AGREEMENT_NONCE_BYTES)
  const address4 = readOwn(reader, 4)
  const address6 = readOwn(reader, 16)
  const [relayMtu, directMtu] = [reader.u16(), reader.u16()]
  for (const mtu of [relayMtu, directMtu]) {
    if (mtu >= MTU_MIN && mtu <= MTU_MAX) continue
    throw wrong('mtu', `an MTU of ${mtu}`, `${MTU_MIN} to ${MTU_MAX}`)
  }
  const count = reader.u8()
  if (count > DNS_MAX) throw wrong('address', `${count} resolvers`, `at most ${DNS_MAX}`)
  const dns = Array.from({ length: count }, () => readAddress(reader))
  const routes = readNetworks(reader, reader.u16(), ROUTES_MAX)
  const endpoints = readEndpoints(reader)
  return {
    kind: 'agreed',
    key,
    nonce,
    address4,
    address6,
    relayMtu,
    directMtu,
    dns,
    routes,
    endpoints,
  }
}

function readKey(reader: ByteReader): Uint8Array {
  const key = reader.bytes(KEY_BYTES)
  // The one key that every exchange with it ends in zeros; WireGuard itself refuses the others.
  if (key.every((byte) => byte === 0)) throw wrong('key', 'a key of zeros', 'a public key')
  return key
}

/** Private alone (RFC 6598, RFC 1918, RFC 4193): a server must not hand out the addresses of others. */
const PRIVATE: readonly Network[] = [
  { bytes: Uint8Array.of(100, 64, 0, 0), bits: 10 },
  { bytes: Uint8Array.of(10, 0, 0, 0), bits: 8 },
  { bytes: Uint8Array.of(172, 16, 0, 0), bits: 12 },
  { bytes: Uint8Array.of(192, 168, 0, 0), bits: 16 },
]

function readOwn(reader: ByteReader, length: 4 | 16): Network {
  const bytes = reader.bytes(length)
  const bits = reader.u8()
  const fits = length === 4
    ? isWithin(formatAddress(bytes), PRIVATE) && bits >= 12 && bits <= 30
    : bytes[0] === 0xfd && bits >= 48 && bits <= 126
  if (fits) return { bytes, bits }
  const found = `${formatAddress(bytes)}/${bits}`
  throw wrong('address', found, 'a private one, of 100.64.0.0/10 or of fd00::/8')
}

function familyOf(address: Uint8Array): number {
  if (address.length === 4) return 4
  if (address.length === 16) return 6
  throw wrong('address', `${address.length} bytes`, '4 or 16')
}

function readAddress(reader: ByteReader): Uint8Array {
  const family = reader.u8()
  if (family === 4) return reader.bytes(4)
  if (family === 6) return reader.bytes(16)
  throw wrong('address', `family ${family}`, '4 or 6')
}

function networkBytes({ bytes, bits }: Network): Uint8Array {
  return new ByteWriter(18).u8(familyOf(bytes)).u8(bits).bytes(bytes).done()
}

function writeNetworks(writer: ByteWriter, networks: readonly Network[]): void {
  for (const bytes of networks.map(networkBytes).sort(compareBytes)) writer.bytes(bytes)
}

function readNetworks(reader: ByteReader, count: number, most: number): Network[] {
  if (count > most) throw wrong('network', `${count} networks`, `at most ${most}`)
  let before: Uint8Array | undefined
  return Array.from({ length: count }, () => {
    const family = reader.u8()
    const bits = reader.u8()
    const length = family === 4 ? 4 : 16
    if ((family !== 4 && family !== 6) || bits > 8 * length) {
      throw wrong('network', `/${bits} of family ${family}`, 'a network')
    }
    const network = { bytes: reader.bytes(length), bits }
    if (!isMasked(network)) throw wrong('network', 'bits beyond the prefix', 'zeros')
    const encoded = networkBytes(network)
    if (before && compareBytes(before, encoded) >= 0) {
      throw wrong('network', 'networks out of order', 'them strictly ascending')
    }
    before = encoded
    return network
  })
}

function isMasked({ bytes, bits }: Network): boolean {
  return bytes.every((byte, i) => (byte & (0xff >> Math.min(8, Math.max(0, bits - 8 * i)))) === 0)
}

function writeEndpoints(writer: ByteWriter, endpoints: readonly TunnelEndpoint[]): void {
  writer.u8(endpoints.length)
  for (const { address, port } of endpoints) {
    writer.u8(familyOf(address)).bytes(address).u16(port)
  }
}

function readEndpoints(reader: ByteReader): TunnelEndpoint[] {
  const count = reader.u8()
  if (count > ENDPOINTS_MAX) {
    throw wrong('endpoint', `${count} endpoints`, `at most ${ENDPOINTS_MAX}`)
  }
  const seen = new Set<string>()
  return Array.from({ length: count }, () => {
    const address = readAddress(reader)
    const port = reader.u16()
    const words = `${address.join('.')}:${port}`
    if (port === 0 || seen.has(words)) throw wrong('endpoint', words, 'a port, and none twice')
    seen.add(words)
    return { address, port }
  })
}

function compareBytes(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    if (a[i] !== b[i]) return a[i]! - b[i]!
  }
  return a.length - b.length
}

/** At most 255 bytes, whole characters. */
function cut(words: string): string {
  let short = words
  while (utf8(short).length > 255) short = short.slice(0, -1)
  return short
}

/** Reads the messages of one direction, in whatever pieces they come. */
export class AgreementReader {
  readonly #reader = new EnvelopeReader(SIZES)

  /** Throws `agreement/envelope`, and what `decodeAgreement` throws; it is of no use after that. */
  push(chunk: Uint8Array): AgreementMessage[] {
    const messages: AgreementMessage[] = []
    this.#reader.push(chunk)
    for (let envelope = this.#next(); envelope; envelope = this.#next()) {
      messages.push(decodeAgreement(envelope.type, envelope.body))
    }
    return messages
  }

  #next(): ReturnType<EnvelopeReader['next']> {
    try {
      return this.#reader.next()
    } catch (cause) {
      const { message } = asTunnelError(cause, 'agreement/envelope')
      throw new TunnelError('agreement/envelope', message, { cause })
    }
  }
}

/**
 * The pre-shared key: 32 bytes that the session alone can make, fresh with each pair of nonces, so
 * that a recorded tunnel stays closed to whoever breaks X25519 later (the session is hybrid).
 */
export function agreementPsk(
  session: { exporter(label: string, context: Uint8Array, bytes: number): Uint8Array },
  { client, server, clientNonce, serverNonce }: {
    /** WireGuard public keys. */
    client: Uint8Array
    server: Uint8Array
    clientNonce: Uint8Array
    serverNonce: Uint8Array
  },
): Uint8Array {
  const context = concat(client, server, clientNonce, serverNonce)
  return session.exporter(PSK_LABEL, context, AGREEMENT_PSK_BYTES)
}

function wrong(reason: string, found: string, expected: string): TunnelError {
  return new TunnelError(
    `agreement/${reason}`,
    `Cannot read the agreement on a tunnel: found ${found}, expected ${expected}`,
  )
}
