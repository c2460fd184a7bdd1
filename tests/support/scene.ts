/**
 * A relay, an echo service and a place for command lines, fresh for each test, with what tests of
 * commands ask of them.
 */
import { connect as tcpConnect, createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import * as assert from 'uvu/assert'
import { Place } from './cli.ts'
import type { Running } from './cli.ts'

export interface RelayHome {
  running: Running
  port: number
  url: string
  fingerprint: string
}

export class Scene {
  readonly place: Place
  /** An echo service: what it is sent comes back after `echo:`. */
  readonly echo: string
  readonly #server: Server
  readonly #sockets: Set<Socket>

  private constructor(place: Place, server: Server, sockets: Set<Socket>) {
    this.place = place
    this.#server = server
    this.#sockets = sockets
    this.echo = `${(server.address() as AddressInfo).port}`
  }

  static async make(): Promise<Scene> {
    const sockets = new Set<Socket>()
    const server = createServer((socket) => {
      sockets.add(socket)
      socket.on('close', () => sockets.delete(socket))
      socket.on('error', () => {})
      socket.on('data', (bytes) => socket.write(`echo:${bytes}`))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return new Scene(await Place.make(), server, sockets)
  }

  async close(): Promise<void> {
    await this.place.close()
    for (const socket of this.#sockets) socket.destroy()
    // Its callback does not come on Bun where a connection was aborted before it was accepted.
    this.#server.close()
    this.#server.unref()
  }

  /** A relay in the home `host`, whose first start makes the keys that this home then has. */
  async relay(flags: string[] = [], home = 'host'): Promise<RelayHome> {
    const given = ['--port', '0', '--json', '--log-level', 'error', '--grace', '0']
    const running = await this.place.start(home, ['relay', ...given, ...flags])
    const { port, url, fingerprint } = await event(running, 'listening')
    return { running, port, url, fingerprint }
  }

  /** The environment of somebody else, with a key for a scope of their own. */
  async friend(relay: RelayHome, scope: string): Promise<Record<string, string>> {
    const made = await this.place.run('host', ['relay', 'keys', 'create', '--scope', scope])
    assert.is(made.code, 0, made.stderr.text)
    return { SOTTO_RELAY: relay.url, SOTTO_API_KEY: made.stdout.text.trim() }
  }

  /** A command that publishes something, once it is up. */
  async up(home: string, argv: string[], env: Record<string, string> = {}) {
    const running = await this.place.start(home, [...argv, '--json'], { env })
    return { running, shown: await event(running, 'up') }
  }

  /** `sotto connect`, once it listens, and its port. */
  async connect(home: string, name: string, env: Record<string, string> = {}) {
    const running = await this.place.start(home, ['connect', name, '--json'], { env })
    const shown = await event(running, 'listening')
    return { running, shown, port: Number(shown['address'].split(':')[1]) }
  }
}

/** The first object of an event on a command's standard output. */
export async function event(running: Running, name: string) {
  await running.stdout.until(new RegExp(`"event":"${name}".*\\n`))
  return running.stdout.objects.find((one) => one['event'] === name)!
}

/** Sends `words` to a port of this machine; after the first answer half-closes, and gives all of it. */
export function talk(port: number, words: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = tcpConnect(port, '127.0.0.1', () => socket.write(words))
    let said = ''
    socket.on('data', (bytes) => {
      said += bytes
      socket.end()
    })
    socket.on('error', () => {})
    socket.on('close', () => resolve(said))
  })
}

/** Tries until it holds, where what is waited for is another's look at a file. */
export async function within(holds: () => Promise<boolean>): Promise<void> {
  for (let attempt = 0; attempt < 100; attempt++) {
    if (await holds()) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error('it never came to hold')
}

/** A text as a pattern that matches it. */
export function literally(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
}
