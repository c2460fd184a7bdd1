/** Who serves a readable name: the way from the live endpoints to the gateway. */
import type { Clock } from '../core/clock.ts'
import type { Endpoints } from './endpoints.ts'
import { Gateway } from './gateway.ts'
import type { Backend } from './gateway.ts'
import { under } from './ingress.ts'
import type { Metrics } from './metrics.ts'
import { overQuota, Problem } from './problem.ts'
import { addressWho, scopeWho } from './quota.ts'
import type { GaugeKind, Held, Holder, Quota } from './quota.ts'
import type { Registry } from './registry.ts'
import type { Relay } from './relay.ts'

const STREAMS: readonly GaugeKind[] = ['streams']

export interface PickOptions {
  /** Counting from 1 for one exchange: the next best is asked each time. */
  attempt: number
  blocked: boolean
  /** A stream was opened to a process. */
  opened?(): void
  /** Who asks, to count against; undefined where nobody counts. */
  quota?: Quota
  address?: string
}

/** Undefined: nobody, or nobody more. Throws a 403 where the name is cut off, a 429 by quota. */
export function pickBackend(
  endpoints: Endpoints,
  name: string,
  { attempt, blocked, opened, quota, address = '' }: PickOptions,
): Backend | undefined {
  const endpoint = endpoints.get(name)
  const holders = [addressWho(address), ...(endpoint ? [scopeWho(endpoint.scope)] : [])]
  if (quota && attempt === 1) spend(quota, holders)
  if (endpoint?.mode !== 'inspectable') return undefined
  if (blocked) {
    throw new Problem(403, {
      code: 'relay/blocked',
      message: 'This tunnel was blocked by its relay',
    })
  }
  const serving = endpoints.pick(endpoint)[attempt - 1]
  if (!serving) return undefined
  let active = false
  let held: Held | undefined
  return {
    open(visit) {
      const stream = serving.group.open(visit)
      active = true
      serving.active++
      // Nobody came in between: there was room a moment ago.
      held = quota?.holdAll(STREAMS, holders)
      opened?.()
      return stream
    },
    settled(result) {
      if (result === 'timeout') endpoints.failed(serving)
    },
    closed() {
      if (active) serving.active--
      active = false
      if (held?.ok) held.release()
    },
  }
}

/** An exchange is one visitor, and needs room for one stream. Throws a 429. */
function spend(quota: Quota, holders: readonly Holder[]): void {
  for (const who of holders) {
    const taken = quota.take('visitors', who)
    if (!taken.ok) throw overQuota(taken)
  }
  const room = quota.holdAll(STREAMS, holders)
  if (!room.ok) throw overQuota(room)
  room.release()
}

/** Readable HTTP of a relay in one process: who serves, who may come, who is cut off. */
export function relayGateway(
  relay: Relay,
  ports: { clock: Clock; domain: string; registry: Registry; quota: Quota; metrics: Metrics },
): Gateway {
  const { registry, quota, metrics } = ports
  const gateway = new Gateway({
    clock: ports.clock,
    domain: ports.domain,
    pick: (name, { address, attempt }) => {
      const scope = relay.endpoints.get(name)?.scope
      const blocked = scope !== undefined && registry.isBlocked(name, scope) !== undefined
      return pickBackend(relay.endpoints, name, { attempt, blocked, quota, address })
    },
    outcome: ({ status, whole, forth, back }) => {
      const result = status === 0 || !whole
        ? 'aborted'
        : status === 502
        ? 'unreachable'
        : status === 504
        ? 'timeout'
        : 'served'
      metrics.visitors.add({ route: 'inspectable', result })
      metrics.bytes.add({ route: 'inspectable', direction: 'in' }, forth)
      metrics.bytes.add({ route: 'inspectable', direction: 'out' }, back)
    },
  })
  registry.onBlocked(({ name, scope }) => {
    gateway.cut((exchange) =>
      exchange.name === name || relay.endpoints.get(exchange.name)?.scope === scope
    )
  })
  return gateway
}

/** Whose an inspectable endpoint is that has an agent now and is not blocked, by its host name. */
export function inspectableScope(
  relay: Relay,
  { domain, registry }: { domain: string; registry: Registry },
  host: string,
): string | undefined {
  const endpoint = relay.endpoints.get(under(host, domain) ?? '')
  if (endpoint?.mode !== 'inspectable') return undefined
  return registry.isBlocked(endpoint.name, endpoint.scope) ? undefined : endpoint.scope
}
