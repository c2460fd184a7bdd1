/** A log line is one line, bounded, says only listed fields, and never a secret. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import * as fc from 'fast-check'
import { ManualClock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import {
  createLog,
  errorFields,
  LOG_FIELDS,
  LOG_LINE_LENGTH_MAX,
  LOG_VALUE_LENGTH_MAX,
  scrub,
  silentLog,
} from '../../relay/log.ts'
import type { LogFields, LogLevel } from '../../relay/log.ts'

const test = suite('relay/log')
const SECRET = `sk_home_${'Ab3-_'.repeat(8)}xyz`
const PRINTABLE = /^[ -~]*$/

function made(options: { json?: boolean; level?: LogLevel } = {}) {
  const lines: string[] = []
  const log = createLog({
    write: (line) => void lines.push(line),
    clock: new ManualClock(),
    level: options.level ?? 'debug',
    json: options.json ?? true,
  })
  return { log, lines }
}

test('a line is JSON with time, level, event and the fields', () => {
  const { log, lines } = made()
  log.info('link admitted', { scope: 'home', port: 8443, names: ['a', 'b'], result: true })
  assert.equal(JSON.parse(lines[0]!), {
    time: '2023-11-14T22:13:20.000Z',
    level: 'info',
    event: 'link admitted',
    scope: 'home',
    port: 8443,
    names: 'a b',
    result: true,
  })
})

test('text for people holds the same, bare where it can be', () => {
  const { log, lines } = made({ json: false })
  log.warn('visitor refused', { reason: 'no name', address: '192.0.2.1', ms: 3 })
  assert.is(
    lines[0],
    '2023-11-14T22:13:20.000Z warn  visitor refused reason="no name" address=192.0.2.1 ms=3',
  )
})

test('levels below the least are not written', () => {
  for (const [level, count] of [['debug', 4], ['info', 3], ['warn', 2], ['error', 1]] as const) {
    const { log, lines } = made({ level })
    for (const each of ['debug', 'info', 'warn', 'error'] as const) log[each]('x')
    assert.is(lines.length, count)
  }
})

test('with() puts its fields on every line, and later ones win', () => {
  const { log, lines } = made()
  log.with({ scope: 'home' }).with({ agent: 'a' }).info('x', { agent: 'b' })
  assert.is(JSON.parse(lines[0]!).scope, 'home')
  assert.is(JSON.parse(lines[0]!).agent, 'b')
})

test('attack: a field that is not listed does not come through', () => {
  const { log, lines } = made()
  const sneaky = { authorization: 'hello', cookie: 'a=b', __proto__: { body: 1 }, time: 'then' }
  log.info('x', sneaky as LogFields)
  assert.equal(Object.keys(JSON.parse(lines[0]!)), ['time', 'level', 'event'])
})

test('attack: secrets are scrubbed wherever they stand', () => {
  for (const json of [true, false]) {
    const { log, lines } = made({ json })
    for (const kind of ['sk', 'ft', 'ak']) {
      const secret = SECRET.replace('sk', kind)
      for (
        const text of [
          secret,
          `x${secret}`,
          `Bearer ${secret}`,
          `https://relay/?key=${secret}&a`,
          `"${secret}"`,
          `${secret},${secret}`,
          `${'y'.repeat(LOG_VALUE_LENGTH_MAX - 20)} ${secret}`,
          secret.slice(0, 24),
        ]
      ) {
        log.info('x', { reason: text, names: [text] })
        log.info(text)
        log.error('x', errorFields(new Error(text)))
        log.error('x', errorFields(new TunnelError('a/b', text)))
      }
    }
    for (const line of lines) assert.not.match(line, /Ab3/)
  }
  assert.is(scrub('Authorization: Bearer abc.def'), 'Authorization: Bearer ***')
  assert.is(scrub('task_id and desk_top stay'), 'task_id and desk_top stay')
})

test('attack: a value cannot begin a line of its own or move the cursor', () => {
  const evil = 'a\n{"level":"info"}\r\u001b[2J\u009b1m\u2028\u2029\u202e\u0000\u007f\ud800"\\,é😀'
  for (const json of [true, false]) {
    const { log, lines } = made({ json })
    log.info('x', { serverName: evil })
    log.info(evil)
    for (const line of lines) assert.match(line, PRINTABLE)
    if (json) assert.is(JSON.parse(lines[0]!).serverName, evil)
  }
})

test('any fields give one printable, bounded line, and JSON where asked', () => {
  const seed = Date.now() & 0x7fffffff
  const fields = fc.dictionary(
    fc.constantFrom(...LOG_FIELDS, 'other'),
    fc.oneof(
      fc.string({ unit: 'binary', maxLength: 2000 }),
      fc.double(),
      fc.boolean(),
      fc.array(fc.string()),
    ),
  )
  fc.assert(
    fc.property(fields, fc.boolean(), (values, json) => {
      const { log, lines } = made({ json })
      log.info('x', values as LogFields)
      assert.is(lines.length, 1)
      assert.match(lines[0]!, PRINTABLE)
      assert.ok(lines[0]!.length <= LOG_LINE_LENGTH_MAX)
      if (json) assert.is(JSON.parse(lines[0]!).event, 'x')
    }),
    { seed, numRuns: 300 },
  )
})

test('attack: long values are cut and the line stays JSON', () => {
  const { log, lines } = made()
  const long = '\u0001'.repeat(100_000)
  log.info(long, Object.fromEntries(LOG_FIELDS.map((name) => [name, long])))
  assert.ok(lines[0]!.length <= LOG_LINE_LENGTH_MAX)
  assert.is(JSON.parse(lines[0]!).cut, true)
})

test('a writer that throws, and a clock out of range, stop nothing', () => {
  createLog({
    write() {
      throw new Error('disk full')
    },
    clock: new ManualClock(1e300),
    level: 'info',
    json: true,
  }).info('x')
  silentLog.with({}).error('x')
})

test.run()
