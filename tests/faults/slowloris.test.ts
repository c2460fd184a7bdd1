// seconds: 120
/**
 * Clients that hold connections open and say nothing, or one byte after the other, on every kind of
 * connection that a relay takes. Each is closed within its deadline, costs a bounded amount, and
 * nobody else waits for it.
 */
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import * as tls from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { Fleet } from '../support/fleet.ts'
import type { Program, RelayProgram } from '../support/fleet.ts'
import { hello } from '../support/hello.ts'
import { served, visit } from '../support/visitor.ts'

/** Between two bytes of a client that dribbles. */
const DRIBBLE_MS = 400
/** What a timer may be late on a crowded machine. */
const LATE_MS = 4000
const MIB = 1_048_576

const test = suite('faults/slowloris')
let fleet: Fleet
let relay: RelayProgram
let agent: Program

test.before(async () => {
  fleet = await Fleet.open()
  relay = await fleet.relay({ flags: ['--log-level', 'error'] })
  const upstream = await fleet.upstream()
  agent = await fleet.agent({
    relay: `https://localhost:${relay.port}`,
    tunnels: [
      { name: 'web', upstream: String(upstream.port) },
      { name: 'read', upstream: String(upstream.port), mode: 'inspectable' },
    ],
  })
  await served({ port: relay.port, name: 'web' })
})
test.after(async () => {
  await fleet.close()
})

/** The first flight of a real client, whom the server could answer. */
async function firstFlight(servername: string, alpn: string[] = []): Promise<Buffer> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const caught = new Promise<Buffer>((resolve) => {
    server.once('connection', (socket: Socket) => {
      socket.on('error', () => {})
      socket.once('data', (bytes) => {
        resolve(bytes)
        socket.destroy()
      })
    })
  })
  const client = tls.connect({
    port: (server.address() as AddressInfo).port,
    host: '127.0.0.1',
    servername,
    ...(alpn.length > 0 ? { ALPNProtocols: alpn } : {}),
  })
  client.on('error', () => {})
  try {
    return await caught
  } finally {
    client.destroy()
    server.close()
  }
}

/** Time from `socket`'s opening until the relay closed it; it never closes by itself. */
function closedAfter(socket: Socket, limitMs: number): Promise<number> {
  const started = performance.now()
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      socket.destroy()
      reject(new Error(`is open after ${limitMs} ms`))
    }, limitMs)
    const closed = (): void => {
      clearTimeout(timer)
      resolve(performance.now() - started)
      socket.destroy()
    }
    socket.on('error', () => {})
    socket.on('close', closed)
    socket.on('end', closed)
    socket.on('data', () => {})
  })
}

function raw(): Socket {
  return connect({ port: relay.port, host: '127.0.0.1', allowHalfOpen: true })
}

/** One byte after the other, for ever. */
function dribble(socket: Socket, bytes: Uint8Array): Socket {
  let at = 0
  const timer = setInterval(() => {
    if (at < bytes.length && socket.writable) socket.write(bytes.subarray(at, ++at))
  }, DRIBBLE_MS)
  socket.on('close', () => clearInterval(timer))
  return socket
}

function secure(servername: string, alpn: string[] = []): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({
      port: relay.port,
      host: '127.0.0.1',
      servername,
      rejectUnauthorized: false,
      ...(alpn.length > 0 ? { ALPNProtocols: alpn } : {}),
    }, () => resolve(socket))
    socket.once('error', reject)
  })
}

const UPGRADE = utf8(
  `GET /v1/link/${'a'.repeat(52)} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n` +
    'Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sotto.v1\r\n' +
    'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n',
)
const HEAD = utf8(`GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(2000)}`)

interface Case {
  name: string
  /** Milliseconds until it must be closed, without what timers are late. */
  ms: number
  open(): Promise<Socket> | Socket
}

async function stalled(servername: string, alpn: string[] = []): Promise<Socket> {
  const flight = await firstFlight(servername, alpn)
  const socket = raw()
  socket.write(flight)
  return socket
}

async function saying(servername: string, bytes: Uint8Array): Promise<Socket> {
  const socket = await secure(servername)
  socket.write(bytes)
  return socket
}

const OWN = 'localhost'
const READ = 'read.apps.localhost'
const WEB = 'web.secure.localhost'

const CASES: Case[] = [
  { name: 'TCP without a byte', ms: 3500, open: () => raw() },
  {
    name: 'half a ClientHello',
    ms: 3500,
    open: () => dribble(raw(), hello()),
  },
  {
    name: 'half a ticket',
    ms: 3500,
    open: () => dribble(raw(), Uint8Array.of(0, 0x73, 0x6f, 0x74, 0x74, 0x6f, 0x2d, 0x62)),
  },
  { name: 'half a plain HTTP head', ms: 3500, open: () => dribble(raw(), HEAD) },
  { name: 'TLS handshake to the own name', ms: 11_000, open: () => stalled(OWN) },
  { name: 'TLS handshake to a readable endpoint', ms: 11_000, open: () => stalled(READ) },
  { name: 'TLS handshake to an agent', ms: 11_000, open: () => stalled(WEB) },
  { name: 'TLS handshake of a bulk link', ms: 11_000, open: () => stalled(OWN, ['sotto-bulk/1']) },
  {
    name: 'TLS of a bulk link without ticket',
    ms: 11_000,
    open: () => secure(OWN, ['sotto-bulk/1']),
  },
  { name: 'TLS to the own name without a byte', ms: 11_000, open: () => secure(OWN) },
  { name: 'TLS to a readable endpoint without a byte', ms: 16_000, open: () => secure(READ) },
  {
    name: 'half an HTTP head at the own name',
    ms: 11_000,
    open: async () => dribble(await secure(OWN), HEAD),
  },
  {
    name: 'half an HTTP head at a readable endpoint',
    ms: 16_000,
    open: async () => dribble(await secure(READ), HEAD),
  },
  { name: 'WebSocket upgrade without hello', ms: 11_000, open: () => saying(OWN, UPGRADE) },
  {
    name: 'WebSocket upgrade with half a frame',
    ms: 11_000,
    open: async () => {
      const socket = await saying(OWN, UPGRADE)
      socket.once('data', () => dribble(socket, Uint8Array.of(0x82, 0xff, 0, 0, 0, 0, 0, 0)))
      return socket
    },
  },
]

test('every slow connection is closed within its deadline, and nobody waits for it', async () => {
  const before = strangers()
  const watch = (async () => {
    let slowest = 0
    for (let i = 0; i < 20; i++) {
      const started = performance.now()
      assert.is((await visit({ port: relay.port, name: 'web' })).status, 200)
      slowest = Math.max(slowest, performance.now() - started)
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
    return slowest
  })()
  const found = await Promise.all(CASES.flatMap((each) =>
    Array.from({ length: 8 }, async () => {
      const socket = await each.open()
      return await closedAfter(socket, each.ms + LATE_MS).then(
        () => '',
        (error) => `${each.name} ${(error as Error).message}`,
      )
    })
  ))
  assert.equal([...new Set(found)].filter(Boolean), [])
  assert.ok(await watch < 3000, 'a visitor waited')
  await settles(strangers, before + 4)
})

test('one address cannot hold more than its share of connections', async () => {
  const own = await fleet.relay({
    flags: ['--log-level', 'error', '--quota', 'address.connections=20'],
  })
  const upstream = await fleet.upstream()
  await fleet.agent({
    relay: `https://localhost:${own.port}`,
    bulk: false,
    tunnels: [{ name: 'web', upstream: String(upstream.port) }],
  })
  const to = { port: own.port, name: 'web' }
  await served(to)
  const flight = await firstFlight(WEB)
  const sockets = Array.from({ length: 40 }, () => connect({ port: own.port, host: '127.0.0.1' }))
  let closed = 0
  for (const socket of sockets) {
    socket.on('error', () => {})
    socket.on('data', () => {})
    socket.on('close', () => closed++)
    socket.write(flight)
  }
  await settles(() => 40 - closed, 20)
  assert.ok(closed >= 20 && closed < 30, `${closed} of 40 were turned away`)
  for (const socket of sockets) socket.destroy()
  // What left gives its place back.
  await served(to, 5000)
})

test('a flood of bad hellos costs no memory that stays', async () => {
  const bad = [
    utf8('SSH-2.0-OpenSSH_9.9\r\n'),
    Uint8Array.of(0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0xff, 0xff, 0xff, 0x03),
    hello().subarray(0, 90),
    new Uint8Array(60_000).fill(0x16),
    Uint8Array.of(0x80, 0x2e, 0x01, 0x00, 0x02),
  ]
  const flood = async (count: number): Promise<void> => {
    let left = count
    const one = async (): Promise<void> => {
      while (left-- > 0) {
        const socket = connect({ port: relay.port, host: '127.0.0.1' })
        socket.on('error', () => {})
        socket.on('data', () => {})
        await new Promise<void>((resolve) => {
          socket.on('close', () => resolve())
          socket.end(bad[left % bad.length]!)
        })
      }
    }
    await Promise.all(Array.from({ length: 32 }, one))
  }
  assert.ok(relay.running, `the relay ended: ${relay.log.slice(-2000)}`)
  const held = strangers()
  // The first rounds warm up the runtime's heaps.
  await flood(2000)
  const before = relay.residentBytes
  await flood(4000)
  const grown = relay.residentBytes - before
  assert.ok(grown < 24 * MIB, `resident memory grew by ${(grown / MIB).toFixed(1)} MiB`)
  await settles(strangers, held + 4)
  await served({ port: relay.port, name: 'web' })
})

/** What the relay holds open beside its links with the agent, whose number grows under a crowd: both ends have those. */
function strangers(): number {
  return relay.handles - agent.handles
}

const SETTLE_MS = 30_000

async function settles(count: () => number, most: number): Promise<void> {
  const until = performance.now() + SETTLE_MS
  while (count() > most) {
    assert.ok(performance.now() < until, `${count()} are left, expected at most ${most}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

test.run()
