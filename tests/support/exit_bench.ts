/** A real network for tests of proxies and forwards: the exit, dialling this machine, with names of our own. */
import * as nodeCrypto from 'node:crypto'
import * as os from 'node:os'
import { bindUdp } from '../../agent/host/datagrams.ts'
import { dialOut } from '../../agent/host/dial_out.ts'
import { hostClock } from '../../agent/host/process.ts'
import { listen, lookup } from '../../agent/host/tcp.ts'
import { ExitPolicy, parseRoute } from '../../agent/wireguard/exit_policy.ts'
import type { ExitRules } from '../../agent/wireguard/exit_policy.ts'
import { Exit } from '../../agent/wireguard/exit.ts'
import type { ExitLimits, ExitPorts } from '../../agent/wireguard/exit.ts'
import type { ProxyPorts } from '../../agent/wireguard/proxy_server.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'

export const crypto = fastCrypto(nodeCrypto)

export interface Bench {
  exit: Exit
  /** What was resolved at the exit. */
  asked: string[]
  names: Map<string, string[]>
  ports: ProxyPorts
}

export function ownAddresses(): string[] {
  return Object.values(os.networkInterfaces()).flatMap((all) => all!.map(({ address }) => address))
}

/** Everything on loopback may be reached unless `rules` say otherwise. */
export function bench(
  rules: Partial<ExitRules> = {},
  options: { limits?: Partial<ExitLimits>; ports?: Partial<ExitPorts> } = {},
): Bench {
  const asked: string[] = []
  const names = new Map<string, string[]>()
  const policy = new ExitPolicy(
    { routes: [parseRoute('198.18.0.0/15')], loopback: true, ...rules },
    ownAddresses,
  )
  const exit = new Exit(
    {
      net: {
        // Given up, it sends no more SYNs; that of callback sockets goes on for two minutes.
        connect: dialOut,
        lookup: (name) => {
          asked.push(name)
          const known = names.get(name)
          if (known) return Promise.resolve(known)
          if (!name.endsWith('.test')) return lookup(name)
          return Promise.reject(new TunnelError('net/unknown-host', `Cannot find ${name}`))
        },
      },
      bindUdp,
      ping: () => Promise.reject(new TunnelError('ping/unavailable', 'Cannot send an echo')),
      clock: hostClock,
      ...options.ports,
    },
    policy,
    options.limits,
  )
  const network = exit.client('one')
  return {
    exit,
    asked,
    names,
    ports: { net: { listen }, bindUdp, clock: hostClock, crypto, network },
  }
}

/** Turns of the event loop until `is`; the suite's own limit ends what never comes. */
export async function until(is: () => boolean): Promise<void> {
  while (!is()) await new Promise((resolve) => setTimeout(resolve, 2))
}
