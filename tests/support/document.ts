/**
 * Fenced blocks of a document, by the comment before each that says who runs it:
 * `<!-- tests/e2e/deploy.test.ts: firewall -->`.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const MARK = /^<!-- (\S+\.test\.ts): ([\w-]+) -->$/

export interface Block {
  /** The suite that runs it, and what it is called there; undefined: nothing does. */
  suite?: string
  name?: string
  /** `sh`, `text`. */
  language: string
  text: string
  /** The paragraph above it. */
  before: string
  /** Where it begins, from 1. */
  line: number
}

export function blocksOf(path: string): Block[] {
  const lines = readFileSync(join(ROOT, path), 'utf8').split('\n')
  const blocks: Block[] = []
  for (let i = 0; i < lines.length; i++) {
    const [, language] = /^```(\w*)$/.exec(lines[i]!) ?? []
    if (language === undefined) continue
    const end = lines.indexOf('```', i + 1)
    const above = lines.slice(0, i).filter((line) => line !== '')
    const [, suite, name] = MARK.exec(above.at(-1) ?? '') ?? []
    blocks.push({
      ...(suite && name ? { suite, name } : {}),
      language,
      text: `${lines.slice(i + 1, end).join('\n')}\n`,
      before: lines.slice(0, i).join('\n').trimEnd().split('\n\n').at(-1) ?? '',
      line: i + 1,
    })
    i = end
  }
  return blocks
}

/** The text of the one block of that name. */
export function blockOf(path: string, name: string): string {
  const found = blocksOf(path).filter((block) => block.name === name)
  if (found.length !== 1) throw new Error(`${path} has ${found.length} blocks "${name}"`)
  return found[0]!.text
}
