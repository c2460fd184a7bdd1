/**
 * A small internet of network name spaces: `open` has two public addresses, `inner` is behind a router
 * that translates addresses by the kernel's own NAT. Needs root, `ip` and `nft`.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'

let made = 0

export class NatBench {
  /** Two addresses of one machine in the open, as RFC 5780 wants them. */
  readonly servers = ['203.0.113.1', '203.0.113.2'] as const
  readonly #id = `${process.pid % 100_000}n${made++}`

  /** `host` is a name that leads to the first of them. */
  constructor(host: string) {
    const [open, router, inner] = this.#names
    try {
      for (const name of this.#names) {
        run(['ip', 'netns', 'add', name!])
        run(['ip', '-n', name!, 'link', 'set', 'lo', 'up'])
        mkdirSync(`/etc/netns/${name}`, { recursive: true })
        writeFileSync(
          `/etc/netns/${name}/hosts`,
          `127.0.0.1 localhost\n${this.servers[0]} ${host}\n`,
        )
      }
      this.#wire([open!, '203.0.113.1/24'], [router!, '203.0.113.100/24'], 'wan0')
      run(['ip', '-n', open!, 'address', 'add', '203.0.113.2/24', 'dev', 'wan0'])
      this.#wire([router!, '10.9.0.1/24'], [inner!, '10.9.0.2/24'], 'lan0')
      run(['ip', '-n', inner!, 'route', 'add', 'default', 'via', '10.9.0.1'])
      run(['ip', 'netns', 'exec', router!, 'sysctl', '-qw', 'net.ipv4.ip_forward=1'])
    } catch (error) {
      this.close()
      throw error
    }
  }

  get #names(): string[] {
    return ['o', 'r', 'i'].map((name) => `sn${name}${this.#id}`)
  }

  #wire([a, first]: [string, string], [b, second]: [string, string], device: string): void {
    run(['ip', '-n', a, 'link', 'add', device, 'type', 'veth', 'peer', 'name', device, 'netns', b])
    for (const [name, address] of [[a, first], [b, second]] as const) {
      run(['ip', '-n', name, 'address', 'add', address, 'dev', device])
      run(['ip', '-n', name, 'link', 'set', device, 'up'])
    }
  }

  /** Before a command that is to run in the open, or behind the router. */
  within(where: 'open' | 'inner'): string[] {
    return ['ip', 'netns', 'exec', this.#names[where === 'open' ? 0 : 2]!]
  }

  /** `symmetric`: another port for each far end, by chance; else the port stays as it was. */
  translate(how: 'keeps' | 'symmetric'): void {
    this.#rules([
      'add table ip nat',
      'add chain ip nat post { type nat hook postrouting priority srcnat; }',
      `add rule ip nat post oifname "wan0" masquerade${how === 'symmetric' ? ' fully-random' : ''}`,
    ])
  }

  /** No UDP from within. */
  blockUdp(): void {
    this.#rules([
      'add table ip wall',
      'add chain ip wall forward { type filter hook forward priority 0; }',
      'add rule ip wall forward meta l4proto udp drop',
    ])
  }

  /** Packets above `bytes` vanish, in both directions, as where ICMP is filtered. */
  swallow(bytes: number): void {
    this.#rules([
      'add table ip wall',
      'add chain ip wall forward { type filter hook forward priority 0; }',
      `add rule ip wall forward meta length > ${bytes} drop`,
    ])
  }

  clear(): void {
    this.#rules(['flush ruleset'])
  }

  #rules(lines: string[]): void {
    run(['ip', 'netns', 'exec', this.#names[1]!, 'nft', lines.join('; ')])
  }

  close(): void {
    for (const name of this.#names) {
      spawnSync('ip', ['netns', 'delete', name])
      rmSync(`/etc/netns/${name}`, { recursive: true, force: true })
    }
  }
}

function run(command: string[]): void {
  const { status, stderr, error } = spawnSync(command[0]!, command.slice(1), { timeout: 10_000 })
  if (status === 0) return
  throw new Error(`${command.join(' ')}: ${error?.message ?? String(stderr)}`)
}
