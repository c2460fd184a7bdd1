/**
 * Addresses, routes and rules of an interface, by the program `ip` of iproute2: rules of policy routing have no
 * call but netlink, and every system with WireGuard's own tools has `ip`, which says in words what is wrong.
 *
 * Everything is in a table of its own, so that what this machine routes by itself is untouched:
 *
 *   base       to each address that carries the tunnel, by protocol and port: as without the tunnel
 *   base + 8   what this machine has routes for, its default aside: as without the tunnel
 *   base + 9   the table, whose routes end with the interface
 *
 * Rules outlive a process that is killed, and lead to an empty table then, which is to say nowhere: the next
 * start removes them.
 */
import { TunnelError } from '../../core/errors.ts'
import { parseNetwork } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'
import type { World } from '../world.ts'

const TABLE = 51_900
const PREFERENCE = 30_000
const PREFERENCES = 16
/** Interfaces of this kind on one machine. */
export const TABLES_MAX = 16
/** Whose rules they are: see "ip rule … protocol". */
const PROTOCOL = '83'
const OUTPUT_LENGTH_MAX = 1_048_576
const PROGRAM_MS = 10_000
const BYPASS_MAX = 64

type Family = 4 | 6
type IpWorld = Pick<World, 'programs' | 'clock' | 'env'>

export interface Way {
  /** An address, and where datagrams or connections of the tunnel go. */
  address: string
  protocol: 'tcp' | 'udp'
  port: number
}

export type Release = () => Promise<void>

interface Rule {
  priority: number
  protocol?: string
}

/** Throws `tun/ip` where there is no such program, or another than expected. */
export class IpProgram {
  readonly #world: IpWorld

  constructor(world: IpWorld) {
    this.#world = world
  }

  /** Lines of commands for one family, in order. Throws `tun/ip` with the program's words. */
  async batch(family: Family, lines: readonly string[]): Promise<void> {
    if (lines.length === 0) return
    const { code, errors } = await this.run([`-${family}`, '-batch', '-'], `${lines.join('\n')}\n`)
    if (code !== 0) throw refused(lines, errors)
  }

  /** Networks that the main table leads elsewhere than `device`, the default aside. */
  async ways(device: string): Promise<Network[]> {
    const ways: Network[] = []
    for (const family of [4, 6] as const) {
      const rows = await this.#list<{ dst?: string; dev?: string }>(family, 'route', 'show')
      for (const { dst, dev } of rows) {
        const network = dst === undefined ? undefined : parseNetwork(dst)
        if (network && network.bits > 0 && dev !== device) ways.push(network)
      }
    }
    return ways
  }

  /**
   * A table that nobody uses. `take` takes a number for this process, and gives what gives it back; undefined where
   * another has it. Rules that a process which was killed has left are removed. Throws `tun/full`.
   */
  async freeTable(take: (number: number) => Promise<Release | undefined>): Promise<RuleTable> {
    let free: RuleTable | undefined
    const rules: { family: Family; number: number; line: string }[] = []
    for (const family of [4, 6] as const) {
      for (const { priority, protocol } of await this.#list<Rule>(family, 'rule', 'show')) {
        const number = Math.floor((priority - PREFERENCE) / PREFERENCES)
        if (protocol === PROTOCOL) rules.push({ family, number, line: `rule del pref ${priority}` })
      }
    }
    for (let number = 0; number < TABLES_MAX; number++) {
      const left = rules.filter((one) => one.number === number)
      const release = !free || left.length > 0 ? await take(number) : undefined
      if (!release) continue
      for (const family of [4, 6] as const) {
        const lines = left.filter((one) => one.family === family)
        await this.batch(family, lines.map(({ line }) => line))
      }
      if (free) await release()
      else free = new RuleTable(this, number, release)
    }
    if (free) return free
    throw new TunnelError('tun/full', `Cannot route: found ${TABLES_MAX} interfaces of sotto`)
  }

  /** Any program; `ip` unless named. Throws `tun/ip` where it cannot be started. */
  async run(
    args: readonly string[],
    input = '',
    program = 'ip',
  ): Promise<{ code: number | undefined; output: string; errors: string }> {
    const { programs, clock, env } = this.#world
    const decoder = { output: new TextDecoder(), errors: new TextDecoder() }
    const words = { output: '', errors: '' }
    const take = (name: 'output' | 'errors') => (bytes: Uint8Array): void => {
      if (words[name].length < OUTPUT_LENGTH_MAX) {
        words[name] += decoder[name].decode(bytes, { stream: true })
      }
    }
    const path = `${env['PATH'] ?? '/usr/bin:/bin'}:/usr/sbin:/sbin`
    const started = await programs.start(
      { argv: [program, ...args], env: { PATH: path, LC_ALL: 'C' } },
      { output: take('output'), errors: take('errors') },
    ).catch((cause) => {
      throw missing(program, cause)
    })
    const late = clock.after(PROGRAM_MS, () => started.kill('kill'))
    await started.write(new TextEncoder().encode(input))
    started.end()
    const { code } = await started.done
    late.cancel()
    return { code, ...words }
  }

  async #list<T>(family: Family, ...words: string[]): Promise<T[]> {
    const { code, output, errors } = await this.run(['-N', '-j', `-${family}`, ...words])
    // A system without IPv6 has neither rules nor routes of it.
    if (code !== 0 && family === 6) return []
    try {
      const rows: unknown = JSON.parse(output.trim() || '[]')
      if (code === 0 && Array.isArray(rows)) return rows as T[]
    } catch {
      // The program of another maker.
    }
    throw refused([words.join(' ')], errors)
  }
}

/** The rules of one interface. */
export class RuleTable {
  readonly #ip: IpProgram
  readonly #number: number
  readonly #release: Release
  readonly #lines: { family: Family; line: string }[] = []
  readonly #ways = new Map<string, { family: Family; line: string }>()
  #isOn = false

  /** `release` gives the number back. */
  constructor(ip: IpProgram, number: number, release: Release) {
    this.#release = release
    this.#ip = ip
    this.#number = number
  }

  get table(): number {
    return TABLE + this.#number
  }

  /** What carries the tunnel goes as without it. More than 64 are not kept. */
  async bypass({ address, protocol, port }: Way): Promise<void> {
    const family = address.includes(':') ? 6 : 4
    const line =
      `pref ${this.#base} to ${address} ipproto ${protocol} dport ${port} lookup main protocol ${PROTOCOL}`
    const key = `${family} ${line}`
    if (this.#ways.has(key) || this.#ways.size >= BYPASS_MAX) return
    this.#ways.set(key, { family, line })
    if (this.#isOn) await this.#add([{ family, line }])
  }

  /** Once the routes are there. */
  async on(families: readonly Family[]): Promise<void> {
    if (this.#isOn) return
    this.#isOn = true
    await this.#add([...this.#ways.values()].filter(({ family }) => families.includes(family)))
    for (const family of families) {
      const lines = [
        `pref ${this.#base + 8} lookup main suppress_prefixlength 0 protocol ${PROTOCOL}`,
        `pref ${this.#base + 9} lookup ${this.table} protocol ${PROTOCOL}`,
      ]
      await this.#add(lines.map((line) => ({ family, line })))
    }
  }

  /** The last call. */
  async off(): Promise<void> {
    this.#isOn = false
    try {
      for (const family of [4, 6] as const) {
        const lines = this.#lines.filter((one) => one.family === family)
        await this.#ip.batch(family, lines.map(({ line }) => `rule del ${line}`))
      }
    } finally {
      this.#lines.length = 0
      await this.#release()
    }
  }

  get #base(): number {
    return PREFERENCE + this.#number * PREFERENCES
  }

  async #add(lines: readonly { family: Family; line: string }[]): Promise<void> {
    for (const one of lines) {
      await this.#ip.batch(one.family, [`rule add ${one.line}`])
      this.#lines.push(one)
    }
  }
}

function missing(program: string, cause: unknown): TunnelError {
  return new TunnelError(
    'tun/ip',
    `Cannot set up the interface: the program "${program}" cannot be started`,
    {
      hint: 'Install iproute2: apt-get install iproute2, dnf install iproute, apk add iproute2',
      cause,
    },
  )
}

function refused(lines: readonly string[], errors: string): TunnelError {
  const at = /^Command failed -:(\d+)/m.exec(errors)
  const line = lines[at ? Number(at[1]) - 1 : 0] ?? lines[0]
  const why = errors.split('\n').find((one) => one !== '' && !one.startsWith('Command failed'))
  return new TunnelError(
    'tun/ip',
    `Cannot set up the interface: "ip ${line}" says ${why ?? 'nothing, and fails'}`,
    {
      hint: 'It must be that of iproute2, not of BusyBox, and this user must be root. ' +
        'Install it: apt-get install iproute2, dnf install iproute, apk add iproute2',
    },
  )
}
