/**
 * A CA for tests: Debian's `pebble`, whose faults can be switched on, beside `pebble-challtestsrv`, which
 * answers its questions to the DNS: every name leads to this machine.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import * as https from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePorts } from './port.ts'

const START_MS_MAX = 20_000
const OUTPUT_LENGTH_MAX = 400_000

export interface PebbleOptions {
  /** The port of this machine at which TLS-ALPN-01 is validated: that of the relay. */
  tlsPort: number
  /** Where every name leads to unless told; default 127.0.0.1. */
  address?: string
  /** Of nonces that are good, so many in a hundred are refused; default 0. */
  nonceReject?: number
  /** Seconds, at most, that a validation waits first; default none. */
  validationSeconds?: number
  /** External account binding is required: the HMAC key (base64url) of each key id. */
  eab?: Readonly<Record<string, string>>
  /** Seconds that a certificate is valid; default five years. */
  validitySeconds?: number
  /** Of valid authorizations, so many in a hundred serve another order; default 0. */
  authzReuse?: number
}

export interface Pebble {
  /** `https://localhost:PORT/dir` */
  readonly directory: string
  /** PEM: what a client must trust to talk to the CA itself, and the same in a file. */
  readonly serverCa: string
  readonly serverCaPath: string
  /** `https://localhost:PORT`: pebble's management. */
  readonly management: string
  readonly output: () => string
  /** PEM of the root that its certificates lead to; made anew at each start. */
  root(): Promise<string>
  /** Where a name leads to; by default 127.0.0.1, every name. An empty list: it is not there. */
  setAddress(host: string, addresses: readonly string[]): Promise<void>
  setTxt(host: string, value: string): Promise<void>
  setCname(host: string, target: string): Promise<void>
  /** Stops the CA in its tracks, and lets it go on. */
  signal(name: 'SIGSTOP' | 'SIGCONT'): void
  /** UDP and TCP port of its DNS, at 127.0.0.1. */
  readonly dnsPort: number
  close(): Promise<void>
}

export async function startPebble(options: PebbleOptions): Promise<Pebble> {
  const dir = mkdtempSync(join(tmpdir(), 'sotto-pebble-'))
  const [port, managementPort, dnsPort, testPort] = (await freePorts(4)) as [
    number,
    number,
    number,
    number,
  ]
  const cert = join(dir, 'cert.pem')
  const key = join(dir, 'key.pem')
  serverPair(cert, key)
  const config = join(dir, 'pebble.json')
  writeFileSync(
    config,
    JSON.stringify({
      pebble: {
        listenAddress: `127.0.0.1:${port}`,
        managementListenAddress: `127.0.0.1:${managementPort}`,
        certificate: cert,
        privateKey: key,
        httpPort: 1,
        tlsPort: options.tlsPort,
        ocspResponderURL: '',
        externalAccountBindingRequired: options.eab !== undefined,
        ...(options.eab ? { externalAccountMACKeys: options.eab } : {}),
        ...(options.validitySeconds ? { certificateValidityPeriod: options.validitySeconds } : {}),
      },
    }),
  )
  const dns = start('pebble-challtestsrv', [
    ...['-dns01', `127.0.0.1:${dnsPort}`, '-management', `127.0.0.1:${testPort}`],
    ...['-http01', '', '-https01', '', '-tlsalpn01', '', '-defaultIPv6', ''],
    ...(options.address === undefined ? [] : ['-defaultIPv4', options.address]),
  ], {})
  const { nonceReject = 0, validationSeconds, authzReuse = 0 } = options
  const pebble = start('pebble', [
    ...['-config', config, '-dnsserver', `127.0.0.1:${dnsPort}`, '-strict'],
  ], {
    PEBBLE_WFE_NONCEREJECT: String(nonceReject),
    PEBBLE_AUTHZREUSE: String(authzReuse),
    ...(validationSeconds
      ? { PEBBLE_VA_SLEEPTIME: String(validationSeconds) }
      : { PEBBLE_VA_NOSLEEP: '1' }),
  })
  const serverCa = readFileSync(cert, 'utf8')
  const management = `https://localhost:${managementPort}`
  const tell = async (path: string, body: object): Promise<void> => {
    const answer = await fetch(`http://127.0.0.1:${testPort}${path}`, {
      method: 'POST',
      body: JSON.stringify(body),
    })
    if (!answer.ok) throw new Error(`pebble-challtestsrv answered ${answer.status} to ${path}`)
  }
  try {
    await Promise.all([dns.until(/Starting management server/), pebble.until(/Listening on/)])
    await settled(() => get(`${management}/roots/0`, serverCa), pebble)
    await settled(() => tell('/clear-request-history', { type: 'http', host: 'none' }), dns)
  } catch (error) {
    dns.end()
    pebble.end()
    rmSync(dir, { recursive: true, force: true })
    throw error
  }
  return {
    directory: `https://localhost:${port}/dir`,
    serverCa,
    serverCaPath: cert,
    management,
    dnsPort,
    output: () => `${pebble.output()}\n${dns.output()}`,
    root: () => get(`${management}/roots/0`, serverCa),
    async setAddress(host, addresses) {
      // An empty list at this server means "as by default", and a name that is not there is a failure.
      if (addresses.length === 0) return await tell('/set-servfail', { host: `${host}.` })
      await tell('/clear-servfail', { host: `${host}.` })
      await tell('/add-a', { host: `${host}.`, addresses })
    },
    setTxt: (host, value) => tell('/set-txt', { host: `${host}.`, value }),
    setCname: (host, target) => tell('/set-cname', { host: `${host}.`, target: `${target}.` }),
    signal: (name) => void pebble.child.kill(name),
    async close() {
      await Promise.all([dns.end(), pebble.end()])
      rmSync(dir, { recursive: true, force: true })
    },
  }
}

/** The body of a page, with one root to trust. */
export function get(url: string, ca: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const asked = https.get(url, { ca, agent: false }, (answer) => {
      let body = ''
      answer.setEncoding('utf8').on('data', (words: string) => body += words)
      answer.on('end', () => {
        if (answer.statusCode === 200) resolve(body)
        else reject(new Error(`${url} answered ${answer.statusCode}`))
      })
    })
    asked.on('error', reject)
    asked.setTimeout(5000, () => asked.destroy(new Error(`${url} did not answer`)))
  })
}

interface Started {
  child: ChildProcess
  output(): string
  until(pattern: RegExp): Promise<void>
  end(): Promise<void>
}

function start(program: string, args: string[], env: Record<string, string>): Started {
  const child = spawn(program, args, {
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  const looks = new Set<() => void>()
  const look = (): void => {
    for (const one of [...looks]) one()
  }
  let over = false
  const ended = new Promise<void>((resolve) => {
    const end = (why: string) => (): void => {
      output += why
      over = true
      look()
      resolve()
    }
    child.once('exit', end('(ended)'))
    child.once('error', end(`(cannot start ${program})`))
  })
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding('utf8').on('data', (words: string) => {
      output = (output + words).slice(-OUTPUT_LENGTH_MAX)
      look()
    })
  }
  process.once('exit', () => void child.kill('SIGKILL'))
  return {
    child,
    output: () => output,
    until: (pattern) =>
      new Promise((resolve, reject) => {
        const late = setTimeout(() => done(false), START_MS_MAX)
        const done = (well: boolean): void => {
          clearTimeout(late)
          looks.delete(seen)
          if (well) resolve()
          else reject(new Error(`${program} did not say ${pattern}: ${output}`))
        }
        const seen = (): void => {
          if (pattern.test(output)) done(true)
          else if (over) done(false)
        }
        looks.add(seen)
        seen()
      }),
    async end() {
      child.kill('SIGCONT')
      child.kill('SIGKILL')
      await ended
    },
  }
}

/** Both say that they listen just before they do. */
async function settled(ask: () => Promise<unknown>, program: Started): Promise<void> {
  const untilMs = performance.now() + START_MS_MAX
  for (;;) {
    try {
      await ask()
      return
    } catch (error) {
      if (performance.now() > untilMs) {
        throw new Error(`${(error as Error).message}: ${program.output()}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }
}

/** A certificate for localhost that is its own root. */
function serverPair(cert: string, key: string): void {
  const made = spawnSync('openssl', [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
    ...['-keyout', key, '-out', cert, '-days', '30', '-subj', '/CN=pebble at localhost'],
    ...['-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'],
  ])
  if (made.status !== 0) throw new Error(`openssl failed: ${made.stderr}`)
}
