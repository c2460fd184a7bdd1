/** What a relay counts, from its own words to those of its metrics. */
import type { Endpoint } from './endpoints.ts'
import type { Hub } from './hub.ts'
import type { Member } from './member.ts'
import type { Metrics } from './metrics.ts'
import type { Visitors, VisitorsPorts } from './visitors.ts'

export interface TallyOf {
  hubs: ReadonlyMap<string, Hub>
  visitors: Visitors
  draining(): boolean
}

/** What is counted when it is asked for, not as it changes. */
export function readGauges(metrics: Metrics, { hubs, visitors, draining }: TallyOf): void {
  const count = (of: (member: Member) => number): number => {
    let sum = 0
    for (const hub of hubs.values()) for (const member of hub.members()) sum += of(member)
    return sum
  }
  for (const role of ['home', 'visit'] as const) {
    metrics.links.cell({ role }).read(() => count((member) => (member.role === role ? 1 : 0)))
  }
  for (const kind of ['tls', 'raw', 'http', 'udp'] as const) {
    metrics.streams.cell({ kind }).read(() => {
      let sum = count((member) => member.count(kind))
      if (kind !== 'raw') return sum
      for (const hub of hubs.values()) for (const group of hub.groups) sum += group.sharedStreams
      return sum
    })
  }
  // What a visit link brings is forwarded frame by frame, and the relay's own mux has no part in it.
  for (const kind of ['connect', 'session', 'datagrams', 'pair'] as const) {
    metrics.streams.cell({ kind }).read(() =>
      count(({ forwards, role }) => {
        if (role !== 'visit') return 0
        let sum = 0
        for (const join of forwards.values()) if (join.kind === kind) sum++
        return sum
      })
    )
  }
  for (const route of ['passthrough', 'inspectable', 'raw', 'udp'] as const) {
    metrics.visitorsActive.cell({ route }).read(() => {
      let sum = 0
      for (const { endpoint } of visitors.all()) if (routeOf(endpoint) === route) sum++
      return sum
    })
  }
  metrics.bulkLinksIdle.cell({}).read(() => {
    let sum = 0
    for (const hub of hubs.values()) for (const group of hub.groups) sum += group.bulkIdle
    return sum
  })
  metrics.draining.cell({}).read(() => (draining() ? 1 : 0))
}

/** A visitor that is gone: how it went, and its bytes both ways. */
export function countVisitor(
  metrics: Metrics,
  visitor: Parameters<VisitorsPorts['outcome']>[0],
): void {
  const route = routeOf(visitor.endpoint)
  const words = { done: 'served', left: 'aborted', gone: 'unreachable' } as const
  const { result } = visitor
  metrics.visitors.add({
    route,
    result: result in words
      ? words[result as keyof typeof words]
      : (result as 'refused' | 'timeout'),
  })
  metrics.bytes.add({ route, direction: 'in' }, visitor.forth)
  metrics.bytes.add({ route, direction: 'out' }, visitor.back)
}

/** Datagrams that the relay passed on, or could not. */
export function countForwarded(
  metrics: Metrics,
  result: 'in' | 'out' | 'dropped',
  count: number,
): void {
  if (result === 'dropped') metrics.packetsDropped.add({ reason: 'other' }, count)
  else metrics.packets.add({ direction: result }, count)
}

function routeOf(endpoint: Endpoint): 'passthrough' | 'inspectable' | 'raw' | 'udp' {
  if (endpoint.mode === 'verified') return 'passthrough'
  if (endpoint.mode === 'inspectable') return 'inspectable'
  return endpoint.kind === 'udp' ? 'udp' : 'raw'
}

/** The ingress's reason as a metric's label. */
export function refusal(reason: string): Parameters<Metrics['refused']['add']>[0]['reason'] {
  switch (reason) {
    case 'no-server-name':
      return 'no_name'
    case 'unknown-name':
    case 'unknown-endpoint':
      return 'unknown_name'
    case 'not-tls':
    case 'not-http':
      return 'protocol'
    case 'too-slow':
      return 'timeout'
    case 'bad-ticket':
      return 'ticket'
    case 'quota':
    case 'blocked':
    case 'draining':
      return reason
    case 'crowded':
      return 'overload'
    default:
      if (reason.startsWith('agent-')) return 'other'
      return reason.includes('proxy') ? 'protocol' : 'hello'
  }
}
