/**
 * The way to the relay from a machine whose routes lead into the tunnel that this relay carries: each place is
 * told of before it is connected to, so that it is reached as without the tunnel. A name that cannot be looked up,
 * since its resolver is reached through the tunnel alone, is where it was the last time.
 */
import { parseAddress } from '../../core/address.ts'
import type { Conn } from '../../core/socket.ts'
import type { Target, World } from '../world.ts'

/** Names that are remembered. */
const NAMES_MAX = 64

export type Bypass = (address: string, protocol: 'tcp' | 'udp', port: number) => Promise<void>

/**
 * The same world, whose connections for the relay take the way out. It does not know the interface `name`, whose
 * address is no place where this machine is reached, nor one that is taken from the network.
 */
export function wayOut(world: World, name: string, bypass: Bypass): World {
  const known = new Map<string, readonly string[]>()

  /** Where to connect: the place itself, or an address of before. */
  async function prepare<T extends Target>(target: T): Promise<T> {
    if (!('host' in target)) return target
    const { host, port } = target
    const found = await addressesOf(host)
    for (const address of found?.addresses ?? []) await bypass(address, 'tcp', port)
    const [first] = found?.addresses ?? []
    return found?.isFresh === false && first !== undefined ? { ...target, host: first } : target
  }

  async function addressesOf(
    host: string,
  ): Promise<{ addresses: readonly string[]; isFresh: boolean } | undefined> {
    if (parseAddress(host)) return { addresses: [host], isFresh: true }
    try {
      const addresses = await world.net.lookup(host)
      if (known.size < NAMES_MAX || known.has(host)) known.set(host, addresses)
      return { addresses, isFresh: true }
    } catch {
      // Whoever connects hears why.
      const addresses = known.get(host)
      return addresses && { addresses, isFresh: false }
    }
  }

  const net: World['net'] = {
    ...world.net,
    connect: async (target) => await world.net.connect(await prepare(target)),
    connectDuplex: async (target) => await world.net.connectDuplex(await prepare(target)),
  }
  return {
    ...world,
    net,
    probes: {
      ...world.probes,
      interfaces: () => world.probes.interfaces().filter((one) => one.name !== name),
    },
    tls: {
      ...world.tls,
      async connect(options) {
        const { target } = options
        if (!target) return await world.tls.connect(options)
        const names = 'host' in target && !parseAddress(target.host)
          ? { servername: target.host }
          : {}
        return await world.tls.connect({ ...names, ...options, target: await prepare(target) })
      },
    },
    link: {
      async open(url, options) {
        if (options.carrier) return await world.link.open(url, options)
        const { protocol, hostname, port } = new URL(url)
        const host = hostname.replace(/^\[|\]$/g, '')
        const target = { host, port: Number(port) || (protocol === 'wss:' ? 443 : 80) }
        const found = await prepare(target)
        if (found.host === host) return await world.link.open(url, options)
        const carrier = async (timeoutMs: number): Promise<Conn> =>
          await world.net.connectDuplex({ ...found, timeoutMs })
        return await world.link.open(url, { ...options, carrier })
      },
    },
  }
}
