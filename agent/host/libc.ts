/**
 * The few calls of the C library that the runtime has no face for: a datagram to a unix socket, the
 * manager's clock, the path MTU of a socket, many datagrams at once. Linux alone. Loaded when one of them is made, so that starting pays nothing.
 */
import { TunnelError } from '../../core/errors.ts'

/** By soname: glibc, then musl, whose dynamic linker is the library itself. */
const NAMES = ['libc.so.6', `/lib/ld-musl-${muslArch()}.so.1`]

const SYMBOLS = {
  socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
  sendto: { args: ['i32', 'ptr', 'u64', 'i32', 'ptr', 'u32'], returns: 'i64' },
  connect: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
  sendmmsg: { args: ['i32', 'ptr', 'u32', 'i32'], returns: 'i32' },
  recvmmsg: { args: ['i32', 'ptr', 'u32', 'i32', 'ptr'], returns: 'i32' },
  __errno_location: { args: [], returns: 'ptr' },
  getsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'ptr'], returns: 'i32' },
  clock_gettime: { args: ['i32', 'ptr'], returns: 'i32' },
  close: { args: ['i32'], returns: 'i32' },
} as const

export const AF_UNIX = 1
export const AF_INET = 2
export const AF_INET6 = 10
export const SOCK_DGRAM = 2
export const SOCK_CLOEXEC = 0x80000
export const CLOCK_MONOTONIC = 1
export const MSG_NOSIGNAL = 0x4000
export const MSG_DONTWAIT = 0x40

/** The library's functions, `ptr` for their arguments and `read` for what they point to. Throws `host/unsupported`. */
export async function openLibc() {
  const { dlopen, ptr, read } = await import('bun:ffi')
  for (const name of NAMES) {
    try {
      return { libc: dlopen(name, SYMBOLS).symbols, ptr, read }
    } catch {
      // The other one.
    }
  }
  throw new TunnelError('host/unsupported', 'Cannot call the C library: it was not found')
}

function muslArch(): string {
  return process.arch === 'arm64' ? 'aarch64' : 'x86_64'
}
