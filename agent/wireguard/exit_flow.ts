/**
 * One UDP port of a client at the exit: one socket of the machine for each family, opened when it is first sent
 * from, so all far ends see one port (RFC 4787 REQ-1). What comes is let in from addresses that it has sent to
 * (REQ-8, address-dependent filtering), and only what goes out keeps it open (REQ-6), so that nobody
 * outside can.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Clock } from '../../core/clock.ts'
import type { Refusal } from './exit_policy.ts'
import type { BindUdp, DatagramFlow, DatagramHandler, FarEnd } from './network.ts'

/** Addresses that may answer; the one that was sent to longest ago goes first. */
const FAR_ENDS_MAX = 1_024
/** Datagrams that wait for a socket to open. */
const WAITING_MAX = 16
/**
 * The address that was sent to last is not judged again for so long: most flows have one far end, and a
 * judgement asks for this machine's own addresses.
 */
const JUDGED_MS = 1_000

interface FamilySocket {
  socket: DatagramFlow | undefined
  waiting: { to: FarEnd; bytes: Uint8Array }[]
}

export class ExitFlow implements DatagramFlow {
  /** The client's side chooses its own. */
  readonly port = 0
  /** When it last sent, on the clock's monotonic scale. */
  activeMs: number
  readonly #bindUdp: BindUdp
  readonly #clock: Clock
  readonly #judge: (address: string) => Refusal | undefined
  readonly #over: () => void
  readonly #sockets = new Map<4 | 6, FamilySocket>()
  readonly #farEnds = new Set<string>()
  #judged: { text: string; address: string; family: 4 | 6; atMs: number } | undefined
  #handler: DatagramHandler | undefined
  #closed = false

  constructor(
    { bindUdp, clock }: { bindUdp: BindUdp; clock: Clock },
    { judge, closed }: { judge: (address: string) => Refusal | undefined; closed: () => void },
  ) {
    this.#bindUdp = bindUdp
    this.#clock = clock
    this.#judge = judge
    this.#over = closed
    this.activeMs = clock.monotonic()
  }

  send(to: FarEnd, bytes: Uint8Array): boolean {
    if (this.#closed || to.port === 0) return false
    const nowMs = this.#clock.monotonic()
    if (this.#judged?.text !== to.address || nowMs - this.#judged.atMs > JUDGED_MS) {
      const parsed = parseAddress(to.address)
      if (!parsed || this.#judge(to.address) !== undefined) return false
      const [address, family] = [
        formatAddress(parsed),
        parsed.length === 4 ? 4 as const : 6 as const,
      ]
      this.#judged = { text: to.address, address, family, atMs: nowMs }
      this.#farEnds.delete(address)
      if (this.#farEnds.size >= FAR_ENDS_MAX) {
        this.#farEnds.delete(this.#farEnds.values().next().value!)
      }
      this.#farEnds.add(address)
    }
    const { address, family } = this.#judged
    this.activeMs = nowMs
    const known = this.#sockets.get(family)
    if (known?.socket) return known.socket.send({ address, port: to.port }, bytes)
    const opening = known ?? this.#open(family)
    if (opening.waiting.length >= WAITING_MAX) return false
    opening.waiting.push({ to: { address, port: to.port }, bytes })
    return true
  }

  handle(handler: DatagramHandler): void {
    this.#handler = handler
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const { socket } of this.#sockets.values()) socket?.close()
    this.#over()
  }

  /** Idle for too long. */
  expire(): void {
    if (this.#closed) return
    this.close()
    this.#handler?.closed?.()
  }

  #open(family: 4 | 6): FamilySocket {
    const made: FamilySocket = { socket: undefined, waiting: [] }
    this.#sockets.set(family, made)
    this.#bindUdp({ host: family === 4 ? '0.0.0.0' : '::', port: 0 }).then((socket) => {
      if (this.#closed) return socket.close()
      made.socket = socket
      socket.handle({
        message: (from, bytes) => {
          const parsed = parseAddress(from.address)
          if (!parsed || this.#closed) return
          const address = formatAddress(parsed)
          if (!this.#farEnds.has(address)) return
          this.#handler?.message({ address, port: from.port }, bytes)
        },
      })
      for (const { to, bytes } of made.waiting) socket.send(to, bytes)
      made.waiting = []
    }, () => {
      // No such family here, or no port is left: what waited is lost; the next one tries again.
      if (this.#sockets.get(family) === made) this.#sockets.delete(family)
    })
    return made
  }
}
