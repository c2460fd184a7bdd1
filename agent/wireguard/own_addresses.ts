/** What the interfaces of this machine say: its own addresses, and where it is reached. */
import { ENDPOINTS_MAX } from '../../core/agreement.ts'
import type { TunnelEndpoint } from '../../core/agreement.ts'
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import type { World } from '../world.ts'

type Interfaces = Pick<World, 'probes'>

/** Interfaces of this machine in 100.64.0.0/10, each as the network around it. */
export function takenNetworks({ probes }: Interfaces): Range[] {
  return probes.interfaces().flatMap(({ address }) => {
    const bytes = parseAddress(address)
    if (bytes?.length !== 4 || bytes[0] !== 100 || (bytes[1]! & 0xc0) !== 64) return []
    return [{ bytes: Uint8Array.of(bytes[0], bytes[1]!, bytes[2]!, 0), bits: 24 }]
  }).filter((one, i, all) => all.findIndex(({ bytes }) => `${bytes}` === `${one.bytes}`) === i)
}

/** Where a UDP port of this machine may be reached by others of its networks. */
export function lanEndpoints({ probes }: Interfaces, port: number): TunnelEndpoint[] {
  return probes.interfaces().filter(({ internal }) => !internal).flatMap(({ address }) => {
    const bytes = parseAddress(address)
    // A link-local address leads nowhere without an interface.
    return bytes && !/^fe80:/i.test(address) ? [{ address: bytes, port }] : []
  }).slice(0, ENDPOINTS_MAX)
}

export function ownAddresses({ probes }: Interfaces): string[] {
  return probes.interfaces().flatMap(({ address }) => {
    const bytes = parseAddress(address)
    return bytes ? [formatAddress(bytes)] : []
  })
}
