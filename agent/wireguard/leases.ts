/**
 * Addresses that a serving agent gives to its clients: no relay has a say. Each serving identity has a
 * subnet of its own of 100.64.0.0/10 (RFC 6598), chosen by its key, and an fd… one beside it (RFC 4193); another one
 * where this machine, or that client, has something there already. A client keeps its address for as
 * long as nobody releases it.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import { concat, text, utf8 } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Files } from '../world.ts'
import { masked, overlaps, parseRoute, routeText } from './exit_policy.ts'

/** Clients of one serving identity, over all its subnets. */
export const LEASES_MAX = 4_096
const FILE_BYTES_MAX = 2_097_152
const LOCK_MS_MAX = 5_000
const CANDIDATES_MAX = 512
/** Of a subnet that is not named. */
const SUBNET_BITS = 24
/** Room for the serving agent, one client, and the two that no host has. */
const SUBNET_BITS_MAX = 30
const SUBNET_BITS_MIN = 12
const CLIENT_WORDS_MAX = 256
const LABEL = utf8('sotto wireguard subnet v1')
/** The serving agent is the first host of each subnet. */
const SERVER_HOST = 1

const SHARED = parseRoute('100.64.0.0/10')
/** Where a machine is in 100.64.0.0/10 already: its neighbours there are anywhere in it, and named by no interface. */
const PRIVATE = parseRoute('10.0.0.0/8')
/** Tailscale answers DNS at 100.100.100.100; ChromeOS keeps the other for its own. */
const TAKEN_ALWAYS = ['100.100.100.0/24', '100.115.92.0/23'].map(parseRoute)

export interface Subnet {
  readonly four: Range
  readonly six: Range
}

export interface Lease {
  /** The client's identity, as text. */
  readonly client: string
  readonly four: string
  readonly six: string
  /** The serving agent's own address in that subnet. */
  readonly serverFour: string
  readonly serverSix: string
  readonly subnet: Subnet
  readonly sinceMs: number
}

export interface LeasePorts {
  readonly files: Pick<Files, 'read' | 'write' | 'lock'>
  readonly clock: Clock
  readonly crypto: Pick<Crypto, 'sha256'>
}

/**
 * The `index`-th subnet of an identity that shares nothing with `taken`. One that has an address in
 * 100.64.0.0/10 already gets one of 10.0.0.0/8. Throws `lease/subnet`.
 */
export function subnetOf(
  crypto: Pick<Crypto, 'sha256'>,
  identity32: Uint8Array,
  { taken = [], index = 0 }: { taken?: readonly Range[]; index?: number } = {},
): Subnet {
  const isShared = taken.some((one) => one.bits > 0 && overlaps(one, SHARED))
  const pool = isShared ? PRIVATE : SHARED
  const avoided = [...taken.filter((one) => one.bits > 0), ...TAKEN_ALWAYS]
  let left = index
  for (let i = 0; i < CANDIDATES_MAX; i++) {
    const subnet = candidate(crypto, identity32, { pool, i })
    if (avoided.some((one) => overlaps(one, subnet.four) || overlaps(one, subnet.six))) continue
    if (left-- === 0) return subnet
  }
  throw new TunnelError('lease/subnet', 'Cannot find a subnet that nothing of this machine uses', {
    hint: 'Name one, such as --subnet 10.99.0.0/24',
  })
}

/** The subnet that a person named; IPv6 beside it comes from the identity. Throws `lease/subnet`. */
export function namedSubnet(
  crypto: Pick<Crypto, 'sha256'>,
  identity32: Uint8Array,
  words: string,
): Subnet {
  const four = parseRoute(words)
  if (four.bytes.length !== 4 || four.bits < SUBNET_BITS_MIN || four.bits > SUBNET_BITS_MAX) {
    throw new TunnelError(
      'lease/subnet',
      `Cannot use the subnet ${words}: expected an IPv4 network between /${SUBNET_BITS_MIN} and ` +
        `/${SUBNET_BITS_MAX}, such as 100.64.7.0/24`,
    )
  }
  return { four, six: sixBeside(crypto, identity32, four) }
}

function candidate(
  crypto: Pick<Crypto, 'sha256'>,
  identity32: Uint8Array,
  { pool, i }: { pool: Range; i: number },
): Subnet {
  const digest = crypto.sha256(LABEL, identity32, Uint8Array.of(pool.bytes[0]!, i >> 8, i & 255))
  const four = pool.bytes.map((byte, at) =>
    byte | (digest[at]! & ~maskByte(pool.bits, at) & maskByte(SUBNET_BITS, at))
  )
  const range: Range = { bytes: four, bits: SUBNET_BITS }
  return { four: range, six: sixBeside(crypto, identity32, range) }
}

/** RFC 4193 §3.2: fd, 40 bits by hash, 16 bits of subnet, 64 of hosts. It follows from the other, and is not kept. */
function sixBeside(crypto: Pick<Crypto, 'sha256'>, identity32: Uint8Array, four: Range): Range {
  const digest = crypto.sha256(LABEL, identity32, utf8(routeText(four)))
  return { bytes: concat(Uint8Array.of(0xfd), digest.subarray(0, 7), new Uint8Array(8)), bits: 64 }
}

function maskByte(bits: number, at: number): number {
  return 0xff00 >> Math.min(8, Math.max(0, bits - 8 * at)) & 0xff
}

interface Stored {
  client: string
  four: string
  subnet: string
  sinceMs: number
}

export class Leases {
  readonly #ports: LeasePorts
  readonly #path: string
  readonly #identity32: Uint8Array
  readonly #taken: () => readonly Range[]
  readonly #named: Subnet | undefined

  /** `taken` tells the networks of this machine's interfaces, and those that it routes. */
  constructor(
    ports: LeasePorts,
    path: string,
    options: {
      readonly identity32: Uint8Array
      readonly taken: () => readonly Range[]
      readonly named?: Subnet
    },
  ) {
    this.#ports = ports
    this.#path = path
    this.#identity32 = options.identity32
    this.#taken = options.taken
    this.#named = options.named
  }

  /**
   * The client's lease, made on first use. `avoid`: networks that the client has already; a lease within one of
   * them is replaced. Throws `lease/full`, `lease/subnet`, `lease/corrupt`, `lease/busy`, `files/…`.
   */
  async lease(client: string, avoid: readonly Range[] = []): Promise<Lease> {
    if (client.length === 0 || client.length > CLIENT_WORDS_MAX) {
      throw new TunnelError('lease/client', 'Cannot lease an address to a client without a name')
    }
    return await this.#locked(async () => {
      const all = await this.#read()
      const known = all.find((one) => one.client === client)
      const clashes = [...this.#taken(), ...avoid]
      if (known && this.#fits(known, clashes)) return this.#grown(known)
      const others = all.filter((one) => one !== known)
      if (others.length >= LEASES_MAX) throw this.#full()
      const made = this.#choose(client, { others, clashes })
      await this.#write([...others, made])
      return this.#grown(made)
    })
  }

  async list(): Promise<Lease[]> {
    return (await this.#read()).map((one) => this.#grown(one))
  }

  /** False: there was none. */
  async release(client: string): Promise<boolean> {
    return await this.#locked(async () => {
      const all = await this.#read()
      const left = all.filter((one) => one.client !== client)
      if (left.length === all.length) return false
      await this.#write(left)
      return true
    })
  }

  #fits(known: Stored, clashes: readonly Range[]): boolean {
    const four = parseRoute(known.subnet)
    return this.#named
      ? routeText(this.#named.four) === known.subnet
      : !clashes.some((one) => one.bits > 0 && overlaps(one, four))
  }

  #choose(
    client: string,
    { others, clashes }: { others: readonly Stored[]; clashes: readonly Range[] },
  ): Stored {
    const { crypto, clock } = this.#ports
    for (let index = 0; index < 8; index++) {
      const subnet = this.#named ?? subnetOf(crypto, this.#identity32, { taken: clashes, index })
      const used = new Set(others.map(({ four }) => four))
      const hosts = 2 ** (32 - subnet.four.bits)
      // The same client asks for the same place wherever it can have it.
      const digest = crypto.sha256(utf8(client))
      const start = (digest[0]! << 16 | digest[1]! << 8 | digest[2]!) % hosts
      for (let step = 0; step < Math.min(hosts, LEASES_MAX + 3); step++) {
        const host = (start + step) % hosts
        const four = formatAddress(hostAddress(subnet.four, host))
        if (host <= SERVER_HOST || host === hosts - 1 || used.has(four)) continue
        return { client, four, subnet: routeText(subnet.four), sinceMs: clock.now() }
      }
      if (this.#named) break
    }
    throw this.#full()
  }

  #grown({ client, four, subnet, sinceMs }: Stored): Lease {
    const range = parseRoute(subnet)
    const six = sixBeside(this.#ports.crypto, this.#identity32, range)
    const host = hostNumber(range, parseAddress(four)!)
    return {
      client,
      four,
      six: formatAddress(hostAddress(six, host)),
      serverFour: formatAddress(hostAddress(range, SERVER_HOST)),
      serverSix: formatAddress(hostAddress(six, SERVER_HOST)),
      subnet: { four: range, six },
      sinceMs,
    }
  }

  #full(): TunnelError {
    return new TunnelError('lease/full', 'Cannot lease an address: all of the subnet are taken', {
      hint: 'Release one that nobody uses, by "sotto wg release CLIENT", or name a larger --subnet',
    })
  }

  async #locked<T>(run: () => Promise<T>): Promise<T> {
    const release = await this.#ports.files.lock(`${this.#path}.lock`, { waitMs: LOCK_MS_MAX })
    if (!release) {
      throw new TunnelError(
        'lease/busy',
        `Cannot write ${this.#path}: another process is writing it`,
      )
    }
    try {
      return await run()
    } finally {
      await release()
    }
  }

  async #read(): Promise<Stored[]> {
    const content = await this.#ports.files.read(this.#path, { bytesMax: FILE_BYTES_MAX })
    if (content === undefined) return []
    try {
      const { leases } = JSON.parse(text(content)) as { leases: unknown }
      if (Array.isArray(leases) && leases.length <= LEASES_MAX && leases.every(isStored)) {
        return leases
      }
    } catch {
      // The same as one of another shape.
    }
    throw new TunnelError('lease/corrupt', `Cannot read ${this.#path}: expected a list of leases`, {
      hint: 'Move the file away; clients get new addresses then',
    })
  }

  async #write(leases: readonly Stored[]): Promise<void> {
    const words = JSON.stringify({ version: 1, leases }, undefined, 1)
    await this.#ports.files.write(this.#path, utf8(`${words}\n`))
  }
}

function isStored(value: unknown): value is Stored {
  const { client, four, subnet, sinceMs } = (value ?? {}) as Partial<Stored>
  if (
    typeof client !== 'string' || typeof four !== 'string' || typeof subnet !== 'string' ||
    typeof sinceMs !== 'number' || !/^[0-9.]+\/(1[2-9]|2[0-9]|30)$/.test(subnet)
  ) return false
  const bytes = parseAddress(four)
  const range = parseAddress(subnet.split('/')[0]!)
  const bits = Number(subnet.split('/')[1])
  return bytes?.length === 4 && range?.length === 4 &&
    formatAddress(masked(bytes, bits)) === formatAddress(range)
}

/** The network's address with `host` in its last bits. */
function hostAddress({ bytes }: Range, host: number): Uint8Array {
  const out = bytes.slice()
  for (let at = out.length - 1, left = host; left > 0; at--, left = Math.floor(left / 256)) {
    out[at]! |= left % 256
  }
  return out
}

function hostNumber({ bits }: Range, bytes: Uint8Array): number {
  let host = 0
  for (const [at, byte] of bytes.entries()) host = host * 256 + (byte & ~maskByte(bits, at) & 255)
  return host
}
