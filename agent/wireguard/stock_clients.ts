/**
 * Clients of WireGuard that are no agents: phones, routers, wg-quick. A person makes a key for each on
 * the serving machine; the private half is printed once and kept nowhere. The running network takes the
 * list up as it changes.
 */
import { text, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { isName } from '../../core/key.ts'
import type { Profile } from '../profile.ts'
import type { World } from '../world.ts'

const CLIENTS_MAX = 256
const FILE_BYTES_MAX = 262_144
/** 32 bytes in base64. */
const KEY = /^[A-Za-z0-9+/]{43}=$/

export interface StockClientEntry {
  name: string
  /** Public, in base64 as WireGuard writes it. */
  key: string
  presharedKey: string
  sinceMs: number
}

export class StockClients {
  readonly path: string
  readonly #world: Pick<World, 'files'>
  readonly #profile: Profile
  readonly #network: string

  constructor(world: Pick<World, 'files'>, profile: Profile, network: string) {
    this.path = `${profile.configDir}/wireguard/${network}.clients.json`
    this.#world = world
    this.#profile = profile
    this.#network = network
  }

  /** Throws `stock/corrupt`. */
  async list(): Promise<StockClientEntry[]> {
    const content = await this.#world.files.read(this.path, { bytesMax: FILE_BYTES_MAX })
    if (content === undefined) return []
    try {
      const { clients } = JSON.parse(text(content)) as { clients: unknown }
      if (Array.isArray(clients) && clients.length <= CLIENTS_MAX && clients.every(isEntry)) {
        return clients
      }
    } catch {
      // The same as one of another shape.
    }
    throw new TunnelError('stock/corrupt', `Cannot read ${this.path}: expected a list of clients`, {
      hint: 'Move the file away; clients need new configurations then',
    })
  }

  /**
   * `lease` gets it an address, once it is known that there is room; where that fails nothing is kept. Throws
   * `stock/taken`, `stock/full`, and what `lease` throws.
   */
  async add<T>(entry: StockClientEntry, lease: () => Promise<T>): Promise<T> {
    let leased!: T
    await this.#change(async (clients) => {
      if (clients.some(({ name }) => name === entry.name)) {
        const hint =
          `Choose another name, or release it: sotto wg release ${this.#network} ${entry.name}`
        throw new TunnelError(
          'stock/taken',
          `Cannot make a client "${entry.name}": there is one of that name`,
          { hint },
        )
      }
      if (clients.length >= CLIENTS_MAX) {
        throw new TunnelError('stock/full', `Cannot make a client: found ${CLIENTS_MAX} already`)
      }
      leased = await lease()
      return [...clients, entry]
    })
    return leased
  }

  /** False: there was none. */
  async remove(name: string): Promise<boolean> {
    let found = false
    await this.#change((clients) => {
      found = clients.some((one) => one.name === name)
      return clients.filter((one) => one.name !== name)
    })
    return found
  }

  async #change(
    edit: (clients: StockClientEntry[]) => StockClientEntry[] | Promise<StockClientEntry[]>,
  ): Promise<void> {
    await this.#profile.locked(`wireguard-${this.#network}`, async () => {
      const clients = await edit(await this.list())
      const words = JSON.stringify({ version: 1, clients }, undefined, 1)
      await this.#world.files.write(this.path, utf8(`${words}\n`))
    })
  }
}

function isEntry(value: unknown): value is StockClientEntry {
  const { name, key, presharedKey, sinceMs } = (value ?? {}) as Partial<StockClientEntry>
  return typeof name === 'string' && isName(name) && typeof key === 'string' && KEY.test(key) &&
    typeof presharedKey === 'string' && KEY.test(presharedKey) && typeof sinceMs === 'number'
}
