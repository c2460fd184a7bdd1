/**
 * Live endpoints: which process groups serve a name right now. Reservations outlive them in the
 * registry. An endpoint belongs to the group that claimed it; several groups of one scope make a
 * pool: fewest visitors first, and one that failed to answer loses its turn for a while.
 */
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import type { Group } from './hub.ts'

/** `agent`: a name alone, which other agents open sessions to. */
export type EndpointKind = 'http' | 'tcp' | 'udp' | 'agent'
export type EndpointMode = 'verified' | 'inspectable' | 'raw' | 'session'

export interface Claim {
  name: string
  kind: EndpointKind
  mode: EndpointMode
  /** Raw: the public port asked for, 0 for any. */
  port: number
}

/** What a claim was answered with; `port` is the public one of a raw endpoint, else 0. */
export interface Claimed {
  name: string
  port: number
}

export interface Endpoint {
  readonly name: string
  readonly scope: string
  readonly kind: EndpointKind
  readonly mode: EndpointMode
  port: number
  readonly serving: Map<Group, Serving>
}

export interface Serving {
  readonly group: Group
  /** Visitors that it has now. */
  active: number
  /** Monotonic time until which others are asked first. */
  sickUntilMs: number
}

/** How long a group that did not answer an open stays last in line. */
const SICK_MS = 10_000
/** Groups that may serve one name. */
const SERVING_MAX = 64

export class Endpoints {
  readonly #clock: Clock
  readonly #byName = new Map<string, Endpoint>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get size(): number {
    return this.#byName.size
  }

  all(): Iterable<Endpoint> {
    return this.#byName.values()
  }

  get(name: string): Endpoint | undefined {
    return this.#byName.get(name)
  }

  /**
   * Adds `group` to those that serve the name. The caller has reserved the name to the group's
   * scope. Throws `endpoints/mode` when the name is live in another mode: a verified name has no
   * readable twin, so one and the same name never means two trust models.
   */
  join(group: Group, claim: Claim): Endpoint {
    let endpoint = this.#byName.get(claim.name)
    if (endpoint && (endpoint.mode !== claim.mode || endpoint.kind !== claim.kind)) {
      const alone = endpoint.serving.size === 1 && endpoint.serving.has(group)
      if (!alone) {
        throw new TunnelError(
          'endpoints/mode',
          `Cannot claim "${claim.name}" as ${claim.mode} ${claim.kind}: found it live as ${endpoint.mode} ${endpoint.kind}`,
          { hint: 'Stop the other tunnel first, or choose another name with --name.' },
        )
      }
      this.leave(group, claim.name)
      endpoint = undefined
    }
    if (!endpoint) {
      const { name, kind, mode, port } = claim
      endpoint = { name, scope: group.scope, kind, mode, port, serving: new Map() }
      this.#byName.set(name, endpoint)
    }
    if (!endpoint.serving.has(group)) {
      if (endpoint.serving.size >= SERVING_MAX) {
        throw new TunnelError(
          'endpoints/full',
          `Cannot claim "${claim.name}": found ${SERVING_MAX} processes serving it, the most there may be`,
        )
      }
      endpoint.serving.set(group, { group, active: 0, sickUntilMs: 0 })
    }
    group.endpoints.add(claim.name)
    return endpoint
  }

  /** Takes the group off the name; returns the endpoint when nobody serves it any more. */
  leave(group: Group, name: string): Endpoint | undefined {
    group.endpoints.delete(name)
    const endpoint = this.#byName.get(name)
    if (!endpoint?.serving.delete(group)) return undefined
    if (endpoint.serving.size > 0) return undefined
    this.#byName.delete(name)
    return endpoint
  }

  /** Who is asked, in order: the well before the sick, fewest visitors first. */
  pick(endpoint: Endpoint): Serving[] {
    const now = this.#clock.monotonic()
    const all = [...endpoint.serving.values()]
    if (all.length < 2) return all
    const sick = (serving: Serving): number => (serving.sickUntilMs > now ? 1 : 0)
    return all.sort((a, b) => sick(a) - sick(b) || a.active - b.active)
  }

  failed(serving: Serving): void {
    serving.sickUntilMs = this.#clock.monotonic() + SICK_MS
  }
}
