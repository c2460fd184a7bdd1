// runtimes: bun node deno
/**
 * Whose a domain is: what DNS says, from a server of our own. Two scopes fight over names, DNS changes under
 * them, falls silent, lies about lengths, and goes round in circles; no name ever leads to who was not named.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { decodeDnsAnswer, dnsServer, encodeDnsQuery, readHostName } from '../../core/dns.ts'
import { isTunnelError } from '../../core/errors.ts'
import { Resolver } from '../../core/resolver.ts'
import { Domains, DOMAINS_PER_SCOPE_MAX, scopeText, SILENT_MS_MAX } from '../../relay/domains.ts'
import { dnsExchange } from '../../relay/serve/dns.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { fast } from '../support/crypto.ts'
import { DnsServer } from '../support/dns.ts'

const RELAY = 'relay.example.com'
const SECURE = `secure.${RELAY}`

let dns: DnsServer
let clock: ManualClock
let domains: Domains
let owners: Map<string, string>
let events: string[]

const test = suite('relay/domains')

test.before(async () => void (dns = await DnsServer.start()))
test.after(() => dns.close())

test.before.each(() => {
  dns.zone.clear()
  dns.faults.clear()
  dns.asked.length = 0
  clock = new ManualClock()
  owners = new Map([['web', 'main'], ['shop', 'other']])
  events = []
  domains = open()
})

test.after.each(() => domains.close())

function open(store = memoryStore()): Domains {
  return new Domains({
    clock,
    store,
    resolver: new Resolver({ clock, crypto: fast, exchange: dnsExchange([dns.address]) }),
    names: [RELAY, 'also.example'],
    domain: RELAY,
    secureDomain: SECURE,
    appsDomain: `apps.${RELAY}`,
    owner: (label) => Promise.resolve(owners.get(label)),
    log: (event, { domain, reason }) => void events.push(`${event} ${domain}: ${reason}`),
  })
}

function txt(domain: string, scope: string, relay = RELAY): void {
  const name = `_sotto.${domain}`
  const record = { type: 'TXT' as const, data: scopeText(scope, relay) }
  dns.set(name, ...dns.zone.get(name) ?? [], record)
}

async function claim(domain: string, scope: string, label = 'web'): Promise<string> {
  return (await domains.claim({ domain, scope, label })).by
}

async function refuses(code: string, domain: string, scope: string, words = /./): Promise<void> {
  try {
    await claim(domain, scope)
  } catch (error) {
    assert.ok(isTunnelError(error), String(error))
    assert.is(error.code, code, error.message)
    assert.match(`${error.message}\n${error.hint}`, words)
    return
  }
  assert.unreachable(`${domain} was given to ${scope}`)
}

/** Lets the clock pass, and what it began come to its end. */
async function pass(ms: number, until: () => boolean): Promise<void> {
  clock.advance(ms)
  for (let i = 0; i < 500 && !until(); i++) await new Promise((done) => setTimeout(done, 10))
  assert.ok(until(), events.join('; '))
}

test('a TXT that names scope and relay, or a CNAME to a label of the scope', async () => {
  txt('app.example.org', 'main')
  assert.is(await claim('App.Example.org.', 'main'), 'txt')
  assert.equal(domains.find('app.example.org')?.label, 'web')
  dns.set('www.example.org', { type: 'CNAME', data: `web.${SECURE}` })
  assert.is(await claim('www.example.org', 'main'), 'cname')
  await refuses('domains/unproven', 'www.example.org', 'other')
  assert.is(domains.find('www.example.org')?.scope, 'main')
})

test('attack: records of another relay, of another form, of a name above or beside', async () => {
  const hint =
    /app\.example\.org\. CNAME web\.secure\.relay\.example\.com\..*_sotto\.app\.example\.org\. TXT "sotto-scope=main; relay=relay\.example\.com"/
  await refuses('domains/unproven', 'app.example.org', 'main', hint)
  txt('app.example.org', 'main', 'evil.example')
  txt('example.org', 'main')
  txt('x.app.example.org', 'main')
  dns.set('_sotto.app.example.org', ...dns.zone.get('_sotto.app.example.org')!, {
    type: 'TXT',
    data: `sotto-scope=main; relay=${RELAY}; and more`,
  }, { type: 'TXT', data: `sotto-scope=main relay=${RELAY}`.repeat(40) })
  await refuses('domains/unproven', 'app.example.org', 'main')
  for (
    const target of [
      `a.web.${SECURE}`,
      SECURE,
      `web.apps.${RELAY}`,
      `web${SECURE}`,
      'web.secure.evil.example',
      `free.${SECURE}`,
    ]
  ) {
    dns.set('www.example.org', { type: 'CNAME', data: target })
    clock.advance(400_000)
    await refuses('domains/unproven', 'www.example.org', 'main')
  }
})

test('attack: wildcards, addresses, names of the relay, letters that look like others', async () => {
  for (
    const name of [
      '*.example.org',
      'org',
      '',
      '127.0.0.1',
      '1.2.3.4',
      'a..b',
      '-a.example',
      'a_b.example',
      'bücher.example',
      'a.example/x',
      'x'.repeat(64) + '.example',
      'x.'.repeat(130) + 'example',
      'a.example\n',
    ]
  ) await refuses('dns/name', name, 'main')
  for (
    const name of [RELAY, SECURE, `a.${SECURE}`, `x.apps.${RELAY}`, `a.b.${RELAY}`, 'also.example']
  ) {
    await refuses('domains/own', name, 'main')
  }
  assert.is(readHostName('xn--bcher-kva.example.'), 'xn--bcher-kva.example')
  assert.is(dns.asked.length, 0)
})

test('two scopes fight: the first keeps it while DNS names it, and loses it when DNS does not', async () => {
  txt('app.example.org', 'main')
  txt('app.example.org', 'other')
  await claim('app.example.org', 'main')
  await refuses('domains/taken', 'app.example.org', 'other')
  assert.is(domains.find('app.example.org')?.scope, 'main')
  dns.zone.delete('_sotto.app.example.org')
  txt('app.example.org', 'other')
  clock.advance(61_000)
  await claim('app.example.org', 'other', 'shop')
  assert.equal(domains.find('app.example.org')?.label, 'shop')
  clock.advance(61_000)
  await refuses('domains/unproven', 'app.example.org', 'main')
  assert.is(domains.find('app.example.org')?.scope, 'other')
  // At the same moment: one of them has it.
  txt('race.example.org', 'main')
  txt('race.example.org', 'other')
  const both = await Promise.allSettled([
    claim('race.example.org', 'main'),
    claim('race.example.org', 'other'),
  ])
  assert.equal(both.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
})

test('DNS changes while the name is routed: looked at again, and led nowhere at once', async () => {
  txt('app.example.org', 'main')
  await claim('app.example.org', 'main')
  await pass(61_000, () => dns.asked.length === 2)
  assert.ok(domains.find('app.example.org'))
  dns.zone.delete('_sotto.app.example.org')
  await pass(61_000, () => domains.size === 0)
  assert.equal(events, ['domain lost app.example.org: DNS names it no more'])
  // A label that changed hands takes no domain along.
  dns.set('www.example.org', { type: 'CNAME', data: `web.${SECURE}` })
  await claim('www.example.org', 'main')
  owners.set('web', 'other')
  await pass(61_000, () => domains.size === 0)
  // Nobody serves it any more.
  txt('idle.example.org', 'main')
  await claim('idle.example.org', 'main')
  domains.serves = () => false
  await pass(61_000, () => domains.size === 0)
})

test('attack: a label that was given back does not take domains along to whoever has it next', async () => {
  dns.set('www.example.org', { type: 'CNAME', data: `web.${SECURE}` })
  await claim('www.example.org', 'main')
  owners.set('web', 'other')
  await pass(61_000, () => domains.size === 0)
  const hint = /leads to "web", which was another scope's.*_sotto\.www\.example\.org\. TXT/s
  await refuses('domains/handed', 'www.example.org', 'other', hint)
  // Also where the label was nobody's in between, and whoever had it has asked in vain.
  owners.delete('web')
  await refuses('domains/unproven', 'www.example.org', 'main')
  owners.set('web', 'other')
  await refuses('domains/handed', 'www.example.org', 'other')
  // The owner of the domain says so: by a TXT, or by another label.
  txt('www.example.org', 'other')
  clock.advance(61_000)
  assert.is(await claim('www.example.org', 'other'), 'txt')
  dns.set('app.example.org', { type: 'CNAME', data: `blog.${SECURE}` })
  owners.set('blog', 'main')
  await claim('app.example.org', 'main', 'blog')
  dns.set('app.example.org', { type: 'CNAME', data: `shop.${SECURE}` })
  clock.advance(61_000)
  assert.is(await claim('app.example.org', 'other', 'shop'), 'cname')
})

test('attack: a key for some names of a scope takes no domain of the others', async () => {
  const allows = (name: string): boolean => name.startsWith('ci-')
  const restricted = (domain: string, label: string): Promise<unknown> =>
    domains.claim({ domain, scope: 'main', label, allows }).catch(({ code }) => code)
  owners.set('ci-1', 'main')
  txt('app.example.org', 'main')
  await claim('app.example.org', 'main')
  assert.is(await restricted('app.example.org', 'ci-1'), 'domains/restricted')
  dns.set('www.example.org', { type: 'CNAME', data: `web.${SECURE}` })
  assert.is(await restricted('www.example.org', 'ci-1'), 'domains/restricted')
  dns.set('ci.example.org', { type: 'CNAME', data: `ci-1.${SECURE}` })
  assert.is(await restricted('ci.example.org', 'web'), 'domains/restricted')
  assert.equal(await restricted('ci.example.org', 'ci-1'), {
    domain: 'ci.example.org',
    by: 'cname',
  })
  // While DNS says nothing it keeps what it has, and gets nothing.
  dns.faults.set('_sotto.app.example.org', 'servfail')
  dns.faults.set('_sotto.ci.example.org', 'servfail')
  clock.advance(61_000)
  assert.is(await restricted('app.example.org', 'ci-1'), 'domains/dns')
  assert.equal(await restricted('ci.example.org', 'ci-1'), { domain: 'ci.example.org', by: 'kept' })
  assert.is(domains.find('app.example.org')?.label, 'web')
})

test('attack: one scope whose name servers are slow does not use up all that are asked at once', async () => {
  const asked: Promise<string>[] = []
  for (let i = 0; i < 40; i++) {
    dns.faults.set(`_sotto.slow${i}.example.org`, 'silent')
    asked.push(claim(`slow${i}.example.org`, 'other', 'shop').catch(({ code }) => code))
  }
  txt('app.example.org', 'main')
  assert.is(await claim('app.example.org', 'main'), 'txt')
  const early = await Promise.all(asked.slice(24))
  assert.equal(new Set(early), new Set(['domains/busy']))
  dns.faults.clear()
})

test('DNS falls silent: kept for a day by who had it, given to nobody', async () => {
  const store = memoryStore()
  domains = open(store)
  txt('app.example.org', 'main')
  await claim('app.example.org', 'main')
  dns.faults.set('_sotto.app.example.org', 'servfail')
  await pass(61_000, () => events.length === 1)
  assert.match(events[0]!, /domain unchecked app\.example\.org: .*error 2 of the resolver/)
  assert.ok(domains.find('app.example.org'))
  await refuses('domains/dns', 'app.example.org', 'other')
  // Another process, or this one after a restart.
  domains.close()
  domains = open(store)
  assert.is(await claim('app.example.org', 'main'), 'kept')
  domains.close()
  domains = open(store)
  clock.advance(SILENT_MS_MAX)
  await refuses('domains/dns', 'app.example.org', 'main')
})

test('attack: answers that are refused, forged, cut, huge, or go round in circles', async () => {
  txt('app.example.org', 'main')
  for (const fault of ['refused', 'garbage', 'other-question'] as const) {
    dns.faults.set('_sotto.app.example.org', fault)
    await refuses('domains/dns', 'app.example.org', 'main')
  }
  // Over TCP where it does not fit.
  dns.faults.set('_sotto.app.example.org', 'truncated')
  assert.is(await claim('app.example.org', 'main'), 'txt')
  assert.ok(dns.asked.some((one) => one.startsWith('tcp TXT')))
  const many = Array.from({ length: 90 }, (_, i) => ({ type: 'TXT' as const, data: `x${i}` }))
  dns.set('_sotto.huge.example.org', ...many)
  dns.faults.set('_sotto.huge.example.org', 'truncated')
  await refuses('domains/unproven', 'huge.example.org', 'main')
  for (let i = 0; i < 12; i++) {
    dns.set(`_sotto.l${i}.example.org`, {
      type: 'CNAME',
      data: `_sotto.l${(i + 1) % 12}.example.org`,
    })
  }
  dns.set('_sotto.self.example.org', { type: 'CNAME', data: '_sotto.self.example.org' })
  for (const name of ['l0.example.org', 'self.example.org']) {
    await refuses('domains/dns', name, 'main')
  }
})

test('a forged answer with a wrong number does not end the wait for the right one', async () => {
  txt('app.example.org', 'main')
  dns.faults.set('_sotto.app.example.org', 'wrong-id')
  const began = claim('app.example.org', 'main')
  while (dns.asked.length === 0) await new Promise((done) => setTimeout(done, 5))
  dns.faults.clear()
  assert.is(await began, 'txt')
})

test('attack: many claims of one name give a forger one number to hit', async () => {
  const claims = Array.from({ length: 8 }, () => claim('app.example.org', 'main'))
  const all = await Promise.allSettled(claims)
  assert.ok(all.every(({ status }) => status === 'rejected'))
  assert.equal(dns.asked.sort(), ['udp CNAME app.example.org', 'udp TXT _sotto.app.example.org'])
})

test('attack: a label with a dot in it is no two labels', () => {
  const question = { id: 7, name: 'a.example', type: 'CNAME' as const }
  const label = [...new TextEncoder().encode('web.secure')]
  const bytes = Uint8Array.of(
    ...encodeDnsQuery(question).subarray(0, 2),
    ...[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0],
    ...encodeDnsQuery(question).subarray(12, 27),
    ...[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, label.length + 4, label.length, ...label, 1, 0x78, 0],
  )
  assert.equal(decodeDnsAnswer(bytes, question).records.map(({ value }) => value), ['web?secure.x'])
})

test('a resolver that says nothing: the next one is asked', async () => {
  const mute = await DnsServer.start()
  mute.faults.set('a.example', 'silent')
  dns.set('a.example', { type: 'A', data: '192.0.2.7' })
  const exchange = dnsExchange([mute.address, dns.address])
  const found = await new Resolver({ clock, crypto: fast, exchange }).lookup('a.example', 'A')
  assert.equal(found.values, ['192.0.2.7'])
  assert.equal(mute.asked, ['udp A a.example'])
  await mute.close()
})

test('so many names of one scope; one that nobody serves makes room', async () => {
  for (let i = 0; i <= DOMAINS_PER_SCOPE_MAX; i++) txt(`d${i}.example.org`, 'main')
  for (let i = 0; i < DOMAINS_PER_SCOPE_MAX; i++) await claim(`d${i}.example.org`, 'main')
  await refuses('domains/limit', `d${DOMAINS_PER_SCOPE_MAX}.example.org`, 'main')
  domains.serves = ({ domain }) => domain !== 'd3.example.org'
  await pass(61_000, () => domains.size === DOMAINS_PER_SCOPE_MAX - 1)
  await claim(`d${DOMAINS_PER_SCOPE_MAX}.example.org`, 'main')
})

test('answers are kept as long as they say, within bounds', async () => {
  dns.set('_sotto.app.example.org', { type: 'TXT', data: scopeText('main', RELAY), ttl: 600 })
  await claim('app.example.org', 'main')
  await claim('app.example.org', 'main')
  assert.is(dns.asked.length, 1)
  clock.advance(601_000)
  await claim('app.example.org', 'main')
  assert.ok(dns.asked.length >= 2)
})

test('attack: every prefix and every changed byte of an answer is read or refused, with an end', () => {
  const question = { id: 7, name: 'a.example', type: 'TXT' as const }
  const query = encodeDnsQuery(question)
  const good = Uint8Array.of(
    ...query.subarray(0, 2),
    0x81,
    0x80,
    0,
    1,
    0,
    1,
    0,
    0,
    0,
    0,
    ...query.subarray(12, query.length - 11),
    0xc0,
    12,
    0,
    16,
    0,
    1,
    0,
    0,
    0,
    60,
    0,
    3,
    2,
    104,
    105,
  )
  assert.is(decodeDnsAnswer(good, question).records[0]!.value, 'hi')
  let read = 0
  const attempt = (bytes: Uint8Array): void => {
    try {
      decodeDnsAnswer(bytes, question)
      read++
    } catch (error) {
      assert.ok(isTunnelError(error, 'dns/malformed'), String(error))
    }
  }
  for (let end = 0; end < good.length; end++) attempt(good.subarray(0, end))
  assert.is(read, 0)
  for (let at = 0; at < good.length; at++) {
    for (const byte of [0, 1, 12, 0x3f, 0x80, 0xc0, 0xff]) {
      attempt(Uint8Array.from(good, (old, i) => i === at ? byte : old))
    }
  }
  // A pointer to itself, and two to each other.
  for (const [a, b] of [[25, 25], [27, 25]]) {
    attempt(Uint8Array.of(...good.subarray(0, 12), 0xc0, b!, 0xc0, a!, ...good.subarray(16)))
  }
  assert.equal(dnsServer('[::1]:5353'), { host: '::1', port: 5353 })
  assert.equal(dnsServer('::1'), { host: '::1', port: 53 })
  assert.equal(dnsServer('192.0.2.1:5353'), { host: '192.0.2.1', port: 5353 })
  for (const bad of ['localhost', '1.2.3', '', '1.2.3.4:', '1.2.3.4:99999']) {
    assert.is(dnsServer(bad), undefined, bad)
  }
})

test.run()
