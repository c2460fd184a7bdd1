/**
 * Files of the agent: small, private, replaced in one step. Permissions are 0600 and 0700 from the
 * first moment, never tightened afterwards, so no other user sees a half-made secret.
 */
import { statSync, watch as watchDirectory } from 'node:fs'
import * as fs from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { randomBytes } from 'node:crypto'
import { TunnelError } from '../../core/errors.ts'
import { tryLock } from './lock.ts'
import type { FileInfo, Files } from '../world.ts'
import { openAppender } from './appender.ts'

/** Most that `read` takes in where the caller names no limit. */
const READ_BYTES_MAX = 1_048_576
/** How often a watched file's time and size are compared: finds what events do not, such as a moved link. */
const WATCH_POLL_MS = 2_000
/** Events that come closer together than this become one. */
const WATCH_SETTLE_MS = 60
/** How often a lock that is waited for is tried. */
const LOCK_POLL_MS = 20
const MODE_FILE = 0o600
const MODE_DIRECTORY = 0o700

export const hostFiles: Files = {
  read,
  write,
  append,
  appender: openAppender,
  list,
  remove,
  info,
  watch,
  lock,
}

async function read(
  path: string,
  options: { bytesMax?: number; head?: boolean } = {},
): Promise<Uint8Array | undefined> {
  const bytesMax = options.bytesMax ?? READ_BYTES_MAX
  try {
    const handle = await fs.open(path, 'r')
    try {
      // One byte more than allowed tells a file that is too long, also one that grows meanwhile.
      const buffer = new Uint8Array(Math.min(bytesMax, (await handle.stat()).size) + 1)
      let length = 0
      while (length < buffer.length) {
        const { bytesRead } = await handle.read(buffer, length, buffer.length - length, null)
        if (bytesRead === 0) return buffer.subarray(0, length)
        length += bytesRead
      }
      if (options.head) return buffer.subarray(0, bytesMax)
      throw new TunnelError(
        'files/size',
        `Cannot read ${path}: found more than ${buffer.length - 1} bytes`,
      )
    } finally {
      await handle.close()
    }
  } catch (error) {
    if (reasonOf(error) === 'ENOENT') return undefined
    throw failure('read', path, error)
  }
}

async function write(
  path: string,
  content: Uint8Array,
  { mode = MODE_FILE }: { mode?: number } = {},
): Promise<void> {
  const directory = dirname(path)
  const fresh = join(directory, `.${basename(path)}.${randomBytes(6).toString('hex')}`)
  try {
    await makeDirectory(directory)
    const handle = await fs.open(fresh, 'wx', MODE_FILE)
    try {
      await handle.writeFile(content)
      if (mode !== MODE_FILE) await handle.chmod(mode)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await fs.rename(fresh, path)
    await syncDirectory(directory)
  } catch (error) {
    await fs.rm(fresh, { force: true }).catch(() => {})
    throw failure('write', path, error)
  }
}

async function append(path: string, content: Uint8Array): Promise<void> {
  try {
    await makeDirectory(dirname(path))
    const handle = await fs.open(path, 'a', MODE_FILE)
    try {
      await handle.writeFile(content)
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw failure('append to', path, error)
  }
}

async function list(path: string): Promise<string[]> {
  try {
    return (await fs.readdir(path)).sort()
  } catch (error) {
    if (reasonOf(error) === 'ENOENT') return []
    throw failure('list', path, error)
  }
}

async function remove(path: string): Promise<void> {
  try {
    await fs.unlink(path)
  } catch (error) {
    if (reasonOf(error) !== 'ENOENT') throw failure('remove', path, error)
  }
}

async function info(path: string): Promise<FileInfo | undefined> {
  try {
    const found = await fs.stat(path)
    const user = process.getuid?.()
    return {
      bytes: found.size,
      mode: found.mode & 0o777,
      modifiedMs: found.mtimeMs,
      own: user === undefined || found.uid === user,
      ...(user === undefined ? {} : { system: found.uid === 0 }),
      directory: found.isDirectory(),
    }
  } catch (error) {
    if (reasonOf(error) === 'ENOENT' || reasonOf(error) === 'ENOTDIR') return undefined
    throw failure('look at', path, error)
  }
}

function watch(path: string, changed: () => void): () => void {
  let stopped = false
  let settle: ReturnType<typeof setTimeout> | undefined
  // Taken before anything else can happen: what changes after this call is told.
  let seen = stateOf(path)
  function tell(): void {
    if (stopped || settle) return
    settle = setTimeout(() => {
      settle = undefined
      if (!stopped) compare()
    }, WATCH_SETTLE_MS)
    settle.unref()
  }
  function compare(): void {
    const now = stateOf(path)
    if (now === seen) return
    seen = now
    changed()
  }
  const poll = setInterval(compare, WATCH_POLL_MS)
  poll.unref()
  // The directory is watched, not the file: replacing a file gives its name to another one.
  let watcher: ReturnType<typeof watchDirectory> | undefined
  try {
    watcher = watchDirectory(dirname(path), { persistent: false }, (_, name) => {
      if (name === null || name === basename(path)) tell()
    })
    watcher.on('error', () => {})
  } catch {
    // No watches left, or no directory yet: the poll finds changes, only later.
  }
  return () => {
    stopped = true
    clearInterval(poll)
    clearTimeout(settle)
    watcher?.close()
  }
}

function stateOf(path: string): string {
  try {
    const found = statSync(path, { bigint: true })
    return `${found.mtimeNs} ${found.ctimeNs} ${found.size} ${found.ino}`
  } catch {
    return 'none'
  }
}

/**
 * The lock is SQLite's own on an empty database: the system drops it with the process, whatever ends
 * that, so there is no stale lock to guess about.
 */
async function lock(
  path: string,
  options: { waitMs?: number } = {},
): Promise<(() => Promise<void>) | undefined> {
  // Only where it is not there: POSIX drops a process's locks on a file as soon as it closes any
  // descriptor of it, so a file that may be locked is opened by SQLite alone.
  if (!await info(path)) await append(path, new Uint8Array(0))
  const untilMs = performance.now() + (options.waitMs ?? 0)
  for (;;) {
    const release = await tryLock(path).catch((error) => {
      throw failure('lock', path, error)
    })
    if (release || performance.now() >= untilMs) return release
    // A timer that keeps the process alive: whoever waits for a lock has something to finish.
    await new Promise((resolve) => setTimeout(resolve, LOCK_POLL_MS))
  }
}

async function makeDirectory(path: string): Promise<void> {
  await fs.mkdir(path, { recursive: true, mode: MODE_DIRECTORY })
}

/** Makes a rename survive a power cut, where the system can. */
async function syncDirectory(path: string): Promise<void> {
  try {
    const handle = await fs.open(path, 'r')
    try {
      await handle.sync()
    } finally {
      await handle.close()
    }
  } catch {
    // Some systems cannot sync a directory; the file itself is synced.
  }
}

function reasonOf(error: unknown): string | undefined {
  return (error as { code?: string } | null)?.code
}

function failure(action: string, path: string, error: unknown): TunnelError {
  if (error instanceof TunnelError) return error
  const code = reasonOf(error)
  const [reason, hint] = code === 'EACCES' || code === 'EPERM' || code === 'EROFS'
    ? ['denied', `Give your user access to ${path}`]
    : code === 'ENOSPC' || code === 'EDQUOT'
    ? ['full', 'Free some space on the disk']
    : ['failed', undefined]
  const text = error instanceof Error ? error.message : String(error)
  return new TunnelError(`files/${reason}`, `Cannot ${action} ${path}: ${code ?? text}`, {
    cause: error,
    ...(hint === undefined ? {} : { hint }),
  })
}
