/**
 * The system around this process, and word to its service manager by sd_notify(3): one datagram to the
 * unix socket that `NOTIFY_SOCKET` names. `systemd-notify` is no way, since the manager would see
 * another process than the one that it watches.
 */
import { existsSync, realpathSync } from 'node:fs'
import type { System } from '../world.ts'
import {
  AF_UNIX,
  CLOCK_MONOTONIC,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  openLibc,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
} from './libc.ts'

/** `sun_path` of unix(7), with its final zero byte. */
const PATH_BYTES_MAX = 108
const AT = 0x40
/** How long a manager that takes nothing is tried. */
const SEND_TRIES = 40
const SEND_AGAIN_MS = 50

const PLATFORMS: Readonly<Record<string, System['platform']>> = {
  linux: 'linux',
  darwin: 'darwin',
  win32: 'windows',
}

export const hostSystem: System = {
  platform: PLATFORMS[process.platform] ?? 'other',
  uid: process.getuid?.(),
  get self() {
    // A compiled program has no script of its own on the disk.
    const script = process.argv[1]
    const compiled = script === undefined || /^(\/\$bunfs\/|[A-Z]:\\~BUN\\|B:\/~BUN\/)/.test(script)
    return [process.execPath, ...(compiled ? [] : [realPath(script)])]
  },
  monotonicUs,
  notify: (assignments) => notifySocket(process.env['NOTIFY_SOCKET'], assignments),
}

/** A program that another one evaluates has words there that name no file. */
function realPath(script: string): string {
  try {
    return realpathSync(script)
  } catch {
    return script
  }
}

/** Sends the assignments to the socket `name`: a path, or `@NAME` of the abstract namespace. */
export async function notifySocket(
  name: string | undefined,
  assignments: readonly string[],
): Promise<boolean> {
  if (!name || process.platform !== 'linux') return false
  const path = new TextEncoder().encode(name)
  const isAbstract = path[0] === AT
  if (!(isAbstract || name.startsWith('/')) || path.length >= PATH_BYTES_MAX) return false
  const address = new Uint8Array(2 + path.length + (isAbstract ? 0 : 1))
  // The family is in the machine's own order, which is little-endian on all that we build for.
  new DataView(address.buffer).setUint16(0, AF_UNIX, true)
  address.set(path, 2)
  if (isAbstract) address[2] = 0
  const message = new TextEncoder().encode(assignments.map((one) => `${one}\n`).join(''))
  try {
    const { libc, ptr } = await openLibc()
    const fd = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if (fd < 0) return false
    try {
      const send = (): boolean => {
        const flags = MSG_NOSIGNAL | MSG_DONTWAIT
        const sent = libc.sendto(
          fd,
          ptr(message),
          message.length,
          flags,
          ptr(address),
          address.length,
        )
        return Number(sent) === message.length
      }
      // A manager that is busy has a full queue: to wait in the call would hold up everything here.
      for (let left = SEND_TRIES; left > 0; left--) {
        if (send()) return true
        if (!existing(name)) return false
        await new Promise((resolve) => setTimeout(resolve, SEND_AGAIN_MS))
      }
      return false
    } finally {
      libc.close(fd)
    }
  } catch {
    // A runtime without them, such as Node: the manager hears nothing.
    return false
  }
}

/** Whether there may be somebody at the address; of an abstract one nothing tells. */
function existing(name: string): boolean {
  return name.startsWith('@') || existsSync(name)
}

/** CLOCK_MONOTONIC, of which runtimes hand out differences alone. */
async function monotonicUs(): Promise<number | undefined> {
  if (process.platform !== 'linux') return undefined
  try {
    const { libc, ptr } = await openLibc()
    // Two 64-bit numbers: seconds and nanoseconds.
    const time = new BigInt64Array(2)
    if (libc.clock_gettime(CLOCK_MONOTONIC, ptr(time)) !== 0) return undefined
    return Number(time[0]! * 1_000_000n + time[1]! / 1000n)
  } catch {
    return undefined
  }
}
