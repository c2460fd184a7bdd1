/**
 * Where a code that another machine shows comes from: `SOTTO_CODE`, an open file, or the person. Never
 * from the command line, which every user of the machine can read and every shell keeps.
 */
import { text } from '../../core/bytes.ts'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import type { World } from '../world.ts'
import type { Flag, Given } from './page.ts'
import { numberOf } from './page.ts'
import { waitWords } from './screen.ts'
import type { Screen } from './screen.ts'

const FD_MAX = 65_535
const CODE_BYTES_MAX = 4096
/** Typed wrong so many times in a row, somebody is not at the right prompt. */
const ATTEMPTS_MAX = 5

export const CODE_FD_FLAG: Flag = {
  name: 'code-fd',
  value: 'NUMBER',
  without: 'SOTTO_CODE, else a prompt',
  help: 'Read the code from this open file, such as 3 with 3< FILE.',
}

/** Of a page whose command reads codes: what is said to who types one as an argument. */
export const NO_CODE_IN_ARGUMENTS =
  'A code is never taken from the command line: other users of this machine can read it there, and ' +
  'the shell keeps it. Leave it out and type it at the prompt, or set SOTTO_CODE.'

export function codeFdOf(given: Given): number | undefined {
  return numberOf(given, 'code-fd', { min: 0, max: FD_MAX })
}

export interface CodeEntry<T> {
  question: string
  /** Throws what is wrong with it. */
  parse(words: string): T
  complete?(words: string): readonly string[]
}

/**
 * The code, read and parsed. A person may mistype: nothing has been sent by then. Throws what `parse`
 * throws, `code/none`, `code/descriptor`.
 */
export async function readCode<T>(
  world: Pick<World, 'env' | 'files' | 'terminal' | 'signal'>,
  fd: number | undefined,
  { question, parse, complete }: CodeEntry<T>,
): Promise<T> {
  if (fd !== undefined) return parse(await readDescriptor(world, fd))
  const given = world.env['SOTTO_CODE']
  if (given) return parse(given)
  const { terminal, signal } = world
  for (let attempt = 1;; attempt++) {
    const typed = await terminal.prompt({ question, signal, ...(complete && { complete }) })
    if (typed === undefined) {
      throw new TunnelError('code/none', 'Cannot go on without the code: none was given', {
        hint: 'Type it at the prompt, set SOTTO_CODE, or say --code-fd NUMBER.',
      })
    }
    try {
      return parse(typed.trim())
    } catch (thrown) {
      const error = asTunnelError(thrown, 'code/format')
      if (attempt === ATTEMPTS_MAX || !terminal.stderr.isTTY) throw error
      terminal.stderr.write(`${[error.message, error.hint ?? ''].join('\n').trimEnd()}\n`)
    }
  }
}

/** A code on a line of its own, and what to do with it. */
export function showCode(
  world: Pick<World, 'terminal' | 'env' | 'clock'>,
  screen: Screen,
  { code, expires, whom, typed }: { code: string; expires: number; whom: string; typed: string },
): void {
  const { isTTY } = world.terminal.stdout
  const loud = isTTY && !world.env['NO_COLOR'] ? `\x1b[1m${code}\x1b[0m` : code
  const time = waitWords(expires - world.clock.now())
  screen.show('code', [
    { name: 'code', value: code, line: `${isTTY ? '    ' : ''}${loud}\n`, whole: true },
    {
      name: 'expires',
      value: new Date(expires).toISOString(),
      line: `Good for ${time}, ${whom} and one try.\nThere type "${typed}", then this code.`,
    },
  ])
}

async function readDescriptor(world: Pick<World, 'files'>, fd: number): Promise<string> {
  try {
    const content = await world.files.read(`/dev/fd/${fd}`, { bytesMax: CODE_BYTES_MAX })
    const words = content && text(content).trim()
    if (words) return words
  } catch (cause) {
    throw noCode(fd, cause)
  }
  throw noCode(fd)
}

function noCode(fd: number, cause?: unknown): TunnelError {
  return new TunnelError('code/descriptor', `Cannot read a code from descriptor ${fd}`, {
    hint: 'Open it in the shell: sotto pair --code-fd 3 3< FILE',
    cause,
  })
}
