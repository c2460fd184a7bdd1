// docs/commands.md is what the commands say of themselves now.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { everyPage } from '../../agent/cli/program.ts'
import { renderCommands } from '../../compile/commands.ts'

const DOCUMENT = join(fileURLToPath(new URL('../..', import.meta.url)), 'docs', 'commands.md')
const document = readFileSync(DOCUMENT, 'utf8')

const test = suite('agent/commands_document')

test('docs/commands.md is current; else: node_modules/.bin/bun compile/commands.ts > docs/commands.md', async () => {
  assert.is(document, await renderCommands())
})

test('each command has one section, and none is left of a command that is gone', async () => {
  const sections = [...document.matchAll(/^## (.+)$/gm)].map(([, path]) => path)
  assert.equal(sections, (await everyPage()).map(({ path }) => path))
})

test('a page cannot end its own block', async () => {
  for (const { path, text } of await everyPage()) assert.not.match(text, /^```/m, path)
})

test.run()
