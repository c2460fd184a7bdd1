/**
 * The compiled program as a file. On Linux and macOS a rename takes the place of a program that runs;
 * Windows lets a program that runs be moved but not replaced, so there it is moved away first.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Hash } from 'node:crypto'
import { createReadStream, existsSync, realpathSync } from 'node:fs'
import * as fs from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { TunnelError } from '../../core/errors.ts'
import type { OwnProgram, StagedProgram } from '../own_program.ts'

/** Put in by compile/binary.ts. */
declare const SOTTO_RELEASE_KEYS: string | undefined
declare const SOTTO_TARGET: string | undefined

const STAGED_BEGIN = '.sotto.update.'
const PREVIOUS = '.sotto.previous'
/** Of /proc, that is looked through for others that run. */
const PROCESSES_MAX = 20_000

export function hostOwnProgram(): OwnProgram {
  // Undefined in sources, and so is every process that a bundler has not been over.
  const keys = typeof SOTTO_RELEASE_KEYS === 'string' ? SOTTO_RELEASE_KEYS : undefined
  const target = typeof SOTTO_TARGET === 'string' ? SOTTO_TARGET : undefined
  return ownProgram({
    path: keys === undefined ? undefined : realpathSync(process.execPath),
    target,
    releaseKeys: (keys ?? '').split(' ').filter((key) => key !== ''),
  })
}

export function ownProgram(
  facts: Pick<OwnProgram, 'path' | 'target' | 'releaseKeys'>,
  { windows = process.platform === 'win32' }: { windows?: boolean } = {},
): OwnProgram {
  const { path } = facts
  const folder = path === undefined ? '' : dirname(path)
  const previous = path === undefined
    ? undefined
    : join(folder, windows ? `${PREVIOUS}.exe` : PREVIOUS)
  const fresh = (): string => join(folder, `${STAGED_BEGIN}${randomBytes(6).toString('hex')}`)
  /** Gives `to` what is at `from`, which stays. */
  const copy = async (from: string, to: string): Promise<void> => {
    await fs.link(from, to).catch(async () => {
      // A file system without links, such as FAT.
      await fs.copyFile(from, to)
      await sync(to)
    })
  }
  const put = async (from: string, to: string): Promise<void> => {
    if (!windows) {
      await fs.rename(from, to)
      return
    }
    const away = fresh()
    await fs.rename(to, away)
    await fs.rename(from, to).catch(async (error) => {
      await fs.rename(away, to)
      throw error
    })
    // Still running: the next update removes it.
    await fs.rm(away, { force: true }).catch(() => {})
  }
  return {
    ...facts,
    previous,
    hash: (file) => failing('read', file, () => hashOf(file)),
    tidy: () => failing('look at', folder, () => tidy(folder)),
    stage: () => failing('write to', folder, () => stage(folder, fresh())),
    replace: (from) =>
      failing('replace', path!, async () => {
        const kept = fresh()
        await copy(path!, kept)
        try {
          await fs.rename(kept, previous!)
        } catch (error) {
          await fs.rm(kept, { force: true })
          throw error
        }
        await put(from, path!)
        await sync(folder).catch(() => {})
      }),
    isPreviousOurs: () =>
      failing('look at', previous!, async () => {
        const [before, now] = await Promise.all([fs.lstat(previous!), fs.lstat(path!)])
        return before.isFile() &&
          (windows || ([now.uid, 0].includes(before.uid) && (before.mode & 0o002) === 0))
      }),
    restore: () =>
      failing('replace', path!, async () => {
        const kept = fresh()
        await copy(path!, kept)
        await put(previous!, path!)
        await fs.rename(kept, previous!)
        await sync(folder).catch(() => {})
      }),
    running: () => path === undefined ? Promise.resolve([]) : runningAt(path),
  }
}

async function tidy(folder: string): Promise<void> {
  for (const name of await fs.readdir(folder)) {
    // One that still runs stays, on Windows.
    if (name.startsWith(STAGED_BEGIN)) {
      await fs.rm(join(folder, name), { force: true }).catch(() => {})
    }
  }
}

async function stage(folder: string, path: string): Promise<StagedProgram> {
  await tidy(folder)
  const named = path + (process.platform === 'win32' ? '.exe' : '')
  const handle = await fs.open(named, 'wx', 0o600)
  let hash: Hash = createHash('sha256')
  let at = 0
  let closed = false
  const close = async (): Promise<void> => {
    if (!closed) await handle.close()
    closed = true
  }
  return {
    path: named,
    write: (bytes) =>
      failing('write', named, async () => {
        for (let from = 0; from < bytes.length;) {
          const { bytesWritten } = await handle.write(bytes, from, bytes.length - from, at)
          from += bytesWritten
          at += bytesWritten
        }
        hash.update(bytes)
      }),
    restart: () =>
      failing('write', named, async () => {
        hash = createHash('sha256')
        at = 0
        await handle.truncate(0)
      }),
    finish: () =>
      failing('write', named, async () => {
        await handle.sync()
        await close()
        return hash.digest('hex')
      }),
    allow: () => failing('change', named, () => fs.chmod(named, 0o755)),
    async discard() {
      await close().catch(() => {})
      await fs.rm(named, { force: true }).catch(() => {})
    },
  }
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path)) hash.update(chunk as Uint8Array)
  return hash.digest('hex')
}

async function sync(path: string): Promise<void> {
  const handle = await fs.open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function runningAt(path: string): Promise<number[]> {
  if (!existsSync('/proc/self/exe')) return []
  const found: number[] = []
  for (const name of (await fs.readdir('/proc')).slice(0, PROCESSES_MAX)) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue
    const exe = await fs.readlink(`/proc/${name}/exe`).catch(() => '')
    // After the replacement the system says so of the file that it runs.
    if (exe === path || exe === `${path} (deleted)`) found.push(Number(name))
  }
  return found
}

async function failing<T>(action: string, path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run()
  } catch (error) {
    if (error instanceof TunnelError) throw error
    const { code, message } = error as NodeJS.ErrnoException
    const reason = ['EACCES', 'EPERM', 'EROFS'].includes(code ?? '')
      ? 'denied'
      : ['ENOSPC', 'EDQUOT'].includes(code ?? '')
      ? 'full'
      : 'failed'
    throw new TunnelError(`files/${reason}`, `Cannot ${action} ${path}: ${code ?? message}`, {
      cause: error,
    })
  }
}
