/** Files that nobody but the relay may read, each written as a whole or not at all. */
import { chmod, mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { TunnelError } from '../../core/errors.ts'

/** Undefined: there is none. Throws `relay/permissions` where others may read it. */
export async function readSecret(path: string): Promise<Uint8Array | undefined> {
  try {
    const { mode } = await stat(path)
    if ((mode & 0o077) !== 0) {
      throw new TunnelError(
        'relay/permissions',
        `Cannot use ${path}: found mode ${(mode & 0o777).toString(8)}, expected 600`,
        { hint: `chmod 600 ${path}` },
      )
    }
    return new Uint8Array(await readFile(path))
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') return undefined
    throw error
  }
}

/** 0600, in a folder that is made 0700. */
export async function writeSecret(path: string, content: Uint8Array): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const fresh = `${path}.new`
  await writeFile(fresh, content, { mode: 0o600, flush: true })
  await chmod(fresh, 0o600)
  await rename(fresh, path)
}
