/**
 * Load on a contender: starts the generators, each in processes of its own, and turns what they print
 * into figures. wrk makes keep-alive requests (it is the cheapest on the processor), curl downloads, our own
 * `loader.ts` makes byte streams and new connections (wrk resumes TLS sessions where it can, so its
 * new connections would not be new ones).
 */
import { connect as connectTls } from 'node:tls'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Lab, Spawned } from './lab.ts'

const LOADER = fileURLToPath(new URL('loader.ts', import.meta.url))
/** A generator that takes this much longer than asked has hung with its contender. */
const HUNG_MS = 30_000
const LOOPBACK = '127.0.0.1'

/** Where visitors reach an upstream through a contender. */
export interface Address {
  /** Loopback unless said. */
  host?: string
  port: number
  /** Set for TLS: the name for SNI and Host. Unset: plain TCP. */
  name?: string
}

/** Figures of one run by name, the units in the race's own columns. */
export type Figures = Record<string, number>

/** Runs a generator to its end and returns its stdout. Throws when it fails or hangs. */
export async function generate(command: string[], ms: number): Promise<string> {
  const child = Bun.spawn(command, { stdout: 'pipe', stderr: 'pipe' })
  const timer = setTimeout(() => child.kill('SIGKILL'), ms + HUNG_MS)
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  clearTimeout(timer)
  if (code !== 0) {
    throw new Error(
      `${command.slice(0, 3).join(' ')} ended with ${code}: ${(stderr || stdout).slice(-300)}`,
    )
  }
  return stdout
}

async function load(
  args: (string | number)[],
  ms: number,
): Promise<Record<string, number | boolean>> {
  return JSON.parse(await generate([process.execPath, LOADER, ...args.map(String)], ms))
}

/** The upstream of the byte races; resolves once it listens. */
export async function startByteServer(
  lab: Lab,
  options: { within?: string[]; host?: string } = {},
): Promise<{ port: number; spawned: Spawned }> {
  const { within = [], host = LOOPBACK } = options
  const spawned = lab.spawn('byte server', [
    ...[...within, process.execPath, LOADER, 'serve', '--host', host],
  ])
  await lab.until(spawned, 'say its port', () => spawned.log().includes('\n'))
  return { port: JSON.parse(spawned.log()).port, spawned }
}

/** Throws unless `bytes` sent and `bytes` received through the contender arrive with the same SHA-256. */
export async function checkBytes(to: Address, bytes: number): Promise<void> {
  const { agree } = await load(
    ['check', to.port, '--host', to.host ?? LOOPBACK, '--bytes', bytes],
    HUNG_MS,
  )
  if (agree !== true) throw new Error(`bytes do not agree: ${bytes} each way`)
}

/** `direct` is the byte server's own port. Gbit/s, measured and checked where the bytes arrive. */
export async function streams(
  kind: 'push' | 'pull',
  to: Address,
  options: { direct: number; directHost?: string; streams: number; ms: number },
): Promise<Figures> {
  const { direct, directHost = LOOPBACK, streams, ms } = options
  const args = [
    ...[kind, to.port, '--host', to.host ?? LOOPBACK, '--direct', direct],
    ...['--direct-host', directHost, '--streams', streams, '--ms', ms],
  ]
  const { bytes, seconds, wrong, early } = await load(args, ms)
  if (wrong !== 0) throw new Error(`${wrong} chunks held other bytes than were sent`)
  if (early !== 0) throw new Error(`${early} of ${streams} streams ended early`)
  return { gbits: (Number(bytes) * 8) / Number(seconds) / 1e9 }
}

/** New connections, each with one request and its answer. */
export async function connects(
  to: Address,
  options: { width: number; ms: number; path: string },
): Promise<Figures> {
  const args = ['connects', to.port, '--width', options.width, '--ms', options.ms]
  const name = to.name === undefined ? [] : ['--name', to.name]
  const result = await load([...args, '--path', options.path, ...name], options.ms)
  const [count, failed] = [Number(result['count']), Number(result['failed'])]
  if (failed > count / 1000) throw new Error(`${failed} of ${count + failed} connections failed`)
  return { perSecond: count / Number(result['seconds']), p99: Number(result['p99']) }
}

/** wrk looks names up by the system; this sends every name to one address and keeps it for SNI and Host. */
function wrkScript(lab: Lab, host: string): string {
  const file = lab.path(`to-${host}.lua`)
  writeFileSync(
    file,
    `function wrk.resolve(host, service) wrk.addrs = wrk.lookup("${host}", service) end\n`,
  )
  return file
}

function milliseconds(text: string | undefined): number {
  const match = /^([\d.]+)(us|ms|s|m)$/.exec(text ?? '')
  if (!match) throw new Error(`Cannot read a latency of wrk: found ${text}`)
  const scale = { us: 0.001, ms: 1, s: 1000, m: 60_000 }[match[2] as 'us' | 'ms' | 's' | 'm']
  return Number(match[1]) * scale
}

/** Keep-alive requests over `width` connections by wrk. */
export async function requests(
  lab: Lab,
  to: Address,
  options: { width: number; ms: number; path: string },
): Promise<Figures> {
  const scheme = to.name === undefined ? 'http' : 'https'
  const seconds = Math.max(1, Math.round(options.ms / 1000))
  const text = await generate([
    'wrk',
    ...[
      '-t1',
      `-c${options.width}`,
      `-d${seconds}s`,
      '--latency',
      '-s',
      wrkScript(lab, to.host ?? LOOPBACK),
    ],
    `${scheme}://${to.name ?? to.host ?? LOOPBACK}:${to.port}${options.path}`,
  ], seconds * 1000)
  const rate = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1])
  const total = Number(/(\d+) requests in/.exec(text)?.[1])
  const errors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(text)
  const failed = (errors ?? []).slice(1).reduce((sum, count) => sum + Number(count), 0) +
    Number(/Non-2xx or 3xx responses: (\d+)/.exec(text)?.[1] ?? 0)
  if (!(rate > 0) || failed > total / 1000) {
    throw new Error(`${failed} of ${total} requests failed`)
  }
  return {
    perSecond: rate,
    p50: milliseconds(/^\s+50%\s+(\S+)/m.exec(text)?.[1]),
    p99: milliseconds(/^\s+99%\s+(\S+)/m.exec(text)?.[1]),
  }
}

function curlArgs(to: Address, path: string): string[] {
  const name = to.name ?? 'localhost'
  const scheme = to.name === undefined ? 'http' : 'https'
  return [
    ...['curl', '-sk', '--fail', '--noproxy', '*', '--resolve', `${name}:${to.port}:127.0.0.1`],
    `${scheme}://${name}:${to.port}${path}`,
  ]
}

/** One download by curl; its length is checked here, its hash by `checkDownload` before the race. */
export async function download(
  to: Address,
  options: { path: string; bytes: number },
): Promise<Figures> {
  const text = await generate([
    ...curlArgs(to, options.path),
    ...['-o', '/dev/null', '-w', '%{size_download} %{time_total} %{time_pretransfer}'],
  ], 60_000)
  const [size, total, before] = text.split(' ').map(Number)
  if (size !== options.bytes) throw new Error(`found ${size} bytes, expected ${options.bytes}`)
  return { mbs: options.bytes / (total! - before!) / 1e6 }
}

/** Throws unless the download has this SHA-256. */
export async function checkDownload(
  to: Address,
  options: { path: string; sha256: string },
): Promise<void> {
  const child = Bun.spawn(curlArgs(to, options.path), { stdout: 'pipe' })
  const hasher = new Bun.CryptoHasher('sha256')
  for await (const chunk of child.stdout as unknown as AsyncIterable<Uint8Array>) {
    hasher.update(chunk)
  }
  const found = hasher.digest('hex')
  const code = await child.exited
  if (code !== 0) throw new Error(`download: curl ended with ${code}`)
  if (found !== options.sha256) {
    throw new Error(`download differs: found SHA-256 ${found}, expected ${options.sha256}`)
  }
}

/** Protocol and cipher that a TLS visitor gets, for the record. */
export function describeTls(to: Address): Promise<string> {
  return new Promise((done, fail) => {
    const socket = connectTls({
      host: '127.0.0.1',
      port: to.port,
      servername: to.name ?? 'localhost',
      rejectUnauthorized: false,
    }, () => {
      done(`${socket.getProtocol()} ${socket.getCipher().name}`)
      socket.destroy()
    })
    socket.once('error', fail)
  })
}

/** Asks `path` once; resolves to whether a 200 came. The cheapest probe there is: it runs in a tight loop. */
export function answers(to: Address, path: string): Promise<boolean> {
  const request = `GET ${path} HTTP/1.1\r\nHost: ${
    to.name ?? 'localhost'
  }\r\nConnection: close\r\n\r\n`
  return new Promise((done) => {
    let ok = false
    const tls = to.name === undefined
      ? {}
      : { tls: { rejectUnauthorized: false, serverName: to.name } }
    const timer = setTimeout(() => done(false), 2000)
    const finish = (result: boolean) => {
      clearTimeout(timer)
      done(result)
    }
    Bun.connect({
      hostname: '127.0.0.1',
      port: to.port,
      ...tls,
      socket: {
        open: (socket) => void (to.name === undefined && socket.write(request)),
        handshake: (socket) => void socket.write(request),
        data(socket, chunk) {
          ok ||= chunk.subarray(0, 12).toString() === 'HTTP/1.1 200'
          finish(ok)
          socket.terminate()
        },
        close: () => finish(ok),
        error: () => finish(false),
      },
    }).catch(() => finish(false))
  })
}

/** Milliseconds from now until the first answer; throws after `msMax`. */
export async function firstByteMs(
  to: Address,
  options: { path: string; msMax: number },
): Promise<number> {
  const began = performance.now()
  for (;;) {
    if (await answers(to, options.path)) return performance.now() - began
    if (performance.now() - began > options.msMax) throw new Error('no answer')
    await Bun.sleep(1)
  }
}
