// The door into a network, with the clients that people have: curl as SOCKS5 and HTTP proxy client, nc, ncat,
// proxychains4, SOCKS UDP of our own; and with clients that mean harm.
// needs: curl nc.openbsd ncat proxychains4
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import { connect as dial } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as packet from 'dns-packet'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { checkListen, parseListen, ProxyServer } from '../../../agent/wireguard/proxy_server.ts'
import type { ProxyOptions } from '../../../agent/wireguard/proxy_server.ts'
import { decodeSocksDatagram, encodeSocksDatagram } from '../../../agent/wireguard/socks.ts'
import { concat, hex, text, utf8 } from '../../../core/bytes.ts'
import { isTunnelError } from '../../../core/errors.ts'
import { DnsServer } from '../../support/dns.ts'
import { bench, until } from '../../support/exit_bench.ts'
import type { Bench } from '../../support/exit_bench.ts'

const LOGIN = { user: 'ann', password: 'open sesame' }
const folder = mkdtempSync(join(tmpdir(), 'sotto-socks-'))
const test = suite('agent/wireguard/proxy_server')
let web: Server
let web6: Server
let port: number
const heads: string[] = []

const open = async (made: Bench, options: Partial<ProxyOptions> = {}): Promise<ProxyServer> =>
  await ProxyServer.open(made.ports, { host: '127.0.0.1', port: 0, http: true, ...options })

function serve(host: string, at: number): Promise<Server> {
  const server = createServer((request, response) => {
    heads.push(`${request.method} ${request.url} ${JSON.stringify(request.headers)}`)
    let came = 0
    request.on('data', (bytes) => came += bytes.length)
    request.on('end', () => response.end(`hello ${host} ${came}\n`))
  })
  return new Promise((resolve) => server.listen(at, host, () => resolve(server)))
}

interface Ran {
  code: number
  out: string
  err: string
}

function run(command: string[], input = ''): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(command[0]!, command.slice(1), { env: { PATH: process.env['PATH'] } })
    const late = setTimeout(() => child.kill('SIGKILL'), 20_000)
    let [out, err] = ['', '']
    child.stdout.on('data', (bytes) => out += bytes)
    child.stderr.on('data', (bytes) => err += bytes)
    child.on('error', reject)
    child.on('close', (code) => {
      clearTimeout(late)
      resolve({ code: code ?? -1, out, err })
    })
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
}

const curl = (...args: string[]): Promise<Ran> => run(['curl', '-sS', '-m', '15', ...args])

/** Everything that a connection answers to `pieces`, until it is closed. */
function talk(at: number, pieces: Uint8Array[], { ends = false } = {}): Promise<Uint8Array> {
  return new Promise((resolve) => {
    const socket = dial({ port: at, host: '127.0.0.1', allowHalfOpen: true })
    const came: Uint8Array[] = []
    socket.setNoDelay(true)
    for (const piece of pieces) socket.write(piece)
    if (ends) socket.end()
    socket.on('data', (bytes) => came.push(new Uint8Array(bytes)))
    socket.on('end', () => socket.destroy())
    socket.on('error', () => {})
    socket.on('close', () => resolve(concat(...came)))
  })
}

test.before(async () => {
  web = await serve('127.0.0.1', 0)
  port = (web.address() as AddressInfo).port
  web6 = await serve('::1', port)
})

test.after(() => {
  web.close()
  web6.close()
  rmSync(folder, { recursive: true, force: true })
})

test('curl reaches IPv4, IPv6 and names, which are resolved at the far side', async () => {
  const made = bench()
  const server = await open(made)
  made.names.set('printer.test', ['127.0.0.1'])
  made.names.set('six.test', ['::1'])
  const socks = ['--proxy', `socks5h://127.0.0.1:${server.port}`]
  assert.is((await curl(...socks, `http://printer.test:${port}/`)).out, 'hello 127.0.0.1 0\n')
  assert.is((await curl(...socks, `http://six.test:${port}/`)).out, 'hello ::1 0\n')
  assert.is((await curl(...socks, `http://[::1]:${port}/`)).out, 'hello ::1 0\n')
  assert.equal(made.asked, ['printer.test', 'six.test'])
  const local = await curl('--socks5', `127.0.0.1:${server.port}`, `http://localhost:${port}/`)
  assert.match(local.out, /^hello/)
  assert.equal(made.asked.length, 2, 'curl --socks5 resolves by itself')
  await server.close()
})

test('curl is told by the right reply what went wrong', async () => {
  const made = bench()
  const server = await open(made)
  const free = await serve('127.0.0.1', 0)
  const closed = (free.address() as AddressInfo).port
  await new Promise((resolve) => free.close(resolve))
  const socks = ['--proxy', `socks5h://127.0.0.1:${server.port}`]
  for (
    const [url, reply] of [
      [`http://127.0.0.1:${closed}/`, 5],
      ['http://nowhere.test/', 4],
      ['http://192.0.2.1/', 2],
    ] as const
  ) {
    const { code, err } = await curl(...socks, url)
    assert.is(code, 97, err)
    assert.match(err, new RegExp(`\\(${reply}\\)`), url)
  }
  const http = ['-o', '/dev/null', '-w', '%{http_connect} %{http_code}', '-p', '-x']
  const by = `http://127.0.0.1:${server.port}`
  assert.match((await curl(...http, by, 'http://192.0.2.1/')).out, /^403/)
  assert.match((await curl(...http, by, 'http://nowhere.test/')).out, /^502/)
  await server.close()
})

test('curl is let in with user and password, and not without', async () => {
  const made = bench()
  const server = await open(made, { login: LOGIN })
  made.names.set('printer.test', ['127.0.0.1'])
  const url = `http://printer.test:${port}/`
  const user = ['--proxy-user', `${LOGIN.user}:${LOGIN.password}`]
  for (const kind of ['socks5h', 'http']) {
    const by = ['--proxy', `${kind}://127.0.0.1:${server.port}`, '-p']
    assert.match((await curl(...by, ...user, url)).out, /^hello/, kind)
    assert.not.match((await curl(...by, '--proxy-user', 'ann:other', url)).out, /hello/, kind)
    assert.not.match((await curl(...by, url)).out, /hello/, kind)
  }
  assert.is(server.counts.served, 2)
  await server.close()
})

test('curl as an HTTP proxy client: tunnel, plain request, upload; nothing meant for us goes on', async () => {
  const made = bench()
  const server = await open(made, { login: LOGIN })
  made.names.set('printer.test', ['127.0.0.1'])
  const by = [
    '-x',
    `http://127.0.0.1:${server.port}`,
    '--proxy-user',
    `${LOGIN.user}:${LOGIN.password}`,
  ]
  const url = `http://printer.test:${port}/a?b=c`
  assert.match((await curl(...by, '-p', url)).out, /^hello/)
  heads.length = 0
  assert.match((await curl(...by, url)).out, /^hello/)
  const big = join(folder, 'big')
  writeFileSync(big, new Uint8Array(3_000_000))
  assert.match((await curl(...by, '-T', big, url)).out, /hello 127.0.0.1 3000000/)
  assert.match(heads[0]!, /^GET \/a\?b=c /)
  assert.match(heads[0]!, new RegExp(`"host":"printer.test:${port}"`))
  assert.not.match(heads.join(), /proxy-/i)
  await server.close()
})

test('nc, ncat and proxychains4 reach a name', async () => {
  const made = bench()
  const server = await open(made)
  made.names.set('printer.test', ['127.0.0.1'])
  const ask = 'GET / HTTP/1.0\r\n\r\n'
  const by = `127.0.0.1:${server.port}`
  const nc = await run(['nc.openbsd', '-X', '5', '-x', by, 'printer.test', String(port)], ask)
  assert.match(nc.out, /hello/, nc.err)
  const connect = await run(
    ['nc.openbsd', '-X', 'connect', '-x', by, 'printer.test', String(port)],
    ask,
  )
  assert.match(connect.out, /hello/, connect.err)
  // Older ones know no name at the far side.
  const far = (await run(['ncat', '--help'])).out.includes('--proxy-dns')
  const ncat = await run([
    'ncat',
    '--proxy',
    by,
    '--proxy-type',
    'socks5',
    ...(far ? ['--proxy-dns', 'remote', 'printer.test'] : ['127.0.0.1']),
    String(port),
  ], ask)
  assert.match(ncat.out, /hello/, ncat.err)
  const config = join(folder, 'proxychains.conf')
  writeFileSync(config, `strict_chain\nproxy_dns\n[ProxyList]\nsocks5 127.0.0.1 ${server.port}\n`)
  const chained = await run([
    'proxychains4',
    '-q',
    '-f',
    config,
    'curl',
    '-sS',
    `http://printer.test:${port}/`,
  ])
  assert.match(chained.out, /hello/, chained.err)
  assert.equal(made.asked, Array(far ? 4 : 3).fill('printer.test'))
  await server.close()
})

/** A SOCKS client's UDP: the TCP connection that it lives with, and where to send. */
async function associate(at: number, from = '0.0.0.0') {
  const control = dial({ port: at, host: '127.0.0.1' })
  control.on('error', () => {})
  const request = concat(
    Uint8Array.of(5, 1, 0, 5, 3, 0, 1),
    Uint8Array.from(from.split('.').map(Number)),
    Uint8Array.of(0, 0),
  )
  control.write(request)
  const came: Uint8Array[] = []
  while (concat(...came).length < 12) {
    came.push(await new Promise((resolve) => control.once('data', resolve)))
  }
  const reply = concat(...came).subarray(2)
  assert.is(hex(reply.subarray(0, 8)), '050000017f000001')
  return { control, port: reply[8]! * 256 + reply[9]! }
}

const udp = (host = '127.0.0.1'): Promise<UdpSocket> =>
  new Promise((resolve) => {
    const socket = createSocket('udp4')
    socket.bind(0, host, () => resolve(socket))
  })

const next = (socket: UdpSocket): Promise<Uint8Array> =>
  new Promise((resolve) => socket.once('message', (bytes) => resolve(new Uint8Array(bytes))))

test('a DNS question passes a UDP association, to an address and to a name', async () => {
  const made = bench()
  const server = await open(made)
  const dns = await DnsServer.start()
  dns.set('db.internal', { type: 'A', data: '10.9.8.7' })
  made.names.set('ns.test', ['127.0.0.1'])
  const { control, port: at } = await associate(server.port)
  const socket = await udp()
  const query = packet.encode({
    type: 'query',
    id: 7,
    questions: [{ type: 'A', name: 'db.internal' }],
  })
  const named = concat(
    Uint8Array.of(0, 0, 0, 3, 7),
    utf8('ns.test'),
    Uint8Array.of(dns.port >> 8, dns.port & 255),
    query,
  )
  for (
    const sent of [encodeSocksDatagram({ address: '127.0.0.1', port: dns.port }, query), named]
  ) {
    const coming = next(socket)
    socket.send(sent, at, '127.0.0.1')
    const answer = decodeSocksDatagram(await coming)!
    assert.equal(answer.to, { host: '127.0.0.1', port: dns.port })
    const [record] = packet.decode(Buffer.from(answer.bytes)).answers! as { data: string }[]
    assert.is(record!.data, '10.9.8.7')
  }
  assert.equal(made.asked, ['ns.test'])
  assert.is(server.counts.associations, 1)
  // It lives with its TCP connection.
  control.destroy()
  await until(() => server.counts.associations === 0 && made.exit.client('one').counts.flows === 0)
  socket.close()
  await dns.close()
  await server.close()
})

test('an association takes no part of a datagram, no other sender, and answers the client alone', async () => {
  const made = bench()
  const server = await open(made)
  const echo = await udp()
  const seen: string[] = []
  echo.on('message', (bytes, from) => {
    seen.push(String(bytes))
    echo.send(bytes, from.port, from.address)
  })
  const { control, port: at } = await associate(server.port)
  const [mine, other, elsewhere] = [await udp(), await udp(), await udp('127.0.0.2')]
  let strays = 0
  for (const socket of [other, elsewhere]) socket.on('message', () => strays++)
  const to = { address: '127.0.0.1', port: echo.address().port }
  const say = (words: string): Uint8Array => encodeSocksDatagram(to, utf8(words))
  elsewhere.send(say('from another address'), at, '127.0.0.1')
  const part = say('a part')
  part[2] = 1
  mine.send(part, at, '127.0.0.1')
  for (let cut = 0; cut < 10; cut++) mine.send(say('x').subarray(0, cut), at, '127.0.0.1')
  const coming = next(mine)
  mine.send(say('first'), at, '127.0.0.1')
  assert.is(text(decodeSocksDatagram(await coming)!.bytes), 'first')
  other.send(say('from another port'), at, '127.0.0.1')
  const again = next(mine)
  mine.send(say('second'), at, '127.0.0.1')
  assert.is(text(decodeSocksDatagram(await again)!.bytes), 'second')
  // Somebody the client never sent to cannot reach it through the exit's port: see exit.test.ts.
  assert.equal(seen, ['first', 'second'])
  assert.is(strays, 0)
  control.destroy()
  for (const socket of [echo, mine, other, elsewhere]) socket.close()
  await server.close()
})

test('1,000 names in one association keep a bounded number, and an association beyond the bound is refused', async () => {
  const made = bench({}, { limits: { flows: 1, lookups: 8 } })
  const server = await open(made)
  const { control, port: at } = await associate(server.port)
  const socket = await udp()
  for (let i = 0; i < 1_000; i++) {
    const name = utf8(`n${i}.test`)
    socket.send(
      concat(Uint8Array.of(0, 0, 0, 3, name.length), name, Uint8Array.of(0, 9, 1)),
      at,
      '127.0.0.1',
    )
  }
  const second = await talk(server.port, [
    Uint8Array.of(5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0),
  ])
  assert.is(hex(second.subarray(2, 4)), '0501')
  control.destroy()
  socket.close()
  await server.close()
})

test('names that nobody answers: an association asks for a few at a time, however many it is sent', async () => {
  const made = bench()
  let [asking, most] = [0, 0]
  let came = 0
  const { network, bindUdp } = made.ports
  const ports = {
    ...made.ports,
    network: {
      localAddresses: [],
      connect: (to: Parameters<typeof network.connect>[0]) => network.connect(to),
      bindDatagrams: () => network.bindDatagrams(),
      ping: (address: string) => network.ping(address),
      resolve: () => {
        most = Math.max(most, ++asking)
        return new Promise<string[]>(() => {})
      },
    },
    bindUdp: async (at: Parameters<typeof bindUdp>[0]) => {
      const flow = await bindUdp(at)
      return {
        ...flow,
        handle: (handler: Parameters<typeof flow.handle>[0]) =>
          flow.handle({
            ...handler,
            message: (from, bytes) => {
              came++
              handler.message(from, bytes)
            },
          }),
      }
    },
  }
  const server = await ProxyServer.open(ports, { host: '127.0.0.1', port: 0 })
  const { control, port: at } = await associate(server.port)
  const socket = await udp()
  for (let i = 0; i < 400; i++) {
    const name = utf8(`n${i}.test`)
    const datagram = concat(Uint8Array.of(0, 0, 0, 3, name.length), name, Uint8Array.of(0, 9, 1))
    await new Promise((resolve) => socket.send(datagram, at, '127.0.0.1', resolve))
    if (i % 50 === 49) await until(() => came > i - 25)
  }
  assert.ok(most > 0 && most <= 16, `${most} names are asked for`)
  control.destroy()
  socket.close()
  await server.close()
})

const REQUEST = Uint8Array.of(5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1)

test('every truncation that ends is closed, and leaves nothing open', async () => {
  const made = bench()
  const server = await open(made)
  const whole = concat(REQUEST, Uint8Array.of(port >> 8, port & 255))
  for (let cut = 0; cut < whole.length; cut++) {
    const came = await talk(server.port, [whole.subarray(0, cut)], { ends: true })
    assert.ok(came.length <= 2, `${cut}`)
  }
  const head = utf8(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\nHost: x\r\n\r\n`)
  for (let cut = 0; cut < head.length; cut += 3) {
    assert.is(
      (await talk(server.port, [head.subarray(0, cut)], { ends: true })).length,
      0,
      `${cut}`,
    )
  }
  await until(() => server.counts.connections === 0)
  assert.is(server.counts.served, 0)
  await server.close()
})

test('a slow drip is cut at the deadline, whatever it has sent', async () => {
  const made = bench()
  const server = await open(made, { handshakeMs: 300 })
  const socket = dial({ port: server.port, host: '127.0.0.1' })
  socket.on('error', () => {})
  let at = 0
  const drip = setInterval(() => socket.write(Uint8Array.of(REQUEST[at++ % 8]!)), 50)
  await new Promise((resolve) => socket.on('close', resolve))
  clearInterval(drip)
  const silent = await talk(server.port, [])
  assert.is(silent.length, 0)
  await until(() => server.counts.connections === 0)
  assert.is(server.counts.refused, 2)
  await server.close()
})

test('a head without an end is answered 431, garbage is closed, and floods are bounded', async () => {
  const made = bench()
  const server = await open(made, { connectionsMax: 4 })
  const endless = concat(utf8('GET http://x.test/ HTTP/1.1\r\n'), new Uint8Array(100_000).fill(97))
  assert.match(text(await talk(server.port, [endless])), /^HTTP\/1.1 431 /)
  for (
    const [head, status] of [
      ['CONNECT 127.0.0.1 HTTP/1.1', 400],
      ['CONNECT 127.0.0.1:0 HTTP/1.1', 400],
      ['CONNECT 127.0.0.1:99999 HTTP/1.1', 400],
      ['CONNECT a@b:80 HTTP/1.1', 400],
      ['GET / HTTP/1.1', 421],
      ['GET https://x.test/ HTTP/1.1', 400],
      ['GET http://user@x.test/ HTTP/1.1', 400],
      ['GET http://x.test/ HTTP/1.1\r\n folded: x', 400],
      ['GET http://x.test/ HTTP/1.1\r\na: b\nEvil: c', 400],
      ['GET http://x.test/ HTTP/1.1\r\na b: c', 400],
      ['GET http://x.test/\0 HTTP/1.1', 400],
      ['hello', 400],
    ] as const
  ) {
    const answer = text(await talk(server.port, [utf8(`${head}\r\n\r\n`)]))
    assert.match(answer, new RegExp(`^HTTP/1.1 ${status} `), head)
  }
  assert.is((await talk(server.port, [Uint8Array.of(4, 1, 0, 80, 127, 0, 0, 1, 0)])).length, 0)
  const held = Array.from({ length: 4 }, () => dial({ port: server.port, host: '127.0.0.1' }))
  for (const socket of held) socket.on('error', () => {})
  await until(() => server.counts.connections === 4)
  assert.is((await talk(server.port, [REQUEST])).length, 0)
  for (const socket of held) socket.destroy()
  await until(() => server.counts.connections === 0)
  await server.close()
})

test('bytes sent with the request arrive, and 8 MB pass both ways with half-close', async () => {
  const made = bench()
  const server = await open(made)
  const size = 8_000_000
  const head = utf8(`POST / HTTP/1.0\r\nContent-Length: ${size}\r\n\r\n`)
  const request = concat(REQUEST, Uint8Array.of(port >> 8, port & 255), head)
  const answer = await talk(server.port, [request, new Uint8Array(size)], { ends: true })
  assert.match(text(answer.subarray(12)), /hello 127.0.0.1 8000000\n$/)
  await until(() => made.exit.client('one').counts.connections === 0)
  await until(() => server.counts.connections === 0)
  await server.close()
})

test('parseListen() is of this machine alone unless an address is named; checkListen() wants a password then', () => {
  assert.equal(parseListen(':1080'), { host: '127.0.0.1', port: 1080 })
  assert.equal(parseListen('1080'), { host: '127.0.0.1', port: 1080 })
  assert.equal(parseListen('[::1]:0'), { host: '::1', port: 0 })
  assert.equal(parseListen('0.0.0.0:1'), { host: '0.0.0.0', port: 1 })
  for (const bad of ['', 'x', ':70000', '1.2.3.4:', 'host:1', '::1:1:x']) {
    assert.throws(
      () => parseListen(bad),
      (error: unknown) => isTunnelError(error, 'socks/listen'),
      bad,
    )
  }
  checkListen({ host: '127.0.0.1' }, undefined)
  checkListen({ host: '0.0.0.0' }, LOGIN)
  for (const host of ['0.0.0.0', '192.168.1.5', '::']) {
    assert.throws(
      () => checkListen({ host }, undefined),
      (error: unknown) => isTunnelError(error, 'socks/open'),
    )
  }
})

test.run()
