/**
 * An interface of Linux whose packets this program gives and takes (`/dev/net/tun`, tun(4) of the kernel's
 * documentation): IFF_TUN without a head, not persistent, so that it ends with the process, whatever ends
 * that, and its addresses and routes with it.
 *
 * Waiting: a thread of the runtime's pool, which has two at least, waits in a read for as long as the interface is
 * there, and comes back with a packet. (The runtime's loop can wait for the descriptor as well, but gives a packet
 * at a time, and reads on by itself.) What else there is then is taken by calls of the C library that do not wait,
 * straight to where it will be sealed. Only one of the two reads at a time, so that all stays in order. Writing is a
 * call as well, from where a packet was opened.
 */
import { read } from 'node:fs'
import { TunnelError } from '../../core/errors.ts'
import type { TunDevice } from '../world.ts'

const SYMBOLS = {
  open: { args: ['ptr', 'i32'], returns: 'i32' },
  ioctl: { args: ['i32', 'u64', 'ptr'], returns: 'i32' },
  // A packet has at most 65,535 bytes.
  read: { args: ['i32', 'ptr', 'u64'], returns: 'i32' },
  write: { args: ['i32', 'ptr', 'u64'], returns: 'i32' },
  poll: { args: ['ptr', 'u64', 'i32'], returns: 'i32' },
  socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
  send: { args: ['i32', 'ptr', 'u64', 'i32'], returns: 'i32' },
  close: { args: ['i32'], returns: 'i32' },
  if_nametoindex: { args: ['ptr'], returns: 'u32' },
  __errno_location: { args: [], returns: 'ptr' },
} as const
/** Not in every C library. */
const NOWAIT = { preadv2: { args: ['i32', 'ptr', 'i32', 'i64', 'i32'], returns: 'i32' } } as const

/** By soname: glibc, then musl, whose dynamic linker is the library itself. */
const NAMES = [
  'libc.so.6',
  `/lib/ld-musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
]
const PATH = '/dev/net/tun'

/** Numbers of Linux on x86-64 and arm64. */
const O_RDWR = 2
const O_CLOEXEC = 0o2000000
const TUNSETIFF = 0x400454ca
const IFF_TUN = 0x0001
const IFF_NO_PI = 0x1000
/** An interface that is there already is not taken over. */
const IFF_TUN_EXCL = 0x8000
const IFREQ_BYTES = 40
const FLAGS_AT = 16
const RWF_NOWAIT = 8
const POLLIN = 1
const AF_NETLINK = 16
/** SOCK_RAW | SOCK_CLOEXEC */
const NETLINK_TYPE = 0x80003
const NETLINK_ROUTE = 0
const RTM_DELLINK = 17
const NLM_F_REQUEST = 1
const EPERM = 1
const ENOENT = 2
const EACCES = 13
const EBUSY = 16
const ENODEV = 19
const EINVAL = 22
const ENXIO = 6
const EAGAIN = 11

/** A system that does not let go of it by then does so when the process ends. */
const CLOSE_MS = 1_000
const PACKET_BYTES_MAX = 65_535

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
  const fd = call.open(ptr(path), O_RDWR | O_CLOEXEC)
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
  readonly #first = new Uint8Array(PACKET_BYTES_MAX)
  /** struct iovec; struct pollfd. */
  readonly #vector = new BigUint64Array(2)
  readonly #poll = new Int32Array(2)
  #pollsFirst = false
  #base = 0
  #buffer: ArrayBufferLike | undefined
  #isClosed = false
  /** While a thread reads, nobody else does. */
  #isReading = false
  #over: (() => void) | undefined

  constructor(name: string, fd: number, libc: Libc) {
    this.name = name
    this.#fd = fd
    this.#libc = libc
    this.#poll.set([fd, POLLIN])
    this.#pollsFirst = libc.nowait === undefined
  }

  read(): Promise<Uint8Array | undefined> {
    if (this.#isClosed) return Promise.resolve(undefined)
    this.#isReading = true
    return new Promise((resolve) => {
      read(this.#fd, this.#first, 0, PACKET_BYTES_MAX, null, (error, length) => {
        this.#isReading = false
        this.#over?.()
        resolve(error || this.#isClosed ? undefined : this.#first.subarray(0, length))
      })
    })
  }

  take(into: Uint8Array): number {
    if (this.#isClosed || this.#isReading) return 0
    const { call, nowait, ptr } = this.#libc
    const at = this.#addressOf(into)
    if (!this.#pollsFirst) {
      this.#vector[0] = BigInt(at)
      this.#vector[1] = BigInt(into.length)
      const length = nowait!.preadv2(this.#fd, ptr(this.#vector), 1, -1n, RWF_NOWAIT)
      if (length >= 0) return length
      // A system that cannot, before Linux 5.11.
      if (errnoOf(this.#libc) !== EAGAIN) this.#pollsFirst = true
      return 0
    }
    if (call.poll(ptr(this.#poll), 1n, 0) !== 1) return 0
    return Math.max(0, call.read(this.#fd, at as never, into.length))
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
    if (this.#isReading) {
      // The thread holds the interface until its read ends, as it does when that is removed.
      const over = Promise.withResolvers<void>()
      this.#over = over.resolve
      if (removeLink(this.#libc, this.name)) {
        const late = setTimeout(over.resolve, CLOSE_MS)
        await over.promise
        clearTimeout(late)
      }
    }
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
      const call = dlopen(name, SYMBOLS).symbols
      let nowait
      try {
        nowait = dlopen(name, NOWAIT).symbols
      } catch {
        // It is asked whether there is a packet before each is read.
      }
      return { call, nowait, ptr, read }
    } catch {
      // The other one.
    }
  }
  throw new TunnelError('host/unsupported', 'Cannot call the C library: it was not found')
}

/** rtnetlink(7): RTM_DELLINK with a bare ifinfomsg. False: it is gone already, or cannot be removed. */
function removeLink({ call, ptr }: Libc, name: string): boolean {
  const index = call.if_nametoindex(ptr(new TextEncoder().encode(`${name}\0`)))
  if (index === 0) return false
  const message = new DataView(new ArrayBuffer(32))
  message.setUint32(0, 32, true)
  message.setUint16(4, RTM_DELLINK, true)
  message.setUint16(6, NLM_F_REQUEST, true)
  message.setInt32(20, index, true)
  const socket = call.socket(AF_NETLINK, NETLINK_TYPE, NETLINK_ROUTE)
  const sent = socket >= 0 && call.send(socket, ptr(message), 32, 0) === 32
  if (socket >= 0) call.close(socket)
  return sent
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
