// seconds: 200
// needs: openssl
/**
 * The rest of docs/deploy.md, word for word: Workers as far as a machine without an account gets, Deno, the
 * container's commands, three runtimes, keys that are replaced. And the rule itself: no block of that page is without a
 * suite that runs it, unless it says so.
 */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { COMPATIBILITY_DATE, FLAGS, OBJECTS } from '../../compile/relay_bundles.mjs'
import { blockOf, blocksOf } from '../support/document.ts'
import { freePort } from '../support/port.ts'
import { E2eWorld, ROOT } from '../support/world.ts'
import type { CommandResult, Relay } from '../support/world.ts'

const PAGE = 'docs/deploy.md'
const TOOL_MS_MAX = 100_000
const OLD_ID = '0f1e2d3c4b5a69788796'

const test = suite('e2e/hosting')
let world: E2eWorld
let relay: Relay

const block = (name: string): string => blockOf(PAGE, name)

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
  mkdirSync(world.path('work'))
})

test.after(() => world.close())

/** A block in a shell, in a folder of its own, with `sotto` on its path. */
async function shell(script: string, env: Record<string, string> = {}): Promise<CommandResult> {
  const sotto = `sotto() { ${world.sottoWords} "$@"; }\n`
  const done = await world.run('bash', ['-ec', sotto + script], {
    cwd: world.path('work'),
    env: { SOTTO_HOME: world.path('operator'), ...env },
    timeoutMs: TOOL_MS_MAX,
  })
  assert.is(done.code, 0, `${script}\n${done.stdout}${done.stderr}`)
  return done
}

/** A block as it would run in a clone. */
async function inClone(script: string, env: Record<string, string> = {}): Promise<CommandResult> {
  const done = await world.run('bash', ['-ec', script], {
    cwd: ROOT,
    env: { CI: '1', WRANGLER_SEND_METRICS: 'false', ...env },
    timeoutMs: TOOL_MS_MAX,
  })
  assert.is(done.code, 0, `${done.stdout}${done.stderr}`)
  return done
}

test('every block of the page is run by the suite that it names, or says that nothing runs it', () => {
  const blocks = blocksOf(PAGE)
  assert.ok(blocks.length > 20)
  for (const { suite, name, before, line } of blocks) {
    if (suite === undefined) {
      assert.match(before, /not tried here|Not tried here/, `${PAGE}:${line}`)
      continue
    }
    assert.ok(existsSync(join(ROOT, suite)), `${PAGE}:${line} names ${suite}`)
    assert.ok(readFileSync(join(ROOT, suite), 'utf8').includes(`'${name}'`), `${suite}: ${name}`)
  }
})

test('Workers: the template builds, is what wrangler takes, and names what the bundle needs', async () => {
  const { stdout } = await inClone(block('workers-build'), { HOME: world.path('home') })
  assert.match(stdout, /HUBS \(HubObject\)/)
  assert.match(stdout, /DIRECTORY \(DirectoryObject\)/)
  assert.match(stdout, /SOTTO_RELAY_DOMAIN \("relay\.example\.com"\)/)
  const text = readFileSync(join(ROOT, 'compile/wrangler.jsonc'), 'utf8')
  const template = JSON.parse(text.replace(/^\s*\/\/.*$/gm, ''))
  assert.is(template.compatibility_date, COMPATIBILITY_DATE)
  assert.equal(template.compatibility_flags, FLAGS)
  assert.equal(
    template.durable_objects.bindings,
    OBJECTS.map(([name, of]) => ({ name, class_name: of })),
  )
  assert.equal(
    template.migrations.flatMap((one: { new_sqlite_classes: string[] }) => one.new_sqlite_classes),
    OBJECTS.map(([, of]) => of),
  )
  assert.is(text.split('"relay.example.com"').length - 1, 2)
})

test('Workers: the secrets that the page makes are what the relay takes', async () => {
  await shell(block('workers-secrets'))
  const at = (name: string): string => readFileSync(join(world.path('work'), name), 'utf8')
  assert.is(statSync(join(world.path('work'), 'identity.hex')).mode & 0o777, 0o600)
  const key = at('admin.key').trim()
  assert.is(at('admin.hash').trim(), createHash('sha256').update(key).digest('hex'))
  const worker = world.start(join(ROOT, 'node_modules/.bin/node'), [
    join(ROOT, 'compile/worker.mjs'),
    ...['--port', '0', '--data', world.path('worker'), '--bundle', 'dist/relay/worker.js'],
  ], {
    env: {
      SOTTO_RELAY_IDENTITY: at('identity.hex').trim(),
      SOTTO_RELAY_ADMIN_HASH: at('admin.hash').trim(),
      SOTTO_RELAY_PATHS: 'true',
    },
  })
  const { url } = await worker.event('listening')
  const made = await fetch(`${url}/api/v1/keys`, { headers: { authorization: `Bearer ${key}` } })
  assert.is(made.status, 200)
  await worker.stop()
})

test('Deno: checked, and the task runs the relay of Deno Deploy', async () => {
  const [check, run] = block('deno').trim().split('\n')
  await inClone(check!)
  const port = String(await freePort())
  const words = run!.replace('8788', port).replace('relay.kv', world.path('relay.kv'))
  assert.is.not(words, run)
  const program = world.start('bash', ['-ec', `exec env ${words}`], {
    env: { SOTTO_RELAY_HOST: '127.0.0.1' },
  })
  await program.event('listening')
  assert.is(await (await fetch(`http://localhost:${port}/healthz`)).text(), 'ok\n')
  await program.stop()
})

test('one relay on three runtimes', async () => {
  const lines = block('runtimes').trim().split('\n')
  assert.is(lines.length, 3)
  for (const [i, line] of lines.entries()) {
    const flags = `--port 0 --host 127.0.0.1 --data ${world.path(`runtime-${i}`)}`
    const command = `exec ${line} ${flags}${i === 0 ? ' --json' : ''}`
    const program = world.start('bash', ['-ec', command], {
      env: { SOTTO_HOME: world.path(`home-${i}`), npm_config_update_notifier: 'false' },
    })
    const { port } = await program.event('listening')
    const answer = await fetch(`https://localhost:${port}/healthz`, {
      headers: { host: 'relay.example.com' },
      tls: { rejectUnauthorized: false },
    } as RequestInit)
    assert.is(await answer.text(), 'ok\n', line)
    await program.stop()
  }
})

test('the container’s commands speak of files, flags and a program that there are', async () => {
  const { text: words } = blocksOf(PAGE).find(({ text }) => text.includes('podman build'))!
  const containerfile = readFileSync(join(ROOT, 'compile/Containerfile'), 'utf8')
  assert.match(words, /-f compile\/Containerfile dist\n/)
  assert.match(containerfile, /^ARG PROGRAM=sotto-linux-x64$/m)
  assert.match(words, /-p 443:8443 -v sotto:\/var\/lib\/sotto /)
  assert.match(containerfile, /^VOLUME \/var\/lib\/sotto$/m)
  assert.match(containerfile, /"--port", "8443", "--public-port", "443"/)
  // What tests/compile/container.test.ts builds by.
  assert.match(containerfile, /podman build -t sotto-relay -f compile\/Containerfile dist/)
})

test('fly.toml is TOML, and speaks of the same port, volume and signal as the Containerfile', () => {
  const fly = Bun.TOML.parse(readFileSync(join(ROOT, 'compile/fly.toml'), 'utf8')) as {
    kill_signal: string
    mounts: { destination: string }
    services: { internal_port: number; ports: { port: number; handlers?: string[] }[] }[]
  }
  const containerfile = readFileSync(join(ROOT, 'compile/Containerfile'), 'utf8')
  assert.match(containerfile, new RegExp(`^STOPSIGNAL ${fly.kill_signal}$`, 'm'))
  assert.match(containerfile, new RegExp(`^VOLUME ${fly.mounts.destination}$`, 'm'))
  const [service] = fly.services
  assert.match(containerfile, new RegExp(`^EXPOSE ${service!.internal_port}$`, 'm'))
  assert.equal(service!.ports, [{ port: 443 }])
})

/** What a shell of the relay's operator knows. */
function operator(key = relay.adminKey): Record<string, string> {
  return { SOTTO_HOME: world.path('relay'), SOTTO_RELAY: relay.origin, SOTTO_ADMIN_KEY: key }
}

async function api<T>(secret: string): Promise<{ status: number; body: T }> {
  const response = await fetch(`${relay.origin}/api/v1/keys`, {
    headers: { authorization: `Bearer ${secret}` },
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  return { status: response.status, body: await response.json() as T }
}

const secretIn = (name: string): string =>
  /(sk|ak)_\S+/.exec(readFileSync(join(world.path('work'), name), 'utf8'))![0]

/** The id of the one key that `fits`, as a list shows it. */
async function idOf(fits: (one: Listed) => boolean): Promise<string> {
  const { body } = await api<{ items: Listed[] }>(relay.adminKey)
  const found = body.items.filter(fits)
  assert.is(found.length, 1, JSON.stringify(body))
  return found[0]!.id
}

interface Listed {
  id: string
  scope: string
  admin?: boolean
  kind?: string
}

test('an API key is replaced: the new one lets in, the old one no more', async () => {
  await shell('sotto relay keys create --scope ana > old.key', operator())
  const id = await idOf(({ scope }) => scope === 'ana')
  const script = block('api-key')
  assert.ok(script.includes(OLD_ID))
  await shell(script.replace(OLD_ID, id), operator())
  assert.is((await api(secretIn('old.key'))).status, 401)
  assert.is((await api(secretIn('ana.key'))).status, 200)
})

test('who is let in: a key for Ana, made from elsewhere, and her login by it', async () => {
  await shell(`echo "${relay.adminKey}" > admin.key`)
  const [make, login] = block('ana').trim().split('\n')
  const at = (line: string): string =>
    line.replace('https://relay.example.com', relay.origin).replace(
      'relay.example.com',
      relay.origin,
    )
  const { SOTTO_HOME } = operator()
  await shell(at(make!), { SOTTO_HOME: SOTTO_HOME! })
  const told = await fetch(`${relay.origin}/v1/relay`, {
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  const { fingerprint } = await told.json() as { fingerprint: string }
  // A relay at localhost has a certificate of its own.
  const done = await shell(`${at(login!)} --relay-fingerprint ${fingerprint}`, {
    SOTTO_HOME: world.path('ana'),
  })
  assert.match(done.stdout, /scope ana/)
})

test('the admin key is replaced; none revokes itself', async () => {
  const id = await idOf(({ kind, admin }) => admin === true || kind === 'admin')
  const script = block('admin-key')
  assert.ok(script.includes(OLD_ID))
  const { SOTTO_HOME, SOTTO_RELAY } = operator()
  const home = { SOTTO_HOME: SOTTO_HOME!, SOTTO_RELAY: SOTTO_RELAY! }
  const [make, revoke] = script.trim().split('\n')
  await shell(make!, operator())
  const itself = await world.sottoRun(['relay', 'keys', 'revoke', id], { env: operator() })
  assert.match(itself.stderr, /Make another admin key and revoke this one with it/)
  await shell(revoke!.replace(OLD_ID, id), home)
  assert.is((await api(relay.adminKey)).status, 401)
  assert.is((await api(secretIn('admin.key'))).status, 200)
})

test.run()
