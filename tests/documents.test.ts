// What the documents say can be looked up: tables against the code, files and links that exist,
// scripts that package.json has.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { HELLO_REFUSALS, TLS_ALERTS } from '../core/client_hello.ts'
import { SETTINGS } from '../relay/settings.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8')
const documents = ['.', 'docs', 'docs/decisions'].flatMap((folder) =>
  readdirSync(join(ROOT, folder))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(folder, name))
)

const test = suite('documents')

test('docs/protocol.md has each refusal of a ClientHello with its alert, and no other', () => {
  const names = new Map(Object.entries(TLS_ALERTS).map(([name, number]) => [number, name]))
  const expected = Object.entries(HELLO_REFUSALS)
    .map(([reason, alert]) => `| \`${reason}\` | ${alert} \`${names.get(alert)}\` |`)
  const rows = [...read('docs/protocol.md').matchAll(/^\| `[\w-]+` \| \d+ `\w+` \|/gm)]
  assert.equal(rows.map(([row]) => row), expected)
})

test('every source and test file that a document names exists', () => {
  const gone: string[] = []
  for (const path of documents) {
    const named = read(path).matchAll(/`((?:core|relay|agent|tests|compile|docs)\/[\w./-]+)`/g)
    for (const [, file] of named) {
      if (!existsSync(join(ROOT, file!))) gone.push(`${path} names ${file}`)
    }
  }
  assert.equal(gone, [])
})

test('every link between documents leads somewhere', () => {
  const broken: string[] = []
  for (const path of documents) {
    for (const [, link] of read(path).matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      // Written by a benchmark run, so absent until one was made.
      if (link!.startsWith('benchmarks/results/')) continue
      if (!existsSync(join(ROOT, dirname(path), link!))) broken.push(`${path} links ${link}`)
    }
  }
  assert.equal(broken, [])
})

test('every "npm run" in the documents is a script of package.json', () => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> }
  for (const path of documents) {
    for (const [, name] of read(path).matchAll(/npm run ([\w:]+)/g)) {
      assert.ok(scripts[name!] !== undefined, `${path} runs ${name}`)
    }
  }
})

test('every flag with which docs/deploy.md starts a relay is a setting', () => {
  const flags = new Set(SETTINGS.map(({ flag }) => flag))
  const started = [
    ...read('docs/deploy.md').matchAll(
      /(?:sotto relay|main\.ts relay|relay:node --|serve\/deno\.ts) (--.*)/g,
    ),
  ]
  assert.ok(started.length >= 4)
  for (const [line, words] of started) {
    for (const [, flag] of words!.matchAll(/--([a-z-]+)/g)) assert.ok(flags.has(flag!), line)
  }
})

test.run()
