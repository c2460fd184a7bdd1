/**
 * The load that runs in processes of its own, on Bun's native sockets: a source and sink of bytes that
 * can be checked, and a maker of new connections. `load.ts` starts it and reads its one line of JSON.
 *
 *     bun loader.ts serve                                   → {"port":N}, then serves until it is ended
 *     bun loader.ts check PORT --bytes N                    → {"agree":true}
 *     bun loader.ts push|pull PORT --direct N --streams N --ms N   → {"bytes":N,"seconds":N}
 *     bun loader.ts connects PORT --width N --ms N [--name HOST]   → {"count":N,"failed":N,"seconds":N,…}
 *
 * A byte stream starts with a header of 16 bytes: kind (see KIND), 7 reserved, u64 run (a length for
 * a check). Then the sender repeats one block of `BLOCK_BYTES` whose content is fixed by a seed, so that a receiver
 * knows what each offset must hold and sees a lost, doubled or moved chunk at its edges. Pushed bytes are
 * counted where they arrive: the pusher asks the server directly (status), past the contender. A check sends a fixed number of bytes, gets their SHA-256 back
 * and then as many bytes, which it hashes too.
 */
import { parseArgs } from 'node:util'

/** Not a power of two, so that a chunk lost at a buffer's size moves the pattern. */
export const BLOCK_BYTES = 1_048_573
const HEADER_BYTES = 16
/** Bytes compared at both ends of each chunk that arrives. */
const EDGE_BYTES = 16
/** Not measured: slow start, buffers growing, code being compiled. */
const WARM_UP_MS = 200

const KIND = { check: 67, push: 73, pull: 79, status: 83 } as const
const DIGEST_BYTES = 32

/** xorshift32: the same bytes in every process, no repetition inside a block. */
export function block(): Uint8Array {
  const bytes = new Uint8Array(BLOCK_BYTES)
  let state = 0x9e3779b9
  for (let i = 0; i < bytes.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    bytes[i] = state
  }
  return bytes
}

function header(kind: number, run: number): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES)
  bytes[0] = kind
  new DataView(bytes.buffer).setBigUint64(8, BigInt(run))
  return bytes
}

/** Counts what arrives in one or more streams of a run and checks its edges against the pattern. */
class Meter {
  readonly #pattern: Uint8Array
  bytes = 0
  wrong = 0
  #firstMs = 0
  #lastMs = 0
  #measured = 0

  constructor(pattern: Uint8Array) {
    this.#pattern = pattern
  }

  /** `offset` is where `chunk` starts in its own stream. */
  add(chunk: Uint8Array, offset: number): void {
    this.#checkEdge(chunk, offset, 0)
    this.#checkEdge(chunk, offset, Math.max(0, chunk.length - EDGE_BYTES))
    const now = performance.now()
    this.bytes += chunk.length
    if (this.#firstMs === 0) this.#firstMs = now
    if (now - this.#firstMs < WARM_UP_MS) return
    if (this.#lastMs === 0) this.#firstMs = now - WARM_UP_MS
    else this.#measured += chunk.length
    this.#lastMs = now
  }

  #checkEdge(chunk: Uint8Array, offset: number, from: number): void {
    const to = Math.min(chunk.length, from + EDGE_BYTES)
    for (let i = from; i < to; i++) {
      if (chunk[i] !== this.#pattern[(offset + i) % BLOCK_BYTES]) {
        this.wrong++
        return
      }
    }
  }

  result(): { bytes: number; seconds: number; wrong: number } {
    const seconds = (this.#lastMs - this.#firstMs - WARM_UP_MS) / 1000
    return { bytes: this.#measured, seconds, wrong: this.wrong }
  }
}

/** Writes the pattern as fast as the socket takes it, up to `left` bytes. */
class Source {
  readonly #pattern: Uint8Array
  #at = 0
  #left: number

  constructor(pattern: Uint8Array, left = Infinity) {
    this.#pattern = pattern
    this.#left = left
  }

  pump(socket: { write(bytes: Uint8Array): number }): void {
    while (this.#left > 0) {
      const end = Math.min(BLOCK_BYTES, this.#at + this.#left)
      const rest = this.#pattern.subarray(this.#at, end)
      const taken = socket.write(rest)
      if (taken <= 0) return
      this.#at = (this.#at + taken) % BLOCK_BYTES
      this.#left -= taken
      if (taken < rest.length) return
    }
  }
}

/** Takes `length` bytes and then hands their digest to `done`. */
class Digest {
  readonly #hasher = new Bun.CryptoHasher('sha256')
  readonly #done: (digest: Buffer) => void
  #left: number

  constructor(length: number, done: (digest: Buffer) => void) {
    this.#left = length
    this.#done = done
  }

  add(chunk: Uint8Array): void {
    this.#hasher.update(chunk)
    this.#left -= chunk.length
    if (this.#left <= 0) this.#done(this.#hasher.digest())
  }
}

interface Served {
  head: Uint8Array
  /** Takes what comes after the header. */
  take: ((chunk: Uint8Array) => void) | undefined
  source: Source | undefined
}

function serve(hostname: string): void {
  const pattern = block()
  const runs = new Map<number, Meter>()
  function begin(socket: Bun.Socket<Served>, asked: { kind: number; run: number }): void {
    const { kind, run } = asked
    const state = socket.data
    if (kind === KIND.status) {
      socket.end(JSON.stringify(runs.get(run)?.result() ?? { bytes: 0, seconds: 0, wrong: 0 }))
      runs.delete(run)
    } else if (kind === KIND.pull) {
      state.source = new Source(pattern)
      state.source.pump(socket)
    } else if (kind === KIND.check) {
      const digest = new Digest(run, (sum) => {
        socket.write(sum)
        state.source = new Source(pattern, run)
        state.source.pump(socket)
      })
      state.take = (chunk) => digest.add(chunk)
    } else {
      const meter = runs.get(run) ?? new Meter(pattern)
      runs.set(run, meter)
      let offset = 0
      state.take = (chunk) => {
        meter.add(chunk, offset)
        offset += chunk.length
      }
    }
  }
  const server = Bun.listen<Served>({
    hostname,
    port: 0,
    socket: {
      open(socket) {
        socket.data = { head: new Uint8Array(0), take: undefined, source: undefined }
      },
      data(socket, chunk) {
        const state = socket.data
        if (state.take) {
          state.take(chunk)
          return
        }
        state.head = Buffer.concat([state.head, chunk])
        if (state.head.length < HEADER_BYTES) return
        begin(socket, {
          kind: state.head[0]!,
          run: Number(Buffer.from(state.head).readBigUInt64BE(8)),
        })
        const rest = state.head.subarray(HEADER_BYTES)
        if (rest.length > 0) (state as Served).take?.(rest)
      },
      drain(socket) {
        socket.data.source?.pump(socket)
      },
      error() {},
    },
  })
  say({ port: server.port })
}

/** What the server counted of a run; it is asked past the contender. */
async function status(
  { hostname, port }: { hostname: string; port: number },
  run: number,
): Promise<unknown> {
  const { promise, resolve, reject } = Promise.withResolvers<unknown>()
  let text = ''
  await Bun.connect({
    hostname,
    port,
    socket: {
      open: (socket) => void socket.write(header(KIND.status, run)),
      data: (_socket, chunk) => void (text += chunk.toString()),
      close: () => resolve(JSON.parse(text)),
      error: (_socket, error) => reject(error),
    },
  })
  return promise
}

/** Sends `bytes` of the pattern and gets as many: both ends must have seen the same SHA-256. */
async function check(port: number, options: Options): Promise<void> {
  const pattern = block()
  const source = new Source(pattern, options.bytes)
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const sent = new Bun.CryptoHasher('sha256')
  new Source(pattern, options.bytes).pump({
    write: (bytes) => (sent.update(bytes), bytes.length),
  })
  const expected = sent.digest()
  let head: Uint8Array = new Uint8Array(0)
  const received = new Digest(options.bytes, (sum) => {
    resolve(sum.equals(expected) && expected.equals(head.subarray(0, DIGEST_BYTES)))
  })
  await Bun.connect({
    hostname: options.host,
    port,
    socket: {
      open(socket) {
        socket.write(header(KIND.check, options.bytes))
        source.pump(socket)
      },
      drain: (socket) => source.pump(socket),
      data(_socket, chunk) {
        if (head.length >= DIGEST_BYTES) return received.add(chunk)
        head = Buffer.concat([head, chunk])
        if (head.length > DIGEST_BYTES) received.add(head.subarray(DIGEST_BYTES))
      },
      close: () => resolve(false),
      error: () => resolve(false),
    },
  })
  say({ agree: await promise })
  process.exit(0)
}

async function stream(kind: 'push' | 'pull', port: number, options: Options): Promise<void> {
  const pattern = block()
  const run = Math.floor(Math.random() * 2 ** 48)
  const meter = new Meter(pattern)
  const sockets: { terminate(): unknown }[] = []
  let closed = 0
  for (let i = 0; i < options.streams; i++) {
    const source = new Source(pattern)
    let offset = 0
    const socket = await Bun.connect({
      hostname: options.host,
      port,
      socket: {
        open(socket) {
          socket.write(header(KIND[kind], run))
          if (kind === 'push') source.pump(socket)
        },
        drain(socket) {
          if (kind === 'push') source.pump(socket)
        },
        data(_socket, chunk) {
          meter.add(chunk, offset)
          offset += chunk.length
        },
        close: () => void closed++,
        error() {},
      },
    })
    sockets.push(socket)
  }
  await Bun.sleep(options.ms + WARM_UP_MS)
  const early = closed
  const result = kind === 'pull' ? meter.result() : await status({
    hostname: options['direct-host'],
    port: options.direct,
  }, run)
  for (const socket of sockets) socket.terminate()
  say({ ...(result as object), early })
  process.exit(0)
}

/** Opens a connection, asks once over HTTP, waits for its end, and again: `width` of them at a time. */
async function connects(port: number, options: Options): Promise<void> {
  const request = `GET ${options.path} HTTP/1.1\r\nHost: ${
    options.name ?? 'localhost'
  }\r\nConnection: close\r\n\r\n`
  const { promise, resolve } = Promise.withResolvers<void>()
  const latencies: number[] = []
  let failed = 0
  let live = options.width
  const started = performance.now()
  const deadline = started + options.ms
  const tls = options.name === undefined
    ? {}
    : { tls: { rejectUnauthorized: false, serverName: options.name } }
  function finished(): void {
    if (performance.now() < deadline) next()
    else if (--live === 0) resolve()
  }
  function next(): void {
    const began = performance.now()
    const state = { ok: false, first: true, over: false }
    const over = () => {
      if (state.over) return
      state.over = true
      if (state.ok) latencies.push(performance.now() - began)
      else failed++
      finished()
    }
    Bun.connect({
      hostname: options.host,
      port,
      ...tls,
      socket: {
        open: (socket) => void (options.name === undefined && socket.write(request)),
        handshake: (socket) => void socket.write(request),
        data(_socket, chunk) {
          if (state.first) state.ok = chunk.subarray(0, 12).toString() === 'HTTP/1.1 200'
          state.first = false
        },
        end: (socket) => void socket.end(),
        close: over,
        error() {},
      },
    }).catch(over)
  }
  for (let i = 0; i < options.width; i++) next()
  await promise
  const seconds = (performance.now() - started) / 1000
  latencies.sort((a, b) => a - b)
  const at = (share: number) => latencies[Math.floor(latencies.length * share)] ?? 0
  say({ count: latencies.length, failed, seconds, p50: at(0.5), p99: at(0.99) })
  process.exit(0)
}

interface Options {
  /** Of the contender; where `serve` listens. */
  host: string
  /** Of the byte server itself. */
  'direct-host': string
  bytes: number
  direct: number
  streams: number
  ms: number
  width: number
  name: string | undefined
  path: string
}

function say(result: object): void {
  console.log(JSON.stringify(result))
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    args: process.argv.slice(2),
    allowPositionals: true,
    options: {
      host: { type: 'string', default: '127.0.0.1' },
      'direct-host': { type: 'string', default: '127.0.0.1' },
      bytes: { type: 'string', default: '0' },
      direct: { type: 'string', default: '0' },
      streams: { type: 'string', default: '1' },
      ms: { type: 'string', default: '1000' },
      width: { type: 'string', default: '1' },
      name: { type: 'string' },
      path: { type: 'string', default: '/' },
    },
  })
  const options: Options = {
    host: values.host,
    'direct-host': values['direct-host'],
    bytes: Number(values.bytes),
    direct: Number(values.direct),
    streams: Number(values.streams),
    ms: Number(values.ms),
    width: Number(values.width),
    name: values.name,
    path: values.path,
  }
  const [what, port] = [positionals[0], Number(positionals[1])]
  if (what === 'serve') serve(options.host)
  else if (what === 'check') await check(port, options)
  else if (what === 'push' || what === 'pull') await stream(what, port, options)
  else if (what === 'connects') await connects(port, options)
  else throw new Error(`Cannot load: found ${what}, expected serve, check, push, pull or connects`)
}

if (import.meta.main) await main()
