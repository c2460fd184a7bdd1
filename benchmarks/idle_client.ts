/**
 * One process that holds many idle clients of a relay: each does the whole handshake of its protocol,
 * answers keepalives, and otherwise stays silent.
 *
 *     bun idle_client.ts derper|iroh-relay|sotto PORT COUNT [tls]    → {"open":N}, then waits to be ended
 *
 * DERP: HTTP upgrade without an answer (fast start); frame = type, u32 length, payload. The server's key
 * comes first; the client answers with its own key and a NaCl box (tailscale derp/derp.go).
 * iroh-relay: WebSocket, a challenge of 16 bytes, Ed25519 over its BLAKE3 derivation (iroh-relay
 * src/protos/handshake.rs). sotto: a home link by the agent's own code, each with an identity of its own.
 */
import { createPublicKey, diffieHellman, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import type { KeyPairKeyObjectResult } from 'node:crypto'
import { hsalsa, xsalsa20poly1305 } from '@noble/ciphers/salsa.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { hostWorld } from '../agent/host/world.ts'
import { openLink } from '../agent/link.ts'
import { GROUP_BYTES } from '../core/admit.ts'
import { generateIdentity } from '../core/key.ts'
import type { Socket } from '../core/socket.ts'

/** Handshakes at a time. */
const WIDTH = 32
const OPEN_MS_MAX = 20_000
const PING_MS = 10_000

type Open = (port: number, tls: boolean, packet?: (payload: Uint8Array) => void) => Promise<unknown>

/** A client that is admitted: what `packet_clients.ts` sends and hears by it. */
export interface PacketClient {
  /** 32 bytes, under which the relay knows it. */
  key: Uint8Array
  send(to: Uint8Array, payload: Uint8Array): void
  /** Bytes that the system has not taken yet. */
  buffered(): number
}

/** Raw keys as the key objects of node:crypto want them. */
const X25519_SPKI = Buffer.from('302a300506032b656e032100', 'hex')
const SPKI_KEY_AT = 12

const DERP = {
  serverKey: 1,
  clientInfo: 2,
  serverInfo: 3,
  sendPacket: 4,
  recvPacket: 5,
  ping: 0x12,
  pong: 0x13,
} as const
const DERP_MAGIC_BYTES = 8
const NONCE_BYTES = 24

function words(bytes: Uint8Array): Uint32Array {
  const copy = Uint8Array.from(bytes)
  return new Uint32Array(copy.buffer)
}

/** NaCl `crypto_box`: X25519, HSalsa20, XSalsa20-Poly1305. */
function box(shared: Uint8Array, nonce: Uint8Array, message: Uint8Array): Uint8Array {
  const sigma = words(new TextEncoder().encode('expand 32-byte k'))
  const key = new Uint32Array(8)
  hsalsa(sigma, words(shared), new Uint32Array(4), key)
  return xsalsa20poly1305(new Uint8Array(key.buffer), nonce).encrypt(message)
}

function derpFrame(type: number, payload: Uint8Array): Buffer {
  const frame = Buffer.alloc(5 + payload.length)
  frame[0] = type
  frame.writeUInt32BE(payload.length, 1)
  frame.set(payload, 5)
  return frame
}

function derpClientInfo(
  serverKey: Uint8Array,
  pair: KeyPairKeyObjectResult,
): { key: Uint8Array; frame: Buffer } {
  const ourKey = pair.publicKey.export({ format: 'der', type: 'spki' }).subarray(SPKI_KEY_AT)
  const theirs = createPublicKey({
    key: Buffer.concat([X25519_SPKI, serverKey]),
    format: 'der',
    type: 'spki',
  })
  const shared = diffieHellman({ privateKey: pair.privateKey, publicKey: theirs })
  const nonce = randomBytes(NONCE_BYTES)
  const info = new TextEncoder().encode(JSON.stringify({ version: 2, CanAckPings: true }))
  const sealed = Buffer.concat([ourKey, nonce, box(shared, nonce, info)])
  return { key: Uint8Array.from(ourKey), frame: derpFrame(DERP.clientInfo, sealed) }
}

export async function openDerp(
  port: number,
  tls: boolean,
  packet?: (payload: Uint8Array) => void,
): Promise<PacketClient> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const pair = generateKeyPairSync('x25519')
  let key = new Uint8Array(0)
  let pending = Buffer.alloc(0)
  let queue: Buffer[] = []
  let queuedBytes = 0
  const request =
    'GET /derp HTTP/1.1\r\nHost: localhost\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n' +
    'Derp-Fast-Start: 1\r\n\r\n'
  const flush = (): void => {
    while (queue.length > 0) {
      const all = queue.length === 1 ? queue[0]! : Buffer.concat(queue)
      const sent = socket.write(all)
      queuedBytes -= sent
      queue = sent < all.length ? [all.subarray(sent)] : []
      if (sent < all.length) return
    }
  }
  const socket = await Bun.connect({
    hostname: '127.0.0.1',
    port,
    ...(tls ? { tls: { rejectUnauthorized: false, serverName: 'localhost' } } : {}),
    socket: {
      open: (socket) => void (tls || socket.write(request)),
      handshake: (socket) => void socket.write(request),
      drain: () => flush(),
      data(socket, chunk) {
        pending = pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([pending, chunk])
        let at = 0
        while (
          pending.length >= at + 5 && pending.length >= at + 5 + pending.readUInt32BE(at + 1)
        ) {
          const end = at + 5 + pending.readUInt32BE(at + 1)
          const [type, payload] = [pending[at], pending.subarray(at + 5, end)]
          if (type === DERP.recvPacket) packet?.(payload.subarray(32))
          else if (type === DERP.serverKey) {
            const server = payload.subarray(DERP_MAGIC_BYTES, DERP_MAGIC_BYTES + 32)
            const info = derpClientInfo(server, pair)
            key = info.key as Uint8Array<ArrayBuffer>
            socket.write(info.frame)
          } else if (type === DERP.serverInfo) resolve()
          else if (type === DERP.ping) socket.write(derpFrame(DERP.pong, payload))
          at = end
        }
        pending = pending.subarray(at)
      },
      close: () => reject(new Error('closed')),
      error: (_socket, error) => reject(error),
    },
  })
  await promise
  return {
    key,
    send(to, payload) {
      const frame = derpFrame(DERP.sendPacket, Buffer.concat([to, payload]))
      queue.push(frame)
      queuedBytes += frame.length
      if (queue.length === 1) flush()
    },
    buffered: () => queuedBytes,
  }
}

const IROH = {
  challenge: 0,
  auth: 1,
  confirms: 2,
  denies: 3,
  toRelay: 4,
  toClient: 6,
  ping: 9,
  pong: 10,
} as const
const IROH_CONTEXT = new TextEncoder().encode('iroh-relay handshake v1 challenge signature')

function irohAuth(
  challenge: Uint8Array,
  { publicKey, privateKey }: KeyPairKeyObjectResult,
): Uint8Array {
  const ourKey = publicKey.export({ format: 'der', type: 'spki' }).subarray(SPKI_KEY_AT)
  const message = blake3(challenge, { context: IROH_CONTEXT })
  const signature = sign(null, message, privateKey)
  return Buffer.concat([
    Uint8Array.of(IROH.auth),
    ourKey,
    Uint8Array.of(signature.length),
    signature,
  ])
}

/** Bun's WebSocket takes TLS options, which the types of browsers do not know. */
const BunWebSocket = WebSocket as unknown as new (url: string, options: object) => WebSocket

export async function openIroh(
  port: number,
  tls: boolean,
  packet?: (payload: Uint8Array) => void,
): Promise<PacketClient> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const pair = generateKeyPairSync('ed25519')
  const key = pair.publicKey.export({ format: 'der', type: 'spki' }).subarray(SPKI_KEY_AT)
  const socket = new BunWebSocket(`${tls ? 'wss' : 'ws'}://127.0.0.1:${port}/relay`, {
    protocols: ['iroh-relay-v2'],
    tls: { rejectUnauthorized: false },
  })
  socket.binaryType = 'arraybuffer'
  socket.onmessage = ({ data }) => {
    const message = new Uint8Array(data as ArrayBuffer)
    if (message[0] === IROH.toClient) packet?.(message.subarray(34))
    else if (message[0] === IROH.challenge) socket.send(irohAuth(message.subarray(1), pair))
    else if (message[0] === IROH.confirms) resolve()
    else if (message[0] === IROH.denies) reject(new Error('denied'))
    else if (message[0] === IROH.ping) {
      socket.send(Uint8Array.from([IROH.pong, ...message.subarray(1)]))
    }
  }
  socket.onclose = ({ code }) => reject(new Error(`closed with ${code}`))
  held.push(socket)
  await promise
  return {
    key: Uint8Array.from(key),
    // Destination, ECN bits, and what is carried.
    send: (to, payload) =>
      socket.send(Buffer.concat([Uint8Array.of(IROH.toRelay), to, Uint8Array.of(0), payload])),
    buffered: () => socket.bufferedAmount,
  }
}

/** Sockets that nothing else refers to. */
const held: unknown[] = []

const world = hostWorld()
const links: Socket[] = []

const openSotto: Open = async (port) => {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const identity = generateIdentity(world.crypto)
  const socket = await openLink({
    clock: world.clock,
    crypto: world.crypto,
    identity,
    relay: new URL(`https://localhost:${port}`),
    credential: { kind: 'none' },
    group16: randomBytes(GROUP_BYTES),
    version: 'benchmark',
    open: async (url) => {
      const { socket, certificate } = await world.link.open(url, { trust: 'admission' })
      return { socket, certificate, trusted: false }
    },
    pin: () => true,
  }, {
    role: 'home',
    target: identity.public,
    admitted() {
      resolve()
      return { message() {}, closed: (code) => console.error(`closed with ${code}`) }
    },
    ended: ({ code, reason, error }) =>
      reject(new Error(`ended with ${code} ${reason} ${error?.message ?? ''}`)),
  })
  links.push(socket)
  await promise
}

/** An agent keeps its links alive by pings; one timer does it for all. */
function keepAlive(): void {
  setInterval(() => {
    for (const link of links) link.ping?.()
  }, PING_MS)
}

const OPENERS: Record<string, Open> = { derper: openDerp, 'iroh-relay': openIroh, sotto: openSotto }

async function main(): Promise<void> {
  const [kind, port, count] = [
    process.argv[2] ?? '',
    Number(process.argv[3]),
    Number(process.argv[4]),
  ]
  const open = OPENERS[kind]
  if (!open) throw new Error(`Cannot be a client of ${kind}`)
  const tls = process.argv[5] === 'tls'
  if (kind === 'sotto') keepAlive()
  let started = 0
  const worker = async () => {
    while (started++ < count) {
      const late = Bun.sleep(OPEN_MS_MAX).then(() =>
        Promise.reject(new Error('no admission in time'))
      )
      late.catch(() => {})
      await Promise.race([open(port, tls), late])
    }
  }
  await Promise.all(Array.from({ length: Math.min(WIDTH, count) }, worker))
  console.log(JSON.stringify({ open: count }))
  // The sockets keep the process alive until it is ended.
}

if (import.meta.main) await main()
