/**
 * An interface of this machine in a private network, from its making to its end: device, addresses, routes,
 * rules, names. It outlives sessions and agreements; what is behind it changes.
 */
import type { Agreed } from '../../core/agreement.ts'
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import type { TunDevice, World } from '../world.ts'
import { IpProgram } from './ip_program.ts'
import type { RuleTable } from './ip_program.ts'
import type { NearEnd, NearEndOptions, NearEnds } from './near_end.ts'
import { PacketGuard } from './packet_guard.ts'
import { UDP_PATH } from './relay_path.ts'
import { planRoutes, routeText } from './route_plan.ts'
import type { RouteChoice, RoutePlan } from './route_plan.ts'
import { SystemNames } from './system_names.ts'
import { TunEnd } from './tun_end.ts'

/** What waits for this program, while it does something else; more is dropped by the system. */
const QUEUE_BYTES = 4 * 2 ** 20
const QUEUE_PACKETS = [500, 3_000] as const
/** Whoever has it has the table of that number, until it ends, whatever ends it. */
const lockPath = (number: number): string => `/run/sotto-tun-${number}.lock`

export interface InterfaceOptions {
  name: string
  choice: RouteChoice
  /** Names of this machine are asked of the network. */
  dns: boolean
  accept: ReadonlySet<number> | 'all'
}

export interface InterfaceFacts {
  name: string
  addresses: readonly string[]
  mtu: number
  plan: RoutePlan
  /** Why there is no IPv6. */
  withoutSix: string | undefined
  /** Who asks the network for names now; undefined: it was not asked for, or nothing here does. */
  names: string | undefined
}

export class TunInterface implements NearEnds {
  readonly interface: string
  readonly guard: PacketGuard
  facts: InterfaceFacts | undefined
  /** After the first time. */
  changed: (() => void) | undefined
  problem: ((error: unknown) => void) | undefined
  readonly #options: InterfaceOptions
  readonly #tun: TunDevice
  readonly #ip: IpProgram
  readonly #rules: RuleTable
  readonly #names: SystemNames
  /** Whether this machine has IPv6 beside the interface. */
  readonly #hasSix: () => boolean
  /** Routes that stand, and addresses. */
  #routed: string[] = []
  #addresses: string[] = []
  #mtu = 0
  #end: TunEnd | undefined
  #isClosed = false

  /** Throws `tun/…`. */
  static async open(world: World, options: InterfaceOptions): Promise<TunInterface> {
    const tun = await world.wireguard.openTun(options.name)
    try {
      const ip = new IpProgram(world)
      const names = new SystemNames(world, ip, options.name)
      const rules = await ip.freeTable(async (number) => {
        try {
          return await world.files.lock(lockPath(number))
        } catch {
          // A system without such a folder: the first number is as good as any.
          return () => Promise.resolve()
        }
      })
      await names.forget()
      return new TunInterface(world, { options, tun, ip, rules, names })
    } catch (error) {
      await tun.close()
      throw error
    }
  }

  private constructor(
    { clock, crypto, probes }: World,
    { options, tun, ip, rules, names }: {
      options: InterfaceOptions
      tun: TunDevice
      ip: IpProgram
      rules: RuleTable
      names: SystemNames
    },
  ) {
    this.interface = options.name
    this.#hasSix = () =>
      probes.interfaces().some(({ name, address, family, internal }) =>
        family === 6 && !internal && name !== options.name && !/^fe80:/i.test(address)
      )
    this.#options = options
    this.#tun = tun
    this.#ip = ip
    this.#rules = rules
    this.#names = names
    this.guard = new PacketGuard({
      own: [],
      routes: [],
      accept: options.accept,
      now: () => clock.monotonic(),
      seed: new DataView(crypto.randomBytes(4).buffer).getUint32(0),
    })
    void this.#pump()
  }

  /** Connections to this place go as without the interface, so that the tunnel is not carried by itself. */
  async bypass(address: string, protocol: 'tcp' | 'udp', port: number): Promise<void> {
    const bytes = parseAddress(address)
    if (bytes) await this.#rules.bypass({ address: formatAddress(bytes), protocol, port })
  }

  async make(options: NearEndOptions, agreed: Agreed): Promise<NearEnd> {
    const isAgain = this.facts !== undefined
    const end = new TunEnd({
      ...options,
      tun: this.#tun,
      guard: this.guard,
      roamed: (endpoint) => this.#roamed(endpoint),
    })
    try {
      await this.#set(agreed, options.mtu)
    } catch (error) {
      end.close()
      throw error
    }
    this.#end = end
    if (isAgain) this.changed?.()
    return end
  }

  async renewed(agreed: Agreed): Promise<void> {
    const before = describe(this.facts)
    await this.#set(agreed, this.#mtu)
    if (describe(this.facts) !== before) this.changed?.()
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    // The interface first: rules that lead to an empty table lead nowhere.
    await this.#tun.close()
    await this.#rules.off()
    await this.#names.forget()
  }

  async #pump(): Promise<void> {
    for (;;) {
      const packet = await this.#tun.read()
      if (!packet) break
      const full = this.#end?.give(packet)
      if (full) await full
    }
    if (!this.#isClosed) {
      this.problem?.(new TunnelError('tun/gone', `The interface ${this.interface} was removed`))
    }
  }

  /** Brings the machine to an agreement. */
  async #set(agreed: Agreed, mtu: number): Promise<void> {
    const { name, choice, dns } = this.#options
    const plan = planRoutes(agreed, { choice, ways: await this.#ip.ways(name) })
    if (dns && agreed.dns.length === 0) throw noNames()
    for (const { address, port } of agreed.endpoints) {
      await this.bypass(formatAddress(address), 'udp', port)
    }
    this.#mtu = mtu
    const own = [agreed.address4.bytes, agreed.address6.bytes]
    this.guard.set({ own, routes: plan.routed })
    const routes = this.#isAll ? withBoth(plan.routed) : plan.routed
    if (!this.facts) await this.#quiet()
    await this.#ip.batch(4, [
      `link set dev ${name} mtu ${mtu} txqueuelen ${queueOf(mtu)}`,
      ...this.#lines(4, own[0]!, routes),
    ])
    const withoutSix = await this.#six(own[1]!, routes)
    this.#routed = routes.map((route) => `${route.bytes.length} ${routeText(route)}`)
    this.#addresses = own.map(formatAddress)
    await this.#rules.on(withoutSix === undefined ? [4, 6] : [4])
    this.facts = {
      name,
      addresses: withoutSix === undefined ? this.#addresses : this.#addresses.slice(0, 1),
      mtu,
      plan,
      withoutSix,
      names: dns ? await this.#names.use(agreed.dns.map(formatAddress)) : undefined,
    }
  }

  /** No address of the link alone, and no questions to routers: nobody is there to answer. */
  async #quiet(): Promise<void> {
    try {
      await this.#ip.batch(6, [`link set dev ${this.#options.name} addrgenmode none`])
    } catch (error) {
      if (!isTunnelError(error, 'tun/ip')) throw error
    }
  }

  /** Why there is none. */
  async #six(own: Uint8Array, routes: readonly Network[]): Promise<string | undefined> {
    try {
      await this.#ip.batch(6, this.#lines(6, own, routes))
      return undefined
    } catch (error) {
      // A machine without IPv6 has none to route; one that has it would send it beside the network.
      if (!isTunnelError(error, 'tun/ip') || (this.#isAll && this.#hasSix())) throw error
      return error.message
    }
  }

  #lines(family: 4 | 6, own: Uint8Array, routes: readonly Network[]): string[] {
    const { name } = this.#options
    const size = family === 4 ? 4 : 16
    const host = `${formatAddress(own)}/${size * 8}`
    const before = this.#addresses.find((one) => one.includes(':') === (family === 6))
    const mine = routes.filter(({ bytes }) => bytes.length === size)
    const table = this.#rules.table
    const gone = this.#routed.filter((words) => {
      const [bytes, text] = words.split(' ')
      return bytes === String(size) && !mine.some((route) => routeText(route) === text)
    })
    return [
      ...(family === 4 ? [`address replace ${host} dev ${name}`] : [
        `address replace ${host} dev ${name} nodad`,
      ]),
      ...(family === 4 ? [`link set dev ${name} up`] : []),
      ...mine.map((route) =>
        `route replace ${routeText(route)} dev ${name} table ${table} src ${formatAddress(own)}`
      ),
      ...gone.map((words) => `route del ${words.split(' ')[1]} dev ${name} table ${table}`),
      ...(before === undefined || before === formatAddress(own)
        ? []
        : [`address del ${before}/${size * 8} dev ${name}`]),
    ]
  }

  get #isAll(): boolean {
    return this.#options.choice === 'all'
  }

  #roamed({ host, port, path = UDP_PATH }: Endpoint): void {
    if (path !== UDP_PATH) return this.guard.avoid(undefined)
    const bytes = parseAddress(host)
    if (!bytes) return
    // Until the rule stands, nothing of the tunnel goes into the tunnel.
    this.guard.avoid({ bytes, port })
    this.bypass(host, 'udp', port).catch((error) => this.problem?.(error))
  }
}

/** The same words for what a person would take for the same. */
function describe(facts: InterfaceFacts | undefined): string {
  return JSON.stringify({ ...facts, plan: [facts?.plan.routed, facts?.plan.left] })
}

function queueOf(mtu: number): number {
  const [least, most] = QUEUE_PACKETS
  return Math.max(least, Math.min(most, Math.floor(QUEUE_BYTES / mtu)))
}

/** All of a machine is both families, also where one of them leads nowhere then. */
function withBoth(routes: readonly Network[]): Network[] {
  const both = [4, 16].map((size) => ({ bytes: new Uint8Array(size), bits: 0 }))
  const missing = both.filter(({ bytes }) =>
    !routes.some((one) => one.bits === 0 && one.bytes.length === bytes.length)
  )
  return [...routes, ...missing]
}

function noNames(): TunnelError {
  return new TunnelError('tun/names', 'Cannot ask the network for names: it answers none', {
    hint: 'Whoever serves it would type: sotto wg serve --dns',
  })
}
