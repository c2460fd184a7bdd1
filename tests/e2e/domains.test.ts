// seconds: 120
// needs: curl
/**
 * A domain of a person's own, from DNS to a visitor: claimed once its DNS says so, kept from another scope,
 * and given to it when DNS says that. And what "sotto domains check" tells before.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DnsServer } from '../support/dns.ts'
import { E2eWorld } from '../support/world.ts'
import type { CommandResult, Relay } from '../support/world.ts'

const DOMAIN = 'app.example.org'

let world: E2eWorld
let dns: DnsServer
let relay: Relay
let otherKey: string
let own: string
let services: { name: string; port: number }[]

const test = suite('e2e/domains')

test.before(async () => {
  world = new E2eWorld()
  dns = await DnsServer.start()
  relay = await world.relay(['--dns', dns.address])
  const made = await world.sottoRun(['relay', 'keys', 'create', '--scope', 'other', '--json'], {
    env: { SOTTO_RELAY: relay.origin, SOTTO_ADMIN_KEY: relay.adminKey },
  })
  otherKey = JSON.parse(made.stdout.trim().split('\n').at(-1)!).secret
  const grant = await fetch(`${relay.origin}/api/v1/grant`, {
    headers: { authorization: `Bearer ${relay.apiKey}` },
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  own = (await grant.json() as { scope: string }).scope
  services = ['mine', 'theirs'].map((name) => {
    const service = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: (request) => new Response(`${name} ${request.headers.get('host')}\n`),
    })
    world.defer(() => service.stop(true))
    return { name, port: service.port! }
  })
})

test.after(async () => {
  await world.close()
  await dns.close()
})

test.before.each(() => {
  dns.zone.clear()
  dns.faults.clear()
})

function visit(domain = DOMAIN, ...more: string[]): Promise<CommandResult> {
  const at = `${domain}:${relay.port}`
  return world.run('curl', ['-sSk', '--resolve', `${at}:127.0.0.1`, ...more, `https://${at}/`])
}

function check(args: string[] = [], env = world.joins(relay)): Promise<CommandResult> {
  return world.sottoRun(['domains', 'check', DOMAIN, '--dns', dns.address, ...args], { env })
}

function name(scope: string): void {
  dns.set(`_sotto.${DOMAIN}`, {
    type: 'TXT',
    data: `sotto-scope=${scope}; relay=localhost`,
    ttl: 1,
  })
}

test('claimed by TXT; another scope is refused, until DNS names that one', async () => {
  name(own)
  const [mine, theirs] = services
  const first = await world.tunnel(relay, [
    'http',
    `${mine!.port}`,
    '--name',
    'web',
    '--domain',
    DOMAIN,
  ])
  const routed = await first.event('domain')
  assert.is(routed['state'], 'routed')
  assert.is(routed['by'], 'txt')
  assert.is((await visit()).stdout, `mine ${DOMAIN}:${relay.port}\n`)
  // Plain HTTP is sent to it as well, and to nothing else.
  const plain = await world.run('curl', [
    '-s',
    '-o',
    '/dev/null',
    '-w',
    '%{redirect_url}',
    '-H',
    `Host: ${DOMAIN}`,
    `http://127.0.0.1:${relay.port}/x`,
  ])
  assert.is(plain.stdout, `https://${DOMAIN}:${relay.port}/x`)
  assert.is((await visit('elsewhere.example.org')).code, 35)
  const second = await world.tunnel(
    relay,
    ['http', `${theirs!.port}`, '--name', 'shop', '--domain', DOMAIN],
    { home: 'other', env: { SOTTO_API_KEY: otherKey } },
  )
  const refused = await second.event('domain')
  assert.is(refused['state'], 'refused')
  assert.is(refused['code'], 'domains/unproven')
  assert.match(
    refused['hint'],
    /_sotto\.app\.example\.org\. TXT "sotto-scope=other; relay=localhost"/,
  )
  name('other')
  await second.event('domain', ({ state }) => state === 'routed')
  assert.is((await visit()).stdout, `theirs ${DOMAIN}:${relay.port}\n`)
  await second.stop()
  // Nobody serves it: no other tunnel stands in.
  assert.is((await visit()).code, 35)
  await first.stop()
})

test('claimed by a CNAME to its own label', async () => {
  dns.set('www.example.org', { type: 'CNAME', data: 'web.secure.localhost' })
  const tunnel = await world.tunnel(relay, [
    'http',
    `${services[0]!.port}`,
    '--name',
    'web',
    '--domain',
    'WWW.example.org.',
  ])
  assert.is((await tunnel.event('domain'))['by'], 'cname')
  assert.is((await visit('www.example.org')).stdout, `mine www.example.org:${relay.port}\n`)
  await tunnel.stop()
})

test('"domains check" says what to set, and is content when it is set', async () => {
  const before = await check(['--name', 'web'])
  assert.is(before.code, 1, before.stderr)
  assert.match(
    before.stdout,
    /^fail {5}visitors come to the relay: it has no address and is no alias$/m,
  )
  assert.match(before.stdout, /^ {2}app\.example\.org\. CNAME web\.secure\.localhost\.$/m)
  assert.match(
    before.stdout,
    /^ {2}_sotto\.app\.example\.org\. TXT "sotto-scope=\S+; relay=localhost"$/m,
  )
  assert.match(before.stdout, /^app\.example\.org is not ready\.$/m)
  dns.set(DOMAIN, { type: 'CNAME', data: 'web.secure.localhost' })
  const alias = await check(['--json'])
  assert.is(alias.code, 0, alias.stdout)
  const lines = alias.stdout.trim().split('\n').map((line) => JSON.parse(line))
  assert.equal(lines.map(({ what, state, ready }) => what ? [what, state] : ready), [
    ['way', 'ok'],
    ['claim', 'ok'],
    ['caa', 'warning'],
    true,
  ])
  // Addresses that are not the relay's; a TXT of another scope.
  dns.set(DOMAIN, { type: 'A', data: '192.0.2.1' })
  dns.set('localhost', { type: 'A', data: '127.0.0.1' })
  name('stranger')
  const astray = await check()
  assert.is(astray.code, 1)
  assert.match(astray.stdout, /it leads to 192\.0\.2\.1, and localhost to 127\.0\.0\.1/)
  assert.match(astray.stdout, /a TXT names the scope stranger, and yours is \S+/)
  dns.set(DOMAIN, { type: 'A', data: '127.0.0.1' })
  name(own)
  assert.is((await check()).code, 0)
  dns.faults.set(DOMAIN, 'servfail')
  assert.match((await check()).stdout, /fail .*error 2 of the resolver/)
})

test('CAA: who may vouch, for whose account, found at the names above', async () => {
  dns.set('localhost', { type: 'A', data: '127.0.0.1' })
  dns.set(DOMAIN, { type: 'A', data: '127.0.0.1' })
  name(own)
  const account = 'accounturi=https://ca.example/acct/1'
  const rows: [at: string, value: string, state: string, words: RegExp][] = [
    [
      'example.org',
      'letsencrypt.org',
      'warning',
      /a CAA at example\.org allows letsencrypt\.org, for any account/,
    ],
    ['example.org', 'other.example', 'fail', /allows other\.example, and not letsencrypt\.org/],
    ['example.org', ';', 'fail', /allows no CA, and not/],
    [DOMAIN, `letsencrypt.org; ${account}`, 'warning', /accounts that are not known here/],
    [DOMAIN, 'letsencrypt.org; validationmethods=dns-01', 'fail', /not by tls-alpn-01/],
  ]
  for (const [at, value, state, words] of rows) {
    dns.zone.delete('example.org')
    if (at !== DOMAIN) dns.set(at, { type: 'CAA', data: { flags: 0, tag: 'issue', value } })
    else {
      dns.set(
        DOMAIN,
        { type: 'A', data: '127.0.0.1' },
        { type: 'CAA', data: { flags: 0, tag: 'issue', value } },
      )
    }
    const { stdout, code } = await check(['--json'])
    const found = stdout.trim().split('\n').map((line) => JSON.parse(line))
      .find(({ what }) => what === 'caa')
    assert.is(found.state, state, `${value}: ${found.found}`)
    assert.match(found.found, words)
    assert.is(code, state === 'fail' ? 1 : 0)
  }
})

test.run()
