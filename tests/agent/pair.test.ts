// Pairing by a code, from both sides: who is pinned, what a wrong guess costs, who may stand in the way.
// seconds: 240
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { CliOptions, Running } from '../support/cli.ts'
import { event, Scene } from '../support/scene.ts'

const test = suite('agent/pair')

let scene: Scene
let bob: Record<string, string>
test.before.each(async () => {
  scene = await Scene.make()
  bob = await scene.friend(await scene.relay(), 'bob')
})
test.after.each(() => scene.close())

interface Shown {
  running: Running
  code: string
}

async function showCode(argv: string[] = [], home = 'host', options: CliOptions = {}) {
  const running = await scene.place.start(home, ['pair', '--json', ...argv], options)
  return { running, code: (await event(running, 'code'))['code'] as string } satisfies Shown
}

function joinBob(code: string, argv: string[] = []) {
  return scene.place.run('bob', ['pair', '--json', ...argv], { env: { ...bob, SOTTO_CODE: code } })
}

async function identityOf(home: string): Promise<Record<string, string>> {
  return (await scene.place.run(home, ['identity', '--json'])).stdout.objects[0]!
}

async function pinsOf(home: string): Promise<Record<string, unknown>[]> {
  return (await scene.place.run(home, ['peers', 'list', '--json'])).stdout.objects
}

/** The same room, other words. */
function wrong(code: string): string {
  const room = code.split('-')[0]
  const words = code.endsWith('zoo') ? 'able-able-able' : 'zoo-zoo-zoo'
  return `${room}-${words}`
}

test('both sides pin each other by the code, under the names that they chose, and say what comes next', async () => {
  const { running, code } = await showCode(['--as', 'bobby', '--name', 'hosty'])
  assert.match(code, /^\d{1,2}-[a-z]+-[a-z]+-[a-z]+$/)
  const joined = await joinBob(code, ['--name', 'bob-box'])
  assert.is(joined.code, 0, joined.stderr.text)
  assert.is(await running.code, 0)
  const [host, peer] = [await identityOf('host'), await identityOf('bob')]
  assert.equal(
    (await pinsOf('host')).map(({ name, key, how, verified }) => ({
      name,
      key,
      how,
      verified,
    })),
    [{ name: 'bobby', key: peer['key'], how: 'code', verified: false }],
  )
  assert.equal(
    (await pinsOf('bob')).map(({ name, key, how }) => ({ name, key, how })),
    [{ name: 'hosty', key: host['key'], how: 'code' }],
  )
  const { fingerprint } = joined.stdout.objects.find((one) => one['event'] === 'paired')!
  assert.is(fingerprint, host['fingerprint'])
  const all = joined.stdout.text + joined.stderr.text
  assert.not(all.includes(code.slice(code.indexOf('-') + 1)), 'the joiner says the code nowhere')
})

test('a person types the code at the prompt, in any case and by first letters, and mistypes once', async () => {
  const { running, code } = await showCode()
  const [room, ...words] = code.split('-')
  const joined = await scene.place.start('bob', ['pair', '--join'], { env: bob, columns: 80 })
  await joined.stderr.until(/The code that the other machine shows: $/)
  joined.type(`${room}-qqqq-${words.slice(1).join('-')}`)
  await joined.stderr.until(/"qqqq", which is not in the list[^]*shows: $/)
  joined.type(` ${room} ${words.map((word) => word.slice(0, 4).toUpperCase()).join(' ')} `)
  assert.is(await joined.code, 0, joined.stderr.text)
  assert.is(await running.code, 0)
  assert.match(joined.stdout.text, /paired with agent-\w{6}\n/)
  assert.match(joined.stdout.text, /To let it in: sotto access allow agent-\w{6} a2a connect/)
})

test('--allow lets the other side in at once', async () => {
  const { running, code } = await showCode(['--as', 'bobby', '--allow', 'a2a,connect'])
  assert.is((await joinBob(code)).code, 0)
  assert.is(await running.code, 0)
  const rules = (await scene.place.run('host', ['access', 'list', '--json'])).stdout.objects
  assert.equal(rules[0]!['services'], ['a2a', 'connect'])
  assert.is(rules[0]!['peer'], 'bobby')
})

test('one wrong guess burns the code: both are told with exit code 5, nobody is pinned, the code is worth nothing', async () => {
  const { running, code } = await showCode()
  const guess = await joinBob(wrong(code))
  assert.is(guess.code, 5)
  assert.match(guess.stderr.text, /somebody guessed, or the code was mistyped/)
  assert.is(await running.code, 5)
  assert.match(running.stderr.text, /somebody guessed, or the code was mistyped/)
  assert.match(running.stderr.text, /The code is burned/)
  const late = await joinBob(code)
  assert.is(late.code, 1)
  assert.match(late.stderr.text, /there is none of that number/)
  assert.equal([...await pinsOf('host'), ...await pinsOf('bob')], [])
})

test('Ctrl-C gives the room up', async () => {
  const { running, code } = await showCode()
  assert.is(await running.stop(), 130)
  const late = await joinBob(code)
  assert.is(late.code, 1)
  assert.match(late.stderr.text, /there is none of that number/)
})

test('a code in the arguments is refused with the reason and not repeated', async () => {
  for (const argv of [['pair', '7-crop-lamp-vivid'], ['pair', '--join', '7', 'crop', 'lamp']]) {
    const { code, stderr } = await scene.place.run('host', argv)
    assert.is(code, 2)
    assert.match(stderr.text, /never taken from the command line/)
    assert.not.match(stderr.text, /crop/)
  }
})

test('an agent cannot pair with itself', async () => {
  const { running, code } = await showCode()
  const self = await scene.place.run('host', ['pair'], { env: { SOTTO_CODE: code } })
  assert.is(self.code, 1)
  assert.match(self.stderr.text, /made by this same identity/)
  await running.stop()
})

test('a name that is pinned to somebody else is not taken over', async () => {
  const stranger = await identityOf('stranger')
  await scene.place.run('host', ['peers', 'trust', 'bobby', stranger['key']!])
  const { running, code } = await showCode(['--as', 'bobby'])
  assert.is((await joinBob(code)).code, 0)
  assert.is(await running.code, 1)
  assert.match(running.stderr.text, /"bobby": that name is pinned to SHA256:/)
  assert.equal((await pinsOf('host')).map(({ key }) => key), [stranger['key']])
  // The same identity again is no clash.
  await scene.place.run('host', ['peers', 'trust', 'bobby2', (await identityOf('bob'))['key']!])
  const again = await showCode(['--as', 'bobby2'])
  assert.is((await joinBob(again.code)).code, 0)
  assert.is(await again.running.code, 0)
  assert.is((await pinsOf('host')).find(({ name }) => name === 'bobby2')!['how'], 'code')
})

test('who may not join the relay may not enter a room', async () => {
  const { running, code } = await showCode()
  const env = { SOTTO_RELAY: bob['SOTTO_RELAY']!, SOTTO_CODE: code }
  const outsider = await scene.place.run('outsider', ['pair'], { env })
  assert.is(outsider.code, 1)
  assert.match(outsider.stderr.text, /^Cannot .*(key|admit)/m)
  assert.is((await joinBob(code)).code, 0)
  assert.is(await running.code, 0)
})

test('no code at the prompt is an error, and so is a code that is none', async () => {
  const none = await scene.place.run('bob', ['pair', '--join'], { env: bob, input: [] })
  assert.is(none.code, 1)
  assert.match(none.stderr.text, /without the code/)
  const bad = await scene.place.run('bob', ['pair', '--join'], { env: bob, input: ['hello'] })
  assert.is(bad.code, 1)
  assert.match(bad.stderr.text, /expected a number and three words/)
})

test.run()
