// Our device and stack against wireguard-go with a real TUN, over real UDP between namespaces: Debian's here, the newest
// by wireguard_newest.test.ts.
// needs: root ip wireguard-go wg iperf3 ping
// seconds: 240
// alone
import { createHash } from 'node:crypto'
import { connect, createServer } from 'node:net'
import type { Socket } from 'node:net'
import { spawn } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { UdpPath } from '../../agent/host/udp_path.ts'
import { Batch, Tunnel } from '../../agent/wireguard-wasm/index.ts'
import type {
  Flow,
  Incoming,
  Message,
  Notice,
  Path,
  Peer,
} from '../../agent/wireguard-wasm/index.ts'
import { RUN_WORDS } from '../../agent/wireguard-wasm/index.ts'
import { freePort } from '../support/port.ts'
import { module } from '../support/wireguard.ts'
import { WireGuardGo } from '../support/wireguard_go.ts'

const test = suite('e2e/wireguard')
/** What a test opened, closed after it however it went. */
const opened: { close(): void }[] = []
test.after.each(() => {
  for (const one of opened.splice(0).reverse()) one.close()
})

const THEIRS = ['10.9.0.2', 'fd09::2'] as const
const OURS = { '10.9.0.2': '10.9.0.1', 'fd09::2': 'fd09::1' } as const

/** Our end: a tunnel over UDP whose clock can be put forward. */
class Ours {
  tunnel!: Tunnel
  path!: UdpPath
  peer!: Peer
  aheadMs = 0
  readonly notices: Notice[] = []
  /** Types of the messages that came, by number. */
  readonly types = new Map<number, number>()
  readonly go: WireGuardGo
  #echoes = new Map<number, (payload: Uint8Array) => void>()
  #sequence = 0

  constructor(go: WireGuardGo) {
    this.go = go
  }

  static async start(
    go: WireGuardGo,
    { mtu = 1420, endpoint = true, presharedKey, weather, onIncoming }: {
      mtu?: number
      endpoint?: boolean
      presharedKey?: Uint8Array
      weather?: (path: Path) => Path
      onIncoming?: (incoming: Incoming) => void
    } = {},
  ): Promise<Ours> {
    const ours = new Ours(go)
    opened.push(go, ours)
    ours.tunnel = new Tunnel({
      module,
      privateKey: crypto.getRandomValues(new Uint8Array(32)),
      addresses: ['10.9.0.1', 'fd09::1'],
      mtu,
      now: () => performance.now() + ours.aheadMs,
      wallClock: () => Date.now() + ours.aheadMs,
      onNotice: (notice) => ours.notices.push(notice),
      onMessage: (message) => ours.#message(message),
      ...(onIncoming ? { onIncoming } : {}),
    })
    ours.path = await UdpPath.open({ host: '0.0.0.0' })
    ours.tunnel.addPath(0, ours.#watched(weather ? weather(ours.path) : ours.path))
    ours.peer = ours.tunnel.device.addPeer({
      publicKey: go.publicKey,
      allowedIps: ['10.9.0.2/32', 'fd09::2/128'],
      presharedKey,
      ...(endpoint ? { endpoint: `${go.space.inside}:${go.port}` } : {}),
    })
    go.setPeer({
      publicKey: ours.tunnel.device.publicKey,
      ...(presharedKey ? { presharedKey } : {}),
      ...(endpoint ? {} : { endpoint: ours.at }),
    })
    return ours
  }

  get at(): string {
    return `${this.go.space.outside}:${this.path.port}`
  }

  get handshakes(): number {
    return this.notices.filter((notice) => notice === 'connected').length
  }

  /** Sends an echo; false when no answer came in time. */
  async ping(to: string, bytes = 56, ms = 8000): Promise<boolean> {
    const sequence = ++this.#sequence
    const payload = crypto.getRandomValues(new Uint8Array(bytes))
    const answered = new Promise<Uint8Array>((resolve) => this.#echoes.set(sequence, resolve))
    const source = OURS[to as keyof typeof OURS]
    const ends = { source, destination: to, sourcePort: 7, destinationPort: sequence }
    assert.ok(this.tunnel.send({ kind: 'echo-request', ...ends, payload }))
    const late = Promise.withResolvers<undefined>()
    const timer = setTimeout(() => late.resolve(undefined), ms)
    const back = await Promise.race([answered, late.promise])
    clearTimeout(timer)
    this.#echoes.delete(sequence)
    return back !== undefined && Buffer.from(back).equals(payload)
  }

  close(): void {
    this.tunnel?.close()
    this.path?.close()
  }

  /** Counts what comes. */
  #watched(path: Path): Path {
    const { types } = this
    return {
      mtu: path.mtu,
      send: (batch, from, to) => path.send(batch, from, to),
      get onReceive() {
        return path.onReceive
      },
      set onReceive(take: Path['onReceive']) {
        path.onReceive = take && ((batch) => {
          batch.each((datagram) => types.set(datagram[0]!, (types.get(datagram[0]!) ?? 0) + 1))
          take(batch)
        })
      },
      get inbox() {
        return path.inbox
      },
      set inbox(lend: Path['inbox']) {
        path.inbox = lend
      },
    }
  }

  #message(message: Message): void {
    const { kind, source, destination, destinationPort, payload } = message
    if (kind === 'echo-reply') this.#echoes.get(destinationPort)?.(payload)
    if (kind !== 'echo-request') return
    this.tunnel.send({ ...message, kind: 'echo-reply', source: destination, destination: source })
  }
}

function theyPing(go: WireGuardGo, to: string, ...flags: string[]) {
  return go.spawn(['ping', '-c', '2', '-i', '0.2', '-W', '6', ...flags, to]).done
}

for (const first of ['we', 'they'] as const) {
  test(`${first} initiate; echoes pass both ways over IPv4 and IPv6`, async () => {
    const go = await WireGuardGo.start()
    const ours = await Ours.start(go, { endpoint: first === 'we' })
    const we = async (): Promise<void> => {
      for (const to of THEIRS) assert.ok(await ours.ping(to), `we to ${to}`)
    }
    const they = async (): Promise<void> => {
      for (const to of Object.values(OURS)) {
        const { status, text } = await theyPing(go, to)
        assert.is(status, 0, text)
      }
    }
    for (const each of first === 'we' ? [we, they] : [they, we]) await each()
    assert.is(ours.handshakes, 1)
    assert.is(ours.types.get(first === 'we' ? 2 : 1), 1)
    assert.ok(go.show().handshake > 0)
    assert.is(ours.tunnel.device.stats().drops.malformed, 0)
  })
}

test('they initiate with a pre-shared key; with another, or none, nothing passes', async () => {
  const go = await WireGuardGo.start()
  const presharedKey = crypto.getRandomValues(new Uint8Array(32))
  const ours = await Ours.start(go, { endpoint: false, presharedKey })
  assert.is((await theyPing(go, '10.9.0.1')).status, 0)
  const { publicKey } = ours.tunnel.device
  for (const other of [crypto.getRandomValues(new Uint8Array(32)), new Uint8Array(32)]) {
    go.forget(publicKey)
    go.setPeer({ publicKey, presharedKey: other, endpoint: ours.at })
    await new Promise((resolve) => setTimeout(resolve, 30))
    const { status } = await theyPing(go, '10.9.0.1', '-c', '1', '-W', '2')
    assert.is.not(status, 0, 'the keys differ')
  }
  go.forget(publicKey)
  go.setPeer({ publicKey, presharedKey, endpoint: ours.at })
  await new Promise((resolve) => setTimeout(resolve, 30))
  assert.is((await theyPing(go, 'fd09::1')).status, 0)
})

test('a pre-shared key is needed where there is one, and may change', async () => {
  const go = await WireGuardGo.start()
  const presharedKey = crypto.getRandomValues(new Uint8Array(32))
  const ours = await Ours.start(go, { presharedKey })
  assert.ok(await ours.ping('10.9.0.2'))
  const other = crypto.getRandomValues(new Uint8Array(32))
  ours.peer.update({ presharedKey: other })
  ours.aheadMs += 200_000
  assert.not.ok(await ours.ping('10.9.0.2', 56, 1500), 'the keys differ')
  go.setPeer({ publicKey: ours.tunnel.device.publicKey, presharedKey: other })
  ours.aheadMs += 6_000
  assert.ok(await ours.ping('10.9.0.2'))
})

test('keepalives of each side are taken by the other', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go)
  assert.ok(await ours.ping('10.9.0.2'))
  const before = ours.types.get(4)!
  go.setPeer({ publicKey: ours.tunnel.device.publicKey, keepaliveSeconds: 1 })
  for (let tries = 0; (ours.types.get(4) ?? 0) < before + 3 && tries < 80; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  assert.ok(ours.types.get(4)! >= before + 3)
  go.setPeer({ publicKey: ours.tunnel.device.publicKey, keepaliveSeconds: 0 })
  const { received } = go.show()
  ours.peer.update({ keepaliveSeconds: 25 })
  ours.tunnel.wake()
  for (let turns = 0; turns < 3; turns++) {
    ours.aheadMs += 25_000
    ours.tunnel.wake()
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  assert.ok(go.show().received >= received + 3 * 32, `${go.show().received - received} bytes`)
})

test('either side may move to another port', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go)
  assert.ok(await ours.ping('10.9.0.2'))
  const moved = await UdpPath.open({ host: '0.0.0.0' })
  opened.push(moved)
  ours.tunnel.removePath(0)
  ours.tunnel.addPath(0, moved)
  assert.ok(await ours.ping('10.9.0.2'))
  assert.is(go.show().endpoint, `${go.space.outside}:${moved.port}`)
  const { status } = await theyPing(go, '10.9.0.1')
  assert.is(status, 0)
  go.run(['wg', 'set', go.name, 'listen-port', '51999'])
  assert.is((await theyPing(go, '10.9.0.1')).status, 0)
  assert.ok(ours.notices.includes('roamed'))
  assert.is(ours.peer.stats().endpoint?.port, 51999)
  assert.ok(await ours.ping('fd09::2'))
})

test('half an hour of our clock: a new session every two minutes, and no packet is lost', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go)
  for (let minutes = 0; minutes <= 30; minutes += 2) {
    for (const to of THEIRS) assert.ok(await ours.ping(to), `after ${minutes} minutes`)
    // They take no two initiations within 20 ms.
    await new Promise((resolve) => setTimeout(resolve, 30))
    ours.aheadMs += 120_500
  }
  assert.ok(ours.handshakes >= 15, `${ours.handshakes} handshakes`)
  assert.is(ours.tunnel.device.stats().drops.replayed, 0)
})

test('half an hour of our clock in which they initiate each session: no packet is lost', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go, { endpoint: false })
  const { publicKey } = ours.tunnel.device
  for (let minutes = 0; minutes <= 30; minutes += 2) {
    // Their clock stands: whoever is new to them gets a handshake.
    go.forget(publicKey)
    go.setPeer({ publicKey, endpoint: ours.at })
    for (const to of Object.values(OURS)) {
      const { status, text } = await theyPing(go, to)
      assert.is(status, 0, `after ${minutes} minutes: ${text}`)
    }
    for (const to of THEIRS) assert.ok(await ours.ping(to), `after ${minutes} minutes`)
    ours.aheadMs += 120_500
  }
  assert.is(ours.handshakes, 16)
  assert.is(ours.types.get(1), 16, 'initiations that came')
  assert.is(ours.tunnel.device.stats().drops.replayed, 0)
})

test('under load we ask for a cookie, and take the handshake that brings it', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go, { endpoint: false })
  ours.tunnel.device.setLoadLimit(0)
  const { done } = go.spawn(['ping', '-c', '1', '-W', '15', '10.9.0.1'])
  const { status, text } = await done
  assert.is(status, 0, text)
  assert.ok(ours.types.get(1)! >= 2, 'a second initiation, with the cookie')
  assert.ok(ours.tunnel.device.stats().drops.underLoad >= 1)
})

test('under load they ask for a cookie, and take the handshake that brings it', async () => {
  const go = await WireGuardGo.start()
  let isFlooding = true
  // The first initiation is sent thousands of times over.
  const ours = await Ours.start(go, {
    weather: (path) => ({
      mtu: path.mtu,
      send(batch, from = 0, to = batch.count) {
        const at = batch.words[from * RUN_WORDS]!
        if (isFlooding && batch.bytes[at] === 1) {
          isFlooding = false
          const flood = Batch.make(148 * 440, 1)
          const one = batch.bytes.slice(at, at + 148)
          const many = new Uint8Array(148 * 440)
          for (let i = 0; i < 440; i++) many.set(one, i * 148)
          flood.push(many, batch.endpoints.slice(0, 32), 148)
          for (let i = 0; i < 20; i++) path.send(flood)
          return true
        }
        return path.send(batch, from, to)
      },
      get onReceive() {
        return path.onReceive
      },
      set onReceive(take: Path['onReceive']) {
        path.onReceive = take
      },
    }),
  })
  assert.ok(await ours.ping('10.9.0.2', 56, 12_000) || await ours.ping('10.9.0.2', 56, 12_000))
  assert.ok((ours.types.get(3) ?? 0) > 0, 'cookies came')
})

for (const mtu of [1280, 1379, 1420]) {
  test(`MTU ${mtu}: the largest packets pass both ways, with and without padding`, async () => {
    const go = await WireGuardGo.start(mtu)
    const ours = await Ours.start(go, { mtu })
    for (const spare of [0, 1, 15, 16, 17]) {
      assert.ok(await ours.ping('10.9.0.2', mtu - 28 - spare), `${mtu - spare} bytes`)
      assert.ok(await ours.ping('fd09::2', mtu - 48 - spare), `${mtu - spare} bytes`)
    }
    const { status, text } = await theyPing(go, '10.9.0.1', '-M', 'do', '-s', `${mtu - 28}`)
    assert.is(status, 0, text)
  })
}

function join(flow: Flow, socket: Socket): void {
  flow.handle({
    data: (bytes) => {
      if (!socket.write(bytes)) flow.pause()
    },
    drain: () => socket.resume(),
    end: () => socket.end(),
    closed: () => socket.destroySoon(),
  })
  socket.on('drain', () => flow.resume())
  socket.on('data', (bytes) => {
    if (flow.write(Uint8Array.from(bytes)) === 'queued') socket.pause()
  })
  socket.on('end', () => flow.end())
  socket.on('error', () => flow.abort())
  socket.resume()
}

/** Connections to this port of our machine go through the tunnel. */
function forward(ours: Ours, port: number): Promise<{ port: number; close(): void }> {
  const server = createServer((socket) => {
    socket.pause()
    ours.tunnel.connect({ address: '10.9.0.2', port }).then((flow) => join(flow, socket), () => {
      socket.destroy()
    })
  })
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      const port = typeof address === 'object' && address ? address.port : 0
      resolve({ port, close: () => void server.close() })
    })
  })
}

test('iperf3 both ways through the stack', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go)
  go.spawn(['iperf3', '-s', '-p', '5201'])
  assert.ok(await ours.ping('10.9.0.2'))
  const local = await forward(ours, 5201)
  opened.push(local)
  for (const way of [[], ['-R']]) {
    const args = ['-c', '127.0.0.1', '-p', `${local.port}`, '-n', '40M', '-J', ...way]
    const client = spawn('iperf3', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let text = ''
    client.stdout.on('data', (bytes) => text += bytes)
    const status = await new Promise<number | null>((resolve) => client.on('close', resolve))
    tell(`we connect ${way[0] ?? ''}`, { status, text })
  }
})

test('iperf3 both ways to a server behind our stack', async () => {
  const go = await WireGuardGo.start()
  const port = await freePort()
  await Ours.start(go, {
    endpoint: false,
    onIncoming: (incoming) => {
      const socket = connect(incoming.localPort, '127.0.0.1')
      socket.pause()
      socket.on('connect', () => {
        const flow = incoming.accept()
        if (flow) join(flow, socket)
        else socket.destroy()
      }).on('error', () => incoming.reject('reset'))
    },
  })
  const server = spawn('iperf3', ['-s', '-p', `${port}`, '--forceflush'])
  opened.push({ close: () => void server.kill('SIGKILL') })
  await new Promise((resolve) => server.stdout.once('data', resolve))
  for (const way of [[], ['-R']]) {
    const args = ['-c', '10.9.0.1', '-p', `${port}`, '-n', '40M', '-J', ...way]
    tell(`they connect ${way[0] ?? ''}`, await go.spawn(['iperf3', ...args]).done)
  }
})

function tell(what: string, { status, text }: { status: number | null; text: string }): void {
  assert.is(status, 0, text.slice(-2000))
  const { bits_per_second: rate, bytes } = JSON.parse(text).end.sum_received
  // What the buffers still hold when the sender is done, iperf3 does not wait for.
  assert.ok(bytes >= 30 * 2 ** 20, `${bytes} bytes`)
  console.log(`iperf3 ${what} ${(rate / 1e9).toFixed(2)} Gbit/s`)
}

/** Datagram by datagram: one of a hundred is lost, one comes after the next. */
function badWeather(path: Path): Path {
  let dice = 12345
  const roll = (): number => (dice = (dice * 1_103_515_245 + 12_345) % 2 ** 31) / 2 ** 31
  const shake = (batch: Batch, from: number, to: number): Batch => {
    const out = Batch.make(batch.bytes.length + 70_000, 4096)
    let held: [Uint8Array, Uint8Array] | undefined
    for (let i = from; i < to; i++) {
      const [at = 0, length = 0, , size = 0] = batch.words.subarray(i * 4, i * 4 + 4)
      const record = batch.endpoints.subarray(i * 32, i * 32 + 32)
      for (let start = at; start < at + length; start += size) {
        const one = batch.bytes.slice(start, Math.min(start + size, at + length))
        if (roll() < 0.01) continue
        if (!held && roll() < 0.01) {
          held = [one, record.slice()]
          continue
        }
        out.push(one, record)
        if (held) out.push(...held)
        held = undefined
      }
    }
    if (held) out.push(...held)
    return out
  }
  return {
    mtu: path.mtu,
    send: (batch, from = 0, to = batch.count) => path.send(shake(batch, from, to)),
    get onReceive() {
      return path.onReceive
    },
    set onReceive(take: Path['onReceive']) {
      path.onReceive = take && ((batch) => take(shake(batch, 0, batch.count)))
    },
  }
}

test('they connect: 20 MB each way with 1 % loss and reordering come byte for byte', async () => {
  const go = await WireGuardGo.start()
  await Ours.start(go, {
    endpoint: false,
    weather: badWeather,
    onIncoming: (incoming) => {
      const flow = incoming.accept()!
      flow.handle({
        data: (bytes) => {
          if (flow.write(Uint8Array.from(bytes)) === 'queued') flow.pause()
        },
        drain: () => flow.resume(),
        end: () => flow.end(),
        closed: () => {},
      })
    },
  })
  const script = `const { createHash, randomBytes } = require('crypto')
    const bytes = randomBytes(65_536), sent = createHash('sha256'), got = createHash('sha256')
    let left = 320
    const socket = require('net').connect({ port: 99, host: '10.9.0.1', allowHalfOpen: true })
    const more = () => {
      while (left > 0) {
        left--
        sent.update(bytes)
        if (!socket.write(bytes)) return
      }
      socket.end()
    }
    socket.on('connect', more).on('drain', more).on('data', (part) => got.update(part))
    socket.on('end', () => console.log(sent.digest('hex') === got.digest('hex') ? 'same' : 'others'))`
  const { text } = await go.spawn([process.execPath, '-e', script]).done
  assert.is(text, 'same\n')
})

test('we connect: 20 MB each way with 1 % loss and reordering come byte for byte', async () => {
  const go = await WireGuardGo.start()
  const ours = await Ours.start(go, { weather: badWeather })
  const bytes = crypto.getRandomValues(new Uint8Array(65_536))
  const count = 320
  const whole = createHash('sha256')
  for (let i = 0; i < count; i++) whole.update(bytes)
  const sum = whole.digest('hex')
  // Echoes what comes.
  const server = go.spawn([
    process.execPath,
    '-e',
    `require('net').createServer({ allowHalfOpen: true }, (s) => s.pipe(s)).listen(99, '10.9.0.2', () => console.log('up'))`,
  ])
  await new Promise((resolve) => server.child.stdout!.once('data', resolve))
  const flow = await ours.tunnel.connect({ address: '10.9.0.2', port: 99 })
  const hash = createHash('sha256')
  let drain = (): void => {}
  const ended = new Promise<Error | undefined>((resolve) => {
    flow.handle({
      data: (part) => void hash.update(part),
      drain: () => drain(),
      end: () => {},
      closed: resolve,
    })
  })
  for (let i = 0; i < count; i++) {
    if (flow.write(bytes) === 'ok') continue
    await new Promise<void>((resolve) => drain = resolve)
  }
  flow.end()
  assert.is(await ended, undefined)
  assert.is(hash.digest('hex'), sum)
})

test.run()
