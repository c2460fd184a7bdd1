/** The verbs of `sotto wg`, each loaded when it is asked for. */
import type { Command } from './page.ts'

export const NETWORK_VERBS: Readonly<
  Record<string, { summary: string; load(): Promise<Command> }>
> = {
  serve: {
    summary: 'serve a private network that leads to what this machine reaches',
    load: async () => (await import('../commands/wg_serve.ts')).serveWg,
  },
  socks5: {
    summary: 'use a private network by a SOCKS5 proxy of this machine',
    load: async () => (await import('../commands/wg_socks5.ts')).socks5Wg,
  },
  forward: {
    summary: 'forward ports into a private network, and out of it',
    load: async () => (await import('../commands/wg_forward.ts')).forwardWg,
  },
  tun: {
    summary: 'route this machine into a private network, by an interface of its own (Linux, root)',
    load: async () => (await import('../commands/wg_tun.ts')).tunWg,
  },
  ping: {
    summary: 'see whether a host of a private network answers',
    load: async () => (await import('../commands/wg_ping.ts')).pingWg,
  },
  status: {
    summary: 'show the private networks that are served or used here now',
    load: async () => (await import('../commands/wg_status.ts')).statusWg,
  },
  config: {
    summary: 'make a configuration for a stock client of WireGuard',
    load: async () => (await import('../commands/wg_config.ts')).configWg,
  },
  release: {
    summary: 'list leased addresses of a network, or take one back',
    load: async () => (await import('../commands/wg_release.ts')).releaseWg,
  },
  up: {
    summary: 'use any WireGuard server by its file, as a proxy and forwards of this machine',
    load: async () => (await import('../commands/wg_up.ts')).upWg,
  },
}
