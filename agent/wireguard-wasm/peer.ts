/** A peer as its host sees it. What was set is kept here too, so that a lost instance can be replaced. */
import { encodeEndpoint, formatIp, parseEndpoint, parsePrefix } from './address.ts'
import type { Endpoint } from './address.ts'
import type { Instance } from './instance.ts'
import { WireGuardError } from './problem.ts'

export const KEY_BYTES = 32
const KEEPALIVE_SECONDS_MAX = 65_535

export interface PeerOptions {
  /** 32 bytes. */
  publicKey: Uint8Array
  /** Prefixes whose packets go to this peer and may come from it; each is one peer's at a time. */
  allowedIps?: readonly string[]
  /** 32 bytes. */
  presharedKey?: Uint8Array | undefined
  /** `192.0.2.1:51820`, `[2001:db8::1]:51820`, or with a path. Learned when it is not given. */
  endpoint?: string | Endpoint | undefined
  /** 0 for none. */
  keepaliveSeconds?: number
  /** Three bytes after the type of each message, which some services use as an identifier. */
  reserved?: Uint8Array
}

/** Members that are there are set, `undefined` clears; allowed IPs replace those that were. */
export type PeerChanges = Omit<PeerOptions, 'publicKey'>

export interface PeerStats {
  receivedBytes: number
  sentBytes: number
  /** By the wall clock; undefined before the first. */
  lastHandshakeMs: number | undefined
  /** Packets that wait for a session. */
  waiting: number
  endpoint: Endpoint | undefined
}

/** What a peer needs of its device. */
export interface PeerDevice {
  apply(peer: Peer, changes: PeerChanges): void
  remove(peer: Peer): void
  connect(peer: Peer): void
  statsOf(peer: Peer): PeerStats
}

/** What is set in the module for a peer. */
export interface PeerState {
  allowed: Set<string>
  presharedKey: Uint8Array | undefined
  /** Record of 32 bytes. */
  endpoint: Uint8Array | undefined
  keepaliveSeconds: number
  reserved: number
}

/** Of a peer that was just made, but for its prefixes. */
export const EMPTY_STATE = {
  presharedKey: undefined,
  endpoint: undefined,
  keepaliveSeconds: 0,
  reserved: 0,
}

export const NO_STATS: PeerStats = {
  receivedBytes: 0,
  sentBytes: 0,
  lastHandshakeMs: undefined,
  waiting: 0,
  endpoint: undefined,
}

export class Peer {
  readonly publicKey: Uint8Array
  /** Its number in packets; another after the instance was replaced, -1 when it was removed. */
  id = -1
  /** The device's. */
  readonly state: PeerState = {
    allowed: new Set(),
    presharedKey: undefined,
    endpoint: undefined,
    keepaliveSeconds: 0,
    reserved: 0,
  }
  readonly #device: PeerDevice

  constructor(publicKey: Uint8Array, device: PeerDevice) {
    this.publicKey = publicKey.slice()
    this.#device = device
  }

  get allowedIps(): string[] {
    return [...this.state.allowed]
  }

  /** Throws `wireguard/key`, `wireguard/address`, `wireguard/peer`; nothing is changed then. */
  update(changes: PeerChanges): void {
    this.#device.apply(this, changes)
  }

  /** Forgets it with its keys, at once. */
  remove(): void {
    this.#device.remove(this)
  }

  /** Starts a handshake now, as a packet to it would. */
  connect(): void {
    this.#device.connect(this)
  }

  stats(): PeerStats {
    return this.#device.statsOf(this)
  }
}

/** What the changes make of a state. Throws `wireguard/key`, `wireguard/address`, `wireguard/peer`. */
export function changed(state: PeerState, changes: PeerChanges): PeerState {
  const next = { ...state }
  if (changes.allowedIps) {
    next.allowed = new Set(changes.allowedIps.map((text) => {
      const { ip, bits } = parsePrefix(text)
      return `${formatIp(masked(ip, bits))}/${bits}`
    }))
  }
  if ('presharedKey' in changes) {
    next.presharedKey = changes.presharedKey &&
      checkKey(changes.presharedKey, 'pre-shared').slice()
  }
  if ('endpoint' in changes) {
    const { endpoint } = changes
    const read = typeof endpoint === 'string' ? parseEndpoint(endpoint) : endpoint
    next.endpoint = read && encodeEndpoint(read)
  }
  if (changes.keepaliveSeconds !== undefined) {
    const seconds = changes.keepaliveSeconds
    if (
      !Number.isInteger(seconds) || seconds < 0 ||
      seconds > KEEPALIVE_SECONDS_MAX
    ) {
      throw new WireGuardError(
        'wireguard/peer',
        `Cannot set a keepalive: found ${seconds}, expected 0 to ${KEEPALIVE_SECONDS_MAX} seconds`,
      )
    }
    next.keepaliveSeconds = seconds
  }
  if (changes.reserved) {
    const [a = 0, b = 0, c = 0] = changes.reserved
    next.reserved = a | b << 8 | c << 16
  }
  return next
}

/** Brings the module from what was set to what is to be. */
export function bring(
  { call, scratch }: Instance,
  { id, before, next, times }: {
    id: number
    before: PeerState
    next: PeerState
    /** Of both clocks. */
    times: readonly [number, number]
  },
): void {
  const prefix = (name: string, text: string): void => {
    const { ip, bits } = parsePrefix(text)
    scratch.set(ip)
    call[name]!(id, ip.length === 4 ? 4 : 6, bits)
  }
  for (const text of before.allowed) if (!next.allowed.has(text)) prefix('wg_disallow', text)
  for (const text of next.allowed) if (!before.allowed.has(text)) prefix('wg_allow', text)
  if (next.presharedKey !== before.presharedKey) {
    scratch.fill(0, 0, KEY_BYTES)
    if (next.presharedKey) scratch.set(next.presharedKey)
    call['wg_set_psk']!(id)
  }
  if (next.reserved !== before.reserved) call['wg_set_reserved']!(id, next.reserved)
  if (next.endpoint !== before.endpoint) {
    if (next.endpoint) scratch.set(next.endpoint)
    call[next.endpoint ? 'wg_set_endpoint' : 'wg_clear_endpoint']!(id, ...times)
  }
  if (next.keepaliveSeconds !== before.keepaliveSeconds) {
    call['wg_set_keepalive']!(id, next.keepaliveSeconds, ...times)
  }
}

/** Throws `wireguard/key`. */
export function checkKey(key: Uint8Array, which: string): Uint8Array {
  if (key.length === KEY_BYTES) return key
  throw new WireGuardError(
    'wireguard/key',
    `Cannot use a ${which} key: found ${key.length} bytes, expected ${KEY_BYTES}`,
  )
}

function masked(ip: Uint8Array, bits: number): Uint8Array {
  return ip.map((byte, i) => byte & (0xff00 >> Math.max(0, Math.min(8, bits - i * 8))))
}
