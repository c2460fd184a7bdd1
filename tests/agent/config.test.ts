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

/** One tunnel of these fields, on lines from the third on. */
function tunnel(...lines: string[]): string {
  return `tunnels:\n  web:\n${lines.map((line) => `    ${line}\n`).join('')}`
}

const test = suite('agent/config')

/** Text, code, line, column, and the words after "Cannot read ". */
const MISTAKES: [
  text: string,
  code: string,
  line: number,
  column: number,
  words: RegExp | string,
][] = [
  // What is no such file at all.
  [
    '',
    'config/type',
    1,
    1,
    'the file: found nothing, expected names with their values, each "name: value"',
  ],
  ['[]', 'config/type', 1, 1, /the file: found a list/],
  ['tunnels', 'config/type', 1, 1, /the file: found "tunnels"/],
  [
    'relay: a.example',
    'config/missing',
    1,
    1,
    /the file: found no "tunnels", expected one: the tunnels, by name/,
  ],
  ['tunnels: {a', 'config/syntax', 1, 12, /the text: found flow map/],
  ['tunnels:\n\t- a', 'config/syntax', 2, 1, /tabs are not allowed/],
  ['a: "b', 'config/syntax', 1, 6, /missing closing "quote/],
  ['tunnels: !x {}', 'config/syntax', 1, 10, /unresolved tag: !x/],
  ['tunnels: !!binary aGk=', 'config/syntax', 1, 10, /unresolved tag/],
  ['--- {}\n--- {}', 'config/syntax', 2, 1, /multiple documents/],
  // Names.
  [
    'tunels: {}',
    'config/field',
    1,
    1,
    /tunels: found no field of that name, expected relay, .* or tunnels/,
  ],
  [
    'tunnels: {}\ntunnels: {}',
    'config/duplicate',
    2,
    1,
    'tunnels: found it a second time, expected each name once',
  ],
  [
    tunnel('http: 1', 'http: 2'),
    'config/duplicate',
    4,
    5,
    /tunnels\.web\.http: found it a second time/,
  ],
  [
    'tunnels: {Web: {http: 1}}',
    'config/value',
    1,
    11,
    'tunnels.Web: found "Web", expected 1 to 63 of a-z 0-9 and inner hyphens',
  ],
  ['tunnels: {? [a] : {http: 1}}', 'config/type', 1, 13, 'tunnels: found a list, expected a name'],
  ['tunnels: {null: {http: 1}}', 'config/type', 1, 11, 'tunnels: found nothing, expected a name'],
  ['__proto__: 1\ntunnels: {}', 'config/field', 1, 1, /__proto__: found no field of that name/],
  // Kinds.
  ['tunnels: {web: }', 'config/type', 1, 16, /tunnels\.web: found nothing/],
  [
    'tunnels: {web: 3000}',
    'config/type',
    1,
    16,
    /tunnels\.web: found 3000, expected names with their values/,
  ],
  [
    'tunnels: {web: {}}',
    'config/missing',
    1,
    11,
    'tunnels.web: found none of them, expected http, tcp or udp, which leads somewhere',
  ],
  [
    tunnel('http: 1', 'tcp: 2'),
    'config/conflict',
    4,
    5,
    'tunnels.web.tcp: found tcp beside http, expected one of http, tcp or udp',
  ],
  [
    tunnel('http: 1', 'allow: [a]'),
    'config/field',
    4,
    5,
    /tunnels\.web\.allow: found no field of that name, expected http, name, e2ee/,
  ],
  // Values.
  [tunnel('http:'), 'config/type', 3, 10, /tunnels\.web\.http: found nothing, expected a port/],
  [tunnel('http: 0'), 'config/type', 3, 11, /found 0, expected a port/],
  [tunnel('http: 65536'), 'config/type', 3, 11, /found 65536, expected a port/],
  [tunnel('http: 3.5'), 'config/type', 3, 11, /found 3.5/],
  [
    tunnel('http: ftp://a:1'),
    'config/value',
    3,
    11,
    'tunnels.web.http: found "ftp://a:1", expected a port, host:port, http://host:port, https://host[:port] or unix:/path',
  ],
  [tunnel('http: [1]'), 'config/type', 3, 11, /found a list, expected a port/],
  [
    tunnel('udp: unix:/a', 'e2ee: false'),
    'config/value',
    3,
    10,
    'tunnels.web.udp: found "unix:/a", expected a port or host:port',
  ],
  [
    tunnel('http: 1', 'e2ee: flase'),
    'config/type',
    4,
    11,
    'tunnels.web.e2ee: found "flase", expected true or false',
  ],
  [tunnel('http: 1', 'e2ee: "true"'), 'config/type', 4, 11, /found "true", expected true or false/],
  [
    tunnel('udp: 1', 'e2ee: true'),
    'config/value',
    4,
    11,
    'tunnels.web.e2ee: found true, expected false',
  ],
  [
    tunnel('udp: 1'),
    'config/missing',
    2,
    3,
    /tunnels\.web: found no "e2ee", expected one: must be false/,
  ],
  [
    tunnel('tcp: 1', 'allow: alice'),
    'config/type',
    4,
    12,
    'tunnels.web.allow: found "alice", expected a list',
  ],
  [
    tunnel('tcp: 1', 'allow: [a, SHA256:x]'),
    'config/value',
    4,
    16,
    /tunnels\.web\.allow\[1\]: found "SHA256:x"/,
  ],
  [
    tunnel('tcp: 1', 'e2ee: false', 'public-port: 70000'),
    'config/value',
    5,
    18,
    'tunnels.web.public-port: found 70000, expected a whole number from 1 to 65535',
  ],
  [
    tunnel('tcp: 1', 'e2ee: false', 'public-port: x'),
    'config/type',
    5,
    18,
    /found "x", expected a whole number/,
  ],
  [
    tunnel('http: 1', 'proxy-protocol: v3'),
    'config/value',
    4,
    21,
    'tunnels.web.proxy-protocol: found "v3", expected v1 or v2',
  ],
  [tunnel('http: 1', 'name: -a'), 'config/value', 4, 11, /found "-a"/],
  [tunnel('http: 1', 'name: 7'), 'config/type', 4, 11, /found 7, expected 1 to 63/],
  [
    'relay: http://a.example\ntunnels: {}',
    'config/value',
    1,
    8,
    'relay: found "http://a.example", expected https://host[:port]',
  ],
  ['relay: https://u:p@a.example\ntunnels: {}', 'config/value', 1, 8, /relay: found/],
  [
    'relay-fingerprint: SHA256:a\ntunnels: {}',
    'config/value',
    1,
    20,
    /expected a whole fingerprint/,
  ],
  ['labels: {a: A}\ntunnels: {}', 'config/value', 1, 13, /labels\.a: found "A"/],
  ['labels: [a]\ntunnels: {}', 'config/type', 1, 9, /labels: found a list/],
  [
    'certificates: {a: {cert: x}}\ntunnels: {}',
    'config/missing',
    1,
    16,
    /certificates\.a: found no "key", expected one: its key/,
  ],
  // What fields mean for each other.
  [
    tunnel('http: 1', 'e2ee-cert: a.pem'),
    'config/conflict',
    4,
    5,
    'tunnels.web.e2ee-cert: found e2ee-cert alone, expected e2ee-key as well: a certificate has a key',
  ],
  [
    tunnel('http: 1', 'host-header: a', 'e2ee: false'),
    'config/conflict',
    4,
    5,
    /found host-header together with e2ee: false, expected one of them/,
  ],
  [
    tunnel('http: 1', 'host-header: a', 'proxy-protocol: v1'),
    'config/conflict',
    5,
    5,
    /proxy-protocol together with host-header/,
  ],
  [
    tunnel('tcp: 1', 'public: true', 'allow: [a]'),
    'config/conflict',
    5,
    5,
    /allow together with public: true/,
  ],
  [
    tunnel('tcp: 1', 'public-port: 80'),
    'config/conflict',
    4,
    5,
    /found public-port alone, expected e2ee: false as well/,
  ],
  [
    'api-key-file: a\napi-key-env: B\ntunnels: {}',
    'config/conflict',
    2,
    1,
    /api-key-env together with api-key-file/,
  ],
  [
    tunnel('http: 1', 'certificate: x'),
    'config/value',
    4,
    18,
    'tunnels.web.certificate: found "x", expected one of "certificates", of which there is none',
  ],
  [
    'tunnels:\n  a: {http: 1}\n  b: {http: 2, name: a}',
    'config/duplicate',
    3,
    22,
    'tunnels.b.name: found "a", which is the name of tunnels.a as well, expected a name of its own for each tunnel',
  ],
  // Variables.
  [
    tunnel('http: ${NONE}'),
    'config/variable',
    3,
    11,
    'tunnels.web.http: found ${NONE}, which is not set, expected a variable, or a default as in ${NONE:-default}',
  ],
  [
    tunnel('http: $PORT'),
    'config/variable',
    3,
    11,
    /found "\$" in "\$PORT", expected \$\{NAME\}, \$\{NAME:-default\}, or \$\$/,
  ],
  [tunnel('http: "${PORT"'), 'config/variable', 3, 11, /found "\$" in/],
  [tunnel('http: "${EVIL}"'), 'config/value', 3, 11, /found "1, x: 2", expected a port/],
  [
    tunnel('http: 1', 'e2ee: ${PORT}'),
    'config/type',
    4,
    11,
    /found "3000", expected true or false/,
  ],
  [tunnel('http: "${EMPTY}"'), 'config/value', 3, 11, /found "", expected a port/],
  // Secrets.
  ['api-key: x\ntunnels: {}', 'config/secret', 1, 1, /api-key: found a field for a secret/],
  [
    `relay: sk_${'a'.repeat(32)}\ntunnels: {}`,
    'config/secret',
    1,
    8,
    'the text: found a secret, which whoever reads this file could use, expected the name of a file or of a variable that holds it',
  ],
  [tunnel('http: 1', 'host-header: ${KEY}'), 'config/secret', 4, 18, /found a secret/],
  // Aliases and sizes.
  [
    'tunnels: *none',
    'config/alias',
    1,
    10,
    /tunnels: found \*none, expected the name of an anchor/,
  ],
  ['tunnels: &a {b: *a}', 'config/alias', 1, 17, /tunnels\.b: found \*a, which holds itself/],
  [
    `tunnels: {web: {tcp: 1, allow: [${'a,'.repeat(257)}]}}`,
    'config/size',
    1,
    32,
    /found 257 entries, expected at most 256/,
  ],
  [
    `tunnels: {${Array.from({ length: 257 }, (_, i) => `a${i}: {http: 1}`).join()}}`,
    'config/size',
    1,
    10,
    /found 257 entries/,
  ],
]

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
    'e2ee, certificate, e2ee-cert, e2ee-key, host-header, proxy-protocol, tcp, allow, public, ' +
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
