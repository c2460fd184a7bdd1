/**
 * A network namespace with one veth pair to the outside, for tests that cut wires: `cut` drops every
 * packet in both directions without a word, as a pulled cable does. Needs root, `ip` and `nft`.
 */
import { spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'

let made = 0

export class Namespace {
  readonly name: string
  /** This side's address, where a relay listens. */
  readonly outside: string
  readonly inside: string
  readonly #hosts: string

  /** `host` is a name that leads to `outside` within the namespace. */
  constructor(host: string) {
    const id = `${process.pid % 100_000}x${made++}`
    this.name = `sotto-${id}`
    this.#hosts = `/etc/netns/${this.name}`
    const wire = freeWire()
    this.outside = `198.18.${wire >> 6}.${(wire & 63) * 4 + 1}`
    this.inside = `198.18.${wire >> 6}.${(wire & 63) * 4 + 2}`
    const out = `so${id}`
    const inner = `si${id}`
    run(['ip', 'netns', 'add', this.name])
    try {
      run(['ip', 'link', 'add', out, 'type', 'veth', 'peer', 'name', inner, 'netns', this.name])
      run(['ip', 'address', 'add', `${this.outside}/30`, 'dev', out])
      run(['ip', 'link', 'set', out, 'up'])
      run([...this.within, 'ip', 'address', 'add', `${this.inside}/30`, 'dev', inner])
      run([...this.within, 'ip', 'link', 'set', inner, 'up'])
      run([...this.within, 'ip', 'link', 'set', 'lo', 'up'])
      mkdirSync(this.#hosts, { recursive: true })
      writeFileSync(`${this.#hosts}/hosts`, `127.0.0.1 localhost\n${this.outside} ${host}\n`)
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Before a command that is to run inside. */
  get within(): string[] {
    return ['ip', 'netns', 'exec', this.name]
  }

  /** Both directions, or only what comes in. */
  cut(direction: 'both' | 'in' = 'both'): void {
    const rules = [
      'add table inet cut',
      'add chain inet cut in { type filter hook input priority 0; }',
      'add rule inet cut in iifname != "lo" drop',
      ...(direction === 'both'
        ? [
          'add chain inet cut out { type filter hook output priority 0; }',
          'add rule inet cut out oifname != "lo" drop',
        ]
        : []),
    ]
    run([...this.within, 'nft', rules.join('; ')])
  }

  /** No UDP of more than so many bytes in or out, without a word, until `heal`. */
  cutUdp(bytes = 0): void {
    const rules = [
      'add table inet cut',
      ...['input', 'output'].flatMap((hook) => [
        `add chain inet cut ${hook} { type filter hook ${hook} priority 0; }`,
        `add rule inet cut ${hook} meta l4proto udp meta length > ${bytes} drop`,
      ]),
    ]
    run([...this.within, 'nft', rules.join('; ')])
  }

  heal(): void {
    run([...this.within, 'nft', 'delete', 'table', 'inet', 'cut'])
  }

  close(): void {
    spawnSync('ip', ['netns', 'delete', this.name])
    rmSync(this.#hosts, { recursive: true, force: true })
  }
}

/**
 * One of the 16,384 nets of two hosts in 198.18.0.0/16 that no interface of this machine has: others run beside
 * us, and what a killed run left must not be in the way. 198.18.0.0/15 is for tests of networks (RFC 2544).
 */
function freeWire(): number {
  const taken = new Set(
    Object.values(networkInterfaces()).flatMap((all) => all ?? []).flatMap(({ address }) => {
      const [first, second, third, last] = address.split('.').map(Number)
      return first === 198 && second === 18 ? [(third! << 6) | (last! >> 2)] : []
    }),
  )
  for (let tries = 0; tries < 100; tries++) {
    const wire = randomInt(1 << 14)
    if (!taken.has(wire)) return wire
  }
  throw new Error('No free net in 198.18.0.0/16')
}

function run(command: string[]): void {
  const { status, stderr, error } = spawnSync(command[0]!, command.slice(1), { timeout: 10_000 })
  if (status === 0) return
  throw new Error(`${command.join(' ')}: ${error?.message ?? String(stderr)}`)
}
