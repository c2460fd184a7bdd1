// seconds: 240
/**
 * `sotto a2a`: real agents on a real relay. What is sent arrives whole and once, also when the relay
 * is killed in the middle; strangers are told what would let them in; a changed identity stops it;
 * programs and services answer; and each end of it has an exit code of its own.
 */
import { createHash, randomBytes } from 'node:crypto'
import { copyFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { freePort } from '../support/port.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { CommandOptions, CommandResult, Line, Program, Relay } from '../support/world.ts'

const MESSAGE_BYTES = 16_777_216
/** What a runtime and a session take, with one message in it; two would be above. */
const RESIDENT_BYTES_MAX = 300_000_000
const MANY = 1000

let world: E2eWorld
let relay: Relay
const keys: Record<string, string> = {}

const test = suite('e2e/a2a')

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
  keys['alice'] = await keyOf('alice')
})

test.after(() => world.close())

async function keyOf(home: string): Promise<string> {
  return JSON.parse((await world.sottoRun(['identity', '--json'], { home })).stdout).key
}

const joins = (home: string, more: object = {}) => ({ home, env: world.joins(relay), ...more })

const send = (args: string[], more: CommandOptions = {}): Promise<CommandResult> =>
  world.sottoRun(['a2a', 'send', ...args], joins('alice', { timeoutMs: 60_000, ...more }))

/** `sotto a2a listen` of an agent that knows alice and allows her so much. */
async function listen(
  home: string,
  args: readonly string[] = [],
  { services = ['a2a'], json = true }: { services?: string[]; json?: boolean } = {},
): Promise<Program & { up: Line }> {
  await sotto(home, ['peers', 'trust', 'alice', keys['alice']!])
  if (services.length > 0) await sotto(home, ['access', 'allow', 'alice', ...services])
  return await start(home, args, json)
}

async function start(
  home: string,
  args: readonly string[],
  json = true,
): Promise<Program & { up: Line }> {
  const flags = json ? ['--json'] : []
  const words = ['a2a', 'listen', '--name', home, ...flags, ...args]
  const program = world.sotto(words, joins(home))
  const up = json ? await program.event('listening') : { event: '' }
  if (!json) await program.says(/listening as/)
  return Object.assign(program, { up })
}

async function sotto(home: string, args: string[]): Promise<void> {
  const { code, stderr } = await world.sottoRun(args, { home })
  assert.is(code, 0, stderr)
}

test('a text arrives with its sender; bytes that are no text arrive too', async () => {
  const bob = await listen('bob')
  const sent = await send(['bob', 'hello there', '--json'])
  assert.is(sent.code, 0, sent.stderr)
  const result = JSON.parse(sent.stdout)
  assert.equal([result.status, result.peer, result.key], ['delivered', 'bob', bob.up['key']])
  const message = await bob.event('message')
  assert.equal(
    [message['from'], message['key'], message['text'], message['id'], message['bytes']],
    ['alice', keys['alice'], 'hello there', result.id, 11],
  )
  assert.is((await send(['home.bob'], { input: Uint8Array.of(0, 255, 10) })).code, 0)
  assert.is((await bob.event('message', ({ base64 }) => base64))['base64'], 'AP8K')
  const other = await send(['other.bob', 'hello'])
  assert.is(other.code, 1)
  assert.match(other.stderr, /nobody is there/)
  const half = await send(['bo', 'hello'])
  assert.match(half.stderr, /Did you mean home\.bob/)
  assert.is((await send([keys['alice']!, 'x'])).code, 1)
  assert.is((await send([bob.up['fingerprint'], 'by print'])).code, 0)
  await bob.event('message', ({ text }) => text === 'by print')
  // A name that only alice has for that key.
  await sotto('alice', ['peers', 'trust', 'bobby', bob.up['key']])
  assert.is((await send(['bobby', 'petname'])).code, 0)
  await bob.event('message', ({ text }) => text === 'petname')
  await bob.stop()
})

test('people see who wrote, and get the message byte for byte', async () => {
  const carol = await listen('carol', ['--once'], { json: false })
  const bytes = randomBytes(3000)
  assert.is((await send(['carol', '-'], { input: bytes })).code, 0)
  const { code } = await carol.ended
  assert.is(code, 0)
  assert.match(carol.stderr, /from alice · \d\d:\d\d · 3 kB/)
  assert.is(carol.stdout, bytes.toString('utf8'))
})

test('16 MiB pass both ways, and no end holds them twice', async () => {
  const dave = await listen('dave', ['--exec', 'tee', world.path('copy')], {
    services: ['a2a exec'],
  })
  const bytes = randomBytes(MESSAGE_BYTES)
  writeFileSync(world.path('big'), bytes)
  const script = `${world.sottoWords} a2a send dave - < ${world.path('big')} > ${
    world.path('back')
  }`
  const before = residentMax(dave.child.pid!)
  const env = { ...world.joins(relay), SOTTO_HOME: world.path('alice') }
  const sent = await world.run('sh', ['-c', script], { env, timeoutMs: 90_000 })
  assert.is(sent.code, 0, sent.stderr)
  for (const name of ['copy', 'back']) {
    assert.is(digest(readFileSync(world.path(name))), digest(bytes), name)
  }
  const grown = residentMax(dave.child.pid!) - before
  assert.ok(grown < RESIDENT_BYTES_MAX - before, `${before} and ${grown} bytes more`)
  const more = await send(['dave', '-'], { input: Buffer.concat([bytes, bytes.subarray(0, 1)]) })
  assert.is(more.code, 1)
  assert.match(more.stderr, /16777216/)
  await dave.stop()
})

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** The most that a process ever had in memory. */
function residentMax(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)![1]) * 1024
}

test('a program answers while it runs; errors and exit code come apart', async () => {
  const script = 'read word; echo "got $word from $SOTTO_PEER"; echo bad >&2; read more; exit 3'
  const erin = await listen('erin', ['--exec', 'sh', '-c', script], { services: ['a2a exec'] })
  const sending = world.sotto(['a2a', 'send', 'erin', '--exec'], joins('alice', { input: '' }))
  sending.child.stdin!.write('first\n')
  // It waits for more, and what it has said is here.
  await sending.until(() => /got first from alice/.exec(sending.stdout), 'the first line')
  await sending.until(() => /bad/.exec(sending.stderr), 'the error')
  assert.is(sending.over, undefined)
  sending.child.stdin!.end('second\n')
  assert.is((await sending.ended).code, 6)
  assert.is(sending.stdout, 'got first from alice\n')
  assert.match(sending.stderr, /exit code 3/)
  const json = await send(['erin', '-', '--json'], { input: 'a\nb\n' })
  const lines = json.stdout.trim().split('\n').map((line) => JSON.parse(line))
  assert.equal(lines.map(({ event }) => event).sort(), ['errors', 'output', 'result'])
  assert.equal(lines.find(({ event }) => event === 'output').text, 'got a from alice\n')
  assert.is(lines.find(({ event }) => event === 'result').exit, 3)
  assert.is((await erin.event('message'))['exit'], 3)
  await erin.stop()
  const slow = await start('erin', ['--time', '300ms', '--shell', 'sleep 60'])
  const late = await send(['erin', 'x'])
  assert.is(late.code, 4, late.stderr)
  assert.match(late.stderr, /more than 0\.3 s/)
  await slow.stop()
})

test('a program runs for nobody who may not "a2a exec"', async () => {
  const frank = await listen('frank', ['--shell', `touch ${world.path('ran')}`])
  const sent = await send(['frank', 'x'])
  assert.is(sent.code, 3, sent.stderr)
  assert.throws(() => readFileSync(world.path('ran')))
  const knock = await frank.event('knock')
  assert.equal([knock['needs'], knock['key']], ['a2a exec', keys['alice']])
  assert.is(knock['remedy'], "sotto access allow alice 'a2a exec'")
  await frank.stop()
  const plain = await start('frank', [])
  assert.is((await send(['frank', 'x', '--exec'])).code, 3)
  assert.is((await send(['frank', 'x'])).code, 0)
  await plain.stop()
})

test('a local service answers, and hears who it is', async () => {
  const heard: { headers: IncomingMessage['headers']; body: string }[] = []
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    let body = ''
    request.on('data', (part) => body += part)
    request.on('end', () => {
      heard.push({ headers: request.headers, body })
      response.statusCode = body === 'wrong' ? 500 : 201
      response.end(`answer to ${body}`)
    })
  })
  world.defer(() => server.close())
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const grace = await listen('grace', ['--handler', `http://127.0.0.1:${port}/in?x=1`])
  const sent = await send(['grace', 'hello'])
  assert.equal([sent.code, sent.stdout], [0, 'answer to hello'])
  const { headers, body } = heard[0]!
  assert.is(body, 'hello')
  assert.equal([headers['x-sotto-peer'], headers['x-sotto-peer-key']], ['alice', keys['alice']])
  assert.match(headers['x-sotto-message-id'] as string, /^[0-9a-f]{32}$/)
  const failed = await send(['grace', 'wrong'])
  assert.equal([failed.code, failed.stdout], [6, ''])
  assert.match(failed.stderr, /answer to wrong[^]*answered 500/)
  await new Promise((resolve) => server.close(resolve))
  assert.is((await send(['grace', 'hello'])).code, 6)
  await grace.stop()
  const far = await world.sottoRun(['a2a', 'listen', '--handler', 'http://example.com/'])
  assert.is(far.code, 2)
})

test('a stranger is refused, and both sides are told what lets it in; a name is not reused', async () => {
  const heidi = await listen('heidi', [], { services: [] })
  const refused = await world.sottoRun(
    ['a2a', 'send', 'heidi', 'hello'],
    joins('mallory', { timeoutMs: 30_000 }),
  )
  const key = await keyOf('mallory')
  assert.is(refused.code, 3)
  assert.ok(refused.stderr.includes(`sotto peers trust NAME ${key}`), refused.stderr)
  const { remedy } = await heidi.event('knock', (line) => line['key'] === key)
  await heidi.says(/knocked and may not send messages here/)
  // It calls itself alice; whoever copies the command must not add it to hers.
  const liar = world.sotto(
    ['a2a', 'listen', '--name', 'alice', '--json'],
    joins('liar'),
  )
  const { key: liarKey } = await liar.event('listening')
  await world.sottoRun(['a2a', 'send', 'heidi', 'x'], joins('liar'))
  const { remedy: other } = await heidi.event('knock', (line) => line['key'] === liarKey)
  assert.not.match(other, /trust alice /)
  for (const words of remedy.split(' && ')) await sotto('heidi', words.split(' ').slice(1))
  const again = await world.sottoRun(['a2a', 'send', 'heidi', 'hello'], joins('mallory'))
  assert.is(again.code, 0, again.stderr)
  assert.is((await heidi.event('message'))['text'], 'hello')
  // And it ends as soon as it is taken back.
  await sotto('heidi', ['access', 'deny', remedy.split(' ')[3]!])
  assert.is((await world.sottoRun(['a2a', 'send', 'heidi', 'x'], joins('mallory'))).code, 3)
  await liar.stop()
  await heidi.stop()
})

test('all that a selector chooses get it, if they are pinned, with a line for each', async () => {
  const workers: Program[] = []
  for (const home of ['worker-1', 'worker-2', 'worker-3']) {
    const label = ['--label', `role=${home === 'worker-3' ? 'idle' : 'worker'}`]
    const shell = ['--shell', 'echo "$(cat) done"; [ "$SOTTO_PEER" = alice ]']
    const worker = await listen(home, [...label, ...shell], { services: ['a2a exec'] })
    if (home !== 'worker-2') await sotto('alice', ['peers', 'trust', home, worker.up['key']])
    workers.push(worker)
  }
  const first = await send(['--to', 'role=worker', 'job'])
  assert.is(first.code, 0, first.stderr)
  assert.match(first.stdout, /^worker-1 +delivered +job done\n$/)
  assert.match(first.stderr, /1 delivered; 1 not pinned, not sent to/)
  await sotto('alice', ['peers', 'trust', 'worker-2', await keyOf('worker-2')])
  const both = await send(['--to', 'role!=idle,role=worker', 'job', '--json'])
  const lines = both.stdout.trim().split('\n').map((line) => JSON.parse(line))
  assert.equal(
    lines.filter(({ event }) => event === 'result').map(({ peer, status, reply }) =>
      `${peer} ${status} ${reply.text}`
    ).sort(),
    ['worker-1 delivered job done\n', 'worker-2 delivered job done\n'],
  )
  const nobody = await send(['--to', 'role=none', 'job'])
  assert.is(nobody.code, 1)
  assert.match(nobody.stderr, /no other agent has such labels/)
  const seen = await world.sottoRun(['agents', 'role=worker', '--json'], joins('alice'))
  const rows = seen.stdout.trim().split('\n').map((line) => JSON.parse(line))
  assert.equal(rows.map(({ name, trust, how, online }) => [name, trust, how, online]), [
    ['worker-1', 'pinned', 'manual', true],
    ['worker-2', 'pinned', 'manual', true],
  ])
  const watching = world.sotto(['agents', 'role=worker', '--watch'], joins('alice'))
  await watching.says(/worker-2/)
  await workers[1]!.stop()
  await watching.says(/[-~] worker-2/)
  await watching.stop()
  await Promise.all(workers.map((worker) => worker.stop()))
})

test('--wait holds a message until its receiver is there, or the time is over', async () => {
  const sending = world.sotto(['a2a', 'send', 'ivan', 'late', '--wait', '30s'], joins('alice'))
  await world.sottoRun(['agents'], joins('alice'))
  const ivan = await listen('ivan')
  assert.is((await ivan.event('message'))['text'], 'late')
  assert.is((await sending.ended).code, 0)
  await ivan.stop()
  const never = await send(['nobody-here', 'x', '--wait', '1s'])
  assert.is(never.code, 4, never.stderr)
})

test('an identity that changed stops the sender with 5, and the receiver lets it in no more', async () => {
  const judy = await listen('judy')
  assert.is((await send(['judy', 'one'])).code, 0)
  await judy.stop()
  for (const file of ['identity', 'session_key']) rmSync(world.path(`judy/${file}`))
  // The relay reserves a name for its first identity: another that serves it has to be let.
  const args = ['relay', '--port', '0', '--json']
  const other = await world.sotto(args, { home: 'relay-2' }).event('listening')
  const env = { SOTTO_RELAY: other['url'], SOTTO_API_KEY: other['apiKey'] }
  copyFileSync(world.path('alice/known_agents'), world.path('pins'))
  const words = ['a2a', 'listen', '--name', 'judy', '--json']
  const fake = world.sotto(words, { home: 'judy', env })
  const { fingerprint } = await fake.event('listening')
  const sent = await world.sottoRun(['a2a', 'send', 'judy', 'secret words'], { home: 'alice', env })
  assert.is(sent.code, 5, sent.stderr)
  assert.ok(sent.stderr.includes(fingerprint), sent.stderr)
  assert.ok(sent.stderr.includes(judy.up['fingerprint']), sent.stderr)
  assert.is(readFileSync(world.path('pins'), 'utf8'), pinsOf('alice'))
  // Alice with another identity is a stranger where the old one was let in.
  for (const file of ['identity', 'session_key']) rmSync(world.path(`alice/${file}`))
  keys['alice'] = await keyOf('alice')
  const back = await world.sottoRun(
    ['a2a', 'send', fingerprint, 'it is me'],
    { home: 'alice', env },
  )
  assert.is(back.code, 3, back.stderr)
  assert.ok(!fake.lines.some(({ event }) => event === 'message'))
  await fake.stop()
})

function pinsOf(home: string): string {
  return readFileSync(world.path(`${home}/known_agents`), 'utf8')
}

test('the relay is killed in the midst of 1,000 messages: all arrive, each once', async () => {
  const port = await freePort()
  const serve = async (): Promise<Program> => {
    const args = ['relay', '--port', String(port), '--json']
    const program = world.sotto(args, { home: 'other-relay' })
    await program.event('listening')
    return program
  }
  let running = await serve()
  const { apiKey } = await running.event('listening')
  const env = { SOTTO_RELAY: `https://localhost:${port}`, SOTTO_API_KEY: apiKey }
  const key = await keyOf('talker')
  await sotto('kate', ['peers', 'trust', 'talker', key])
  await sotto('kate', ['access', 'allow', 'talker', 'a2a'])
  const kate = world.sotto(['a2a', 'listen', '--name', 'kate', '--json'], { home: 'kate', env })
  await kate.event('listening')
  const args = ['tests/support/talk.ts', world.path('talker'), 'kate', String(MANY)]
  const talk = world.start(BUN, args, { home: 'talker', env })
  const messages = (): Line[] => kate.lines.filter(({ event }) => event === 'message')
  /** How many had come when there was no relay. */
  const taken: number[] = []
  for (const count of [200, 600]) {
    await talk.event('sent', (line) => line['count'] >= count)
    await running.stop('SIGKILL')
    taken.push(messages().length)
    assert.is(talk.lines.some(({ event }) => event === 'done'), false, 'in the midst')
    running = await serve()
  }
  const done = await talk.until(
    () => talk.lines.find(({ event }) => event === 'done'),
    'end',
    90_000,
  )
  assert.equal([done['delivered'], done['codes']], [MANY, []], talk.stderr)
  const texts = messages().map((line) => line['text'])
  assert.ok(taken[0]! > 0 && taken[0]! < taken[1]! && taken[1]! < MANY, `${taken}`)
  assert.match(kate.stderr, /relay lost/)
  assert.is(texts.length, MANY)
  assert.is(new Set(texts).size, MANY)
  await kate.stop()
  await running.stop()
})

test.run()
