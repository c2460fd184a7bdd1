/**
 * Where two processes listen on one port (SO_REUSEPORT), the system shares connections out between them,
 * and those that wait in the queue of one that closes are reset. A filter of one instruction sends all
 * new ones to the second to come; the first empties its queue, and closes without harm to anybody.
 * Linux alone, by the C library; elsewhere, or where it cannot be loaded, nothing changes.
 */
import { dlopen, ptr } from 'bun:ffi'

const SOL_SOCKET = 1
/** Linux's asm-generic/socket.h. */
const SO_ATTACH_REUSEPORT_CBPF = 51
/** `struct sock_filter`: BPF_RET | BPF_K, no jumps, the index of the socket in order of `listen`. */
const TAKE_SECOND = new Uint8Array([0x06, 0, 0, 0, 1, 0, 0, 0])
const LIBRARIES = [
  'libc.so.6',
  'libc.so',
  `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
]

/** True: from now on new connections come to the socket `fd`, where one other listened before it. */
export function steerHere(fd: number): boolean {
  if (process.platform !== 'linux') return false
  for (const library of LIBRARIES) {
    try {
      const { symbols, close } = dlopen(library, {
        setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
      })
      // `struct sock_fprog`: the count of instructions, then where they are.
      const program = new DataView(new ArrayBuffer(16))
      program.setUint16(0, 1, true)
      program.setBigUint64(8, BigInt(ptr(TAKE_SECOND)), true)
      const option = new Uint8Array(program.buffer)
      const result = symbols.setsockopt(
        fd,
        SOL_SOCKET,
        SO_ATTACH_REUSEPORT_CBPF,
        ptr(option),
        option.length,
      )
      close()
      return result === 0
    } catch {
      // Another C library.
    }
  }
  return false
}
