/**
 * One of the two peers of `session.ts`:
 *
 *     bun session_peer.ts sotto RELAY FINGERPRINT answer           prints {"ready":KEY}, then serves
 *     bun session_peer.ts sotto RELAY FINGERPRINT ask KEY MS       prints {"figures":{…}}
 *     bun session_peer.ts derper|iroh-relay PORT MS                both peers in one process
 *
 * ours: the agent's own code, over a real relay. The plain stream is one of the very kind that carries a session,
 * without the session in it: what differs is the sealing. Streams are measured where bytes arrive, at the answering
 * end, which says so on a stream of its own; latency by echoes, datagrams by the receiver's count.
 */
import { hostWorld } from '../agent/host/world.ts'
import { join } from '../agent/join.ts'
import { Presence } from '../agent/presence.ts'
import { EMPTY } from '../core/bytes.ts'
import { formatKey, parseKey } from '../core/key.ts'
import type { Conn } from '../core/socket.ts'
import { packetClients } from './packet_clients.ts'

const NAME_ANSWER = 'bench-answer'
const NAME_ASK = 'bench-ask'
/** Streams to these names are of the kind that carries sessions, and hold none. */
const NAME_SINK = 'bench-sink'
const NAME_ECHO = 'bench-echo'
const CHUNK_BYTES = 65_536
const ECHO_BYTES = 64
export const DATAGRAM_BYTES = 1200
/** Datagrams given to the relay before the event loop has its turn. */
const BURST = 32
const WARM_UP_MS = 300

async function presence(relay: string, fingerprint: string): Promise<Presence> {
  const world = hostWorld({ signal: new AbortController().signal })
  const joining = await join(world, { relay, fingerprint }, () => {})
  const opened = await Presence.open(world, { joining, tell: () => {} })
  await opened.ready()
  return opened
}

/** Counts what comes, or gives it back. */
function serveStream(conn: Conn, request: string, count: (bytes: number) => void): void {
  const echoes = request === 'echo'
  conn.handle({
    data: (bytes) => {
      if (!echoes) return count(bytes.length)
      if (conn.write(bytes) === 'queued') conn.pause()
    },
    drain: () => conn.resume(),
    end: () => conn.end(),
    closed: () => {},
  })
}

async function answer(relay: string, fingerprint: string): Promise<void> {
  const own = await presence(relay, fingerprint)
  let receivedBytes = 0
  let datagrams = 0
  const count = (bytes: number): void => void (receivedBytes += bytes)
  own.peers.serve('bench', {
    needs: 'a2a',
    session: (session) => {
      session.datagrams.onDatagram = () => void datagrams++
      return {
        onOpen: (stream) => {
          const request = new TextDecoder().decode(stream.visit.tail)
          stream.accept()
          if (request !== 'count') return serveStream(stream, request, count)
          stream.write(new TextEncoder().encode(JSON.stringify({ receivedBytes, datagrams })))
          stream.end()
        },
        closed: () => {},
      }
    },
  })
  const accept = own.peers.accept.bind(own.peers)
  own.peers.accept = (stream) => {
    const { endpoint } = stream.visit
    if (endpoint === NAME_ANSWER) return accept(stream)
    stream.accept()
    serveStream(stream, endpoint === NAME_ECHO ? 'echo' : 'sink', count)
  }
  for (const name of [NAME_ANSWER, NAME_SINK, NAME_ECHO]) await own.agent.announce(name)
  console.log(JSON.stringify({ ready: formatKey(own.agent.passport!.fields.identity) }))
}

async function rush(open: () => Promise<Conn>, { ms, received }: Rush): Promise<number> {
  const conn = await open()
  let isOver = false
  const chunk = new Uint8Array(CHUNK_BYTES).fill(7)
  const push = (): void => {
    while (!isOver && conn.write(chunk) === 'ok');
  }
  conn.handle({ data() {}, drain: push, end() {}, closed() {} })
  push()
  const timer = setInterval(push, 1)
  await Bun.sleep(WARM_UP_MS)
  const [before, started] = [await received(), performance.now()]
  await Bun.sleep(ms)
  const [after, ended] = [await received(), performance.now()]
  isOver = true
  clearInterval(timer)
  conn.abort()
  return (after - before) / 1e6 / ((ended - started) / 1000)
}

interface Rush {
  ms: number
  received(): Promise<number>
}

/** Half of the median round trip of 64 bytes, in microseconds. */
async function latency(open: () => Promise<Conn>, ms: number): Promise<number> {
  const conn = await open()
  const times: number[] = []
  const until = performance.now() + ms
  await new Promise<void>((resolve) => {
    let left = ECHO_BYTES
    let sentAt = performance.now()
    const send = (): void => {
      left = ECHO_BYTES
      sentAt = performance.now()
      conn.write(new Uint8Array(ECHO_BYTES))
    }
    conn.handle({
      data(bytes) {
        left -= bytes.length
        if (left > 0) return
        times.push(performance.now() - sentAt)
        if (performance.now() > until) resolve()
        else send()
      },
      end() {},
      closed: () => resolve(),
    })
    send()
  })
  conn.abort()
  times.sort((a, b) => a - b)
  return (times[times.length >> 1]! / 2) * 1000
}

async function ask(relay: string, fingerprint: string, [key, msText]: string[]): Promise<void> {
  const ms = Number(msText)
  const own = await presence(relay, fingerprint)
  await own.agent.announce(NAME_ASK)
  const started = performance.now()
  const opened = await own.peers.open(NAME_ANSWER, 'bench')
  const openMs = performance.now() - started
  const { session } = opened
  const sealed = (request: string) => (): Promise<Conn> =>
    Promise.resolve(session.open(new TextEncoder().encode(request)))
  const plain = (endpoint: string) => (): Promise<Conn> =>
    own.visits.open(parseKey(key!), {
      kind: 'session',
      address: '',
      port: 0,
      endpoint,
      tail: EMPTY,
    })
  const counts = (): Promise<{ receivedBytes: number; datagrams: number }> =>
    new Promise((resolve) => {
      const stream = session.open(new TextEncoder().encode('count'))
      let words = ''
      stream.handle({
        data: (bytes) => void (words += new TextDecoder().decode(bytes)),
        end: () => resolve(JSON.parse(words)),
        closed() {},
      })
      stream.end()
    })
  const received = async (): Promise<number> => (await counts()).receivedBytes
  const figures: Record<string, number> = { openMs }
  figures['plain stream'] = await rush(plain(NAME_SINK), { ms, received })
  figures['sealed stream'] = await rush(sealed('sink'), { ms, received })
  figures['plain latency'] = await latency(plain(NAME_ECHO), ms)
  figures['sealed latency'] = await latency(sealed('echo'), ms)
  await own.peers.openChannel(opened)
  const datagram = new Uint8Array(DATAGRAM_BYTES)
  let isOver = false
  const push = (): void => {
    for (let i = 0; i < BURST; i++) session.datagrams.send(datagram)
    if (!isOver) setImmediate(push)
  }
  push()
  await Bun.sleep(WARM_UP_MS)
  const [before, from] = [(await counts()).datagrams, performance.now()]
  await Bun.sleep(ms)
  const [after, to] = [(await counts()).datagrams, performance.now()]
  isOver = true
  figures['datagrams'] = (after - before) / ((to - from) / 1000)
  console.log(JSON.stringify({ figures }))
  own.close()
}

async function main(): Promise<void> {
  const [kind, first, second, role, ...rest] = process.argv.slice(2)
  if (kind !== 'sotto') {
    const datagrams = await packetClients(kind!, Number(first), {
      ms: Number(second),
      warmUpMs: WARM_UP_MS,
      datagram: new Uint8Array(DATAGRAM_BYTES),
      burst: BURST,
    })
    console.log(JSON.stringify({ figures: { datagrams } }))
    process.exit(0)
  }
  if (role === 'answer') return await answer(first!, second!)
  await ask(first!, second!, rest)
  process.exit(0)
}

if (import.meta.main) await main()
