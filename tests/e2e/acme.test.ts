// seconds: 240
// needs: chromium pebble pebble-challtestsrv openssl certutil tinyproxy
/**
 * Certificates of a CA for an agent's own name, from pebble with its faults switched on: the question
 * comes through the relay as any visitor, the self-signed certificate serves until the answer is there,
 * and nothing that runs is cut when they change places.
 */
import * as nodeCrypto from 'node:crypto'
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { createServer, get as httpGet } from 'node:http'
import type { ClientRequest, IncomingMessage, Server, ServerResponse } from 'node:http'
import * as https from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { connect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openPassport } from '../../core/passport.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { parseKey } from '../../core/key.ts'
import { startAcmeProxy } from '../support/acme_proxy.ts'
import { openBrowser } from '../support/browser.ts'
import { startPebble } from '../support/pebble.ts'
import type { Pebble, PebbleOptions } from '../support/pebble.ts'
import { freePort } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { Line, Program, Relay } from '../support/world.ts'

const test = suite('e2e/acme')
let world: E2eWorld
let relay: Relay
let upstream: Server
let upstreamPort = 0

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay(['--agents-acme=true'])
  upstream = createServer((request, response) => {
    if (request.url !== '/slow') return void response.end('hello from behind')
    response.write('first ')
    held.add(response)
  })
  upstreamPort = await new Promise((resolve) => {
    upstream.listen(0, '127.0.0.1', () => resolve((upstream.address() as AddressInfo).port))
  })
})
test.after(async () => {
  for (const response of held) response.end()
  upstream.close()
  await world.close()
})

const held = new Set<ServerResponse>()

async function ca(options: Partial<PebbleOptions> = {}): Promise<Pebble> {
  const pebble = await startPebble({ tlsPort: relay.port, ...options })
  world.defer(() => pebble.close())
  return pebble
}

function tunnel(
  pebble: Pick<Pebble, 'directory' | 'serverCaPath'>,
  { name, more = [], home = name, env = {} }: {
    name: string
    more?: string[]
    home?: string
    env?: Record<string, string>
  },
): Promise<Program & { up: Line }> {
  const flags = ['--acme-directory', pebble.directory, '--acme-ca', pebble.serverCaPath]
  return world.tunnel(relay, ['http', String(upstreamPort), '--name', name, ...flags, ...more], {
    home,
    env,
  })
}

const issued = (program: Program): Promise<Line> =>
  program.event('certificate', ({ state }) => state === 'issued')

const failed = (program: Program): Promise<Line> =>
  program.event('certificate', ({ state }) => state === 'failed')

const printOf = (leaf: X509Certificate): string => leaf.fingerprint256

function shown(host: string, port = relay.port): Promise<X509Certificate> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: '127.0.0.1',
      port,
      servername: host,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
    }, () => {
      resolve(new X509Certificate(socket.getPeerCertificate().raw))
      socket.destroy()
    })
    socket.on('error', reject)
  })
}

function get(host: string, root: string, { port = relay.port } = {}): Promise<string> {
  const place = { host: '127.0.0.1', port, servername: host, ca: root, agent: false as const }
  return body((answered) => https.get(place, answered)).whole
}

/** A visitor who is there while certificates change places. */
function slow(host: string, root: string): ReturnType<typeof body> {
  const place = { host: '127.0.0.1', port: relay.port, servername: host, path: '/slow' }
  return body((answered) => https.get({ ...place, ca: root, agent: false }, answered))
}

/** What is answered: when it begins, and all of it. */
function body(
  ask: (answered: (answer: IncomingMessage) => void) => ClientRequest,
): { begun: Promise<void>; whole: Promise<string> } {
  let begun!: () => void
  const first = new Promise<void>((resolve) => begun = resolve)
  const whole = new Promise<string>((resolve, reject) => {
    ask((answer) => {
      let words = ''
      answer.on('data', (bytes) => {
        words += bytes
        begun()
      })
      answer.on('error', reject)
      answer.on('end', () => resolve(words))
    }).on('error', reject)
  })
  return { begun: first, whole }
}

/** `sotto connect NAME` of another agent, which pins who serves it. */
async function dialler(name: string, key: string): Promise<{
  get(): Promise<string>
  slow(): ReturnType<typeof body>
  stop(): Promise<void>
}> {
  const home = `peer-of-${name}`
  const pinned = await world.sottoRun(['peers', 'trust', name, key], { home })
  assert.is(pinned.code, 0, pinned.stderr)
  const flags = ['--listen', '127.0.0.1:0', '--json']
  const program = world.sotto(['connect', name, ...flags], { home, env: world.joins(relay) })
  const { address } = await program.event('listening')
  const port = Number(address.split(':')[1])
  const ask = (path: string): ReturnType<typeof body> =>
    body((answered) => httpGet({ host: '127.0.0.1', port, path, agent: false }, answered))
  return {
    get: () => ask('/').whole,
    slow: () => ask('/slow'),
    stop: async () => void await program.stop(),
  }
}

/** Fingerprints that the published passport names, as people compare them. */
async function passportPrints(key: string): Promise<string[]> {
  const answer = await fetch(`${relay.origin}/v1/passports/${key}`, {
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  assert.is(answer.status, 200)
  const bytes = new Uint8Array(await answer.arrayBuffer())
  const { certificates } = openPassport(fastCrypto(nodeCrypto), bytes, {
    now: Date.now(),
    identity: parseKey(key),
  })
  return certificates.map((one) =>
    [...one].map((byte) => byte.toString(16).padStart(2, '0').toUpperCase()).join(':')
  )
}

/** By the account's own key, as its owner would. */
async function deactivate(pebble: Pebble, home: string): Promise<void> {
  const dir = join(world.path(home), 'state', 'acme')
  const file = readdirSync(dir).find((name) => name.startsWith('account-'))!
  const { key, url } = JSON.parse(readFileSync(join(dir, file), 'utf8'))
  assert.is(createPrivateKey(key).asymmetricKeyType, 'ec')
  const acme = await import('acme-client')
  acme.axios.defaults.httpsAgent = new https.Agent({ ca: pebble.serverCa })
  const client = new acme.Client({
    directoryUrl: pebble.directory,
    accountKey: key,
    accountUrl: url,
  })
  await client.updateAccount({ status: 'deactivated' } as never)
}

test('the own name gets a certificate by itself, half of all nonces refused; who is there stays', async () => {
  const pebble = await ca({ nonceReject: 50, validationSeconds: 3 })
  const program = await tunnel(pebble, { name: 'trusted' })
  const host = 'trusted.secure.localhost'
  await program.event('certificate', ({ state }) => state === 'waiting')
  const before = await shown(host)
  assert.is(before.issuer, before.subject, 'the self-signed one serves while it waits')
  assert.is(printOf(before), program.up['certificate'])
  const running = slow(host, before.toString())
  await running.begun
  const line = await issued(program)
  assert.is(line['host'], host)
  assert.is(await get(host, await pebble.root()), 'hello from behind')
  const after = await shown(host)
  assert.is(after.subjectAltName, `DNS:${host}`)
  assert.is.not(printOf(after), printOf(before))
  for (const response of held) response.end('second')
  assert.is(await running.whole, 'first second')
  const account = program.lines.find(({ event, state }) =>
    event === 'certificate' && state === 'account'
  )
  assert.match(account!['terms'], /Do%20what/)
  // The passport names the one before and the one of now: peers with either in hand stay.
  const known = await passportPrints(program.up['key'])
  for (const one of [before, after]) assert.ok(known.includes(printOf(one)), printOf(one))
  await program.stop()

  const again = await tunnel(pebble, { name: 'trusted' })
  assert.is(again.up['certificate'], printOf(after), 'the certificate was kept, with its key')
  await again.stop()
  assert.not.match(again.stdout, /"state":"waiting"/)
})

test('modes of what is kept: nobody else reads account, key or certificate', () => {
  const files = readdirSync(world.path('trusted'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
  const kept = files.filter((path) => /acme\/|certificates\//.test(path))
  assert.ok(kept.length >= 4, kept.join(' '))
  for (const path of kept) assert.is(statSync(path).mode & 0o777, 0o600, path)
})

test('a name that the CA cannot find: one sentence, a wait, and no order at the next start', async () => {
  const pebble = await ca()
  const host = 'lost.secure.localhost'
  await pebble.setAddress(host, [])
  const proxy = await startAcmeProxy(pebble)
  world.defer(() => proxy.close())
  const program = await tunnel(proxy, { name: 'lost' })
  const line = await failed(program)
  assert.is(line['error'].code, 'acme/validation')
  assert.ok(Date.parse(line['next']) - Date.now() > 100_000, line['next'])
  const self = await shown(host)
  assert.is(self.issuer, self.subject)
  await program.stop()
  assert.is(proxy.orders.length, 1)
  const again = await tunnel(proxy, { name: 'lost' })
  const told = await failed(again)
  assert.is(told['error'].code, 'acme/waiting')
  assert.is(told['next'], line['next'])
  await again.stop()
  assert.is(proxy.orders.length, 1, 'a restart is no way around the wait')
})

test('a CA that says "later" is asked later, at the time that it said', async () => {
  const pebble = await ca()
  const proxy = await startAcmeProxy(pebble)
  world.defer(() => proxy.close())
  proxy.answer = (path) =>
    path !== '/order-plz' ? undefined : {
      status: 429,
      headers: { 'retry-after': '7200' },
      body: { type: 'urn:ietf:params:acme:error:rateLimited', detail: 'too many certificates' },
    }
  const program = await tunnel(proxy, { name: 'limited' })
  const line = await failed(program)
  assert.is(line['error'].code, 'acme/limited')
  assert.match(line['error'].message, /too many certificates/)
  const waitMs = Date.parse(line['next']) - Date.now()
  assert.ok(waitMs > 7_190_000 && waitMs < 9_100_000, line['next'])
  assert.is(proxy.asked.filter((one) => one === 'POST /order-plz').length, 1)
  await program.stop()
})

test('external account binding: said what is missing; with the key it works', async () => {
  const key = Buffer.alloc(32, 7).toString('base64url')
  const pebble = await ca({ eab: { 'kid-1': key } })
  const without = await tunnel(pebble, { name: 'bound' })
  const line = await failed(without)
  assert.is(line['error'].code, 'acme/binding')
  assert.match(line['error'].hint, /--acme-eab-kid/)
  await without.stop()
  const bound = await tunnel(pebble, {
    name: 'bound2',
    more: ['--acme-eab-kid', 'kid-1'],
    env: { SOTTO_ACME_EAB_KEY: key },
  })
  await issued(bound)
  await bound.stop()
})

test('where a proxy is the only way out, the CA is asked through it', async () => {
  const pebble = await ca()
  const port = await freePort()
  const conf = world.path('tinyproxy.conf')
  writeFileSync(conf, `Port ${port}\nListen 127.0.0.1\nLogLevel Info\n`)
  const proxy = world.start('tinyproxy', ['-d', '-c', conf])
  await proxy.says(/Accepting connections/)
  // Whatever else there may be: loopback goes by a proxy that is named for sotto alone.
  const env = { SOTTO_PROXY: `http://127.0.0.1:${port}` }
  const program = await tunnel(pebble, { name: 'proxied', env })
  await issued(program)
  await proxy.says(new RegExp(`CONNECT localhost:${new URL(pebble.directory).port} `))
  await proxy.says(new RegExp(`CONNECT localhost:${relay.port} `))
  assert.is(await get('proxied.secure.localhost', await pebble.root()), 'hello from behind')
  await program.stop()
  await proxy.stop()
})

test('a directory that is down leaves the tunnel as it is', async () => {
  const directory = `https://localhost:${await freePort()}/dir`
  const { serverCaPath } = await ca()
  const program = await tunnel({ directory, serverCaPath }, { name: 'down' })
  assert.is((await failed(program))['error'].code, 'acme/unreachable')
  assert.ok(await shown('down.secure.localhost'))
  await program.stop()
})

test('an account that was deactivated is not replaced behind the person', async () => {
  const pebble = await ca()
  const first = await tunnel(pebble, { name: 'closed', home: 'closed' })
  await issued(first)
  await first.stop()
  await deactivate(pebble, 'closed')
  const second = await tunnel(pebble, { name: 'closed2', home: 'closed' })
  assert.is((await failed(second))['error'].code, 'acme/account')
  await second.stop()
})

test('renewed when the CA says so, by its own window, under a visitor that stays', async () => {
  const pebble = await ca()
  const proxy = await startAcmeProxy(pebble, { renewalInfo: true })
  world.defer(() => proxy.close())
  const ids: string[] = []
  let ask!: () => void
  const asked = new Promise<void>((resolve) => ask = resolve)
  let come!: () => void
  const there = new Promise<void>((resolve) => come = resolve)
  proxy.answer = async (path) => {
    const id = path.startsWith('/ari/') ? path.slice('/ari/'.length) : undefined
    if (id === undefined) return undefined
    if (!ids.includes(id)) ids.push(id)
    if (ids.length === 2) ask()
    await there
    const startMs = Date.now() + (ids.indexOf(id) === 0 ? -60_000 : 86_400_000)
    const iso = (ms: number): string => new Date(ms).toISOString()
    return {
      status: 200,
      headers: { 'retry-after': '21600' },
      body: { suggestedWindow: { start: iso(startMs), end: iso(startMs + 1000) } },
    }
  }
  const program = await tunnel(proxy, { name: 'renewed' })
  await issued(program)
  const root = await pebble.root()
  const first = await shown('renewed.secure.localhost')
  const running = slow('renewed.secure.localhost', root)
  await running.begun
  const peer = await dialler('renewed', program.up['key'])
  const far = peer.slow()
  await far.begun
  const renewed = program.until(
    () => program.lines.filter(({ state }) => state === 'issued').length === 2 || undefined,
    'second certificate',
  )
  let isOver = false
  const over = renewed.then(() => void (isOver = true))
  // Whoever dials the whole time meets the one certificate or the other, and never one that the passport lacks.
  const dialled = (async () => {
    let count = 0
    for (let last = false; !last; count++) {
      last = isOver
      assert.is(await peer.get(), 'hello from behind')
      if (count === 0) come()
    }
    return count
  })()
  await over
  assert.ok(await dialled > 1)
  await asked
  assert.is(proxy.orders.length, 2)
  assert.is(proxy.orders[1]!['replaces'], ids[0])
  const leaf = await shown('renewed.secure.localhost')
  const serial = Buffer.from(ids[1]!.split('.')[1]!, 'base64url').toString('hex')
  assert.is(serial.replace(/^00/, ''), leaf.serialNumber.toLowerCase())
  assert.is.not(printOf(leaf), printOf(first))
  assert.is(await get('renewed.secure.localhost', root), 'hello from behind')
  for (const response of held) response.end('second')
  assert.is(await running.whole, 'first second')
  assert.is(await far.whole, 'first second', 'through sotto connect as well')
  await peer.stop()
  await program.stop()
})

test('killed in the midst of an order, it goes on at the next start', async () => {
  const pebble = await ca({ validationSeconds: 10 })
  const program = await tunnel(pebble, { name: 'killed' })
  await program.event('certificate', ({ state }) => state === 'account')
  await program.stop('SIGKILL')
  const again = await tunnel(pebble, { name: 'killed' })
  await issued(again)
  assert.is(await get('killed.secure.localhost', await pebble.root()), 'hello from behind')
  await again.stop()
})

test("a name of the person's own: claimed by DNS, certified through the passthrough, beside the other", async () => {
  const port = await freePort()
  const pebble = await startPebble({ tlsPort: port })
  world.defer(() => pebble.close())
  const domain = 'app.example.test'
  await pebble.setTxt(`_sotto.${domain}`, 'sotto-scope=home; relay=localhost')
  const flags = ['--port', String(port), '--dns', `127.0.0.1:${pebble.dnsPort}`, '--json']
  const second = world.sotto(['relay', ...flags], { home: 'domains', env: { USER: 'home' } })
  const { url, apiKey } = await second.event('listening')
  const other = { ...relay, program: second, port, origin: url, apiKey }
  const program = await world.tunnel(other, [
    ...['http', String(upstreamPort), '--name', 'custom', '--acme-domain', domain],
    ...['--acme-directory', pebble.directory, '--acme-ca', pebble.serverCaPath],
  ], { home: 'custom' })
  assert.is((await issued(program))['host'], domain)
  const root = await pebble.root()
  assert.is(await get(domain, root, { port }), 'hello from behind')
  // This relay gives agents no leave for its own names: that one stays as it was.
  const own = await shown('custom.secure.localhost', port)
  assert.is(own.fingerprint256, program.up['certificate'])
  await program.stop()
  await second.stop()
})

/** `sotto up` of a file of its own. */
async function ups(
  on: Relay,
  home: string,
  tunnels: (pebble: Pick<Pebble, 'directory' | 'serverCaPath'>) => string,
  pebble: Pick<Pebble, 'directory' | 'serverCaPath'>,
): Promise<{ program: Program; save(next: string): Promise<Line>; head: string }> {
  const folder = world.path(`${home}-files`)
  mkdirSync(folder)
  const file = join(folder, 'sotto.yaml')
  const head = `relay: ${on.origin}\napi-key-env: TEST_KEY\n` +
    `acme: {directory: "${pebble.directory}", ca: ${pebble.serverCaPath}}\ntunnels:\n`
  writeFileSync(file, head + tunnels(pebble))
  const program = world.sotto(['up', '--json'], {
    cwd: folder,
    home,
    env: { TEST_KEY: on.apiKey },
  })
  await program.event('ready')
  return {
    program,
    head,
    async save(next) {
      const seen = program.lines.length
      writeFileSync(`${file}.new`, head + next)
      renameSync(`${file}.new`, file)
      return await program.until(
        () => program.lines.slice(seen).find(({ event }) => /^(reloaded|kept)$/.test(event)),
        'word of the file',
      )
    },
  }
}

test('a tunnel of sotto.yaml gets its certificate; edits of others, and its own, leave it', async () => {
  const pebble = await ca()
  const proxy = await startAcmeProxy(pebble)
  world.defer(() => proxy.close())
  const port = upstreamPort
  const plain = `  plain: {http: ${port}, acme: off}\n`
  const { program, save } = await ups(
    relay,
    'filed',
    () => `  filed: {http: ${port}}\n${plain}`,
    proxy,
  )
  const line = await issued(program)
  assert.is(line['host'], 'filed.secure.localhost')
  assert.is(line['tunnel'], 'filed')
  const root = await pebble.root()
  assert.is(await get('filed.secure.localhost', root), 'hello from behind')
  const first = await shown('filed.secure.localhost')
  assert.is((await shown('plain.secure.localhost')).issuer, 'CN=plain.secure.localhost')
  const running = slow('filed.secure.localhost', root)
  await running.begun

  const other = await save(
    `  filed: {http: ${port}}\n  plain: {http: ${port}, acme: off, host-header: rewrite}\n`,
  )
  assert.equal(other['changed'], ['plain'])
  assert.is(printOf(await shown('filed.secure.localhost')), printOf(first))
  const own = await save(`  filed: {http: ${port}, host-header: rewrite}\n${plain}`)
  assert.equal(own['changed'], ['filed', 'plain'])
  assert.is(printOf(await shown('filed.secure.localhost')), printOf(first))
  assert.is(await get('filed.secure.localhost', root), 'hello from behind')
  const off = await save(`  filed: {http: ${port}, acme: off}\n${plain}`)
  assert.equal(off['changed'], ['filed'])
  assert.is((await shown('filed.secure.localhost')).issuer, 'CN=filed.secure.localhost')
  await save(`  filed: {http: ${port}}\n${plain}`)
  assert.is(printOf(await shown('filed.secure.localhost')), printOf(first), 'it was kept')
  for (const response of held) response.end('second')
  assert.is(await running.whole, 'first second')
  await program.stop()
  assert.is(proxy.orders.length, 1)
})

test('a domain in sotto.yaml is claimed and certified, beside one without a CA', async () => {
  const port = await freePort()
  const pebble = await startPebble({ tlsPort: port })
  world.defer(() => pebble.close())
  for (const one of ['app', 'plain', 'late']) {
    await pebble.setTxt(`_sotto.${one}.example.test`, 'sotto-scope=home; relay=localhost')
  }
  const flags = ['--port', String(port), '--dns', `127.0.0.1:${pebble.dnsPort}`, '--json']
  const second = world.sotto(['relay', ...flags], { home: 'domains2', env: { USER: 'home' } })
  const { url, apiKey } = await second.event('listening')
  const on = { ...relay, program: second, port, origin: url, apiKey }
  const base = `http: ${upstreamPort}, domains: [plain.example.test]`
  const { program, save } = await ups(
    on,
    'filed2',
    () => `  web: {${base}, acme-domains: [app.example.test]}\n`,
    pebble,
  )
  assert.is((await issued(program))['host'], 'app.example.test')
  await program.event('domain', ({ domain, state }) => {
    return domain === 'plain.example.test' && state === 'routed'
  })
  const root = await pebble.root()
  assert.is(await get('app.example.test', root, { port }), 'hello from behind')
  assert.is((await shown('plain.example.test', port)).issuer, 'CN=web.secure.localhost')
  await save(`  web: {${base}, acme-domains: [app.example.test, late.example.test]}\n`)
  assert.is(await get('app.example.test', root, { port }), 'hello from behind')
  await program.event('certificate', ({ state, host }) => {
    return state === 'issued' && host === 'late.example.test'
  })
  assert.is(await get('late.example.test', root, { port }), 'hello from behind')
  await program.stop()
  await second.stop()
})

test('--acme off asks nobody; a relay that does not allow it is not asked against', async () => {
  const pebble = await ca()
  const proxy = await startAcmeProxy(pebble)
  world.defer(() => proxy.close())
  const off = await tunnel(proxy, { name: 'off', more: ['--acme', 'off'] })
  assert.is((await shown('off.secure.localhost')).issuer, 'CN=off.secure.localhost')
  await off.stop()
  const second = world.sotto(['relay', '--port', '0', '--json'], { home: 'second' })
  const { url, apiKey } = await second.event('listening')
  const other = { ...relay, program: second, origin: url, apiKey }
  const flags = ['--acme-directory', proxy.directory, '--acme-ca', proxy.serverCaPath]
  const program = await world.tunnel(
    other,
    ['http', String(upstreamPort), '--name', 'local', ...flags],
    { home: 'local' },
  )
  await program.stop()
  assert.equal(proxy.asked, [])
})

test('Chromium with the root of the CA opens the URL, and warns of nothing', async () => {
  const pebble = await ca()
  const program = await tunnel(pebble, { name: 'browser' })
  await issued(program)
  const home = world.path('chromium')
  const store = join(home, '.pki', 'nssdb')
  mkdirSync(store, { recursive: true })
  const root = world.path('root.pem')
  writeFileSync(root, await pebble.root())
  const nss = ['-d', `sql:${store}`]
  assert.is((await world.run('certutil', ['-N', ...nss, '--empty-password'])).code, 0)
  const added = await world.run('certutil', ['-A', ...nss, '-t', 'C,,', '-n', 'test', '-i', root])
  assert.is(added.code, 0, added.stderr)
  const browser = await openBrowser([], { home })
  try {
    const page = await browser.newPage()
    const url = `https://browser.secure.localhost:${relay.port}/`
    const answer = await page.goto(url)
    assert.is(answer!.status(), 200)
    assert.match((await answer!.securityDetails())!.issuer!, /Pebble Intermediate/)
    assert.is(await page.evaluate('isSecureContext && location.protocol'), 'https:')
    const picture = process.env['SOTTO_SCREENSHOT']
    if (picture) await page.screenshot({ path: picture })
  } finally {
    await browser.close()
  }
  // The same browser, without the root, refuses: it was not looking away.
  const strict = await openBrowser([], { home: world.path('stranger') })
  try {
    const page = await strict.newPage()
    await page.goto(`https://browser.secure.localhost:${relay.port}/`).then(
      () => assert.unreachable('it took a certificate of nobody'),
      (error) => assert.match(String(error), /ERR_CERT_AUTHORITY_INVALID/),
    )
  } finally {
    await strict.close()
  }
  await program.stop()
})

test.run()
