/**
 * What a relay could read, and what it does hold. `startTap` stands before a relay's public port with
 * the relay's own TLS key, and keeps every byte of every connection: as it was on the wire, and as it
 * is under whatever TLS that key ends, WebSocket frames unmasked. `memoryHolds` looks through the
 * memory of a running process.
 */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { connect as connectTls, createServer as createTlsServer } from 'node:tls'
import type { TLSSocket } from 'node:tls'

const TLS_HANDSHAKE = 0x16
const RECORDED_BYTES_MAX = 64 * 2 ** 20
const PAGE_BYTES = 4096
const PAGEMAP_ENTRY_BYTES = 8
/** Longest run of pages that is read at once. */
const RUN_PAGES_MAX = 4096

type Layer = 'wire' | 'opened' | 'frames'

export interface Tap {
  port: number
  /** In which layers these bytes were seen, in either direction. */
  layersWith(bytes: string): Layer[]
  /** Bytes recorded in that layer. */
  recorded(layer: Layer): number
  close(): Promise<void>
}

export interface TapOptions {
  /** The relay's own port. */
  relayPort: number
  cert: string
  key: string
  /** Names whose TLS does not end at the relay contain this. */
  sealed: string
}

/** One direction of one connection. */
class Track {
  readonly layer: Layer
  #parts: Buffer[] = []

  constructor(layer: Layer) {
    this.layer = layer
  }

  add(part: Buffer): void {
    this.#parts.push(part)
  }

  get bytes(): Buffer {
    if (this.#parts.length > 1) this.#parts = [Buffer.concat(this.#parts)]
    return this.#parts[0] ?? Buffer.alloc(0)
  }
}

export async function startTap({ relayPort, cert, key, sealed }: TapOptions): Promise<Tap> {
  const tracks: Track[] = []
  const sockets = new Set<Socket>()
  let total = 0

  /** Joins two connections and keeps what passes, each direction by itself. */
  function join(near: Socket, far: Socket, { layer, first }: { layer: Layer; first?: Buffer }) {
    for (const [from, to] of [[near, far], [far, near]] as const) {
      const track = new Track(layer)
      tracks.push(track)
      sockets.add(from)
      const keep = (part: Buffer): void => {
        total += part.length
        // A test that records more would search in half of what passed.
        if (total > RECORDED_BYTES_MAX) from.destroy(new Error('recorded too much'))
        track.add(Buffer.from(part))
      }
      if (first && from === near) {
        keep(first)
        to.write(first)
      }
      from.on('data', (part: Buffer) => {
        keep(part)
        if (!to.write(part)) from.pause()
      })
      to.on('drain', () => from.resume())
      from.on('end', () => to.end())
      from.on('error', () => to.destroy())
      from.on('close', () => {
        sockets.delete(from)
        to.destroy()
      })
    }
  }

  // With the relay's own key: what ends here is what the relay can read.
  const opening = createTlsServer({ cert, key, ALPNProtocols: ['http/1.1'] }, (near: TLSSocket) => {
    const servername = String((near as { servername?: string | false }).servername || 'localhost')
    const far = connectTls({
      host: '127.0.0.1',
      port: relayPort,
      servername,
      ALPNProtocols: ['http/1.1'],
      rejectUnauthorized: false,
    })
    join(near, far, { layer: 'opened' })
  })
  opening.on('tlsClientError', () => {})
  const openingPort = await listen(opening)
  const front = createServer((near) => {
    near.on('error', () => near.destroy())
    near.once('data', (first: Buffer) => {
      const opens = first[0] === TLS_HANDSHAKE && !first.includes(sealed)
      const far = connect({ host: '127.0.0.1', port: opens ? openingPort : relayPort })
      join(near, far, { layer: 'wire', first })
    })
  })
  return {
    port: await listen(front),
    layersWith(words) {
      const bytes = Buffer.from(words, 'latin1')
      const found = new Set<Layer>()
      for (const track of tracks) {
        if (track.bytes.includes(bytes)) found.add(track.layer)
        if (track.layer === 'opened' && unframed(track.bytes).includes(bytes)) found.add('frames')
      }
      return [...found]
    },
    recorded(layer) {
      return tracks.reduce((sum, track) => {
        if (layer === 'frames') {
          return sum + (track.layer === 'opened' ? unframed(track.bytes).length : 0)
        }
        return sum + (track.layer === layer ? track.bytes.length : 0)
      }, 0)
    },
    async close() {
      for (const socket of sockets) socket.destroy()
      await Promise.all([front, opening].map((server) => new Promise((done) => server.close(done))))
    },
  }
}

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}

/** Payloads of a WebSocket's frames one after another, unmasked; empty for anything else (RFC 6455 §5.2). */
function unframed(bytes: Buffer): Buffer {
  const end = bytes.indexOf('\r\n\r\n')
  const head = bytes.subarray(0, Math.max(0, end)).toString('latin1')
  if (!/^upgrade: websocket\r?$/im.test(head)) return Buffer.alloc(0)
  if (/^HTTP/.test(head) && /permessage-deflate/.test(head)) throw new Error('frames are deflated')
  const payloads: Buffer[] = []
  for (let at = end + 4; at + 2 <= bytes.length;) {
    const masked = (bytes[at + 1]! & 0x80) !== 0
    let length = bytes[at + 1]! & 0x7f
    at += 2
    if (length === 126) {
      length = bytes.readUInt16BE(at)
      at += 2
    } else if (length === 127) {
      length = Number(bytes.readBigUInt64BE(at))
      at += 8
    }
    const mask = masked ? bytes.subarray(at, at + 4) : undefined
    if (mask) at += 4
    const payload = Buffer.from(bytes.subarray(at, at + length))
    if (mask) { for (let i = 0; i < payload.length; i++) payload[i]! ^= mask[i & 3]! }
    payloads.push(payload)
    at += length
  }
  return Buffer.concat(payloads)
}

/** Which of these words are in the memory of a process now. Linux; the process is ours. */
export function memoryHolds(pid: number, words: readonly string[]): string[] {
  const wanted = words.map((word) => Buffer.from(word, 'latin1'))
  const overlap = Math.max(...wanted.map(({ length }) => length))
  const found = new Set<string>()
  const memory = openSync(`/proc/${pid}/mem`, 'r')
  const pagemap = openSync(`/proc/${pid}/pagemap`, 'r')
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')) {
      const parts = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line)
      if (!parts) continue
      const [from, to] = [parseInt(parts[1]!, 16), parseInt(parts[2]!, 16)]
      let tail = Buffer.alloc(0)
      for (const [at, pages] of presentRuns(pagemap, from, to)) {
        const bytes = Buffer.alloc(pages * PAGE_BYTES)
        try {
          readSync(memory, bytes, 0, bytes.length, at)
        } catch {
          // Given back to the system since the map was read.
          continue
        }
        const whole = Buffer.concat([tail, bytes])
        wanted.forEach((word, i) => void (whole.includes(word) && found.add(words[i]!)))
        tail = Buffer.from(bytes.subarray(-overlap))
      }
    }
  } finally {
    closeSync(memory)
    closeSync(pagemap)
  }
  return [...found]
}

/** Runs of pages that are really there: runtimes reserve far more than they touch. */
function* presentRuns(pagemap: number, from: number, to: number): Iterable<[number, number]> {
  for (let at = from; at < to; at += RUN_PAGES_MAX * PAGE_BYTES) {
    const pages = Math.min(RUN_PAGES_MAX, (to - at) / PAGE_BYTES)
    const entries = Buffer.alloc(pages * PAGEMAP_ENTRY_BYTES)
    const got = readSync(pagemap, entries, 0, entries.length, (at / PAGE_BYTES) * 8)
    let start = -1
    for (let page = 0; page <= pages; page++) {
      // The top bit of an entry: the page is in memory.
      const here = page < got / PAGEMAP_ENTRY_BYTES &&
        (entries[page * PAGEMAP_ENTRY_BYTES + 7]! & 0x80) !== 0
      if (here && start < 0) start = page
      if (!here && start >= 0) {
        yield [at + start * PAGE_BYTES, page - start]
        start = -1
      }
    }
  }
}
