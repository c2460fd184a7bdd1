/**
 * An interface of Linux whose packets this program gives and takes (`/dev/net/tun`, tun(4) of the kernel's
 * documentation): IFF_TUN without a head, not persistent, so that it ends with the process, whatever ends
 * that, and its addresses and routes with it.
 *
 * Reading: the runtime's own event loop waits for the descriptor, since it takes a character device that
 * does not block for a stream. It reads packet after packet into one array until there are none; each is whole,
 * since what is left of its buffer is never smaller than 16 KiB when it reads again. Writing is a call of the
 * C library, from the memory in which a packet was opened.
 */
import { TunnelError } from '../../core/errors.ts'
import type { TunDevice } from '../world.ts'

const SYMBOLS = {
  open: { args: ['ptr', 'i32'], returns: 'i32' },
  ioctl: { args: ['i32', 'u64', 'ptr'], returns: 'i32' },
  // A packet has at most 65,535 bytes.
  write: { args: ['i32', 'ptr', 'u64'], returns: 'i32' },
  close: { args: ['i32'], returns: 'i32' },
  __errno_location: { args: [], returns: 'ptr' },
} as const

/** By soname: glibc, then musl, whose dynamic linker is the library itself. */
const NAMES = [
  'libc.so.6',
  `/lib/ld-musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
]
const PATH = '/dev/net/tun'

/** Numbers of Linux on x86-64 and arm64. */
const O_RDWR = 2
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
const TUNSETIFF = 0x400454ca
const IFF_TUN = 0x0001
const IFF_NO_PI = 0x1000
/** An interface that is there already is not taken over. */
const IFF_TUN_EXCL = 0x8000
const IFREQ_BYTES = 40
const FLAGS_AT = 16
const EPERM = 1
const ENOENT = 2
const EACCES = 13
const EBUSY = 16
const ENODEV = 19
const EINVAL = 22
const ENXIO = 6

/** Largest packet that is read whole; see above. */
export const TUN_MTU_MAX = 16_384

type Libc = Awaited<ReturnType<typeof openLibc>>

/** Throws `tun/system`, `tun/denied`, `tun/missing`, `tun/taken`, `tun/failed`. */
export async function openTun(name: string): Promise<TunDevice> {
  if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) {
    throw new TunnelError(
      'tun/system',
      `Cannot make an interface: found ${process.platform} on ${process.arch}, ` +
        'expected Linux on x86-64 or arm64',
      { hint: 'Use the network without one: sotto wg socks5, sotto wg forward' },
    )
  }
  const libc = await openLibc()
  const { call, ptr } = libc
  const path = new TextEncoder().encode(`${PATH}\0`)
  const fd = call.open(ptr(path), O_RDWR | O_NONBLOCK | O_CLOEXEC)
  if (fd < 0) throw problem(errnoOf(libc), name)
  const request = new Uint8Array(IFREQ_BYTES)
  new TextEncoder().encodeInto(name, request.subarray(0, FLAGS_AT - 1))
  new DataView(request.buffer).setUint16(FLAGS_AT, IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL, true)
  if (call.ioctl(fd, BigInt(TUNSETIFF), ptr(request)) < 0) {
    const error = problem(errnoOf(libc), name)
    call.close(fd)
    throw error
  }
  return new Tun(name, fd, libc)
}

class Tun implements TunDevice {
  readonly name: string
  dropped = 0
  readonly #fd: number
  readonly #libc: Libc
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>
  #base = 0
  #buffer: ArrayBufferLike | undefined
  #isClosed = false

  constructor(name: string, fd: number, libc: Libc) {
    this.name = name
    this.#fd = fd
    this.#libc = libc
    // It waits on a descriptor of its own, with the same interface behind it.
    this.#reader = Bun.file(fd).stream().getReader()
  }

  async read(): Promise<Uint8Array | undefined> {
    const { value } = await this.#reader.read().catch(() => ({ value: undefined }))
    return this.#isClosed ? undefined : value
  }

  write(bytes: Uint8Array, from: number, length: number): boolean {
    if (this.#isClosed) return false
    const { call } = this.#libc
    const at = this.#addressOf(bytes) + from
    if (call.write(this.#fd, at as never, length) === length) return true
    this.dropped++
    return false
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await this.#reader.cancel().catch(() => {})
    this.#libc.call.close(this.#fd)
  }

  /** Memory moves when it grows, and is another buffer then. */
  #addressOf(bytes: Uint8Array): number {
    if (bytes.buffer !== this.#buffer) {
      this.#buffer = bytes.buffer
      this.#base = Number(this.#libc.ptr(bytes)) - bytes.byteOffset
    }
    return this.#base + bytes.byteOffset
  }
}

/** Throws `host/unsupported`. */
async function openLibc() {
  const { dlopen, ptr, read } = await import('bun:ffi')
  for (const name of NAMES) {
    try {
      return { call: dlopen(name, SYMBOLS).symbols, ptr, read }
    } catch {
      // The other one.
    }
  }
  throw new TunnelError('host/unsupported', 'Cannot call the C library: it was not found')
}

function errnoOf({ call, read }: Libc): number {
  return read.i32(call.__errno_location()!, 0)
}

function problem(errno: number, name: string): TunnelError {
  if (errno === EPERM || errno === EACCES) {
    return new TunnelError(
      'tun/denied',
      `Cannot make the interface ${name}: found a user who may not, expected root (CAP_NET_ADMIN)`,
      {
        hint: 'Run it as root, whose profile is its own, such as: sudo sotto wg tun NET. ' +
          'Without root: sotto wg socks5, sotto wg forward',
      },
    )
  }
  if ([ENOENT, ENODEV, ENXIO].includes(errno)) {
    return new TunnelError(
      'tun/missing',
      `Cannot make the interface ${name}: there is no ${PATH}`,
      {
        hint: 'As root: modprobe tun. In a container: --device /dev/net/tun --cap-add NET_ADMIN',
      },
    )
  }
  if (errno === EBUSY || errno === EINVAL) {
    return new TunnelError(
      'tun/taken',
      `Cannot make the interface ${name}: there is one of that name already`,
      { hint: 'See "ip link", or take another name: --name sotto1' },
    )
  }
  return new TunnelError(
    'tun/failed',
    `Cannot make the interface ${name}: the system answers error ${errno}`,
  )
}
