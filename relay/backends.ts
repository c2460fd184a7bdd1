/** Who serves a readable name: the way from the live endpoints to the gateway. */
import type { Clock } from '../core/clock.ts'
import type { Endpoints } from './endpoints.ts'
import { Gateway } from './gateway.ts'
import type { Backend } from './gateway.ts'
import type { Metrics } from './metrics.ts'
import { overQuota, Problem } from './problem.ts'
import type { Quota } from './quota.ts'
import type { Registry } from './registry.ts'
import type { Relay } from './relay.ts'

export interface PickOptions {
  /** Counting from 1 for one exchange: the next best is asked each time. */
  attempt: number
  blocked: boolean
  /** A stream was opened to a process. */
  opened?(): void
}

/** Undefined: nobody, or nobody more. Throws a 403 where the name is cut off. */
export function pickBackend(
  endpoints: Endpoints,
  name: string,
  { attempt, blocked, opened }: PickOptions,
): Backend | undefined {
  const endpoint = endpoints.get(name)
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
  return {
    open(visit) {
      const stream = serving.group.open(visit)
      active = true
      serving.active++
      opened?.()
      return stream
    },
    settled(result) {
      if (result === 'timeout') endpoints.failed(serving)
    },
    closed() {
      if (active) serving.active--
      active = false
    },
  }
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
      if (attempt === 1) {
        for (const who of scope === undefined ? [{ address }] : [{ address }, { scope }]) {
          const taken = quota.take('visitors', who)
          if (!taken.ok) throw overQuota(taken)
        }
      }
      const blocked = scope !== undefined && registry.isBlocked(name, scope) !== undefined
      return pickBackend(relay.endpoints, name, { attempt, blocked })
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
