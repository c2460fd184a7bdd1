/**
 * `sotto.yaml`: each kind of mistake with its place and its words, whatever bytes a file has; and the JSON
 * schema, which says of a corpus what the check says.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Ajv } from 'ajv'
import fc from 'fast-check'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkBytes, configWorld, findConfig, loadConfig } from '../../agent/config.ts'
import type { Config } from '../../agent/config.ts'
import { problemLines } from '../../agent/config_problem.ts'
import type { ConfigProblem } from '../../agent/config_problem.ts'
import { configSchema } from '../../agent/config_schema.ts'
import { CONFIG } from '../../agent/config_table.ts'
import { isTunnelError } from '../../core/errors.ts'
import { utf8 } from '../../core/bytes.ts'
import { schemaText, withTable } from '../../compile/config.ts'
import { testWorld } from '../support/agent_world.ts'
import { MISTAKES, tunnel } from '../support/config_mistakes.ts'
import { parse } from 'yaml'

const ROOT = new URL('../..', import.meta.url).pathname
const FUZZ_RUNS = 300
const ENV = {
  PORT: '3000',
  EMPTY: '',
  SWITCH: 'false',
  KEY: `sk_${'a'.repeat(32)}`,
  EVIL: '1, x: 2',
}

interface Checked {
  config: Config | undefined
  problems: readonly ConfigProblem[]
}

function check(text: string | Uint8Array, env: Record<string, string> = ENV): Promise<Checked> {
  const bytes = typeof text === 'string' ? utf8(text) : text
  return checkBytes(bytes, { path: '/etc/sotto/sotto.yaml', env })
}

const test = suite('agent/config')

for (const [text, code, line, column, words] of MISTAKES) {
  test(`${JSON.stringify(text.slice(0, 60))} is ${code}`, async () => {
    const { config, problems } = await check(text)
    assert.is(config, undefined)
    const problem = problems.find((one) => one.code === code) ?? problems[0]!
    assert.equal(
      [problem.code, problem.line, problem.column],
      [code, line, column],
      problem.message,
    )
    const said = problem.message.replace(/^Cannot read /, '')
    if (typeof words === 'string') assert.is(said, words)
    else assert.match(said, words)
    for (const { message } of problems) assert.not.match(message, /sk_a/)
  })
}

test('a mistake is shown by its line, with carets below it and the likely meaning', async () => {
  const { problems } = await check(tunnel('htpp: 3000', 'name: web'))
  assert.is(problems.length, 1)
  assert.equal(problemLines('sotto.yaml', problems[0]!), [
    'sotto.yaml:3:5: Cannot read tunnels.web.htpp: found no field of that name, expected http, name, ' +
    'e2ee, certificate, e2ee-cert, e2ee-key, acme, acme-domains, domains, host-header, proxy-protocol, tcp, allow, public, ' +
    'public-port or udp',
    '  3 |     htpp: 3000',
    '    |     ^^^^',
    'Did you mean "http"?',
  ])
})

const NEAR: [typed: string, meant: string | undefined][] = [
  ['publicport', 'public-port'],
  ['public_port', 'public-port'],
  ['alow', 'allow'],
  ['Allow', 'allow'],
  ['nmae', 'name'],
  ['zzzzzzzz', undefined],
]
for (const [typed, meant] of NEAR) {
  test(`who writes "${typed}" is asked for ${meant ?? 'nothing'}`, async () => {
    const { problems } = await check(tunnel('tcp: 1', `${typed}: 1`))
    assert.is(problems[0]!.hint, meant && `Did you mean "${meant}"?`)
  })
}

test('all mistakes are told, in the order of the file, and at most twenty', async () => {
  const lines = Array.from({ length: 30 }, (_, i) => `x${i}: 1`)
  const { problems } = await check(tunnel('http: 1', ...lines))
  assert.is(problems.length, 20)
  assert.equal(
    problems.map(({ line }) => line),
    [...problems.map(({ line }) => line)].sort((a, b) => a - b),
  )
})

test('a secret is told without being shown', async () => {
  const secret = `ft_${'b'.repeat(40)}`
  const { problems } = await check(`relay: a\ntoken: ${secret}\ntunnels: {}`)
  assert.not.match(JSON.stringify(problems), /bbbb/)
  assert.match(problems[0]!.hint!, /api-key-file/)
})

test('bytes that are no text, and files that are too long, are told as a whole', async () => {
  const { problems: [binary] } = await check(new Uint8Array([0xff, 0xfe, 0x00]))
  assert.equal([binary!.code, binary!.line], ['config/syntax', 0])
  const { problems: [long] } = await check(`# ${'x'.repeat(262_144)}`)
  assert.equal([long!.code, long!.line], ['config/size', 0])
})

test('aliases that repeat each other by the billion end at a bound', async () => {
  const levels = Array.from(
    { length: 9 },
    (_, i) => `    l${i}: &l${i} [${Array(9).fill(i === 0 ? 'x' : `*l${i - 1}`).join()}]`,
  )
  const { config, problems } = await check(
    `tunnels:\n  web:\n    tcp: 1\n${levels.join('\n')}\n    allow: *l8`,
  )
  assert.is(config, undefined)
  assert.ok(problems.length > 0)
})

test('ten thousand brackets are refused and break nothing', async () => {
  for (const text of ['['.repeat(100_000), `a: ${'{a: '.repeat(20_000)}`, '- '.repeat(50_000)]) {
    const { config, problems } = await check(text)
    assert.is(config, undefined)
    assert.ok(problems.length > 0)
  }
})

test('whatever bytes a file has, it gives tunnels or problems, and never throws', async () => {
  const words = fc.constantFrom(
    'tunnels:',
    '\n  ',
    'web',
    ': ',
    '{',
    '}',
    '[',
    ']',
    'http',
    '3000',
    '"',
    '$',
    '${A}',
    '&a',
    '*a',
    '!t',
    '- ',
    '|',
    '#',
    '\t',
    'null',
    'e2ee',
    'false',
    '---',
    '? ',
    '\ufeff',
    '<<',
  )
  const text = fc.array(fc.oneof(words, fc.string({ maxLength: 5 })), { maxLength: 40 }).map((
    all,
  ) => all.join(''))
  await fc.assert(
    fc.asyncProperty(fc.oneof(text.map(utf8), fc.uint8Array({ maxLength: 200 })), async (bytes) => {
      const { config, problems } = await check(bytes)
      assert.ok(config !== undefined || problems.length > 0)
      for (const { code, message, line } of problems) {
        assert.match(code, /^config\/[a-z]+$/)
        assert.match(message, /^Cannot read .*: found .*, expected /s)
        assert.ok(line >= 0)
      }
    }),
    { numRuns: FUZZ_RUNS },
  )
})

/** Files that are right, and what becomes of them. */
const RIGHT: string[] = [
  'tunnels: {}',
  tunnel('http: 3000'),
  tunnel('http: "3000"'),
  tunnel('http: 3e3'),
  tunnel('http: ${PORT}', 'e2ee: ${SWITCH}'),
  tunnel('http: ${NONE:-localhost:80}'),
  tunnel('http: https://nas.local:8443', 'host-header: rewrite', 'name: nas'),
  tunnel('http: unix:/run/a$$b.sock'),
  tunnel('http: 1', 'e2ee-cert: a.pem', 'e2ee-key: b.pem'),
  tunnel('tcp: 5432', 'allow: [alice, bob]'),
  tunnel('tcp: 5432', 'public: true', 'proxy-protocol: v2'),
  tunnel('tcp: "[::1]:22"', 'e2ee: false', 'public-port: 20022'),
  tunnel('udp: 10.0.0.7:9000', 'e2ee: false'),
  'x: &x 1\ntunnels: {}'.replace('x: &x 1\n', ''),
  'tunnels:\n  a: &a {http: 1}\n  b: *a\n',
  'relay: relay.example:8443\nlabels: {site: berlin-1, rack: 7}\nprofile: work\ntunnels: {}',
  'relay: http://localhost:8080\napi-key-file: ./key\ntunnels: {}',
  'relay-fingerprint: SHA256:' + 'A'.repeat(43) + '\napi-key-env: KEY\ntunnels: {}',
  'certificates: {own: {cert: a, key: b}}\ntunnels: {web: {http: 1, certificate: own}}',
]

for (const text of RIGHT) {
  test(`${JSON.stringify(text.slice(0, 70))} is right`, async () => {
    const { config, problems } = await check(text)
    assert.equal(problems.map(({ message }) => message), [])
    assert.ok(config)
  })
}

test('what a file says is what a tunnel is', async () => {
  const { config } = await check(
    'certificates: {own: {cert: a.pem, key: /b.pem}}\nlabels: {rack: 7}\ntunnels:\n' +
      '  web: {http: "${PORT}", certificate: own}\n' +
      '  db: {tcp: 5432, name: main-db, allow: [alice]}\n  open: {tcp: 1, public: true}\n' +
      '  ssh: {tcp: 22, e2ee: false, public-port: 20022}\n  read: {http: 1, e2ee: false}\n',
  )
  assert.equal(config!.labels, ['rack=7'])
  const [web, db, open, ssh, readable] = config!.tunnels
  assert.equal([web!.mode, web!.name, web!.upstream.text], [
    'verified',
    'web',
    'http://localhost:3000',
  ])
  assert.equal(web!.certificate, { cert: '/etc/sotto/a.pem', key: '/b.pem' })
  assert.equal([db!.mode, db!.name, db!.allow], ['verified', 'main-db', ['alice']])
  assert.is(open!.allow, undefined)
  assert.equal([ssh!.mode, ssh!.port, ssh!.allow], ['raw', 20022, undefined])
  assert.is(readable!.mode, 'inspectable')
})

test('the schema says of every file what the check says, but where it cannot know', async () => {
  const ajv = new Ajv({ strict: false, allErrors: false })
  const fits = ajv.compile(configSchema())
  // Text that is no YAML for a schema, variables, secrets, and what leads from one field to another.
  const beyond = /^config\/(syntax|duplicate|alias|variable|secret|size)$/
  let compared = 0
  for (const text of [...RIGHT, ...MISTAKES.map(([text]) => text)]) {
    const { config, problems } = await check(text)
    if (problems.some(({ code, message }) => beyond.test(code) || /"certificates"/.test(message))) {
      continue
    }
    if (/SHA256:x|\[a\] : |null: |\$\{(PORT|EVIL|EMPTY)\}/.test(text) && !config) continue
    const said = fits(parse(text) ?? null)
    assert.is(said, config !== undefined, `${text}\n${JSON.stringify(fits.errors)}`)
    compared++
  }
  assert.ok(compared > 50, `compared ${compared}`)
})

test('the example is right, by the check and by the schema', async () => {
  const text = readFileSync(join(ROOT, 'examples/sotto.yaml'), 'utf8')
  assert.equal((await check(text, {})).problems, [])
  assert.ok(new Ajv({ strict: false }).compile(configSchema())(parse(text)))
  assert.match(text, /^# yaml-language-server: \$schema=\.\.\/docs\/sotto\.schema\.json\n/)
})

test('docs/sotto.schema.json and the tables of docs/config.md are those of now', () => {
  const hint = 'run: node_modules/.bin/bun compile/config.ts'
  assert.is(readFileSync(join(ROOT, 'docs/sotto.schema.json'), 'utf8'), schemaText(), hint)
  const page = readFileSync(join(ROOT, 'docs/config.md'), 'utf8')
  assert.is(page, withTable(page), hint)
  for (const name of Object.keys(CONFIG.fields)) assert.ok(page.includes(`| \`${name}\` |`), name)
})

test('the file is found by flag, folder, profile, in this order', async () => {
  const { world, dir, close } = await testWorld()
  try {
    const here = { ...world, directory: dir }
    const missing = await findConfig(here, undefined).catch((error) => error)
    assert.ok(isTunnelError(missing, 'config/none'))
    await world.files.write(`${dir}/home/sotto.yaml`, utf8('tunnels: {}'))
    assert.is(await findConfig(here, undefined), `${dir}/home/sotto.yaml`)
    await world.files.write(`${dir}/sotto.yaml`, utf8('tunnels: {}'))
    assert.is(await findConfig(here, undefined), `${dir}/sotto.yaml`)
    await world.files.write(`${dir}/other.yaml`, utf8('tunnels: {'))
    assert.is(await findConfig(here, 'other.yaml'), `${dir}/other.yaml`)
    const wrong = await loadConfig(here, `${dir}/other.yaml`).catch((error) => error)
    assert.ok(isTunnelError(wrong, 'config/syntax'))
    assert.match(wrong.message, /other\.yaml:1:\d+: /)
  } finally {
    await close()
  }
})

test('attack: a file of another user in the folder one happens to be in is not taken unasked', async () => {
  const t = await testWorld()
  const path = `${t.dir}/sotto.yaml`
  await t.world.files.write(path, utf8('tunnels: {web: {http: 3000}}\n'))
  const owned = (own: boolean, system: boolean): typeof t.world => ({
    ...t.world,
    directory: t.dir,
    files: {
      ...t.world.files,
      info: async (one) => {
        const info = await t.world.files.info(one)
        return info && { ...info, own, system }
      },
    },
  })
  try {
    await findConfig(owned(false, false), undefined)
    assert.unreachable('it was taken')
  } catch (error) {
    assert.ok(isTunnelError(error, 'config/foreign'), String(error))
  }
  assert.is(await findConfig(owned(false, false), 'sotto.yaml'), path)
  assert.is(await findConfig(owned(false, true), undefined), path)
  await t.close()
})

test('the key comes from a file that others cannot read', async () => {
  const { world, dir, close } = await testWorld()
  try {
    const path = `${dir}/key`
    const config = (await check('tunnels: {}')).config!
    const withFile = { ...config, apiKeyFile: path }
    const fails = async (): Promise<string> =>
      (await configWorld(world, withFile).catch((error) => error)).message
    assert.match(await fails(), /no such file/)
    await world.files.write(path, utf8('sk_one\n'))
    assert.is((await configWorld(world, withFile)).env['SOTTO_API_KEY'], 'sk_one')
    const { chmod } = await import('node:fs/promises')
    await chmod(path, 0o644)
    assert.match(await fails(), /mode 644, expected 600/)
  } finally {
    await close()
  }
})

test.run()
