/**
 * A relay on a machine with raw sockets: everything behind the one public port, wired once for every
 * runtime. What differs is handed in: the sockets, and the HTTPS server that makes links.
 */
import type { Timer } from '../../core/clock.ts'
import type { Conn } from '../../core/socket.ts'
import { inspectableScope, relayGateway } from '../backends.ts'
import { BehindProxy } from '../behind_proxy.ts'
import type { CertificatePair } from '../certificate.ts'
import type { Gateway } from '../gateway.ts'
import { errorFields } from '../log.ts'
import type { PublicPortsNet, RetiringListener } from '../public_ports.ts'
import { Relay } from '../relay.ts'
import { watch } from '../store/watch.ts'
import type { AcmeHost } from './acme.ts'
import { Doors } from './doors.ts'
import { askPredecessor, awaitSuccessor } from './handover.ts'
import type { Host, RunningRelay } from './host.ts'
import { awaitTicket, GOODBYE_MS_MAX, Inside, LOOPBACK } from './inside.ts'
import { serveGateway } from './node_gateway.ts'

/** How often the files of certificates are looked at. */
const RENEW_MS = 30_000
/** How long it goes on accepting what came before the other listened. */
const LAST_ACCEPT_MS = 200
/** From the last connection that is accepted, to the word to agents that they leave. */
const LAST_PEEK_MS = 200
/** Servers with certificates of before, kept for the links that they carry. */
const GENERATIONS_MAX = 4

export interface PublicListener extends RetiringListener {
  /** New connections come here from now on, not to the one that listened before; false: they are shared. */
  steer?(): boolean
}

export interface Sockets extends PublicPortsNet {
  /** `shared`: another process of this user may listen on the port as well (SO_REUSEPORT). */
  listen(
    at: { host: string; port: number; tls?: { cert: string; key: string }; shared?: boolean },
    accepted: (conn: Conn) => void,
  ): Promise<PublicListener>
  connect(to: { host: string; port: number }): Promise<{ conn: Conn; localPort: number }>
}

/** Listens on loopback behind the port: pages, API, and the upgrade that makes a link. */
export type ServeHttps = (
  host: Host,
  behind: { relay: Relay; inside: Inside },
) => Promise<{ port: number; close(): Promise<void> }>

/** Opens the public port of `host`. Throws `listen/taken` and the like, with all else closed again. */
export async function openPort(
  host: Host,
  { sockets, serveHttps }: { sockets: Sockets; serveHttps: ServeHttps },
): Promise<RunningRelay> {
  const { listen, udp, later } = sockets
  const { acme, ports: { settings, clock } } = host
  const inside = new Inside((port) => sockets.connect({ host: LOOPBACK, port }))
  const servers = { https: 0, bulk: 0, gateway: 0 }
  const relay: Relay = new Relay({
    ...host.ports,
    publicPort: () => host.publicPort(),
    net: { listen, udp, later },
    app: (conn, first, left) => inside.join(conn, { first, port: servers.https, left }),
    readable: (name) =>
      doors?.to(name) ??
        ((conn, first, left) => inside.join(conn, { first, port: servers.gateway, left })),
    challenge: (name) => {
      const port = acme?.challengePort(name)
      return port === undefined
        ? undefined
        : (conn, first, left) => inside.join(conn, { first, port, left })
    },
    bulkTls: (conn, first, left) => inside.join(conn, { first, port: servers.bulk, left, clock }),
  })
  const behind = { relay, inside, servers, listen, serveHttps }
  const generations = new Generations(host, behind)
  await generations.open()
  const doors = acme && openDoors(host, { acme, behind, generations })
  const proxied = settings.behindProxy && new BehindProxy({
    clock,
    trusted: settings.behindProxy,
    accept: (conn) => relay.ingress.accept(conn),
    refused: (reason, fields) => relay.turnedAway(reason, fields),
  })
  const stopInside = async (): Promise<void> => {
    await acme?.desk.close()
    await doors?.close()
    await generations.close()
    await host.store.close()
  }
  let place: Place
  try {
    const accept = (conn: Conn): void => (proxied ?? relay.ingress).accept(conn)
    place = await takePlace(host, { relay, listen, accept })
  } catch (error) {
    await stopInside()
    throw error
  }
  acme?.desk.start()
  const renewal = watchCertificate(host, () => generations.renew())
  return host.running(relay, {
    port: place.listener.port,
    replaced: place.replaced,
    renew: () => generations.renew(),
    stop: async () => {
      renewal.cancel()
      await place.successor.close()
      proxied?.close()
      await relay.close()
      await inside.emptied(clock, GOODBYE_MS_MAX)
      await place.listener.close()
      await stopInside()
    },
  })
}

interface Place {
  listener: PublicListener
  replaced: Promise<void>
  successor: { close(): Promise<void> }
}

/** Listens, in the place of who does already where that is wanted, until another takes it over. */
async function takePlace(
  host: Host,
  { relay, listen, accept }: {
    relay: Relay
    listen: Sockets['listen']
    accept(conn: Conn): void
  },
): Promise<Place> {
  const { settings: { host: address, port, takeOver, dataDirectory }, clock } = host.ports
  if (takeOver) relay.ingress.expect()
  // Alone at first, or two relays that nobody wanted would share the port.
  else if (port !== 0) await (await listen({ host: address, port }, (conn) => conn.abort())).close()
  const listener = await listen({ host: address, port, shared: true }, accept)
  try {
    if (takeOver) {
      listener.steer?.()
      await askPredecessor(dataDirectory)
    }
  } catch (error) {
    await listener.close()
    throw error
  }
  host.listening(listener.port)
  let replace!: () => void
  const replaced = new Promise<void>((resolve) => void (replace = resolve))
  const successor = await awaitSuccessor(dataDirectory, () => {
    // What waits in its queue is still accepted, and who was accepted a moment ago is led on here.
    clock.after(LAST_ACCEPT_MS, () => listener.retire())
    relay.succeeded = true
    clock.after(LAST_ACCEPT_MS + LAST_PEEK_MS, replace)
  })
  return { listener, replaced, successor }
}

/** Ties certificates of a CA to who serves what, and to the servers that show them. */
function openDoors(
  { ports }: Host,
  { acme, behind, generations }: { acme: AcmeHost; behind: Behind; generations: Generations },
): Doors {
  const { settings } = ports
  const live = { ...ports, domain: settings.appsDomain }
  acme.scopeOf = (name) => inspectableScope(behind.relay, live, name)
  acme.changed = async (name) => void (settings.names.includes(name) && await generations.renew())
  return new Doors({
    acme,
    inside: behind.inside,
    open: (pair) => generations.gateway(pair),
    common: () => behind.servers.gateway,
  })
}

interface Behind {
  relay: Relay
  inside: Inside
  /** Ports that new connections go to. */
  servers: { https: number; bulk: number; gateway: number }
  listen: Sockets['listen']
  serveHttps: ServeHttps
}

/** The servers behind the port, opened anew with each certificate; those of before keep what they carry. */
class Generations {
  readonly #host: Host
  readonly #behind: Behind
  readonly #readable: Gateway
  readonly #closes: (() => Promise<void>)[] = []

  constructor(host: Host, behind: Behind) {
    this.#host = host
    this.#behind = behind
    const domain = host.ports.settings.appsDomain
    this.#readable = relayGateway(behind.relay, { ...host.ports, domain })
  }

  /** Servers with the certificates of now; connections from now on go to them. */
  async open(): Promise<void> {
    const { relay, inside, servers, listen, serveHttps } = this.#behind
    const { clock } = this.#host.ports
    const claim = relay.claimBulk.bind(relay)
    const https = await serveHttps(this.#host, { relay, inside })
    const bulk = await listen(
      { host: LOOPBACK, port: 0, tls: this.#host.tls },
      (conn) => awaitTicket(conn, { clock, inside, claim }),
    )
    const gateway = await this.gateway(this.#host.appsTls)
    Object.assign(servers, { https: https.port, bulk: bulk.port, gateway: gateway.port })
    this.#closes.push(async () => {
      await https.close()
      await bulk.close()
      await gateway.close()
    })
  }

  /** Readable endpoints with one certificate. */
  gateway(tls: CertificatePair): Promise<{ port: number; close(): Promise<void> }> {
    const { inside } = this.#behind
    return serveGateway(this.#readable, { tls, address: (port) => inside.address(port) })
  }

  async renew(): Promise<boolean> {
    if (this.#closes.length === 0 || !await this.#host.renew()) return false
    await this.open()
    this.#host.ports.log.info('certificate renewed', {})
    // Links last for weeks: those of a server that is many certificates old come back by themselves.
    if (this.#closes.length > GENERATIONS_MAX) await this.#closes.shift()!()
    return true
  }

  async close(): Promise<void> {
    for (const close of this.#closes.splice(0)) await close()
  }
}

/** A pair that cannot be taken is told once, and looked at again. */
function watchCertificate({ ports }: Host, renew: () => Promise<boolean>): Timer {
  let told = ''
  return watch(ports.clock, async () => {
    await renew()
    told = ''
  }, {
    everyMs: RENEW_MS,
    failed(error) {
      const { message } = error as Error
      if (message !== told) ports.log.error('certificate not taken', errorFields(error))
      told = message
    },
  })
}
