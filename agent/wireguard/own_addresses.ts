/** Addresses of this machine: what its interfaces say, and where it is reached by UDP. */
import { ENDPOINTS_MAX } from '../../core/agreement.ts'
import type { TunnelEndpoint } from '../../core/agreement.ts'
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import type { Clock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import type { World } from '../world.ts'
import type { Place } from './network.ts'

/** For the names of endpoints; what has no answer by then is left out. */
const NAMES_MS_MAX = 2_000

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

/** `vpn.example.com:51820`, `192.0.2.1:51820`, `[2001:db8::1]:51820`. Throws `cli/endpoint`. */
export function readEndpoint(words: string): Place {
  const [, six, host, port] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s/]{1,253})):(\d{1,5})$/.exec(words) ?? []
  const good = Number(port) >= 1 && Number(port) <= 65_535 &&
    (six === undefined || parseAddress(six) !== undefined)
  if (good) return { host: (six ?? host)!, port: Number(port) }
  throw new TunnelError(
    'cli/endpoint',
    `Cannot use the endpoint "${
      words.slice(0, 80)
    }": expected HOST:PORT, such as vpn.example.com:51820`,
  )
}

/** Where this machine takes UDP at `port`: the places that a person named first, then those of its networks. */
export async function ownEndpoints(
  world: Interfaces & { clock: Clock; wireguard: Pick<World['wireguard'], 'lookup'> },
  { port, named }: { port: number; named: readonly Place[] },
): Promise<TunnelEndpoint[]> {
  const late = new Promise<string[]>((resolve) => {
    if (named.length > 0) world.clock.after(NAMES_MS_MAX, () => resolve([]))
  })
  const found = await Promise.all(named.map(async (place) => {
    const hosts = parseAddress(place.host)
      ? [place.host]
      : await Promise.race([world.wireguard.lookup(place.host).catch(() => []), late])
    return hosts.flatMap((host) => {
      const address = parseAddress(host)
      return address ? [{ address, port: place.port }] : []
    })
  }))
  const all = [...found.flat(), ...lanEndpoints(world, port)]
  const words = all.map((one) => `${one.address.join('.')} ${one.port}`)
  return all.filter((_, i) => words.indexOf(words[i]!) === i).slice(0, ENDPOINTS_MAX)
}

/** One host, of another machine: whoever is at the other end may name anything as its own endpoint. */
export function isHost({ address }: TunnelEndpoint): boolean {
  const mapped = address.length === 16 &&
    address.slice(0, 12).every((byte, i) => byte === (i < 10 ? 0 : 0xff))
  const [a = 0, b = 0] = mapped ? address.subarray(12) : address
  if (address.length === 4 || mapped) {
    return a !== 0 && a !== 127 && a < 224 && !(a === 169 && b === 254)
  }
  // Loopback, link-local and multicast; the rest of ::/8 is nobody's.
  return a !== 0 && a !== 0xff && !(a === 0xfe && (b & 0xc0) === 0x80)
}

export function ownAddresses({ probes }: Interfaces): string[] {
  return probes.interfaces().flatMap(({ address }) => {
    const bytes = parseAddress(address)
    return bytes ? [formatAddress(bytes)] : []
  })
}
