/**
 * Readable endpoints with a certificate of their own: a server on loopback for each, opened when its
 * first visitor comes. Not every runtime can change the certificate of a server that runs, or choose
 * one by name; a listener can be had on all of them.
 */
import type { CertificatePair } from '../certificate.ts'
import type { Inward } from '../relay.ts'
import type { AcmeHost } from './acme.ts'
import type { Inside } from './inside.ts'

/** Servers at once; the one that was entered longest ago is closed for another. */
const DOORS_MAX = 512
/** Servers with a certificate of before that are kept for the visitors they have. */
const OLD_MAX = 8

interface Server {
  port: number
  close(): Promise<void>
}

interface Door {
  pair: CertificatePair
  server: Promise<Server>
}

export interface DoorsPorts {
  acme: AcmeHost
  inside: Inside
  /** Another server of the gateway. */
  open(pair: CertificatePair): Promise<Server>
  /** The port of the one for all others. */
  common(): number
}

export class Doors {
  readonly #ports: DoorsPorts
  /** In the order in which they were last entered. */
  readonly #doors = new Map<string, Door>()
  readonly #old: Door[] = []

  constructor(ports: DoorsPorts) {
    this.#ports = ports
  }

  /** The way in for a name: waits a while for its first certificate, and goes without. */
  to(name: string): Inward {
    const { acme, inside, common } = this.#ports
    return (conn, first, left) => {
      conn.hold()
      acme.desk.ready(name).then(() => this.#port(name)).catch(() => undefined).then((port) => {
        inside.join(conn, { first, port: port ?? common(), left })
      })
    }
  }

  async #port(name: string): Promise<number | undefined> {
    const pair = this.#ports.acme.desk.pair(name)
    if (!pair) return undefined
    let door = this.#doors.get(name)
    this.#doors.delete(name)
    if (door && door.pair !== pair) {
      this.#retire(door)
      door = undefined
    }
    door ??= { pair, server: this.#ports.open(pair) }
    this.#doors.set(name, door)
    if (this.#doors.size > DOORS_MAX) {
      const [[oldest, one]] = this.#doors as unknown as [[string, Door]]
      this.#doors.delete(oldest)
      this.#retire(one)
    }
    return (await door.server).port
  }

  #retire(door: Door): void {
    this.#old.push(door)
    if (this.#old.length > OLD_MAX) void end(this.#old.shift()!)
  }

  async close(): Promise<void> {
    const all = [...this.#doors.values(), ...this.#old.splice(0)]
    this.#doors.clear()
    await Promise.all(all.map(end))
  }
}

async function end({ server }: Door): Promise<void> {
  await server.then((opened) => opened.close(), () => {})
}
