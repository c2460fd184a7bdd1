/**
 * Builds the relay for Cloudflare Workers into dist/worker.js and runs it on this machine's own
 * workerd: `node compile/worker.mjs [--port 8787] [--data .sotto/worker] [--build]`;
 * `--bundle FILE` runs what `npm run build:relay` made.
 *
 * To deploy, set the two secrets of relay/serve/edge.ts and a domain with its wildcard, then
 * `npx wrangler deploy --config dist/wrangler.json`.
 *
 * Plain HTTP on loopback: TLS is the platform's, here there is none. Settings are SOTTO_RELAY_*
 * variables. The first start makes an identity and an admin key; the key is printed once and rests as
 * a hash. State is kept in the data directory, files 0600.
 */
import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { createServer } from 'node:net'
import {
  bundleRelay,
  COMPATIBILITY_DATE,
  FLAGS,
  OBJECTS,
  ROOT,
  writeWranglerConfig,
} from './relay_bundles.mjs'

const BUNDLE = join(ROOT, 'dist', 'worker.js')
const WRANGLER = join(ROOT, 'dist', 'wrangler.json')
const WORKERD = join(ROOT, 'node_modules', '.bin', 'workerd')
const CONTROL_FD = 3
/** How long requests may finish when it is stopped. */
const STOP_MS_MAX = 1000

const options = readOptions(process.argv.slice(2))
if (options.bundle === undefined) await bundle()
if (!options.build) {
  // URLs name the port, so it is chosen before the relay starts.
  if (options.port === 0) options.port = await freePort()
  run()
}

function readOptions(args) {
  const found = { port: 8787, data: join(ROOT, '.sotto', 'worker'), build: false }
  for (let i = 0; i < args.length; i++) {
    if (args[i] === '--build') found.build = true
    else if (args[i] === '--bundle') found.bundle = resolve(args[++i] ?? '')
    else if (args[i] === '--port') found.port = Number(args[++i])
    else if (args[i] === '--data') found.data = resolve(args[++i] ?? '')
    else fail(`Cannot read "${args[i]}": expected --port, --data, --bundle or --build`)
  }
  if (!Number.isInteger(found.port) || found.port < 0 || found.port > 65_535) {
    fail('Cannot read --port: expected a whole number from 0 to 65535')
  }
  return found
}

async function bundle() {
  const { metafile } = await bundleRelay('worker', dirname(BUNDLE))
  writeWranglerConfig(WRANGLER)
  const bytes = Object.values(metafile.outputs)[0].bytes
  process.stderr.write(`dist/worker.js: ${Math.round(bytes / 1024)} KiB\n`)
}

function run() {
  const { variables, adminKey } = developmentVariables()
  const config = join(options.data, 'worker.capnp')
  writeFileSync(config, capnp(Object.keys(variables)), { mode: 0o600 })
  const child = spawn(WORKERD, ['serve', config, `--control-fd=${CONTROL_FD}`], {
    stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
    env: { ...process.env, ...variables },
  })
  let told = ''
  child.stdio[CONTROL_FD].on('data', (chunk) => {
    told += chunk
    const line = /^.*"listen".*$/m.exec(told)?.[0]
    if (!line || !told.includes('\n', told.indexOf(line))) return
    told = ''
    const { port } = JSON.parse(line)
    const event = { event: 'listening', port, url: `http://127.0.0.1:${port}` }
    process.stdout.write(`${JSON.stringify({ ...event, ...(adminKey && { adminKey }) })}\n`)
  })
  // workerd waits for open links, which never end by themselves; what is stored survives a kill.
  const stop = () => {
    child.kill('SIGTERM')
    setTimeout(() => child.kill('SIGKILL'), STOP_MS_MAX).unref()
  }
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, stop)
  child.on('exit', (code, signal) => process.exit(signal ? 0 : (code ?? 1)))
  child.on('error', (error) => fail(`Cannot start workerd: ${error.message}`))
}

/** What the platform would hold as variables and secrets; made on the first start. */
function developmentVariables() {
  const path = join(options.data, 'secrets.json')
  let adminKey
  if (!existsSync(path)) {
    mkdirSync(options.data, { recursive: true, mode: 0o700 })
    adminKey = `ak_admin_${randomBytes(32).toString('base64url')}`
    const secrets = {
      SOTTO_RELAY_IDENTITY: randomBytes(32).toString('hex'),
      SOTTO_RELAY_ADMIN_HASH: createHash('sha256').update(adminKey).digest('hex'),
    }
    writeFileSync(path, JSON.stringify(secrets), { mode: 0o600 })
  }
  mkdirSync(join(options.data, 'objects'), { recursive: true, mode: 0o700 })
  const given = Object.entries(process.env).filter(([name]) => name.startsWith('SOTTO_RELAY_'))
  const variables = {
    SOTTO_RELAY_DOMAIN: 'localhost',
    SOTTO_RELAY_SCHEME: 'http',
    SOTTO_RELAY_PORT: String(options.port),
    ...JSON.parse(readFileSync(path, 'utf8')),
    ...Object.fromEntries(given),
  }
  return { variables, adminKey }
}

/** workerd's configuration; values come from the environment, so that no secret stands in it. */
function capnp(names) {
  const bindings = [
    ...OBJECTS.map(([name, of]) => `(name = "${name}", durableObjectNamespace = "${of}")`),
    ...names.map((name) => `(name = "${name}", fromEnvironment = "${name}")`),
  ]
  const classes = OBJECTS.map(([, name]) =>
    `(className = "${name}", uniqueKey = "sotto-${name}", enableSql = true)`
  )
  return `using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "relay", worker = .relay),
    (name = "objects", disk = (path = ${quote(join(options.data, 'objects'))}, writable = true)),
  ],
  sockets = [(name = "http", address = "127.0.0.1:${options.port}", http = (), service = "relay")],
);

const relay :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed ${
    quote(relative(options.data, options.bundle ?? BUNDLE))
  })],
  compatibilityDate = "${COMPATIBILITY_DATE}",
  compatibilityFlags = [${FLAGS.map(quote).join(', ')}],
  durableObjectNamespaces = [${classes.join(', ')}],
  durableObjectStorage = (localDisk = "objects"),
  bindings = [${bindings.join(', ')}],
);
`
}

function freePort() {
  return new Promise((found, failed) => {
    const server = createServer().once('error', failed).listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => found(port))
    })
  })
}

function quote(text) {
  return JSON.stringify(text)
}

function fail(message) {
  process.stderr.write(`${message}\n`)
  process.exit(1)
}
