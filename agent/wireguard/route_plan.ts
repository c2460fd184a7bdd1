/**
 * Which of a network's routes an interface of this machine is given. Whoever serves a network names its routes,
 * and must not so come by traffic that it was not meant to have: without a word of the person these are
 * private networks alone, and what this machine has a way to already stays as it is.
 */
import type { Agreed } from '../../core/agreement.ts'
import { formatAddress, parseNetwork, sharesBits } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'
import { TunnelError } from '../../core/errors.ts'
import { isMartianNetwork } from './packet_guard.ts'
import { prefixText } from './peer_table.ts'
import { allowedOf } from './tunnel_client.ts'

/** RFC 1918, RFC 6598, RFC 4193. */
const PRIVATE = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', 'fc00::/7']
  .map((words) => parseNetwork(words)!)

/** Everything of this machine; these networks of those that are served; or the private ones. */
export type RouteChoice = 'all' | readonly Network[] | undefined

export interface RoutePlan {
  routed: Network[]
  left: { route: Network; why: 'public' | 'all' | 'special' | 'own' }[]
}

/**
 * `ways` are networks that this machine routes elsewhere, without its default. Throws `tun/route`, `tun/all` where what was chosen
 * is not served.
 */
export function planRoutes(
  agreed: Agreed,
  { choice, ways }: { choice: RouteChoice; ways: readonly Network[] },
): RoutePlan {
  const own = allowedOf({ ...agreed, routes: [] })
  const plan: RoutePlan = { routed: [], left: [] }
  const served = agreed.routes
  if (choice === 'all' && !served.some(({ bits }) => bits === 0)) throw notServed(agreed)
  const wanted = Array.isArray(choice) ? choice as readonly Network[] : served
  for (const route of [...own, ...wanted]) {
    if (Array.isArray(choice) && ![...own, ...served].some((one) => covers(one, route))) {
      throw notLed(route, agreed)
    }
    const isOwn = own.includes(route)
    const isChosen = isOwn || Array.isArray(choice)
    const why = isMartianNetwork(route)
      ? 'special'
      : route.bits === 0 && choice !== 'all'
      ? 'all'
      : choice !== 'all' && !isChosen && !PRIVATE.some((one) => covers(one, route))
      ? 'public'
      : route.bits > 0 && ways.some((way) => covers(way, route))
      ? 'own'
      : undefined
    if (why) plan.left.push({ route, why })
    else if (!plan.routed.some((one) => covers(one, route) && covers(route, one))) {
      plan.routed.push(route)
    }
  }
  return plan
}

/** `default` for everything. */
export function routeText(route: Network): string {
  return route.bits === 0 ? 'default' : prefixText(route)
}

function covers(wide: Network, narrow: Network): boolean {
  return wide.bits <= narrow.bits && sharesBits(wide.bytes, narrow.bytes, wide.bits)
}

function notServed({ routes }: Agreed): TunnelError {
  const found = routes.map(prefixText).join(', ') || 'no routes'
  return new TunnelError(
    'tun/all',
    `Cannot route all of this machine into the network: found ${found}, expected 0.0.0.0/0`,
    { hint: 'Whoever serves it would type: sotto wg serve --route 0.0.0.0/0 --route ::/0' },
  )
}

function notLed(route: Network, { routes }: Agreed): TunnelError {
  const found = routes.map(prefixText).join(', ') || 'nothing'
  return new TunnelError(
    'tun/route',
    `Cannot route ${prefixText(route)} into the network: it leads to ${found}`,
    { hint: `Whoever serves it would type: sotto wg serve --route ${prefixText(route)}` },
  )
}

/** Of an address and its bits, the network around it. */
export function around(bytes: Uint8Array, bits: number): Network {
  return {
    bytes: bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, bits - 8 * i)))),
    bits,
  }
}

/** An address alone, as rules and routes name it. */
export function hostText(bytes: Uint8Array): string {
  return `${formatAddress(bytes)}/${bytes.length * 8}`
}
