/**
 * What the cases of the conformance suite lie in: one running relay, credentials by scope, names
 * that nobody else uses, and an end for all that a case opens.
 */
import type { Socket as TcpSocket } from 'node:net'
import type { Test } from 'uvu'
import type { DuplexConn } from '../../core/duplex_conn.ts'
import type { Stream } from '../../core/mux.ts'
import { dial, makeKey, RawLink, Reader, WireAgent } from '../support/client.ts'
import type { AgentOptions } from '../support/client.ts'
import { hello, serverNames, supportedVersions } from '../support/hello.ts'
import type { Abilities, RelayOptions, RelayProcess, StartRelay } from '../support/relays.ts'

export type Cases = (test: Test, bed: Bed) => void

export class Bed {
  readonly can: Abilities
  relay!: RelayProcess
  readonly #start: StartRelay
  readonly #secrets = new Map<string, string>()
  #closers: (() => unknown)[] = []
  #names = 0

  constructor(start: StartRelay, can: Abilities) {
    this.#start = start
    this.can = can
  }

  async open(): Promise<void> {
    // One test machine is one address: its quota must not be what a case without quotas meets.
    const flags = { quota: 'address.requests=5000,scope.requests=5000', 'log-level': 'warn' }
    this.relay = await this.#start(this.can.flags ? { flags } : {})
  }

  /** After each case. */
  async clear(): Promise<void> {
    const closers = this.#closers.reverse()
    this.#closers = []
    for (const close of closers) await close()
  }

  async close(): Promise<void> {
    await this.clear()
    await this.relay?.stop()
  }

  /** Runs when the case is over. */
  after(close: () => unknown): void {
    this.#closers.push(close)
  }

  /** A relay for one case alone. */
  async another(options?: RelayOptions): Promise<RelayProcess> {
    const relay = await this.#start(options)
    this.after(() => relay.stop())
    return relay
  }

  /** A name that no other case has. */
  name(): string {
    // No digits at the end: the free names that a relay suggests count up from there.
    return `n${++this.#names}x`
  }

  async secret(scope: string): Promise<string> {
    const known = this.#secrets.get(scope)
    if (known !== undefined) return known
    const { secret } = await makeKey(this.relay, { scope })
    this.#secrets.set(scope, secret)
    return secret
  }

  /** An agent of `scope`, by its API key unless another credential is given. */
  async agent(
    { scope = 'alice', ...options }: AgentOptions & { scope?: string } = {},
    relay = this.relay,
  ): Promise<WireAgent> {
    const secret = options.secret ??
      (options.credential
        ? ''
        : relay === this.relay
        ? await this.secret(scope)
        : (await makeKey(relay, { scope })).secret)
    const agent = await WireAgent.open(relay, { ...options, secret })
    this.after(() => agent.link.ws.terminate())
    return agent
  }

  async rawLink(key: string): Promise<RawLink> {
    const link = await RawLink.open(this.relay, key)
    this.after(() => link.ws.terminate())
    return link
  }

  /** A TCP connection to the public port, or to another one. */
  async dial(port?: number, relay = this.relay): Promise<Reader<DuplexConn<TcpSocket>>> {
    const reader = await dial(relay, port ?? relay.port)
    this.after(() => reader.conn.raw.destroy())
    return reader
  }

  /** A visitor of a verified endpoint that has sent its hello, and the bytes of that. */
  async visitor(
    name: string,
    relay = this.relay,
  ): Promise<{ reader: Reader<DuplexConn<TcpSocket>>; first: Uint8Array }> {
    const reader = await this.dial(undefined, relay)
    const first = helloFor(name)
    reader.conn.write(first)
    return { reader, first }
  }
}

/** A ClientHello for a name under the secure domain. */
export function helloFor(name: string): Uint8Array {
  return hello({
    extensions: [serverNames(`${name}.secure.localhost`), supportedVersions(0x0304, 0x0303)],
  })
}

/** Accepts a stream and sends back what comes, under backpressure, end for end. */
export function echo(stream: Stream): void {
  stream.accept()
  stream.handle({
    data: (bytes) => {
      if (stream.write(bytes) === 'queued') stream.pause()
    },
    drain: () => stream.resume(),
    end: () => stream.end(),
    closed() {},
  })
}

/** Writes `bytes` in chunks, as fast as the other side takes them. */
export async function writeAll(
  conn: { write(bytes: Uint8Array): string; buffered(): number },
  bytes: Uint8Array,
): Promise<void> {
  for (let at = 0; at < bytes.length; at += 32_768) {
    const sent = conn.write(bytes.subarray(at, at + 32_768))
    if (sent === 'lost') throw new Error(`lost after ${at} bytes`)
    while (conn.buffered() > 262_144) await new Promise((resolve) => setTimeout(resolve, 1))
  }
}

/** Waits until `true_` holds; tells what did not come. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  what: string,
  ms = 15_000,
): Promise<void> {
  const endMs = performance.now() + ms
  while (!(await holds())) {
    if (performance.now() > endMs) throw new Error(`${what} did not come in ${ms} ms`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
