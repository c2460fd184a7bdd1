// Files of wg-quick and wireproxy: what their manuals show, each mistake with its line, a round trip of anything
// that can be written, and no secret in any message.
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { toBase64 } from '../../../agent/base64.ts'
import { qrPicture } from '../../../agent/cli/qr.ts'
import { parseRoute, routeText } from '../../../agent/wireguard/exit_policy.ts'
import {
  importedFile,
  parseQuickConfig,
  printQuickConfig,
  withImported,
} from '../../../agent/wireguard/quick_config.ts'
import { isTunnelError } from '../../../core/errors.ts'

const SEED = Number(process.env['SOTTO_SEED'] ?? Date.now() % 2 ** 31)
console.log(`seed ${SEED}`)
const test = suite('agent/wireguard/quick_config')
const key = (fill: number): string => toBase64(new Uint8Array(32).fill(fill))

const FULL = `# of the office
WGCONFIG
[Interface]
Address = 10.200.200.2/32, fd00::2/128   # ours
address = 10.5.0.2
PrivateKey = ${key(1)}
ListenPort=51820
DNS = 10.200.200.1, corp.example
MTU = 1380
Table = off
PostUp = iptables -A FORWARD -i %i -j ACCEPT; rm -rf /

[Peer] # the first
PublicKey = ${key(2)}
PresharedKey = ${key(3)}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = my.ddns.example.com:51820
PersistentKeepalive = 25

[PEER]
publickey = ${key(4)}
AllowedIPs = 10.0.0.77/24
AllowedIPs = 10.1.0.0/16
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = off

; wireproxy
[TCPClientTunnel]
BindAddress = 127.0.0.1:25565
Target = play.example.net:25565

[TCPServerTunnel]
ListenPort = 3422
Target = localhost:25545

[UDPProxyTunnel]
BindAddress = :5300
Target = 1.1.1.1:53
InactivityTimeout = 30 # seconds

[STDIOTunnel]
Target = ssh.myserver.net:22

[Socks5]
BindAddress = :25344
Username = $SOCKS_USER
Password = $SOCKS_PASSWORD

[http]
BindAddress = 127.0.0.1:25345

[Resolve]
ResolveStrategy = auto
`.replace('WGCONFIG\n', '')

const env = { SOCKS_USER: 'ann', SOCKS_PASSWORD: 'secret' }

test('parseQuickConfig() reads what wg-quick and wireproxy read', () => {
  for (const words of [FULL, FULL.replaceAll('\n', '\r\n'), `\ufeff${FULL}`, FULL.trimEnd()]) {
    const config = parseQuickConfig(words, { env })
    assert.is(toBase64(config.privateKey), key(1))
    assert.equal(config.addresses.map(routeText), ['10.200.200.2/32', 'fd00::2/128', '10.5.0.2/32'])
    assert.is(config.listenPort, 51820)
    assert.equal(config.dns, ['10.200.200.1'])
    assert.equal(config.searchDomains, ['corp.example'])
    assert.is(config.mtu, 1380)
    const [first, second] = config.peers
    assert.is(toBase64(first!.presharedKey!), key(3))
    assert.equal(first!.allowed.map(routeText), ['0.0.0.0/0', '::/0'])
    assert.equal(first!.endpoint, { host: 'my.ddns.example.com', port: 51820 })
    assert.is(first!.keepaliveSeconds, 25)
    assert.equal(second!.allowed.map(routeText), ['10.0.0.0/24', '10.1.0.0/16'])
    assert.equal(second!.endpoint, { host: '2001:db8::1', port: 51820 })
    assert.is(second!.keepaliveSeconds, 0)
    assert.is(second!.presharedKey, undefined)
    assert.equal(config.clientTunnels, [{
      bind: { host: '127.0.0.1', port: 25565 },
      target: { host: 'play.example.net', port: 25565 },
    }])
    assert.equal(config.serverTunnels, [{ port: 3422, target: { host: 'localhost', port: 25545 } }])
    assert.equal(config.stdioTarget, { host: 'ssh.myserver.net', port: 22 })
    assert.equal(config.socks, [
      { bind: { host: '127.0.0.1', port: 25344 }, user: 'ann', password: 'secret' },
    ])
    assert.equal(config.http, [{ bind: { host: '127.0.0.1', port: 25345 } }])
    assert.equal(config.udpTunnels, [
      { bind: { host: '127.0.0.1', port: 5300 }, target: { host: '1.1.1.1', port: 53 } },
    ])
    assert.equal(config.ignored.map((one) => one.key), [
      ...['Table', 'PostUp', 'InactivityTimeout', 'ResolveStrategy'],
    ])
  }
})

test('one peer alone that names no AllowedIPs has all; of several, each its own', () => {
  const allowed = (words: string): string[][] =>
    parseQuickConfig(words).peers.map((one) => one.allowed.map(routeText))
  assert.equal(allowed(PEER), [['0.0.0.0/0', '::/0']])
  assert.equal(allowed(`${PEER}AllowedIPs =\n`), [[]])
  assert.equal(allowed(`${PEER}[Peer]\nPublicKey = ${key(3)}\nAllowedIPs = 10.0.0.0/8\n`), [
    ...[[], ['10.0.0.0/8']],
  ])
})

test('an import stands before any section; lines are counted file by file', () => {
  assert.is(importedFile(`# mine\n wgconfig=/etc/wg 0.conf \r\n[Socks5]\n`), '/etc/wg 0.conf')
  assert.is(importedFile(`[Socks5]\nWGConfig = x\n`), undefined)
  assert.is(importedFile('WGConfig =\n'), undefined)
  assert.is(importedFile(FULL), undefined)
  const whole = withImported('WGConfig = x\n[Socks5]\nBindAddress = :1\n', PEER)
  assert.is(parseQuickConfig(whole.words).socks.length, 1)
  assert.is(whole.lines, PEER.split('\n').length)
  const twice = withImported(`WGConfig = x\n${OWN}`, OWN)
  assert.throws(() => parseQuickConfig(twice.words), /second \[Interface\]/)
})

const OWN = `[Interface]\nPrivateKey = ${key(1)}\n`
const PEER = `${OWN}[Peer]\nPublicKey = ${key(2)}\n`

for (
  const [name, words, code, line] of [
    ['no section at all', '', 'missing', 1],
    ['a line before any section', `MTU = 1400\n${OWN}`, 'section', 1],
    ['an unknown section', `${OWN}[Pear]\n`, 'section', 3],
    ['a second interface', `${OWN}${OWN}`, 'twice', 3],
    ['no key', '[Interface]\nMTU = 1400\n', 'missing', 1],
    ['a peer without its key', `${OWN}\n[Peer]\nAllowedIPs = 10.0.0.0/8\n`, 'missing', 4],
    ['a peer twice', `${PEER}\n[Peer]\nPublicKey = ${key(2)}\n`, 'twice', 7],
    ['a key a second time', `${OWN}MTU = 1400\nmtu = 1500\n`, 'twice', 4],
    ['no equals sign', `${OWN}MTU 1400\n`, 'syntax', 3],
    ['an open bracket', `${OWN}[Peer\n`, 'syntax', 3],
    ['a key of another section', `${PEER}MTU = 1400\n`, 'key', 5],
    ['TLS of a proxy', `${OWN}[http]\nBindAddress = :1\nCertFile = a.pem\n`, 'key', 5],
    ['AmneziaWG', `${OWN}Jc = 4\n`, 'key', 3],
    ['no value', `${OWN}MTU =\n`, 'value', 3],
    ['a small MTU', `${OWN}MTU = 576\n`, 'value', 3],
    ['a large MTU', `${OWN}MTU = 65536\n`, 'value', 3],
    ['a port out of range', `${OWN}ListenPort = 65536\n`, 'value', 3],
    ['a negative port', `${OWN}ListenPort = -1\n`, 'value', 3],
    ['an address out of range', `${OWN}Address = 10.0.0.256/24\n`, 'value', 3],
    ['a mask out of range', `${OWN}Address = 10.0.0.1/33\n`, 'value', 3],
    ['an empty place in a list', `${OWN}Address = 10.0.0.1,,10.0.0.2\n`, 'value', 3],
    ['a keepalive out of range', `${PEER}PersistentKeepalive = 65536\n`, 'value', 5],
    ['an endpoint without a port', `${PEER}Endpoint = host.example\n`, 'value', 5],
    ['IPv6 without brackets', `${PEER}Endpoint = 2001:db8::1:51820\n`, 'value', 5],
    ['port 0', `${PEER}Endpoint = host.example:0\n`, 'value', 5],
    ['a variable that is not there', `${OWN}MTU = $NONE\n`, 'value', 3],
    ['a user without a password', `${OWN}[Socks5]\nBindAddress = :1\nUsername = a\n`, 'missing', 3],
    ['a proxy nowhere', `${OWN}[http]\n`, 'missing', 3],
    ['half a tunnel', `${OWN}[TCPClientTunnel]\nBindAddress = :1\n`, 'missing', 3],
    ['a huge file', `${OWN}${'#'.repeat(1_100_000)}`, 'size', 1],
    ['too many peers', OWN + Array(4_097).fill('[Peer]').join('\n'), 'size', 4_099],
  ] as const
) {
  test(`parseQuickConfig() says on which line: ${name}`, () => {
    try {
      parseQuickConfig(words)
    } catch (error) {
      assert.ok(isTunnelError(error, `wgconfig/${code}`), `${error}`)
      assert.match((error as Error).message, new RegExp(`^Cannot read line ${line}: `))
      return
    }
    assert.unreachable()
  })
}

test('no message shows a key, whichever way it is broken', () => {
  for (const cut of [1, 10, 43]) {
    const broken = key(9).slice(0, cut)
    for (
      const words of [
        `[Interface]\nPrivateKey = ${broken}\n`,
        PEER + `PresharedKey = ${broken}=x\n`,
      ]
    ) {
      try {
        parseQuickConfig(words)
        assert.unreachable()
      } catch (error) {
        assert.ok(isTunnelError(error, 'wgconfig/value'))
        assert.not.match(JSON.stringify(error), /CQkJ/)
      }
    }
  }
  for (const odd of [`${key(1).slice(0, 42)}B=`, `${key(1)}=`, ` ${key(1)} x`]) {
    assert.throws(() => parseQuickConfig(`[Interface]\nPrivateKey = ${odd}\n`))
  }
})

test('every truncation is read or refused by a line, and nothing else is thrown', () => {
  for (let cut = 0; cut < FULL.length; cut += 3) {
    try {
      parseQuickConfig(FULL.slice(0, cut), { env })
    } catch (error) {
      assert.ok(isTunnelError(error) && error.code.startsWith('wgconfig/'), String(error))
    }
  }
  fc.assert(
    fc.property(fc.string({ maxLength: 200 }), fc.nat(FULL.length), (noise, at) => {
      try {
        parseQuickConfig(FULL.slice(0, at) + noise + FULL.slice(at), { env })
      } catch (error) {
        assert.ok(isTunnelError(error) && error.code.startsWith('wgconfig/'), String(error))
      }
    }),
    { seed: SEED, numRuns: 1_000 },
  )
})

test('printQuickConfig() writes what parseQuickConfig() reads back', () => {
  const bytes = fc.uint8Array({ minLength: 32, maxLength: 32 })
  const range = fc.constantFrom('10.0.0.0/8', '192.168.1.5/32', 'fd00::/64', '::/0', '0.0.0.0/0')
    .map(parseRoute)
  const place = fc.record({
    host: fc.constantFrom('db.internal', '10.0.0.1', 'fd00::1', 'a'),
    port: fc.integer({ min: 1, max: 65_535 }),
  })
  const peer = fc.record({
    publicKey: bytes,
    presharedKey: fc.option(bytes, { nil: undefined }),
    allowed: fc.array(range, { minLength: 1, maxLength: 4 }),
    endpoint: fc.option(place, { nil: undefined }),
    keepaliveSeconds: fc.nat(65_535),
  })
  const proxy = fc.record({
    bind: place,
    user: fc.constantFrom(undefined, 'ann'),
    password: fc.constant('pw'),
  })
  fc.assert(
    fc.property(
      fc.record({
        privateKey: bytes,
        addresses: fc.array(range, { minLength: 1, maxLength: 3 }),
        listenPort: fc.option(fc.nat(65_535), { nil: undefined }),
        dns: fc.constantFrom([], ['10.0.0.53', 'fd00::53']),
        searchDomains: fc.constantFrom([], ['corp.example']),
        mtu: fc.option(fc.integer({ min: 1_280, max: 65_535 }), { nil: undefined }),
        peers: fc.uniqueArray(peer, { maxLength: 4, selector: (one) => toBase64(one.publicKey) }),
        socks: fc.array(proxy, { maxLength: 2 }),
        http: fc.array(proxy, { maxLength: 2 }),
        clientTunnels: fc.array(fc.record({ bind: place, target: place }), { maxLength: 2 }),
        serverTunnels: fc.array(
          fc.record({ port: fc.integer({ min: 1, max: 65_535 }), target: place }),
          { maxLength: 2 },
        ),
        udpTunnels: fc.array(fc.record({ bind: place, target: place }), { maxLength: 2 }),
        stdioTarget: fc.option(place, { nil: undefined }),
      }),
      (given) => {
        const config = JSON.parse(JSON.stringify(plain(given)), revive)
        for (const one of [...config.socks, ...config.http]) if (!one.user) delete one.password
        const words = printQuickConfig(config, { note: 'for a laptop\nof two lines' })
        assert.equal(plain(parseQuickConfig(words)), plain({ ...config, ignored: [] }))
        assert.ok(words.endsWith('\n'))
      },
    ),
    { seed: SEED, numRuns: 300 },
  )
})

/** Bytes as base64 in a marked object, so that two values compare by content. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return { b64: toBase64(value) }
  if (Array.isArray(value)) return value.map(plain)
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(
    Object.entries(value).filter(([, one]) => one !== undefined).map((
      [name, one],
    ) => [name, plain(one)]),
  )
}

function revive(_: string, value: { b64?: string }): unknown {
  return value?.b64 === undefined
    ? value
    : Uint8Array.from(atob(value.b64), (one) => one.charCodeAt(0))
}

test('a printed file of one peer fits a QR code that a phone reads', async () => {
  const { privateKey, addresses, peers } = parseQuickConfig(FULL, { env })
  const words = printQuickConfig({ privateKey, addresses, peers: peers.slice(0, 1), mtu: 1280 })
  const picture = await qrPicture(words, { unicode: true, colours: false })
  assert.ok(picture.width <= 80, `${picture.width} columns`)
})

test.run()
