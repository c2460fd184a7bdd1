/** Settings come from one table; each mistake names the setting, what was found, what is expected. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isTunnelError } from '../../core/errors.ts'
import { readSettings, SETTINGS, unknownVariables, variableOf } from '../../relay/settings.ts'

const test = suite('relay/settings')

function mistakes(flags: Record<string, unknown>, environment = {}): string {
  try {
    readSettings({ flags, environment })
  } catch (error) {
    assert.ok(isTunnelError(error, 'settings/invalid'), String(error))
    return error.message
  }
  return ''
}

test('without anything: a relay for this machine alone', () => {
  assert.equal(readSettings(), {
    domain: 'localhost',
    secureDomain: 'secure.localhost',
    appsDomain: 'apps.localhost',
    names: ['localhost'],
    host: '127.0.0.1',
    port: 8443,
    publicPort: 8443,
    dataDirectory: '',
    publicPorts: undefined,
    quotas: {},
    graceSeconds: 30,
    tlsCertPath: '',
    tlsKeyPath: '',
    acme: false,
    acmeDirectory: 'https://acme-v02.api.letsencrypt.org/directory',
    acmeContact: '',
    acmeCaPath: '',
    acmeEabId: '',
    acmeEabKeyPath: '',
    behindProxy: undefined,
    takeOver: false,
    dns: [],
    customDomains: true,
    clientCaPath: '',
    downloads: '',
    releaseUrl: '',
    releaseKeys: [],
    openRegistration: false,
    openSignup: false,
    agentsAcme: false,
    bulkIdle: 8,
    inspectable: true,
    metrics: 'loopback',
    logLevel: 'info',
    logFormat: 'json',
  })
})

test('with a domain: one for the world', () => {
  const settings = readSettings({ flags: { domain: 'Relay.Example.COM.', names: 'a.b, C.d' } })
  assert.is(settings.secureDomain, 'secure.relay.example.com')
  assert.is(settings.appsDomain, 'apps.relay.example.com')
  assert.equal(settings.names, ['relay.example.com', 'a.b', 'c.d'])
  assert.is(settings.host, '0.0.0.0')
  assert.is(settings.port, 443)
})

test('a flag wins over its variable, that over the default; an empty variable is none', () => {
  const environment = { SOTTO_RELAY_PORT: '1', SOTTO_RELAY_GRACE: '2', SOTTO_RELAY_HOST: '' }
  const settings = readSettings({ flags: { port: 3 }, environment })
  assert.is(settings.port, 3)
  assert.is(settings.publicPort, 3)
  assert.is(settings.graceSeconds, 2)
  assert.is(settings.host, '127.0.0.1')
})

test('what a command line library makes of flags is taken: numbers, booleans, lists', () => {
  const flags = { port: 0, open: true, inspectable: false, names: ['a.b', 'c.d'], quota: undefined }
  const settings = readSettings({ flags })
  assert.is(settings.port, 0)
  assert.is(settings.openRegistration, true)
  assert.is(settings.inspectable, false)
  assert.equal(settings.names, ['localhost', 'a.b', 'c.d'])
})

test('ranges and quotas', () => {
  assert.equal(readSettings({ flags: { 'public-ports': '20000-20999' } }).publicPorts, [
    20_000,
    20_999,
  ])
  assert.equal(readSettings({ flags: { 'public-ports': '53' } }).publicPorts, [53, 53])
  assert.is(readSettings({ flags: { 'public-ports': 'none' } }).publicPorts, undefined)
  assert.equal(readSettings({ flags: { quota: 'scope.links=5,address.names=9' } }).quotas, {
    'scope.links': 5,
    'address.names': 9,
  })
})

test('each wrong value is refused by its own flag and by its own variable', () => {
  const wrong: Record<string, unknown[]> = {
    domain: ['', 'a b', '-a.b', 'a..b', 'a_b', '192.0.2.1', 'x.1', 'ü.de', `${'a.'.repeat(99)}b`],
    'secure-domain': ['*.a.b'],
    'apps-domain': ['https://a.b'],
    names: ['a,b c', Array.from({ length: 16 }, (_, i) => `n${i}.x`).join(',')],
    host: ['', 'example.com', '1.2.3', '256.0.0.1', '01.2.3.4', ':::', '::1%eth0', 'x:y'],
    port: ['', 'x', '-1', '65536', '1.5', '0x10', '1e3', ' 1', '99999999999999999999'],
    'public-port': ['65536'],
    data: ['', 'a\0b'],
    'public-ports': ['', '0', '5-4', '1-65536', '1-10001', '1-2-3', 'a-b'],
    quota: [
      'scope.links',
      'scope.links=',
      'scope.links=-1',
      'scope.links=1.5',
      'scope.links=1,scope.links=2',
      '=1',
      'links=1',
      '__proto__=1',
      'constructor=1',
    ],
    grace: ['-1', '3601', 'soon'],
    'tls-cert': [''],
    'tls-key': [''],
    'client-ca': [''],
    'open-signup': ['perhaps', '2'],
    acme: ['perhaps'],
    'acme-directory': ['', 'http://a.b/', 'a.b', 'https://'],
    'acme-contact': ['', 'a', 'a@b,c@d', 'mailto:a@b', 'a b@c'],
    'acme-ca': [''],
    'acme-eab-kid': ['', 'a b'],
    'acme-eab-key-file': [''],
    'behind-proxy': [
      '',
      'x',
      '10.0.0.1/8',
      '10.0.0.0/33',
      '10.0.0.0/08',
      '::/129',
      '::ffff:10.0.0.0/104',
      '10.0.0.0/8,',
      Array.from({ length: 65 }, () => '::1').join(','),
    ],
    'take-over': ['maybe'],
    dns: ['localhost', '1.2.3', '1.1.1.1:99999', '1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1'],
    'custom-domains': ['maybe'],
    downloads: ['', 'a\0b'],
    'release-url': ['', 'http://a.b/', 'https://a.b/?x', "https://a.b/'", 'https://u@a.b/'],
    'release-key': ['', 'x', `${'A'.repeat(56)}`],
    open: ['maybe', 'TRUE'],
    'agents-acme': ['maybe'],
    bulk: ['65'],
    inspectable: [''],
    metrics: ['all'],
    'log-level': ['loud'],
    'log-format': ['xml'],
  }
  assert.equal(Object.keys(wrong).sort(), SETTINGS.map(({ flag }) => flag).sort())
  for (const { flag, expected } of SETTINGS) {
    for (const value of wrong[flag]!) {
      const told = mistakes({ [flag]: value })
      assert.ok(told.includes(`--${flag}: found "`), `${flag} ${JSON.stringify(value)}: ${told}`)
      assert.ok(told.includes(expected), told)
      if (value === '') continue
      assert.ok(mistakes({}, { [variableOf(flag)]: value }).includes(`${variableOf(flag)}: found`))
    }
  }
})

test('all mistakes are told at once, long values cut', () => {
  const told = mistakes({ port: 'x', grace: 'y', 'log-level': 'z'.repeat(10_000) })
  for (const part of ['--port', '--grace', '--log-level']) assert.ok(told.includes(part), told)
  assert.ok(told.length < 600)
})

test('what only holds between settings', () => {
  const cases: [Record<string, unknown>, string][] = [
    [{ 'secure-domain': 'x.y', 'apps-domain': 'x.y' }, '--apps-domain'],
    [{ 'secure-domain': 'x.y', 'apps-domain': 'a.x.y' }, '--apps-domain'],
    [{ 'secure-domain': 'a.x.y', 'apps-domain': 'x.y' }, '--apps-domain'],
    [{ domain: 'x.y', 'secure-domain': 'x.y' }, '--secure-domain'],
    [{ domain: 'r.x.y', 'secure-domain': 'x.y' }, '--secure-domain'],
    [{ domain: 'x.y', names: 'n.apps.x.y' }, '--apps-domain'],
    [{ 'tls-cert': '/c' }, '--tls-key'],
    [{ 'tls-key': '/k' }, '--tls-cert'],
    [{ acme: true }, '--acme'],
    [{ acme: true, domain: 'a.b', 'tls-cert': '/c', 'tls-key': '/k' }, '--acme'],
    [{ 'acme-eab-kid': 'x' }, '--acme-eab-key-file'],
    [{ 'acme-eab-key-file': '/k' }, '--acme-eab-kid'],
    [{ port: 20_500, 'public-ports': '20000-20999' }, '--public-ports'],
    // Attack: an agent that has one of these gets certificates for names of the relay and of others.
    [{ port: 8443, 'public-ports': '80' }, 'expected it without 80,'],
    [{ port: 8443, 'public-ports': '400-500' }, 'expected it without 443,'],
    [{ port: 8443, 'public-ports': '1-1000' }, 'expected it without 80 and 443,'],
  ]
  for (const [flags, named] of cases) {
    const told = mistakes(flags)
    assert.ok(told.includes(named), `${JSON.stringify(flags)}: ${told}`)
  }
  assert.is(mistakes({ 'secure-domain': 'ax.y', 'apps-domain': 'x.y' }), '')
})

test('an unknown flag is refused with what was perhaps meant', () => {
  assert.match(mistakes({ domian: 'a' }), /--domian: .*--domain/)
  assert.match(mistakes({ constructor: 'a' }), /--constructor: found an unknown setting/)
})

test('unknown variables are told with what was perhaps meant; those of the agent are not', () => {
  const environment = {
    SOTTO_RELAY_DOMIAN: 'x',
    SOTTO_RELAY_FINGERPRINT: 'x',
    SOTTO_RELAY_PORT: '1',
    SOTTO_RELAY: 'https://x',
    PATH: '/bin',
  }
  assert.equal(unknownVariables(environment), [
    { variable: 'SOTTO_RELAY_DOMIAN', perhaps: 'SOTTO_RELAY_DOMAIN' },
  ])
})

test('agents may get certificates where a CA would find them: a public domain at port 443', () => {
  const of = (flags: Record<string, string>): boolean => readSettings({ flags }).agentsAcme
  assert.is(of({ domain: 'relay.example.com' }), true)
  assert.is(of({ domain: 'relay.example.com', port: '8443' }), false)
  assert.is(of({ domain: 'relay.example.com', port: '8443', 'public-port': '443' }), true)
  assert.is(of({ domain: 'relay.example.com', 'agents-acme': 'false' }), false)
  for (
    const domain of [
      'localhost',
      'relay',
      'relay.localhost',
      'a.test',
      'nas.home.arpa',
      'x.internal',
    ]
  ) {
    assert.is(of({ domain, port: '443' }), false, domain)
    assert.is(of({ domain, port: '443', 'agents-acme': 'true' }), true, domain)
  }
})

test.run()
