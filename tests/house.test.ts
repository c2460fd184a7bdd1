// The house inspects itself: layers with their reasons, what the relay is built without, the frame
// table against docs/protocol.md, lengths, suites that really run, dependencies that are explained.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { FRAME, RESET, VISIT } from '../core/frame.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const FILE_LINES_MAX = 600
const FUNCTION_LINES_MAX = 70

/** core's order is total: a file imports only files before it, so a cycle cannot be written. */
const CORE_ORDER = [
  'errors',
  'bytes',
  'address',
  'proxy_protocol',
  'clock',
  'socket',
  'duplex_conn',
  'native_conn',
  'primitive',
  'crypto',
  'dns',
  'resolver',
  'minisign',
  'release',
  'cipher',
  'noise',
  'key',
  'glob',
  'selector',
  'passport',
  'client_hello',
  'stun',
  'frame',
  'batch_socket',
  'exchange',
  'credential',
  'labels',
  'greeting',
  'admit',
  'login',
  'ticket',
  'queue',
  'window',
  'stream',
  'mux',
  'shared_link',
  'chain',
  'transcript',
  'envelope',
  'replay',
  'records',
  'datagram',
  'resume',
  'exporter',
  'opening',
  'session_options',
  'session',
  'initiate',
  'responder',
  'ristretto',
  'pake',
  'code',
  'pairing',
  'statement',
  'sas',
  'agreement',
  'trail',
  'audit',
  'compare',
  'renewal',
]
/** Code that could open a session, or look into one; the relay must never reach it. */
const SESSION_CODE = [
  'core/session.ts',
  'core/initiate.ts',
  'core/responder.ts',
  'core/opening.ts',
  'core/exporter.ts',
  'core/records.ts',
  'core/datagram.ts',
  'core/cipher.ts',
  'core/noise.ts',
  'core/pake.ts',
  'core/pairing.ts',
  'core/sas.ts',
  'core/agreement.ts',
  'core/transcript.ts',
  'core/trail.ts',
  'core/audit.ts',
  'core/compare.ts',
]

interface Rule {
  from: RegExp
  /** Null when the imports are fine. */
  refuses(target: string, from: string): boolean
  reason: string
}

const external = (target: string): boolean =>
  !/^(core|relay|agent|compile|tests|benchmarks)\//.test(target)
const named = (target: string, packages: RegExp): boolean =>
  external(target) && packages.test(target)
const ADAPTERS = /^(relay\/serve|agent\/host)\//

const RULES: Rule[] = [
  {
    from: /^core\//,
    refuses: (target) => !target.startsWith('core/') && !/^@(noble|scure)\//.test(target),
    reason: 'core is the shared protocol: it imports core and the noble and scure packages alone',
  },
  {
    from: /^core\/(?!(primitive|ristretto)\.ts)/,
    refuses: (target) => named(target, /^@noble\//),
    reason: 'cryptography comes out of core/primitive.ts and core/ristretto.ts alone',
  },
  {
    from: /^(?!core\/crypto\.ts)(core|relay|agent)\//,
    refuses: (target) => target === 'core/primitive.ts',
    reason: 'all cryptography comes through one door, core/crypto.ts',
  },
  {
    from: /^relay\//,
    refuses: (target) => target.startsWith('agent/'),
    reason: 'relay and agent never meet: a relay must not carry the code of an agent',
  },
  {
    from: /^agent\/(?!commands\/(relay|demo|backup)\.ts)/,
    refuses: (target) => target.startsWith('relay/'),
    reason: 'agent and relay never meet but in the command that runs a relay',
  },
  {
    from: /^(?!relay\/serve\/)(relay|core)\//,
    refuses: (target) => target.startsWith('relay/serve/'),
    reason: 'nothing imports serve/ but the command that runs a relay: routing names no runtime',
  },
  {
    from:
      /^(?!relay\/serve\/|agent\/host\/|agent\/main\.ts|agent\/wireguard-wasm\/load_file\.ts)(core|relay|agent)\//,
    refuses: (target) => /^(node:|bun$|bun:|cloudflare:)/.test(target),
    reason:
      'only relay/serve, agent/host, agent/main.ts and the loader of a package name a runtime',
  },
  {
    from: /^agent\/wireguard-wasm\//,
    refuses: (target) =>
      !target.startsWith('agent/wireguard-wasm/') && target !== 'node:fs/promises',
    reason: 'wireguard-wasm is a package of its own, for those who have nothing else of this house',
  },
  {
    from: /^agent\/commands\//,
    refuses: (target) => target.startsWith('agent/commands/'),
    reason: 'a command imports no other command',
  },
  {
    from: /^(core|relay|agent)\//,
    refuses: (target) => /^(tests|benchmarks|compile)\//.test(target),
    reason: 'nothing imports tests, benchmarks or compile',
  },
]

function files(folder: string): string[] {
  if (!existsSync(join(ROOT, folder))) return []
  return readdirSync(join(ROOT, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`
    if (entry.isDirectory()) return entry.name === 'node_modules' ? [] : files(path)
    return /(?<!\.d)\.tsx?$/.test(entry.name) ? [path] : []
  })
}

const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8')

function imports(path: string): string[] {
  return ts.preProcessFile(read(path), true, true).importedFiles.map(({ fileName }) =>
    fileName.startsWith('.') ? relative(ROOT, join(ROOT, dirname(path), fileName)) : fileName
  )
}

const SOURCES = ['core', 'relay', 'agent'].flatMap(files)
const ALL = [...SOURCES, ...['compile', 'tests', 'benchmarks'].flatMap(files)]

const house = suite('house')

house('every import follows the layers', () => {
  const broken: string[] = []
  for (const path of SOURCES) {
    for (const target of imports(path)) {
      for (const rule of RULES) {
        if (rule.from.test(path) && rule.refuses(target, path)) {
          broken.push(`${path} imports ${target}: ${rule.reason}`)
        }
      }
    }
  }
  assert.equal(broken, [])
})

house('core imports in one total order', () => {
  const place = new Map(CORE_ORDER.map((name, i) => [`core/${name}.ts`, i]))
  const broken: string[] = []
  for (const path of files('core')) {
    const at = place.get(path)
    if (at === undefined) broken.push(`${path} has no place in the order`)
    for (const target of imports(path)) {
      if (target.startsWith('core/') && (place.get(target) ?? Infinity) >= (at ?? -1)) {
        broken.push(`${path} imports ${target}, which comes after it`)
      }
    }
  }
  assert.equal(broken, [])
  for (const name of CORE_ORDER) {
    assert.ok(existsSync(join(ROOT, `core/${name}.ts`)), `core/${name}.ts is gone`)
  }
})

house('each rule of the layer table still speaks of files that exist', () => {
  for (const rule of RULES) assert.ok(SOURCES.some((path) => rule.from.test(path)), rule.reason)
})

house('the relay is built without the code that could open a session', () => {
  const seen = new Set<string>()
  const queue = files('relay')
  for (let path = queue.pop(); path !== undefined; path = queue.pop()) {
    if (seen.has(path)) continue
    seen.add(path)
    for (const target of imports(path)) if (!external(target)) queue.push(target)
  }
  assert.ok(seen.has('core/frame.ts'))
  for (const path of SESSION_CODE) assert.not.ok(seen.has(path), `the relay reaches ${path}`)
  for (const path of seen) assert.not.match(path, /^agent\//)
})

house('no source outside the adapters touches a runtime global', () => {
  const broken: string[] = []
  for (const path of SOURCES) {
    if (ADAPTERS.test(path) || path === 'agent/main.ts') continue
    const source = ts.createSourceFile(path, read(path), ts.ScriptTarget.Latest, true)
    const visit = (node: ts.Node): void => {
      if (
        ts.isPropertyAccessExpression(node) && ts.isIdentifier(node.expression) &&
        /^(Bun|Deno|process)$/.test(node.expression.text)
      ) {
        broken.push(`${path}: ${node.getText().slice(0, 40)}`)
      }
      ts.forEachChild(node, visit)
    }
    visit(source)
  }
  assert.equal(broken, [])
})

house('docs/protocol.md repeats the tables of core/frame.ts', () => {
  const protocol = read('docs/protocol.md')
  for (const [name, number] of Object.entries(FRAME)) {
    assert.ok(
      protocol.includes(`| 0x${number.toString(16).padStart(2, '0')} | \`${name}\` |`),
      `frame ${name}`,
    )
  }
  const frames = protocol.slice(protocol.indexOf('### Frames'), protocol.indexOf('### Visits'))
  const rows = [...frames.matchAll(/^\| 0x([0-9a-f]{2}) \| `(\w+)` \|/gm)]
  assert.is(rows.length, Object.keys(FRAME).length)
  for (const [name, number] of Object.entries(RESET)) {
    assert.ok(protocol.includes(`| ${number} | \`${name}\` |`), `reset ${name}`)
  }
  for (const [name, number] of Object.entries(VISIT)) {
    assert.ok(protocol.includes(`${number} \`${name}\`:`), `visit ${name}`)
  }
})

house('files and functions stay short', () => {
  const broken: string[] = []
  for (const path of ALL) {
    const content = read(path)
    const lines = content.split('\n').length
    if (lines > FILE_LINES_MAX) broken.push(`${path}: ${lines} lines`)
    if (/^(tests|benchmarks)\//.test(path)) continue
    const source = ts.createSourceFile(path, content, ts.ScriptTarget.Latest, true)
    const visit = (node: ts.Node): void => {
      if ((ts.isFunctionDeclaration(node) || ts.isMethodDeclaration(node)) && node.body) {
        const first = source.getLineAndCharacterOfPosition(node.getStart()).line
        const last = source.getLineAndCharacterOfPosition(node.end).line
        if (last - first + 1 > FUNCTION_LINES_MAX) {
          broken.push(`${path}: ${node.name?.getText()} has ${last - first + 1} lines`)
        }
      }
      ts.forEachChild(node, visit)
    }
    visit(source)
  }
  assert.equal(broken, [])
})

house('every suite really runs', () => {
  for (const path of files('tests').filter((path) => path.endsWith('.test.ts'))) {
    // A suite of its own, or the one suite that all runtimes share.
    assert.match(
      read(path),
      /(\.run\(\)|^conformance\(.*\))\s*$/m,
      `${path} does not end in run()`,
    )
    assert.not.match(read(path), /\.(skip|only)\(/, `${path} skips`)
  }
})

house('every dependency is pinned and explained, and the lockfile names no host', () => {
  const manifest = JSON.parse(read('package.json')) as Record<string, Record<string, string>>
  const why = read('docs/decisions/dependencies.md')
  for (
    const [name, version] of [
      ...Object.entries(manifest['dependencies']!),
      ...Object.entries(manifest['devDependencies']!),
    ]
  ) {
    assert.match(version, /^\d+\.\d+\.\d+(-[\w.]+)?$/, `${name} is not pinned`)
    assert.ok(
      why.includes(`\`${name}\``),
      `docs/decisions/dependencies.md does not say why ${name} is here`,
    )
  }
  assert.not.match(read('package-lock.json'), /"resolved": "https?:/)
})

house('every source file says what it is for', () => {
  for (const path of SOURCES) {
    assert.match(read(path).slice(0, 40), /^(\/\*\* @jsx|\/\*\*|\/\/)/, `${path} has no header`)
  }
})

house('prose speaks of the project alone', () => {
  const docs = [
    'README.md',
    'ARCHITECTURE.md',
    'CONTRIBUTING.md',
    'SECURITY.md',
    'CHANGELOG.md',
    ...readdirSync(join(ROOT, 'docs')).map((name) => `docs/${name}`),
    ...readdirSync(join(ROOT, 'docs/decisions')).map((name) => `docs/decisions/${name}`),
  ]
  for (const path of docs) {
    if (!path.endsWith('.md') || !statSync(join(ROOT, path)).isFile()) continue
    assert.not.match(read(path), /registry\.npmjs|\/work\/|\/root\/|\bTODO\b/, path)
    assert.is(read(path).match(/^# /gm)?.length, 1, `${path} has one title`)
  }
})

house.run()
