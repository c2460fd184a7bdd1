/**
 * The serving side's own way to its members: a TCP port of this machine, or of its LAN, onto a port that a
 * member listens on, as with `sotto wg forward -R`, or that a stock client serves. Nothing leads to members
 * but what the serving person names so.
 */
import { TunnelError } from '../../core/errors.ts'
import { splice } from '../../core/socket.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import type { World } from '../world.ts'
import type { Forward, OpenForward } from './port_forward.ts'
import { connectProblem } from './stack_network.ts'

const CONNECTIONS_MAX = 1_024
const CONNECT_MS_MAX = 10_000

/** Somebody who is in the network now. */
export interface ReachedMember {
  /** The same for as long as it is there. */
  readonly member: object
  readonly address: string
  /** Our own address towards it. */
  readonly from: string
}

export interface MemberNetwork {
  /** By name or address. */
  find(name: string): ReachedMember | undefined
  /** Told when a member has left. */
  onLeave: ((member: object) => void) | undefined
  readonly tunnel: {
    connect(
      to: { address: string; port: number; timeoutMs: number; from: { address: string } },
    ): Promise<Conn>
  }
}

export class MemberForwards {
  readonly #network: MemberNetwork
  readonly #told: (error: TunnelError) => void
  readonly #open: MemberForward[] = []

  /** All of them or none. Throws `net/in-use`, `net/denied`. */
  static async open(
    { net }: Pick<World, 'net'>,
    network: MemberNetwork,
    { forwards, told }: {
      forwards: readonly Forward[]
      /** A connection that was not made, and why. */
      told: (error: TunnelError) => void
    },
  ): Promise<MemberForwards> {
    const made = new MemberForwards(network, told)
    try {
      for (const forward of forwards) {
        const one = new MemberForward(forward)
        one.listener = await net.listen(forward.listen, (conn) => void made.#carry(one, conn))
        made.#open.push(one)
      }
      return made
    } catch (error) {
      await made.close()
      throw error
    }
  }

  private constructor(network: MemberNetwork, told: (error: TunnelError) => void) {
    this.#network = network
    this.#told = told
    network.onLeave = (member) => {
      for (const one of this.#open) one.cut(member)
    }
  }

  get open(): readonly OpenForward[] {
    return this.#open
  }

  async close(): Promise<void> {
    this.#network.onLeave = undefined
    for (const one of this.#open) await one.close()
  }

  async #carry(one: MemberForward, near: Conn): Promise<void> {
    if (one.active >= CONNECTIONS_MAX) return near.abort()
    const { to } = one.forward
    // Nothing is read until there is somewhere to put it.
    near.hold()
    const found = this.#network.find(to.host)
    if (!found) {
      near.abort()
      return this.#told(
        new TunnelError(
          'network/member',
          `Cannot reach "${to.host}": it is not in the network now`,
        ),
      )
    }
    const { member, address, from } = found
    const pair = one.add(member, near)
    try {
      const options = { address, port: to.port, timeoutMs: CONNECT_MS_MAX, from: { address: from } }
      const far = await this.#network.tunnel.connect(options)
      if (pair.isCut) return far.abort()
      pair.far = far
      splice(near, far, () => one.remove(pair))
    } catch (error) {
      one.remove(pair)
      near.abort()
      this.#told(connectProblem(error, `${to.host} port ${to.port}`))
    }
  }
}

interface Pair {
  readonly member: object
  readonly near: Conn
  far: Conn | undefined
  isCut: boolean
}

class MemberForward implements OpenForward {
  readonly forward: Forward
  listener!: Listener
  readonly #pairs = new Set<Pair>()

  constructor(forward: Forward) {
    this.forward = forward
  }

  get port(): number {
    return this.listener.port
  }

  get active(): number {
    return this.#pairs.size
  }

  add(member: object, near: Conn): Pair {
    const pair: Pair = { member, near, far: undefined, isCut: false }
    this.#pairs.add(pair)
    return pair
  }

  remove(pair: Pair): void {
    this.#pairs.delete(pair)
  }

  /** Nothing of a member that has left stays open; without one, of nobody. */
  cut(member?: object): void {
    for (const pair of [...this.#pairs]) {
      if (member !== undefined && pair.member !== member) continue
      pair.isCut = true
      this.#pairs.delete(pair)
      pair.near.abort()
      pair.far?.abort()
    }
  }

  async close(): Promise<void> {
    this.cut()
    await this.listener.close()
  }
}
