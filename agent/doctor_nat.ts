/**
 * UDP, and what stands between this machine and the open network: by STUN (RFC 8489), and where the
 * server has a second address by the behaviour tests of RFC 5780 §4.3 (mapping) and §4.4 (filtering).
 * With two servers the mapping shows without a second address.
 */
import { TunnelError } from '../core/errors.ts'
import {
  answers,
  bindingRequest,
  decodeStun,
  looksLikeStun,
  mappedAddress,
  otherAddress,
  STUN_TRANSACTION_BYTES,
} from '../core/stun.ts'
import type { BindingOptions, StunAddress, StunMessage } from '../core/stun.ts'
import type { Check, Finding } from './doctor.ts'
import { fail, ok, skipped, warning } from './doctor.ts'
import type { NetAddress, OpenDatagrams, World } from './world.ts'

/** When a request is sent again, and when it is given up, after the first. */
const RESEND_MS = [250, 750] as const
const GIVE_UP_MS = 1_500
const PORT_WITHOUT = 3478
export const STUN_SERVERS_MAX = 4

/** What a NAT does with the port that it gave (RFC 4787 §4.1, §5). */
export type Behaviour = 'endpoint' | 'address' | 'address and port'

export interface NatFacts {
  /** As the server sees this machine. */
  mapped: StunAddress
  /** False: that address is one of this machine's own. */
  nat: boolean
  /** What has to be the same at the far end for the same port to be given again; absent: not known. */
  mapping?: Behaviour
  /** From where packets are let in. */
  filtering?: Behaviour
}

/** `host`, `host:port`, `[v6]:port`. Throws `doctor/stun`. */
export function parseStunServer(words: string): { host: string; port: number } {
  const found = /^(?:stun:)?(?:\[([0-9a-fA-F:.]+)\]|([^:/\s[\]@]{1,253}))(?::(\d{1,5}))?$/.exec(
    words,
  )
  const port = found?.[3] === undefined ? PORT_WITHOUT : Number(found[3])
  if (found && port > 0 && port < 65_536) return { host: (found[1] ?? found[2])!, port }
  throw new TunnelError(
    'doctor/stun',
    `Cannot read --stun: found ${JSON.stringify(words.slice(0, 100))}, expected host:port`,
    { hint: 'Such as stun.example.com:3478.' },
  )
}

export function natCheck(world: World, servers: readonly string[]): Check {
  return {
    name: 'udp',
    title: 'UDP, NAT',
    run: async () => {
      if (servers.length === 0) {
        return skipped('not looked at: no STUN server is named', '--stun HOST:PORT looks.')
      }
      const found = await findNat(world, servers.map(parseStunServer))
      return found ? describe(found) : fail(
        `no STUN server answers (${servers.join(', ')})`,
        'UDP is blocked here, or the server is down. Tunnels need TCP alone; direct paths need UDP.',
      )
    },
  }
}

/** Undefined: nobody answered. Throws `net/unknown-host`. */
export async function findNat(
  world: Pick<World, 'probes' | 'clock' | 'crypto'>,
  servers: readonly { host: string; port: number }[],
): Promise<NatFacts | undefined> {
  const places = await Promise.all(servers.map(async ({ host, port }) => {
    const found = await world.probes.resolve(host)
    // A NAT is a matter of IPv4; without it there is still to be seen whether UDP passes.
    const { address, family } = found.find((one) => one.family === 4) ?? found[0]!
    return { address, family, port }
  }))
  const first = places[0]!
  const socket = await world.probes.datagrams(first.family)
  try {
    const asker = new Asker(world, socket)
    const answer = await asker.ask(first)
    const mapped = answer && mappedAddress(answer)
    if (!answer || !mapped) return await another(asker, places)
    const other = otherAddress(answer)
    const nat = !isOwn(world, mapped, socket.port)
    if (!other || other.address === first.address) {
      return { mapped, nat, ...await mappingByServers(asker, { places, mapped }) }
    }
    // Before anything is sent there: what is asked for from there must come unasked.
    const filtering = await filteringOf(asker, first)
    const mapping = await mappingOf(asker, { server: first, other, mapped })
    return { mapped, nat, ...(mapping ? { mapping } : {}), ...(filtering ? { filtering } : {}) }
  } finally {
    socket.close()
  }
}

type Place = NetAddress & { port: number }

/** The first server is silent; UDP may pass all the same. */
async function another(asker: Asker, places: readonly Place[]): Promise<NatFacts | undefined> {
  for (const place of places.slice(1)) {
    const answer = place.family === places[0]!.family ? await asker.ask(place) : undefined
    const mapped = answer && mappedAddress(answer)
    if (mapped) return { mapped, nat: !isOwn(asker.world, mapped, asker.port) }
  }
  return undefined
}

async function mappingByServers(
  asker: Asker,
  { places, mapped }: { places: readonly Place[]; mapped: StunAddress },
): Promise<{ mapping?: Behaviour }> {
  for (const place of places.slice(1)) {
    if (place.family !== places[0]!.family || place.address === places[0]!.address) continue
    const answer = await asker.ask(place)
    const second = answer && mappedAddress(answer)
    if (second) return { mapping: same(mapped, second) ? 'endpoint' : 'address' }
  }
  return {}
}

/** RFC 5780 §4.3. */
async function mappingOf(
  asker: Asker,
  { server, other, mapped }: { server: Place; other: StunAddress; mapped: StunAddress },
): Promise<Behaviour | undefined> {
  const otherIp = await asker.ask({ ...other, port: server.port })
  const second = otherIp && mappedAddress(otherIp)
  if (!second) return undefined
  if (same(mapped, second)) return 'endpoint'
  const both = await asker.ask(other)
  const third = both && mappedAddress(both)
  if (!third) return undefined
  return same(second, third) ? 'address' : 'address and port'
}

/** RFC 5780 §4.4. */
async function filteringOf(asker: Asker, server: Place): Promise<Behaviour | undefined> {
  if (await asker.ask(server, { changeIp: true, changePort: true })) return 'endpoint'
  if (await asker.ask(server, { changePort: true })) return 'address'
  return 'address and port'
}

function describe(found: NatFacts): Finding {
  const { mapped, nat, mapping, filtering } = found
  const seen = `${mapped.family === 6 ? `[${mapped.address}]` : mapped.address}:${mapped.port}`
  const facts = { ...found }
  if (!nat) {
    return filtering === undefined || filtering === 'endpoint'
      ? ok(`UDP passes, no NAT: seen as ${seen}`, facts)
      : ok(`UDP passes, no NAT but a firewall: seen as ${seen}`, facts)
  }
  if (mapping === undefined) {
    return ok(`UDP passes a NAT: seen as ${seen}; its kind is not known`, facts)
  }
  if (mapping === 'endpoint') {
    return ok(`UDP passes a NAT that keeps its port: seen as ${seen}${lets(filtering)}`, facts)
  }
  return warning(
    `UDP passes a NAT that takes another port for each ${mapping}: seen as ${seen}${
      lets(filtering)
    }`,
    'Direct paths to machines behind another NAT will mostly fail; the relay carries them.',
    facts,
  )
}

function lets(filtering: Behaviour | undefined): string {
  if (filtering === undefined) return ''
  return filtering === 'endpoint' ? ', lets anybody in' : `, lets in by ${filtering}`
}

class Asker {
  readonly world: Pick<World, 'probes' | 'clock' | 'crypto'>
  readonly #socket: OpenDatagrams
  #waiting: { transaction: Uint8Array; take(message: StunMessage): void } | undefined

  constructor(world: Pick<World, 'probes' | 'clock' | 'crypto'>, socket: OpenDatagrams) {
    this.world = world
    this.#socket = socket
    socket.handle((datagram) => this.#received(datagram))
  }

  get port(): number {
    return this.#socket.port
  }

  /** The good answer to one request, sent again while none comes; undefined: none came. */
  ask(to: { address: string; port: number }, options: BindingOptions = {}) {
    const { clock, crypto } = this.world
    const transaction = crypto.randomBytes(STUN_TRANSACTION_BYTES)
    const request = bindingRequest(transaction, options)
    return new Promise<StunMessage | undefined>((resolve) => {
      const timers = RESEND_MS.map((ms) => clock.after(ms, () => this.#socket.send(request, to)))
      const done = (message?: StunMessage): void => {
        for (const timer of timers) timer.cancel()
        this.#waiting = undefined
        resolve(message?.class === 'success' ? message : undefined)
      }
      timers.push(clock.after(GIVE_UP_MS, () => done()))
      this.#waiting = { transaction, take: done }
      this.#socket.send(request, to)
    })
  }

  #received(datagram: Uint8Array): void {
    const waiting = this.#waiting
    if (!waiting || !looksLikeStun(datagram)) return
    let message: StunMessage
    try {
      message = decodeStun(datagram)
    } catch {
      // Anybody may send us anything.
      return
    }
    if (answers(message, waiting.transaction)) waiting.take(message)
  }
}

function same(a: StunAddress, b: StunAddress): boolean {
  return a.address === b.address && a.port === b.port
}

function isOwn(world: Pick<World, 'probes'>, { address, port }: StunAddress, own: number): boolean {
  return port === own && world.probes.interfaces().some((one) => one.address === address)
}
