// seconds: 180
/**
 * `sotto up` for real: fifty tunnels of one file in one process, over one link to one relay, with a
 * visitor on each whose bytes keep flowing while the file changes below them.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { mkdirSync, readdirSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { freePort } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { Line, Program, Relay } from '../support/world.ts'

const TUNNELS = 50
const EDITED = 'web7'
/** Replies on each stream after the file was read again. */
const ROUNDS_AFTER = 20
const ROUND_MS = 20

let world: E2eWorld
let relay: Relay
/** Upstreams that say who they are and then echo. */
let portA: number
let portB: number
let ups = 0
const started: Program[] = []

const test = suite('e2e/up')

test.before(async () => {
  world = new E2eWorld()
  const first = await freePort()
  const last = Math.min(first + 199, 65_535)
  relay = await world.relay(['--public-ports', `${first}-${last}`])
  portA = await echo('A')
  portB = await echo('B')
})

test.after(() => world.close())

test.after.each(async () => {
  for (const program of started.splice(0)) await program.stop()
})

async function echo(name: string): Promise<number> {
  const sockets = new Set<Socket>()
  const server = createServer({ allowHalfOpen: false }, (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket)).on('error', () => {})
    socket.write(`${name}\n`)
    socket.pipe(socket)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  world.defer(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

/** A visitor that says a number, waits until it comes back, and says the next. */
class Chatter {
  readonly name: string
  readonly greeting: Promise<string>
  rounds = 0
  error: string | undefined
  readonly #socket: Socket
  readonly #looks = new Set<() => void>()
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor(name: string, socket: Socket, opened: string) {
    this.name = name
    this.#socket = socket
    let rest = ''
    let greet!: (name: string) => void
    this.greeting = new Promise((resolve) => void (greet = resolve))
    socket.setEncoding('utf8')
    socket.on(opened, () => this.#say())
    socket.on('data', (words: string) => {
      const lines = (rest + words).split('\n')
      rest = lines.pop()!
      for (const line of lines) {
        if (/^[AB]$/.test(line)) greet(line)
        else if (line === String(this.rounds)) {
          this.rounds++
          this.#timer = setTimeout(() => this.#say(), ROUND_MS)
        } else if (!line.startsWith('PRI ') && line.trim() !== '' && line !== 'SM') {
          this.#end(`${name} heard "${line}" in round ${this.rounds}`)
        }
      }
      this.#look()
    })
    socket.on('error', (error) => this.#end(String(error)))
    socket.on('close', () => this.#end(`${name} closed`))
  }

  /** Resolves after so many more rounds. */
  async more(count: number): Promise<void> {
    const goal = this.rounds + count
    await this.until(() => this.rounds >= goal)
  }

  async until(done: () => boolean): Promise<void> {
    while (!done() && this.error === undefined) {
      await new Promise<void>((resolve) => void this.#looks.add(resolve))
    }
    assert.is(this.error, undefined)
  }

  /** When the other side ended it. */
  async ended(): Promise<string> {
    while (this.error === undefined) {
      await new Promise<void>((resolve) => void this.#looks.add(resolve))
    }
    return this.error
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#socket.destroy()
  }

  #say(): void {
    if (!this.#socket.destroyed) this.#socket.write(`${this.rounds}\n`)
  }

  #end(error: string): void {
    this.error ??= error
    clearTimeout(this.#timer)
    this.#look()
  }

  #look(): void {
    const looks = [...this.#looks]
    this.#looks.clear()
    for (const look of looks) look()
  }
}

async function chat(state: Line): Promise<Chatter> {
  const { mode, address, name } = state
  const port = Number(String(address).split(':').at(-1))
  const chatter = mode === 'raw'
    ? new Chatter(name, connect(port, '127.0.0.1'), 'connect')
    : new Chatter(
      name,
      connectTls({
        host: '127.0.0.1',
        port,
        servername: `${name}.secure.localhost`,
        rejectUnauthorized: false,
      }),
      'secureConnect',
    )
  world.defer(() => chatter.close())
  await chatter.until(() => chatter.rounds > 0)
  return chatter
}

interface Running {
  program: Program
  file: string
  save(text: string): Promise<Line>
  states(): Promise<Line[]>
}

/** `sotto up` of a file of its own, under the profile `agent`. */
async function start(text: string, args: readonly string[] = []): Promise<Running> {
  const folder = world.path(`up${++ups}`)
  mkdirSync(folder)
  const file = `${folder}/sotto.yaml`
  writeFileSync(file, text)
  const program = world.sotto(['up', ...args, '--json'], {
    cwd: folder,
    env: { TEST_KEY: relay.apiKey },
  })
  started.push(program)
  await program.event('ready')
  let seen = program.lines.length
  return {
    program,
    file,
    async save(next) {
      seen = program.lines.length
      // As most editors do: a new file takes the place of the old one.
      writeFileSync(`${file}.new`, next)
      renameSync(`${file}.new`, file)
      return await program.until(
        () => program.lines.slice(seen).find(({ event }) => /^(reloaded|kept)$/.test(event)),
        'word of the file',
      )
    },
    async states() {
      const { stdout } = await world.sottoRun(['status', '--json'], {
        env: world.joins(relay),
      })
      const lines = stdout.trim().split('\n').map((line) => JSON.parse(line) as Line)
      const from = lines.findIndex(({ event, config }) => event === 'process' && config === file)
      assert.ok(from >= 0, stdout)
      const rest = lines.slice(from + 1)
      const to = rest.findIndex(({ event }) => event !== 'tunnel')
      return rest.slice(0, to < 0 ? rest.length : to)
    },
  }
}

function head(): string {
  return `relay: ${relay.origin}\napi-key-env: TEST_KEY\ntunnels:\n`
}

/** Twenty of HTTP, twenty of TCP over TLS, ten raw ports. */
function fifty(edited: number): string {
  const lines = Array.from({ length: TUNNELS }, (_, i) => {
    const kind = i < 20 ? 'web' : i < 40 ? 'tls' : 'raw'
    const name = `${kind}${i}`
    const port = name === EDITED ? edited : portA
    const more = { web: `http: ${port}`, tls: `tcp: ${port}, public: true`, raw: '' }[kind] ||
      `tcp: ${port}, e2ee: false`
    return `  ${name}: {${more}}\n`
  })
  return head() + lines.join('')
}

test('fifty tunnels over one link: one is edited, and the streams of the others live on', async () => {
  const running = await start(fifty(portA))
  const states = await running.states()
  assert.is(states.length, TUNNELS)
  assert.ok(states.every(({ state }) => state === 'up'), JSON.stringify(states))
  const chatters = new Map<string, Chatter>()
  for (const state of states) chatters.set(state['tunnel'], await chat(state))
  for (const chatter of chatters.values()) assert.is(await chatter.greeting, 'A')

  const saved = await running.save(fifty(portB))
  assert.equal(
    { changed: saved['changed'], added: saved['added'], removed: saved['removed'] },
    { changed: [EDITED], added: [], removed: [] },
  )
  assert.is(saved['kept'], TUNNELS - 1)
  // Those of the edited one too: they end by themselves, with the old upstream until then.
  await Promise.all([...chatters.values()].map((chatter) => chatter.more(ROUNDS_AFTER)))

  const edited = states.find(({ tunnel }) => tunnel === EDITED)!
  const late = await chat(edited)
  assert.is(await late.greeting, 'B')
  const other = await chat(states.find(({ tunnel }) => tunnel === 'web8')!)
  assert.is(await other.greeting, 'A')

  // One link: the relay knows one agent, with all the names.
  const { stdout } = await world.sottoRun(['status', '--json'], { env: world.joins(relay) })
  const served = stdout.trim().split('\n').map((line) => JSON.parse(line) as Line)
    .filter(({ event }) => event === 'endpoint')
  assert.is(served.length, TUNNELS)
  assert.is(new Set(served.map(({ link, since }) => `${link} ${since}`)).size, 1)

  const after = await running.states()
  assert.is(after.filter(({ state }) => state === 'up').length, TUNNELS)
  assert.is(after.filter(({ state }) => state === 'draining').length, 1)
  assert.is(after.find(({ tunnel }) => tunnel === 'web8')!['visitors'], 2)
  for (const chatter of [...chatters.values(), late, other]) chatter.close()
})

test('a file that is wrong is told, and what runs goes on; the next one is taken', async () => {
  const running = await start(`${head()}  keep: {tcp: ${portA}, e2ee: false}\n`)
  const [state] = await running.states()
  const chatter = await chat(state!)
  const kept = await running.save(`${head()}  keep: {tcp: ${portA}, e2ee: flase}\n`)
  assert.is(kept.event, 'kept')
  assert.is(kept['code'], 'config/type')
  await running.program.says(/sotto\.yaml:4:\d+: .*tunnels\.keep\.e2ee: found "flase"/)
  await chatter.more(ROUNDS_AFTER)
  assert.is((await running.states())[0]!['state'], 'up')
  const saved = await running.save(
    `${head()}  keep: {tcp: ${portA}, e2ee: false}\n  more: {http: ${portB}}\n`,
  )
  assert.equal(saved['added'], ['more'])
  await chatter.more(ROUNDS_AFTER)
  chatter.close()
})

test('a tunnel that is removed takes no new visitor, and lets the old ones finish', async () => {
  const keep = `  keep: {tcp: ${portA}, e2ee: false}\n`
  const running = await start(
    `${head()}${keep}  web: {http: ${portA}}\n  tls: {tcp: ${portA}, public: true}\n` +
      `  raw: {tcp: ${portA}, e2ee: false}\n`,
  )
  const [kept, web, tls, raw] = await running.states()
  const chatters = [await chat(kept!), await chat(web!), await chat(tls!), await chat(raw!)]
  const saved = await running.save(head() + keep)
  assert.equal(saved['removed'], ['web', 'tls', 'raw'])
  await Promise.all(chatters.map((chatter) => chatter.more(ROUNDS_AFTER)))
  const refused = await chat(web!).then(() => 'served', (error) => String(error.actual))
  assert.match(refused, /unrecognized|alert|closed|reset/i)
  const closed = await chat(raw!).then(() => 'served', (error) => String(error.actual))
  assert.match(closed, /refused|connect/i)
  const after = await running.states()
  assert.equal(after.map(({ tunnel, state }) => [tunnel, state]), [
    ['keep', 'up'],
    ['web', 'draining'],
    ['tls', 'draining'],
    ['raw', 'draining'],
  ])
  for (const chatter of chatters) chatter.close()
})

test('a name that is refused stops no other, and is had once it is free', async () => {
  // The same name is live as a readable endpoint: it has no verified twin.
  const holder = await world.tunnel(relay, [
    'http',
    String(portA),
    '--name',
    'held',
    '--e2ee=false',
  ], {
    home: 'agent2',
  })
  const running = await start(`${head()}  held: {http: ${portA}}\n  free: {http: ${portA}}\n`)
  const states = await running.states()
  assert.equal(states.map(({ tunnel, state }) => [tunnel, state]), [
    ['held', 'refused'],
    ['free', 'up'],
  ])
  assert.is(states[0]!['error'].code, 'endpoints/mode')
  const free = await chat(states[1]!)
  await holder.stop()
  await running.program.event('tunnel', ({ tunnel, state }) => tunnel === 'held' && state === 'up')
  await free.more(1)
  const held = await chat((await running.states())[0]!)
  held.close()
  free.close()
})

test('two tunnels exchange their names', async () => {
  const text = (a: string, b: string): string =>
    `${head()}  one: {tcp: ${portA}, public: true, name: ${a}}\n` +
    `  two: {tcp: ${portB}, public: true, name: ${b}}\n`
  const running = await start(text('left', 'right'))
  const before = await running.states()
  assert.is(await (await chat(before[0]!)).greeting, 'A')
  await running.save(text('right', 'left'))
  const after = (await running.states()).filter(({ state }) => state === 'up')
  assert.equal(after.map(({ name }) => name), ['right', 'left'])
  assert.is(await (await chat(after[0]!)).greeting, 'A')
  assert.is(await (await chat(after[1]!)).greeting, 'B')
})

test('status, logs and down talk over a socket that nobody else can open', async () => {
  const running = await start(
    `${head()}  web: {http: ${portA}}\n  raw: {tcp: ${portA}, e2ee: false}\n`,
  )
  const folder = `${world.path('agent')}/state/run`
  const sockets = readdirSync(folder).filter((name) => name.endsWith('.sock'))
  assert.ok(sockets.length > 0)
  assert.is(statSync(folder).mode & 0o777, 0o700)
  for (const name of sockets) assert.is(statSync(`${folder}/${name}`).mode & 0o777, 0o600)

  const follower = world.sotto(['logs', '-f', 'raw', '--json'])
  await follower.event('log')
  const states = await running.states()
  const chatter = await chat(states[1]!)
  const visit = await follower.event('log', ({ kind }) => kind === 'visitor')
  assert.is(visit['tunnel'], 'raw')
  assert.is(visit['address'], '127.0.0.1')
  const all = await world.sottoRun(['logs', '--last', '1000'])
  assert.match(all.stdout, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}web {2}up at https:\/\/web\./m)
  const nobody = await world.sottoRun(['logs', 'nobody'])
  assert.is(nobody.code, 1)
  assert.match(nobody.stderr, /no tunnel of that name runs/)

  const second = await world.sottoRun(['up', '--config', running.file], {
    env: { TEST_KEY: relay.apiKey },
  })
  assert.is(second.code, 1)
  assert.match(second.stderr, /another "sotto up" runs it already\nSee "sotto status"/)

  const down = await world.sottoRun(['down'])
  assert.is(down.code, 0, down.stderr)
  assert.is((await running.program.ended).code, 0)
  assert.match(await chatter.ended(), /closed|ECONNRESET/)
  // Whoever followed is told, not left waiting.
  assert.is((await follower.ended).code, 1)
  const none = await world.sottoRun(['down', '--json'])
  assert.is(none.code, 1)
  assert.is(JSON.parse(none.stdout).code, 'control/none')
})

test('SIGHUP has the file read again; a single tunnel is in "sotto status" as ever', async () => {
  const running = await start(`${head()}  web: {http: ${portA}}\n`, ['web'])
  const single = await world.tunnel(relay, ['http', String(portA), '--name', 'single'])
  running.program.signal('SIGHUP')
  const reloaded = await running.program.event('reloaded')
  assert.is(reloaded['kept'], 1)
  const { stdout } = await world.sottoRun(['status', '--json'], { env: world.joins(relay) })
  assert.match(stdout, /"endpoint":"single"/)
  await single.stop()
})

test('a proxy that is none ends it, with its remedy', async () => {
  const folder = world.path('proxied')
  mkdirSync(folder)
  writeFileSync(`${folder}/sotto.yaml`, `${head()}  web: {http: ${portA}}\n`)
  const got = await world.sottoRun(['up'], {
    cwd: folder,
    // An echo is no proxy, today and tomorrow.
    env: { TEST_KEY: relay.apiKey, SOTTO_PROXY: `http://127.0.0.1:${portA}` },
  })
  assert.is(got.code, 1)
  assert.match(got.stderr, /proxy/i)
})

test('names choose some of the file, and one that is not in it is told', async () => {
  const text = `${head()}  web: {http: ${portA}}\n  other: {http: ${portA}}\n`
  const running = await start(text, ['other'])
  assert.equal((await running.states()).map(({ tunnel }) => tunnel), ['other'])
  const wrong = await world.sottoRun(['up', 'wbe', '--config', running.file])
  assert.is(wrong.code, 1)
  assert.match(wrong.stderr, /has no tunnel of that name\nIt has: web, other\./)
})

test.run()
