// A fleet: 200 machines enroll by one secret over one relay, a few dozen at a time; each gets a vouch
// of its own, and the book counts them all.
// seconds: 240
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { event, Scene } from '../support/scene.ts'

const MACHINES = 200
/** Command lines that run at once in this process. */
const AT_ONCE = 24

const test = suite('agent/fleet')

test('200 machines enroll by one secret, each once, and the one after them is refused', async () => {
  const scene = await Scene.make()
  try {
    const quota = 'address.requests=5000,scope.requests=5000'
    const env = await scene.friend(await scene.relay(['--quota', quota]), 'fleet')
    await scene.place.run('ops', ['authority', 'init', 'ops'])
    const path = join(scene.place.dir, 'fleet.secret')
    const ops = await scene.place.start('ops', [
      ...['authority', 'enroll-code', 'ops', '--json', '--secret-file', path],
      ...['--count', `${MACHINES}`, '--names', 'web-*', '--label', 'role=web'],
    ], { env })
    await event(ops, 'open')
    const secret = (await readFile(path, 'utf8')).trim()
    const withSecret = { env: { ...env, SOTTO_CODE: secret } }
    const queue = Array.from({ length: MACHINES }, (_, i) => `web-${i}`)
    const work = async (): Promise<void> => {
      for (let home = queue.shift(); home !== undefined; home = queue.shift()) {
        const machine = await scene.place.start(home, ['enroll', '--name', home], withSecret)
        assert.is(await machine.code, 0, `${home}: ${machine.stderr.text}`)
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, work))
    assert.is(await ops.code, 0, ops.stderr.text)
    const enrolled = ops.stdout.objects.filter((one) => one['event'] === 'enrolled')
    assert.is(enrolled.length, MACHINES)
    for (const field of ['key', 'serial', 'names']) {
      assert.is(new Set(enrolled.map((one) => String(one[field]))).size, MACHINES, field)
    }
    const book = join(scene.place.home('ops'), 'state', 'enrolments')
    const lines = (await readFile(join(book, (await readdir(book))[0]!), 'utf8')).trim().split('\n')
    assert.is(lines.length, MACHINES + 1)
    const again = await scene.place.run('ops', [
      ...['authority', 'enroll-code', 'ops', '--secret-file', path],
    ], { env })
    assert.match(again.stderr.text, /as many machines as it takes have enrolled/)
  } finally {
    await scene.close()
  }
})

test.run()
