/**
 * Readable HTTP end to end in one process: a real HTTPS front, a gateway, two muxes over sockets in
 * memory, the agent's end and its real HTTP client. Only the upstream is the test's own.
 */
import * as net from 'node:net'
import * as tls from 'node:tls'
import { serveExchange } from '../../agent/exchange.ts'
import type { Upstream } from '../../agent/forward.ts'
import { hostHttp } from '../../agent/host/http.ts'
import type { World } from '../../agent/world.ts'
import type { Clock } from '../../core/clock.ts'
import type { TunnelError } from '../../core/errors.ts'
import { decodeFrame } from '../../core/frame.ts'
import { Mux, type Stream } from '../../core/mux.ts'
import { memorySockets } from '../../core/socket.ts'
import { makeCertificate } from '../../relay/certificate.ts'
import { type ExchangeResult, Gateway, type GatewayPorts } from '../../relay/gateway.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { serveGateway } from '../../relay/serve/node_gateway.ts'

export const DOMAIN = 'apps.example.test'
export const HOST = `web.${DOMAIN}`

/** A relay's mux and an agent's, joined; `opened` gets what the relay opens. */
export function joinedMuxes(
  opened: (stream: Stream) => void,
  clock: Clock = systemClock,
): { relay: Mux; agent: Mux; cut(): void } {
  const [left, right] = memorySockets()
  const make = (side: 'relay' | 'agent', socket: typeof left): Mux => {
    const mux = new Mux({
      side,
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      clock,
      onOpen: (stream) => opened(stream),
      onProtocolError: (error) => {
        throw error
      },
    })
    socket.handle({
      message: (bytes) => void mux.receive(decodeFrame(bytes)),
      drain: () => mux.drain(),
      closed: () => mux.close(),
    })
    return mux
  }
  const relay = make('relay', left)
  const agent = make('agent', right)
  return {
    relay,
    agent,
    cut: () => {
      relay.close()
      agent.close()
    },
  }
}

/** The parts of the agent's world that an exchange needs, on any runtime. */
export const exchangeWorld: Pick<World, 'http' | 'net'> = {
  http: hostHttp,
  net: {
    connect: () => Promise.reject(new Error('no raw sockets here')),
  } as unknown as World['net'],
}

export interface Desk {
  port: number
  gateway: Gateway
  relay: Mux
  agent: Mux
  cut(): void
  troubles: TunnelError[]
  results: ExchangeResult[]
  /** Resolves when `count` exchanges have ended since the desk was made. */
  ended(count: number): Promise<void>
  bytes: { forth: number; back: number }
  close(): Promise<void>
}

export interface DeskOptions extends Partial<GatewayPorts> {
  upstream: Upstream
  /** In place of `serveExchange`. */
  opened?: (stream: Stream) => void
  headMs?: number
  keepAliveMs?: number
}

let certificate: { cert: string; key: string } | undefined

export async function openDesk(options: DeskOptions): Promise<Desk> {
  const { upstream, opened, headMs, keepAliveMs, ...ports } = options
  certificate ??= await makeCertificate([DOMAIN, `*.${DOMAIN}`], Date.now())
  const troubles: TunnelError[] = []
  const results: ExchangeResult[] = []
  const waiting: (() => void)[] = []
  const bytes = { forth: 0, back: 0 }
  const muxes = joinedMuxes(
    opened ?? ((stream) => {
      stream.accept()
      serveExchange(stream, {
        world: exchangeWorld,
        upstream,
        bytes,
        onTrouble: (error) => void troubles.push(error),
        done() {},
      })
    }),
  )
  const gateway = new Gateway({
    clock: systemClock,
    domain: DOMAIN,
    pick: (name) => name === 'web' ? { open: (visit) => muxes.relay.open(visit) } : undefined,
    outcome: (result) => {
      results.push(result)
      for (const look of waiting.splice(0)) look()
    },
    ...ports,
  })
  const served = await serveGateway(gateway, {
    tls: certificate,
    address: () => '192.0.2.7',
    ...(headMs === undefined ? {} : { headMs }),
    ...(keepAliveMs === undefined ? {} : { keepAliveMs }),
  })
  return {
    port: served.port,
    gateway,
    ...muxes,
    troubles,
    results,
    bytes,
    async ended(count) {
      while (results.length < count) await new Promise<void>((resolve) => waiting.push(resolve))
    },
    async close() {
      muxes.cut()
      await served.close()
    },
  }
}

/** A TLS connection to the desk, and all that came over it. */
export interface Raw {
  socket: tls.TLSSocket
  /** Everything so far, as latin1. */
  text(): string
  /** Resolves when `text()` matches, or with what there is when the connection closed. */
  until(pattern: RegExp): Promise<string>
  closed: Promise<string>
}

export function openRaw(port: number): Promise<Raw> {
  const socket = tls.connect({
    host: '127.0.0.1',
    port,
    servername: HOST,
    rejectUnauthorized: false,
    ALPNProtocols: ['http/1.1'],
  })
  let text = ''
  let open = true
  const waiting: (() => void)[] = []
  const look = (): void => {
    for (const run of waiting.splice(0)) run()
  }
  socket.on('error', () => {})
  socket.on('data', (bytes: Uint8Array) => {
    text += Buffer.from(bytes).toString('latin1')
    look()
  })
  const closed = new Promise<string>((resolve) => {
    socket.once('close', () => {
      open = false
      look()
      resolve(text)
    })
  })
  return new Promise((resolve, reject) => {
    socket.once('secureConnect', () =>
      resolve({
        socket,
        text: () => text,
        async until(pattern) {
          while (open && !pattern.test(text)) {
            await new Promise<void>((run) => waiting.push(run))
          }
          return text
        },
        closed,
      }))
    socket.once('error', reject)
  })
}

/** Sends `bytes` and gives all that is answered until the relay closes. */
export async function ask(port: number, bytes: string): Promise<string> {
  const raw = await openRaw(port)
  raw.socket.write(Buffer.from(bytes, 'latin1'))
  return await raw.closed
}

/** A TCP server that says what it is told to; for upstreams that a proper server would not be. */
export function rawUpstream(
  serve: (socket: net.Socket) => void,
): Promise<{ upstream: Upstream; close(): Promise<void> }> {
  const sockets = new Set<net.Socket>()
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
    serve(socket)
  })
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo
      resolve({
        upstream: { kind: 'tcp', host: '127.0.0.1', port, text: `http://127.0.0.1:${port}` },
        close: () =>
          new Promise((done) => {
            for (const socket of sockets) socket.destroy()
            server.close(() => done())
          }),
      })
    })
  })
}
