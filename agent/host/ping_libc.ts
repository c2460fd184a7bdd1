/** The calls of the C library for a ping socket (icmp(7), socket(7)). Linux alone; loaded when one is opened. */
import { TunnelError } from '../../core/errors.ts'

const SYMBOLS = {
  socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
  connect: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  send: { args: ['i32', 'ptr', 'u64', 'i32'], returns: 'i64' },
  recv: { args: ['i32', 'ptr', 'u64', 'i32'], returns: 'i64' },
  ioctl: { args: ['i32', 'u64', 'ptr'], returns: 'i32' },
  gettimeofday: { args: ['ptr', 'ptr'], returns: 'i32' },
  close: { args: ['i32'], returns: 'i32' },
} as const

/** By soname: glibc, then musl, whose dynamic linker is the library itself. */
const NAMES = [
  'libc.so.6',
  `/lib/ld-musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
]

/** Numbers of Linux on x86-64 and arm64. */
export const PING = {
  4: { domain: 2, protocol: 1 },
  6: { domain: 10, protocol: 58 },
  /** SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK */
  type: 0x80802,
  /** SIOCGSTAMP: when what was read last had come, as `gettimeofday` says it. */
  stamp: 0x8906n,
} as const

/** Throws `host/unsupported`. */
export async function openPingLibc() {
  const { dlopen, ptr } = await import('bun:ffi')
  for (const name of NAMES) {
    try {
      return { libc: dlopen(name, SYMBOLS).symbols, ptr }
    } catch {
      // The other one.
    }
  }
  throw new TunnelError('host/unsupported', 'Cannot call the C library: it was not found')
}
