/**
 * An impairing relay for UDP, a process of its own in the near namespace: what goes to the far end's ports
 * is led here by nft, held back, dropped and reordered, and sent on. So no contender knows of it, and it
 * comes and goes while they run. Addresses are rewritten packet by packet: connection tracking would leave a
 * flow alone whose first packet it saw on its way back.
 *
 *     bun weather.ts FAR-ADDRESS FIRST-PORT COUNT  → {"ready":true}; then a line of JSON a weather on stdin
 *
 * Delay is of one way. Each datagram's jitter is its own, so that jitter reorders. Loss is by chance, both ways alike,
 * by a seeded generator. What would wait beyond `QUEUE_BYTES_MAX` is dropped, as at any router.
 */
import type { Lab, Spawned } from './lab.ts'
import { command, FAR_ADDRESS } from './spaces.ts'
import { fileURLToPath } from 'node:url'

export interface Weather {
  /** Of each way. */
  delayMs: number
  /** Each datagram waits up to this much longer. */
  jitterMs: number
  /** Share of datagrams that are lost, each way. */
  loss: number
}

/** Where weather listens, by the far port that it stands for; below the ports of outgoing connections. */
const LISTEN_OFFSET = -20_000
/** What weather itself sends from: it is not led to itself. */
const SOURCE_OFFSET = -30_000
const QUEUE_BYTES_MAX = 16 * 2 ** 20
const SOCKET_BYTES = 8 * 2 ** 20
const BATCH = 64
const SEED = 0x2545f491

/** Weather for `count` ports of the far end from `first` on. Off until it is set. */
export class WeatherMaker {
  readonly #process: Spawned
  readonly #ports: { first: number; count: number }
  readonly #file: string
  readonly #lab: Lab
  #isOn = false
  #changes = 0

  static async start(lab: Lab, ports: { first: number; count: number }): Promise<WeatherMaker> {
    const file = lab.path('weather.json')
    await Bun.write(file, '')
    const spawned = lab.spawn('weather', [
      ...[process.execPath, fileURLToPath(import.meta.url), FAR_ADDRESS],
      ...[`${ports.first}`, `${ports.count}`, file],
    ])
    await lab.until(spawned, 'say that it is ready', () => spawned.log().includes('ready'))
    return new WeatherMaker(lab, spawned, { ports, file })
  }

  private constructor(
    lab: Lab,
    spawned: Spawned,
    { ports, file }: { ports: { first: number; count: number }; file: string },
  ) {
    this.#lab = lab
    this.#process = spawned
    this.#ports = ports
    this.#file = file
  }

  async set(weather: Weather | undefined): Promise<void> {
    if (this.#isOn) command(['nft', 'delete', 'table', 'ip', 'weather'])
    this.#isOn = weather !== undefined
    if (!weather) return
    await Bun.write(this.#file, JSON.stringify(weather))
    process.kill(this.#process.pid, 'SIGHUP')
    const said = `weather ${++this.#changes}\n`
    await this.#lab.until(this.#process, 'change', () => this.#process.log().includes(said))
    const { first, count } = this.#ports
    const last = first + count - 1
    const own = `${first + SOURCE_OFFSET}-${last + SOURCE_OFFSET}`
    const ports = Array.from({ length: count }, (_, i) => first + i)
    command([
      'nft',
      [
        'add table ip weather',
        'add chain ip weather there { type route hook output priority -150; }',
        'add chain ip weather back { type filter hook output priority 0; }',
        ...ports.flatMap((port) => [
          `add rule ip weather there ip daddr ${FAR_ADDRESS} udp dport ${port} udp sport != ${own} ` +
          `ip daddr set 127.0.0.1 udp dport set ${port + LISTEN_OFFSET}`,
          `add rule ip weather back ip saddr 127.0.0.1 udp sport ${port + LISTEN_OFFSET} ` +
          `ip saddr set ${FAR_ADDRESS} udp sport set ${port}`,
        ]),
      ].join('; '),
    ])
  }
}

interface Held {
  dueMs: number
  bytes: Uint8Array
}

/** One way of one port: datagrams by the time at which they are due. */
class Way {
  #heap: Held[] = []
  #bytes = 0
  readonly #send: (batch: Uint8Array[]) => void

  constructor(send: (batch: Uint8Array[]) => void) {
    this.#send = send
  }

  put(bytes: Uint8Array, dueMs: number): void {
    if (this.#bytes + bytes.length > QUEUE_BYTES_MAX) return
    this.#bytes += bytes.length
    const heap = this.#heap
    let at = heap.push({ dueMs, bytes }) - 1
    while (at > 0) {
      const up = (at - 1) >> 1
      if (heap[up]!.dueMs <= heap[at]!.dueMs) break
      ;[heap[up], heap[at]] = [heap[at]!, heap[up]!]
      at = up
    }
  }

  flush(nowMs: number): void {
    let batch: Uint8Array[] = []
    while (this.#heap.length > 0 && this.#heap[0]!.dueMs <= nowMs) {
      batch.push(this.#take())
      if (batch.length === BATCH) {
        this.#send(batch)
        batch = []
      }
    }
    if (batch.length > 0) this.#send(batch)
  }

  #take(): Uint8Array {
    const heap = this.#heap
    const { bytes } = heap[0]!
    const last = heap.pop()!
    if (heap.length > 0) {
      heap[0] = last
      for (let at = 0;;) {
        let down = 2 * at + 1
        if (down >= heap.length) break
        if (down + 1 < heap.length && heap[down + 1]!.dueMs < heap[down]!.dueMs) down++
        if (heap[at]!.dueMs <= heap[down]!.dueMs) break
        ;[heap[down], heap[at]] = [heap[at]!, heap[down]!]
        at = down
      }
    }
    this.#bytes -= bytes.length
    return bytes
  }
}

/** xorshift32 as a share of one. */
class Dice {
  #state = SEED

  roll(): number {
    this.#state ^= this.#state << 13
    this.#state ^= this.#state >>> 17
    this.#state ^= this.#state << 5
    return (this.#state >>> 0) / 2 ** 32
  }
}

async function open(
  options: { hostname: string; port: number; connect?: { hostname: string; port: number } },
  data: (bytes: Uint8Array, port: number, address: string) => void,
) {
  const { dlopen, ptr } = await import('bun:ffi')
  const libc = dlopen('libc.so.6', {
    setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
  })
  const socket = await Bun.udpSocket(
    {
      ...options,
      socket: {
        data: (_, bytes, port, address) => data(bytes as Uint8Array, port, address),
        error() {},
      },
    } as Parameters<typeof Bun.udpSocket>[0],
  )
  const [SOL_SOCKET, SO_SNDBUFFORCE, SO_RCVBUFFORCE] = [1, 32, 33]
  const size = new Int32Array([SOCKET_BYTES])
  const fd = (socket as unknown as { fd: number }).fd
  for (const which of [SO_SNDBUFFORCE, SO_RCVBUFFORCE]) {
    libc.symbols.setsockopt(fd, SOL_SOCKET, which, ptr(size), 4)
  }
  // Connected sockets take bytes alone, others bytes, port and address: one type of Bun's is in the way.
  return socket as unknown as { sendMany(packets: unknown[]): number }
}

async function main(): Promise<void> {
  const [address, first, count, file] = process.argv.slice(2)
  let weather: Weather = { delayMs: 0, jitterMs: 0, loss: 0 }
  let changes = 0
  process.on('SIGHUP', async () => {
    weather = await Bun.file(file!).json()
    console.log(`weather ${++changes}`)
  })
  const dice = new Dice()
  const ways: Way[] = []
  const pass = (way: Way, bytes: Uint8Array) => {
    if (dice.roll() < weather.loss) return
    way.put(bytes, performance.now() + weather.delayMs + dice.roll() * weather.jitterMs)
  }
  for (let port = Number(first); port < Number(first) + Number(count); port++) {
    let client = { port: 0, address: '' }
    const listener = await open(
      { hostname: '127.0.0.1', port: port + LISTEN_OFFSET },
      (bytes, from, host) => {
        client = { port: from, address: host }
        pass(out, bytes)
      },
    )
    const far = await open({
      hostname: '0.0.0.0',
      port: port + SOURCE_OFFSET,
      connect: { hostname: address!, port },
    }, (bytes) => pass(back, bytes))
    const out = new Way((batch) => void far.sendMany(batch))
    const back = new Way((batch) =>
      void listener.sendMany(batch.flatMap((bytes) => [bytes, client.port, client.address]))
    )
    ways.push(out, back)
  }
  setInterval(() => {
    const now = performance.now()
    for (const way of ways) way.flush(now)
  }, 1)
  console.log('ready')
}

if (import.meta.main) await main()
