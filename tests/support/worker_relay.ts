/** Relays at the edge as real processes: workerd with its Durable Objects, and `Deno.serve`. */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const BIN = join(ROOT, 'node_modules', '.bin')
const START_MS_MAX = 60_000

export interface EdgeRelay {
  /** `http://127.0.0.1:PORT` */
  url: string
  port: number
  adminKey: string
  /** What it wrote to both outputs so far. */
  output(): string
  /** Ends it; `keep` leaves its data for `startWorker` to take up again. */
  stop(options?: { keep?: boolean }): Promise<void>
}

export interface EdgeOptions {
  /** A directory of an earlier run. */
  data?: string
  variables?: Record<string, string>
}

/** The relay on workerd, its objects in files. */
export function startWorker(options: EdgeOptions = {}): Promise<EdgeRelay & { data: string }> {
  return start(options, (data) => ({
    command: join(BIN, 'node'),
    args: [join(ROOT, 'compile', 'worker.mjs'), '--port', '0', '--data', data],
    env: {},
  }))
}

/** The relay on `Deno.serve`, its store in Deno KV. */
export function startDenoDeploy(options: EdgeOptions = {}): Promise<EdgeRelay & { data: string }> {
  return start(options, (data) => ({
    command: join(BIN, 'deno'),
    args: ['run', '-A', '--quiet', '--unstable-kv', join(ROOT, 'relay/serve/deno_deploy.ts')],
    env: {
      SOTTO_RELAY_DOMAIN: 'localhost',
      SOTTO_RELAY_SCHEME: 'http',
      SOTTO_RELAY_PORT: '0',
      SOTTO_RELAY_DATA: join(data, 'relay.kv'),
    },
  }))
}

async function start(
  { data = mkdtempSync(join(tmpdir(), 'sotto-edge-')), variables = {} }: EdgeOptions,
  program: (data: string) => { command: string; args: string[]; env: Record<string, string> },
): Promise<EdgeRelay & { data: string }> {
  const { command, args, env } = program(data)
  const child = spawn(command, args, {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env, ...variables },
  })
  let output = ''
  const event = await new Promise<{ port: number; adminKey?: string }>((resolve, reject) => {
    const failed = (why: string): void => {
      child.kill('SIGKILL')
      reject(new Error(`${command} ${why}:\n${output}`))
    }
    const late = setTimeout(() => failed('did not listen in time'), START_MS_MAX)
    child.once('exit', (code) => {
      clearTimeout(late)
      failed(`ended with ${code}`)
    })
    const read = (chunk: unknown): void => {
      output += String(chunk)
      const line = /^\{"event":"listening".*\}$/m.exec(output)?.[0]
      if (!line) return
      clearTimeout(late)
      resolve(JSON.parse(line))
    }
    child.stdout.on('data', read)
    child.stderr.on('data', read)
  })
  child.removeAllListeners('exit')
  return {
    url: `http://127.0.0.1:${event.port}`,
    port: event.port,
    adminKey: event.adminKey ?? '',
    data,
    output: () => output,
    stop: async ({ keep = false } = {}) => {
      await end(child)
      if (!keep) rmSync(data, { recursive: true, force: true })
    },
  }
}

function end(child: ChildProcess): Promise<void> {
  return new Promise((done) => {
    if (child.exitCode !== null || child.signalCode !== null) return done()
    child.once('exit', () => done())
    child.kill('SIGTERM')
  })
}

/** A new credential by the API. */
export async function makeKey(
  { url, adminKey }: Pick<EdgeRelay, 'url' | 'adminKey'>,
  { scope = 'alice', path = 'keys', ...more }: Record<string, unknown> = {},
): Promise<{ secret: string; id: string }> {
  const response = await api({ url, adminKey }, `/${path}`, { scope, ...more })
  const { secret, credential } = await response.json() as {
    secret: string
    credential: { id: string }
  }
  return { secret, id: credential.id }
}

/** One request of the API; a body makes it a POST. */
export async function api(
  { url, adminKey }: Pick<EdgeRelay, 'url' | 'adminKey'>,
  path: string,
  body?: unknown,
  method = body === undefined ? 'GET' : 'POST',
): Promise<Response> {
  const response = await fetch(`${url}/api/v1${path}`, {
    method,
    headers: { authorization: `Bearer ${adminKey}`, 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`)
  return response
}
