/**
 * What passes between an interface of this machine and a private network. The far end may send whatever
 * it likes; in come only answers to what this machine has sent, to the address that was leased to it, and
 * what was asked for by its port. Nothing is put together and nothing is kept but of UDP and echoes who
 * was written to, in a table of fixed size.
 *
 *   in:   own destination · a source that is routed here, and no martian · no fragment, option or extension
 *         TCP    anything but the opening of a connection
 *         UDP    from where this machine has sent to, from that port, within 5 minutes
 *         ICMP   replies to our echoes; errors (unreachable, too big, time, parameter) about packets of ours
 *   out:  own source, and a destination that is routed
 */
import { sharesBits } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'

/** RFC 4787 REQ-5. */
const FLOW_MS = 300_000
/** Rows of flows, each with four places; the oldest of a row makes room. */
const ROWS = 4_096
const PLACES = 4
/** Protocol and both ports in two words, the far address in four, when it was used last. */
const WORDS = 7

export const TCP = 6
export const UDP = 17
const ICMP_FOUR = 1
const ICMP_SIX = 58
const SYN = 0x02
const RST = 0x04
const ACK = 0x10
const HEAD_FOUR = 20
const HEAD_SIX = 40
const ERRORS_FOUR = [3, 11, 12]
const ERRORS_SIX = [1, 2, 3, 4]
const ECHO = { request: [8, 128], reply: [0, 129] }

/** Why a packet was dropped. */
export const GUARD_REASONS = ['malformed', 'source', 'destination', 'kind', 'unasked'] as const
export type GuardReason = (typeof GUARD_REASONS)[number]

export interface GuardOptions {
  /** Our addresses in the network, 4 or 16 bytes. */
  own: readonly Uint8Array[]
  /** What is routed into the network, with its own subnets. */
  routes: readonly Network[]
  /** Ports of TCP and UDP of this machine that others may open; `all` lets echoes in as well. */
  accept: ReadonlySet<number> | 'all'
  /** Milliseconds of a steady clock. */
  now(): number
  /** Nobody outside can tell it. */
  seed: number
}

export class PacketGuard {
  readonly counts: Record<GuardReason, number> = {
    malformed: 0,
    source: 0,
    destination: 0,
    kind: 0,
    unasked: 0,
  }
  #options: GuardOptions
  #avoided: { bytes: Uint8Array; port: number } | undefined
  readonly #flows = new Uint32Array(ROWS * PLACES * WORDS)
  readonly #probe = new Uint32Array(WORDS)

  constructor(options: GuardOptions) {
    this.#options = options
  }

  /** Other addresses or routes; whom this machine has written to stays. */
  set(changes: Pick<GuardOptions, 'own' | 'routes'>): void {
    this.#options = { ...this.#options, ...changes }
  }

  /** Where the tunnel's own datagrams go: those are not carried by the tunnel. */
  avoid(place: { bytes: Uint8Array; port: number } | undefined): void {
    this.#avoided = place
  }

  /**
   * Of the machine: `pass`, `drop`, or `unroutable` where the network does not lead there. Bounds are the
   * caller's: `at` and `length` lie within `bytes`.
   */
  out(bytes: Uint8Array, at: number, length: number): 'pass' | 'drop' | 'unroutable' {
    const family = familyOf(bytes, at, length)
    if (family === 0) return this.#drop('malformed')
    const [source, destination, size] = family === 4 ? [12, 16, 4] : [8, 24, 16]
    if (!this.#isOwn(bytes, at + source, size)) return this.#drop('source')
    if (isMulticast(bytes, at + destination, size)) return this.#drop('destination')
    if (!this.#isRouted(bytes, at + destination, size)) return 'unroutable'
    const [protocol, head] = headOf(bytes, at, family)
    if (head + 8 > length || isLaterFragment(bytes, at, family)) return 'pass'
    const inner = at + head
    if (protocol === UDP) {
      const far = word16(bytes, inner + 2)
      if (this.#isAvoided(bytes, { at: at + destination, size, port: far })) {
        return this.#drop('destination')
      }
      const near = word16(bytes, inner)
      this.#keep(bytes, { protocol, near, far, address: at + destination, size })
    } else if (isIcmp(protocol, family) && ECHO.request.includes(bytes[inner]!)) {
      const near = word16(bytes, inner + 4)
      this.#keep(bytes, { protocol, near, far: 0, address: at + destination, size })
    }
    return 'pass'
  }

  /** Of the network: whether the machine gets it. */
  in(bytes: Uint8Array, at: number, length: number): boolean {
    const family = familyOf(bytes, at, length)
    if (family === 0) return this.#refuse('malformed')
    const [source, destination, size] = family === 4 ? [12, 16, 4] : [8, 24, 16]
    if (!this.#isOwn(bytes, at + destination, size)) return this.#refuse('destination')
    if (
      isMartian(bytes, at + source, size) || this.#isOwn(bytes, at + source, size) ||
      !this.#isRouted(bytes, at + source, size)
    ) return this.#refuse('source')
    const [protocol, head] = headOf(bytes, at, family)
    // Fragments and options: what is behind them would have to be believed.
    if (family === 4 && (head !== HEAD_FOUR || (word16(bytes, at + 6) & 0x3fff) !== 0)) {
      return this.#refuse('kind')
    }
    const inner = at + head
    if (protocol === TCP) return this.#tcp(bytes, inner, length - head)
    if (length < head + 8) return this.#refuse('malformed')
    if (protocol === UDP) {
      const [far, near] = [word16(bytes, inner), word16(bytes, inner + 2)]
      if (this.#accepts(near)) return true
      return this.#answers(bytes, { protocol, near, far, address: at + source, size })
    }
    if (isIcmp(protocol, family)) return this.#icmp(bytes, { at, length, family, inner })
    return this.#refuse('kind')
  }

  #tcp(bytes: Uint8Array, inner: number, length: number): boolean {
    if (length < 20) return this.#refuse('malformed')
    const flags = bytes[inner + 13]!
    // Without either it opens a connection, or asks what is open.
    if ((flags & SYN) === 0 && (flags & (ACK | RST)) !== 0) return true
    if ((flags & (SYN | ACK)) === (SYN | ACK)) return true
    if (this.#accepts(word16(bytes, inner + 2))) return true
    return this.#refuse('unasked')
  }

  #icmp(
    bytes: Uint8Array,
    { at, length, family, inner }: { at: number; length: number; family: 4 | 6; inner: number },
  ): boolean {
    const type = bytes[inner]!
    const [source, size] = family === 4 ? [12, 4] : [8, 16]
    if (type === ECHO.reply[family === 4 ? 0 : 1]) {
      const near = word16(bytes, inner + 4)
      const protocol = family === 4 ? ICMP_FOUR : ICMP_SIX
      return this.#answers(bytes, { protocol, near, far: 0, address: at + source, size })
    }
    if (type === ECHO.request[family === 4 ? 0 : 1]) {
      return this.#options.accept === 'all' || this.#refuse('unasked')
    }
    if (!(family === 4 ? ERRORS_FOUR : ERRORS_SIX).includes(type)) return this.#refuse('kind')
    // It quotes the packet that it is about, which is one of ours.
    const quoted = inner + 8
    const head = family === 4 ? HEAD_FOUR : HEAD_SIX
    if (quoted + head > at + length || bytes[quoted]! >> 4 !== family) {
      return this.#refuse('malformed')
    }
    return this.#isOwn(bytes, quoted + source, size) || this.#refuse('unasked')
  }

  #accepts(port: number): boolean {
    const { accept } = this.#options
    return accept === 'all' || accept.has(port)
  }

  #isOwn(bytes: Uint8Array, at: number, size: number): boolean {
    for (const own of this.#options.own) {
      if (own.length !== size) continue
      let i = 0
      while (i < size && own[i] === bytes[at + i]) i++
      if (i === size) return true
    }
    return false
  }

  #isAvoided(
    bytes: Uint8Array,
    { at, size, port }: { at: number; size: number; port: number },
  ): boolean {
    const place = this.#avoided
    if (!place || place.port !== port || place.bytes.length !== size) return false
    return place.bytes.every((byte, i) => byte === bytes[at + i])
  }

  #isRouted(bytes: Uint8Array, at: number, size: number): boolean {
    for (const route of this.#options.routes) {
      if (route.bytes.length !== size) continue
      if (route.bits === 0) return true
      if (startsWith(bytes, at, route)) return true
    }
    return false
  }

  #drop(reason: GuardReason): 'drop' {
    this.counts[reason]++
    return 'drop'
  }

  #refuse(reason: GuardReason): false {
    this.counts[reason]++
    return false
  }

  // Flows.

  #keep(bytes: Uint8Array, flow: FlowEnds): void {
    const row = this.#fill(bytes, flow)
    const now = Math.floor(this.#options.now())
    let place = row
    for (let i = 0, oldest = Infinity; i < PLACES; i++) {
      const at = row + i * WORDS
      if (this.#isThere(at)) {
        this.#flows[at + WORDS - 1] = now
        return
      }
      const used = this.#flows[at] === 0 ? -1 : this.#flows[at + WORDS - 1]!
      if (used < oldest) [oldest, place] = [used, at]
    }
    this.#flows.set(this.#probe, place)
    this.#flows[place + WORDS - 1] = now
  }

  #answers(bytes: Uint8Array, flow: FlowEnds): boolean {
    const row = this.#fill(bytes, flow)
    const now = Math.floor(this.#options.now())
    for (let at = row; at < row + PLACES * WORDS; at += WORDS) {
      if (this.#isThere(at) && now - this.#flows[at + WORDS - 1]! < FLOW_MS) return true
    }
    return this.#refuse('unasked')
  }

  #isThere(at: number): boolean {
    for (let i = 0; i < WORDS - 1; i++) if (this.#flows[at + i] !== this.#probe[i]) return false
    return true
  }

  /** Lays a flow into the probe; the first place of its row. */
  #fill(bytes: Uint8Array, { protocol, near, far, address, size }: FlowEnds): number {
    const probe = this.#probe
    // Never 0, which is an empty place.
    probe[0] = (size << 8) | protocol
    probe[1] = near * 65_536 + far
    for (let i = 0; i < 4; i++) {
      const at = address + i * 4
      probe[2 + i] = i * 4 < size ? word16(bytes, at) * 65_536 + word16(bytes, at + 2) : 0
    }
    let hash = this.#options.seed | 0
    for (let i = 0; i < WORDS - 1; i++) {
      hash = Math.imul(hash ^ probe[i]!, 0x9e3779b1)
      hash ^= hash >>> 15
    }
    return (hash & (ROWS - 1)) * PLACES * WORDS
  }
}

interface FlowEnds {
  protocol: number
  near: number
  far: number
  /** Where the far address lies, and how long it is. */
  address: number
  size: number
}

/** 0 where the head does not fit, or says another length. */
export function familyOf(bytes: Uint8Array, at: number, length: number): 0 | 4 | 6 {
  if (length < HEAD_FOUR) return 0
  const version = bytes[at]! >> 4
  if (version === 4) {
    const head = (bytes[at]! & 15) * 4
    return head >= HEAD_FOUR && head <= length && word16(bytes, at + 2) === length ? 4 : 0
  }
  if (version !== 6 || length < HEAD_SIX) return 0
  return HEAD_SIX + word16(bytes, at + 4) === length ? 6 : 0
}

/**
 * "There is no way to it" of IPv6 (RFC 4443 §3.1) about a packet of this machine, as if from where it was to go;
 * undefined for one that deserves none.
 */
export function unreachableSix(
  bytes: Uint8Array,
  at: number,
  length: number,
): Uint8Array | undefined {
  if (familyOf(bytes, at, length) !== 6) return undefined
  // Never about an error.
  if (bytes[at + 6] === ICMP_SIX && (length < HEAD_SIX + 1 || bytes[at + HEAD_SIX]! < 128)) {
    return undefined
  }
  const quoted = bytes.subarray(at, at + Math.min(length, 1_280 - HEAD_SIX - 8))
  const packet = new Uint8Array(HEAD_SIX + 8 + quoted.length)
  const payload = packet.length - HEAD_SIX
  packet.set([0x60, 0, 0, 0, payload >> 8, payload & 255, ICMP_SIX, 64])
  packet.set(bytes.subarray(at + 24, at + 40), 8)
  packet.set(bytes.subarray(at + 8, at + 24), 24)
  packet[HEAD_SIX] = 1
  packet.set(quoted, HEAD_SIX + 8)
  let sum = payload + ICMP_SIX
  for (let i = 8; i < packet.length; i += 2) sum += packet[i]! * 256 + (packet[i + 1] ?? 0)
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 65_536)
  packet[HEAD_SIX + 2] = (~sum >> 8) & 255
  packet[HEAD_SIX + 3] = ~sum & 255
  return packet
}

function headOf(bytes: Uint8Array, at: number, family: 4 | 6): [protocol: number, bytes: number] {
  return family === 4 ? [bytes[at + 9]!, (bytes[at]! & 15) * 4] : [bytes[at + 6]!, HEAD_SIX]
}

function isLaterFragment(bytes: Uint8Array, at: number, family: 4 | 6): boolean {
  return family === 4 && (word16(bytes, at + 6) & 0x1fff) !== 0
}

function isIcmp(protocol: number, family: 4 | 6): boolean {
  return protocol === (family === 4 ? ICMP_FOUR : ICMP_SIX)
}

function isMulticast(bytes: Uint8Array, at: number, size: number): boolean {
  return size === 4 ? bytes[at]! >= 224 : bytes[at] === 0xff
}

const MARTIANS: readonly Network[] = [
  { bytes: new Uint8Array(16), bits: 96 },
  { bytes: Uint8Array.from([...new Uint8Array(10), 255, 255, 0, 0, 0, 0]), bits: 96 },
  { bytes: Uint8Array.from([0xfe, 0x80, ...new Uint8Array(14)]), bits: 10 },
  { bytes: Uint8Array.of(0, 0, 0, 0), bits: 8 },
  { bytes: Uint8Array.of(127, 0, 0, 0), bits: 8 },
  { bytes: Uint8Array.of(169, 254, 0, 0), bits: 16 },
]

/** What no packet on a wire comes from: nobody, this machine, one link, many. */
function isMartian(bytes: Uint8Array, at: number, size: number): boolean {
  if (isMulticast(bytes, at, size)) return true
  return MARTIANS.some((one) => one.bytes.length === size && startsWith(bytes, at, one))
}

/** Whether a network is one that no interface should be given. */
export function isMartianNetwork({ bytes, bits }: Network): boolean {
  return isMulticast(bytes, 0, bytes.length) ||
    MARTIANS.some((one) => one.bits <= bits && sharesBits(bytes, one.bytes, one.bits))
}

function startsWith(bytes: Uint8Array, at: number, { bytes: start, bits }: Network): boolean {
  const whole = bits >> 3
  for (let i = 0; i < whole; i++) if (bytes[at + i] !== start[i]) return false
  const rest = bits & 7
  if (rest === 0) return true
  return ((bytes[at + whole]! ^ start[whole]!) & (0xff00 >> rest) & 0xff) === 0
}

function word16(bytes: Uint8Array, at: number): number {
  return bytes[at]! * 256 + bytes[at + 1]!
}
