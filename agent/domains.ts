/**
 * Domains of a person's own that lead to an endpoint: asked for at each link of the relay, and again while
 * their DNS does not say so yet. What DNS says is the relay's to find out (docs/protocol.md §5).
 */
import type { Timer } from '../core/clock.ts'
import { asTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import type { World } from './world.ts'

/** DNS that was just changed is there within minutes; who mistyped it need not ask each second. */
const AGAIN_MS_MIN = 15_000
const AGAIN_MS_MAX = 600_000
/** What the relay routes is asked for again, so that it comes back where the relay lost it. */
const FRESH_MS = 1_800_000

export type DomainNews =
  | { readonly state: 'routed'; readonly domain: string; readonly by: string }
  | { readonly state: 'refused'; readonly domain: string; readonly error: TunnelError }

export interface DomainPorts {
  /** The endpoint's name. */
  name: string
  domains: readonly string[]
  request(body: object): Promise<Record<string, unknown>>
  news(news: DomainNews): void
}

export class DomainClaims {
  readonly #world: Pick<World, 'clock'>
  readonly #ports: DomainPorts
  readonly #routed = new Set<string>()
  readonly #timers = new Map<string, Timer>()
  /** Answers to what was asked on another link count no more. */
  #link = 0

  constructor(world: Pick<World, 'clock'>, ports: DomainPorts) {
    this.#world = world
    this.#ports = ports
  }

  /** True once the relay leads the domain here. */
  has(domain: string): boolean {
    return this.#routed.has(domain)
  }

  /** The endpoint is claimed, on a new link. */
  up(): void {
    this.down()
    for (const domain of this.#ports.domains) void this.#claim(domain, this.#link, AGAIN_MS_MIN)
  }

  down(): void {
    this.#link++
    this.#routed.clear()
    for (const timer of this.#timers.values()) timer.cancel()
    this.#timers.clear()
  }

  async #claim(domain: string, link: number, againMs: number): Promise<void> {
    const { request, name, news } = this.#ports
    let nextMs = FRESH_MS
    try {
      const { by } = await request({ do: 'domain', domain, name })
      if (link !== this.#link) return
      const was = this.#routed.has(domain)
      this.#routed.add(domain)
      if (!was) news({ state: 'routed', domain, by: String(by) })
      againMs = AGAIN_MS_MIN
    } catch (error) {
      if (link !== this.#link) return
      this.#routed.delete(domain)
      news({ state: 'refused', domain, error: asTunnelError(error, 'domains/refused') })
      nextMs = againMs
      againMs = Math.min(2 * againMs, AGAIN_MS_MAX)
    }
    this.#timers.set(
      domain,
      this.#world.clock.after(nextMs, () => void this.#claim(domain, link, againMs)),
    )
  }
}
