/** Files that people carry from machine to machine: statements as text, keys in lists. */
import { concat } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { fromBase64 } from '../base64.ts'
import type { World } from '../world.ts'

/** A few thousand statements, or keys. */
const BYTES_MAX = 1_048_576

/** The content of a file, or of standard input where its name is `-`. Throws `files/…`, `cli/file`. */
export async function readWords(world: World, path: string): Promise<Uint8Array> {
  if (path === '-') return await readInput(world)
  const content = await world.files.read(path, { bytesMax: BYTES_MAX })
  if (content) return content
  throw new TunnelError('cli/file', `Cannot read ${path}: it is not there`)
}

/** Makes a file, 0600. Throws `cli/file` where there is one already. */
export async function writeNew(world: World, path: string, content: Uint8Array): Promise<void> {
  if (await world.files.info(path)) {
    throw new TunnelError('cli/file', `Cannot write ${path}: it is there already`)
  }
  await world.files.write(path, content)
}

/** The bytes of a statement in base64, as it is printed, however it was wrapped. Throws `cli/statement`. */
export function readStatement(words: string): Uint8Array {
  try {
    return fromBase64(words.replace(/\s+/g, ''))
  } catch {
    throw new TunnelError('cli/statement', 'Cannot read the statement: expected base64')
  }
}

function readInput(world: World): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const parts: Uint8Array[] = []
    let length = 0
    const conn = world.terminal.stdio()
    conn.handle({
      data(bytes) {
        parts.push(bytes)
        length += bytes.length
        if (length <= BYTES_MAX) return
        conn.abort()
        reject(new TunnelError('cli/file', 'Cannot read standard input: it is too long'))
      },
      end: () => resolve(concat(...parts)),
      closed: () => resolve(concat(...parts)),
    })
  })
}
