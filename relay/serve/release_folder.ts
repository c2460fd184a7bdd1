/** The folder of `--downloads` behind the port of relay/downloads.ts, on Bun, Node and Deno. */
import { constants } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { TunnelError } from '../../core/errors.ts'
import type { ReleaseFiles } from '../downloads.ts'

/** Neither follows a link nor waits for who would write to a pipe. */
const FLAGS = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)
const ABSENT = ['ENOENT', 'ELOOP', 'EMLINK', 'ENOTDIR', 'EISDIR', 'ENXIO', 'EACCES']

/** Throws `relay/downloads` where `folder` is none. */
export async function releaseFolder(folder: string): Promise<ReleaseFiles> {
  const found = await stat(folder).catch(() => undefined)
  if (!found?.isDirectory()) {
    throw new TunnelError(
      'relay/downloads',
      `Cannot hand out downloads: found ${
        found ? 'no folder' : 'nothing'
      } at ${folder}, expected a folder`,
      { hint: 'It is the folder that holds SHA256SUMS and the programs.' },
    )
  }
  return {
    async open(name) {
      try {
        const file = await open(join(folder, name), FLAGS)
        const is = await file.stat()
        if (!is.isFile()) {
          await file.close()
          return undefined
        }
        return {
          bytes: is.size,
          modifiedMs: is.mtimeMs,
          async read(offset, length) {
            const { buffer, bytesRead } = await file.read(new Uint8Array(length), 0, length, offset)
            return buffer.subarray(0, bytesRead)
          },
          close: () => file.close(),
        }
      } catch (error) {
        if (ABSENT.includes((error as { code?: string }).code ?? '')) return undefined
        throw error
      }
    },
  }
}
