// seconds: 240
// needs: root ip nft squid tinyproxy microsocks unshare curl openssl
/**
 * A tunnel out of a network that only a proxy leaves: an agent in a namespace whose every other packet
 * is dropped and counted, the relay outside, and between them the proxies that people run. The relay's
 * name is known to the proxies, or to both, as the proxy's kind wants it.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { Socket } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { freePort } from '../support/port.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Line, Program } from '../support/world.ts'

const HOST = 'relay.sotto.test'
const BODY_BYTES = 8_000_000
const USER = 'ann'
/** All of it has to be written as %XX in a URL. */
const PASSWORD = 'p@ss:/#?% w'
const LOGIN = `${USER}:${encodeURIComponent(PASSWORD)}`

let world: E2eWorld
let wire: Namespace
let relay: Line
let relayProgram: Program
let upstreamPort: number
/** Ports of proxies, by name. */
const ports: Record<string, number> = {}
let squidLog: string
let sha: string

const test = suite('e2e/proxies')

async function sh(words: string, timeoutMs = 30_000) {
  const done = await world.run('bash', ['-c', `set -eo pipefail; ${words}`], { timeoutMs })
  assert.is(done.code, 0, `${words}\n${done.stdout}${done.stderr}`)
  return done.stdout
}

/** Resolves when somebody listens there. */
async function listening(program: Program, port: number): Promise<void> {
  for (let i = 0; i < 200; i++) {
    if (program.over) throw new Error(`${program.stdout}${program.stderr}`)
    const isThere = await new Promise((resolve) => {
      const socket = connect({ host: wire.outside, port })
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false))
      socket.once('connect', () => socket.destroy())
    })
    if (isThere) return
    await pause(50)
  }
  throw new Error(`nothing listens at ${port}: ${program.stdout}${program.stderr}`)
}

async function proxy(name: string, command: (port: number) => string[]): Promise<void> {
  const port = ports[name] = await freePort()
  const [program, ...args] = command(port)
  // The relay's name is in no DNS: proxies get a hosts file of their own.
  const quoted = [program!, ...args].map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ')
  const started = world.start('unshare', [
    '-m',
    'bash',
    '-c',
    `mount --bind ${world.path('hosts')} /etc/hosts && exec ${quoted}`,
  ])
  await listening(started, port)
}

function squidConfig(port: number, { tls = false }: { tls?: boolean } = {}): string {
  return `
${tls ? 'https' : 'http'}_port ${wire.outside}:${port}${
    tls ? ` tls-cert=${world.path('proxy.crt')} tls-key=${world.path('proxy.key')}` : ''
  }
hosts_file ${world.path('hosts')}
pid_filename ${world.path(`squid-${port}.pid`)}
access_log stdio:${squidLog}
cache_log ${world.path(`squid-${port}.log`)}
cache deny all
coredump_dir ${world.dir}
auth_param basic program /usr/lib/squid/basic_ncsa_auth ${world.path('logins')}
auth_param basic children 1
acl known proxy_auth REQUIRED
acl allowed port ${relay['port']}
http_access deny !known
http_access deny !allowed
http_access allow known
shutdown_lifetime 0 seconds
`
}

async function startProxies(): Promise<void> {
  squidLog = world.path('squid-access.log')
  writeFileSync(world.path('hosts'), `127.0.0.1 localhost\n${wire.outside} ${HOST}\n`)
  await sh(
    `printf '%s:%s\\n' ${USER} "$(openssl passwd -apr1 '${PASSWORD}')" > ${
      world.path('logins')
    }; ` +
      `chmod 644 ${world.path('logins')}`,
  )
  for (const [name, tls] of [['squid', false], ['squidTls', true]] as const) {
    await proxy(name, (port) => {
      writeFileSync(world.path(`${name}.conf`), squidConfig(port, { tls }))
      return ['squid', '-N', '-f', world.path(`${name}.conf`)]
    })
  }
  await proxy('tinyproxy', (port) => {
    writeFileSync(
      world.path('tinyproxy.conf'),
      `Port ${port}\nListen ${wire.outside}\nTimeout 600\nMaxClients 200\nLogLevel Info\n` +
        `BasicAuth ${USER} plain-1\nConnectPort ${relay['port']}\n`,
    )
    return ['tinyproxy', '-d', '-c', world.path('tinyproxy.conf')]
  })
  await proxy('socks', (port) => [
    'microsocks',
    ...['-i', wire.outside, '-p', String(port), '-u', USER, '-P', PASSWORD],
  ])
}

/** All that leaves the namespace goes to one port of the outside; the rest is dropped and counted. */
function confine(port: number): Promise<string> {
  const rules = [
    'table inet out',
    'delete table inet out',
    'add table inet out',
    'add counter inet out direct',
    'add counter inet out proxied',
    'add counter inet out back',
    'add chain inet out o { type filter hook output priority 0; }',
    `add rule inet out o oifname != "lo" tcp dport ${port} counter name proxied accept`,
    // Attempts: not what an earlier connection still says, nor the system's own neighbour discovery.
    'add rule inet out o oifname != "lo" tcp flags & (syn | ack) == syn counter name direct drop',
    'add rule inet out o oifname != "lo" meta l4proto udp counter name direct drop',
    'add rule inet out o oifname != "lo" drop',
    'add chain inet out i { type filter hook input priority 0; }',
    `add rule inet out i iifname != "lo" tcp sport ${port} counter name back accept`,
  ]
  return sh(`${wire.within.join(' ')} nft '${rules.join('; ')}'`)
}

async function counted(name: string): Promise<{ packets: number; bytes: number }> {
  const text = await sh(`${wire.within.join(' ')} nft -j list counter inet out ${name}`)
  const items = JSON.parse(text)['nftables'] as { counter?: { packets: number; bytes: number } }[]
  return items.find(({ counter }) => counter)!.counter!
}

function within(args: readonly string[], env: Record<string, string>): Program {
  const [command, ...first] = [...wire.within, ...world.sottoWords.split(' '), ...args]
  return world.start(command!, first, {
    home: 'agent',
    env: {
      SOTTO_HOME: world.path('agent'),
      SOTTO_RELAY: relay['url'],
      SOTTO_API_KEY: relay['apiKey'],
      ...env,
    },
  })
}

function visitor(host: string, path: string): Promise<string> {
  return sh(
    `curl -sSk --fail --noproxy '*' --max-time 25 --resolve ${host}:${
      relay['port']
    }:${wire.outside} ` +
      `https://${host}:${relay['port']}${path} | sha256sum`,
  )
}

test.before(async () => {
  try {
    await prepare()
  } catch (error) {
    // The runner itself says nothing of it.
    console.error(error)
    throw error
  }
})

async function prepare(): Promise<void> {
  world = new E2eWorld()
  wire = new Namespace(HOST)
  world.defer(() => wire.close())
  chmodSync(world.dir, 0o777)
  mkdirSync(world.path('tls'))
  await sh(
    `cd ${world.dir}; req() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@" ` +
      `2>/dev/null; }; ` +
      `req -x509 -days 2 -subj '/CN=proxy tests' -keyout ca.key -out ca.crt; ` +
      `for one in 'relay DNS:${HOST}' 'proxy IP:${wire.outside}'; do set -- $one; ` +
      `req -subj "/CN=$1" -keyout $1.key -out $1.csr; echo "subjectAltName=$2" > $1.ext; ` +
      `openssl x509 -req -days 2 -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial ` +
      `-extfile $1.ext -out $1.crt 2>/dev/null; chmod 644 $1.key; done`,
  )
  relayProgram = world.sotto([
    ...['relay', '--port', '0', '--json', '--domain', HOST, '--host', wire.outside],
    ...['--tls-cert', world.path('relay.crt'), '--tls-key', world.path('relay.key')],
  ], { home: 'relay' })
  relay = await relayProgram.event('listening')
  upstreamPort = await freePort()
  writeFileSync(
    world.path('upstream.ts'),
    `const body = new Uint8Array(${BODY_BYTES}).map((_, i) => i * 31 >> 3)\n` +
      `Bun.serve({ hostname: '127.0.0.1', port: ${upstreamPort}, fetch: () => new Response(body) })\n` +
      `console.log(JSON.stringify({ event: 'listening', sha: new Bun.CryptoHasher('sha256').update(body).digest('hex') }))\n`,
  )
  const upstream = world.start('ip', [...wire.within.slice(1), BUN, world.path('upstream.ts')])
  sha = (await upstream.event('listening'))['sha']
  await startProxies()
}

test.after(() => world.close())

interface Way {
  name: string
  port(): number
  env(): Record<string, string>
}

/** `--ca` in place of a pin: the whole of TLS is with the relay, whatever stands between. */
const WAYS: Way[] = [
  {
    name: 'squid, by CONNECT and Basic',
    port: () => ports['squid']!,
    env: () => ({ HTTPS_PROXY: `http://${LOGIN}@${wire.outside}:${ports['squid']}` }),
  },
  {
    name: 'squid behind TLS, its CA by SSL_CERT_FILE',
    port: () => ports['squidTls']!,
    env: () => ({
      https_proxy: `https://${LOGIN}@${wire.outside}:${ports['squidTls']}`,
      HTTPS_PROXY: 'http://192.0.2.1:9',
      SSL_CERT_FILE: world.path('ca.crt'),
    }),
  },
  {
    name: 'tinyproxy, by ALL_PROXY',
    port: () => ports['tinyproxy']!,
    env: () => ({ ALL_PROXY: `http://${USER}:plain-1@${wire.outside}:${ports['tinyproxy']}` }),
  },
  {
    name: 'microsocks, that finds the name',
    port: () => ports['socks']!,
    env: () => ({ ALL_PROXY: `socks5h://${LOGIN}@${wire.outside}:${ports['socks']}` }),
  },
  {
    name: 'microsocks, given an address',
    port: () => ports['socks']!,
    env: () => ({ HTTPS_PROXY: `socks5://${LOGIN}@${wire.outside}:${ports['socks']}` }),
  },
]

for (const [i, way] of WAYS.entries()) {
  test(`a tunnel is up through ${way.name}, and not one packet goes another way`, async () => {
    await confine(way.port())
    const agent = within([
      ...['http', String(upstreamPort), '--json', '--name', `web${i}`],
      ...['--ca', world.path('ca.crt')],
    ], way.env())
    const up = await agent.event('up')
    const host = new URL(up['url']).hostname
    const before = (await counted('proxied')).bytes
    for (let j = 0; j < 2; j++) {
      assert.is((await visitor(host, '/')).split(' ')[0], sha)
    }
    const bytes = (await counted('proxied')).bytes - before
    assert.ok(bytes > 2 * BODY_BYTES, `${bytes} bytes through the proxy`)
    assert.is((await counted('direct')).packets, 0)
    // The relay's REST API goes the same way.
    const listed = within(['agents', '--json', '--ca', world.path('ca.crt')], way.env())
    const { code } = await listed.ended
    assert.is(code, 0, listed.stdout + listed.stderr)
    assert.is((await counted('direct')).packets, 0)
    for (const program of [agent, listed]) {
      const said = program.stdout + program.stderr
      assert.not.match(said, /p@ss|p%40ss|plain-1/)
    }
    await agent.stop()
  })
}

/** Each is a mistake of the person, and says so with what to do. */
const MISTAKES: [name: string, env: () => Record<string, string>, code: string, says: RegExp][] = [
  [
    'no login',
    () => ({ HTTPS_PROXY: `http://${wire.outside}:${ports['squid']}` }),
    'proxy/authentication',
    /asks for a user and a password, and none is set \(HTTP status 407\)\n.*HTTPS_PROXY/,
  ],
  [
    'a wrong password at SOCKS',
    () => ({ ALL_PROXY: `socks5h://${USER}:wrong@${wire.outside}:${ports['socks']}` }),
    'proxy/authentication',
    /does not take the user and password/,
  ],
  [
    'a port that the proxy forbids',
    () => ({
      HTTPS_PROXY: `http://${LOGIN}@${wire.outside}:${ports['squid']}`,
      SOTTO_RELAY: `https://${HOST}:8`,
    }),
    'proxy/denied',
    /relay\.sotto\.test:8: .*does not allow it.*403/,
  ],
  [
    'HTTP said to SOCKS',
    () => ({ HTTPS_PROXY: `http://${wire.outside}:${ports['socks']}` }),
    'proxy/protocol',
    /expected HTTP/,
  ],
  [
    'an unknown scheme',
    () => ({ HTTPS_PROXY: `socks4://${LOGIN}@${wire.outside}:1` }),
    'proxy/address',
    /the scheme "socks4"/,
  ],
  [
    'a CA file that is not there',
    () => ({ SSL_CERT_FILE: '/no/such/ca.pem' }),
    'ca/file',
    /\/no\/such\/ca\.pem \(SSL_CERT_FILE\)/,
  ],
]

for (const [name, env, code, says] of MISTAKES) {
  test(`${name}: ${code}, at once, without the password`, async () => {
    const named = /:(\d+)$/.exec(Object.values(env())[0]!)?.[1]
    await confine(Number(named ?? 9))
    const agent = within(['http', String(upstreamPort), '--name', 'wrong', '--json'], env())
    assert.is((await agent.event('error'))['code'], code)
    assert.is((await agent.ended).code, 1)
    assert.match(agent.stderr, says)
    assert.not.match(agent.stdout + agent.stderr, /p@ss|p%40ss|wrong@/)
  })
}

test('a proxy that is not there is told with its remedy, and the agent goes on trying', async () => {
  const port = await freePort()
  const agent = within(['http', String(upstreamPort), '--name', 'later', '--json'], {
    HTTPS_PROXY: `http://${LOGIN}@${wire.outside}:${port}`,
  })
  await confine(port)
  await agent.says(/Cannot reach the proxy http:\/\/198\.18\.[\d.:]+ \(HTTPS_PROXY\)/)
  assert.not.match(agent.stdout + agent.stderr, /p@ss|p%40ss/)
  await agent.stop()
})

test('NO_PROXY goes without', async () => {
  const agent = within(['http', String(upstreamPort), '--name', 'excepted', '--json'], {
    HTTPS_PROXY: `http://${wire.outside}:${ports['socks']}`,
    NO_PROXY: 'elsewhere.test,.sotto.test',
  })
  await confine(relay['port'])
  await agent.says(/"event":"(up|down)"/)
  assert.not.match(agent.stdout, /proxy/)
  await agent.stop()
})

test('a private endpoint is reached through one proxy from each side', async () => {
  await confine(ports['squid']!)
  const env = { HTTPS_PROXY: `http://${LOGIN}@${wire.outside}:${ports['squid']}` }
  const ca = ['--ca', world.path('ca.crt')]
  const serving = within(['tcp', String(upstreamPort), '--json', '--name', 'db', ...ca], env)
  await serving.event('up')
  const local = await freePort()
  const dialling = within(['connect', 'db', '--listen', String(local), '--json', ...ca], env)
  await dialling.event('listening')
  const got = await sh(
    `${
      wire.within.join(' ')
    } curl -sS --noproxy '*' --max-time 20 http://127.0.0.1:${local}/ | sha256sum`,
  )
  assert.is(got.split(' ')[0], sha)
  assert.is((await counted('direct')).packets, 0)
  await serving.stop()
  await dialling.stop()
})

test('a proxy that cuts what is no TLS takes bulk links away, and nothing else', async () => {
  // As those do that look into TLS: the ticket of a bulk link is none.
  const port = await freePort()
  let cut = 0
  let passed = 0
  const server = createServer((near) => {
    let far: Socket | undefined
    let asked = ''
    near.on('error', () => far?.destroy()).on('close', () => far?.destroy())
    near.on('data', (bytes) => {
      if (far) return void far.write(bytes)
      if (asked === '') {
        asked = bytes.toString('latin1')
        return void near.write('HTTP/1.1 200 go on\r\n\r\n')
      }
      if (bytes[0] !== 22) {
        cut++
        return void near.destroy()
      }
      passed++
      far = connect({ host: wire.outside, port: relay['port'] })
      far.on('error', () => near.destroy()).on('close', () => near.destroy())
      far.on('data', (back) => void near.write(back))
      far.write(bytes)
    })
  })
  await new Promise<void>((resolve) => server.listen(port, wire.outside, resolve))
  try {
    await confine(port)
    const agent = within([
      ...['http', String(upstreamPort), '--json', '--name', 'cut', '--ca', world.path('ca.crt')],
    ], { HTTPS_PROXY: `http://${wire.outside}:${port}` })
    const host = new URL((await agent.event('up'))['url']).hostname
    assert.is((await visitor(host, '/')).split(' ')[0], sha)
    assert.ok(cut > 0, 'bulk links were tried')
    assert.is(passed, 1, 'one link carried it all')
    await agent.stop()
  } finally {
    server.close()
  }
})

test.run()
