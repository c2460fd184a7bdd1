/**
 * One ICMP echo without rights: by a ping socket, where the system grants those to this user's groups
 * (`net.ipv4.ping_group_range`; Linux), else by the system's own `ping`, else not at all.
 */
import { read } from 'node:fs'
import { parseAddress } from '../../core/address.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Pinger } from '../wireguard/network.ts'
import type { Programs } from '../world.ts'
import { openPingLibc, PING } from './ping_libc.ts'

/** An echo's head (RFC 792, RFC 4443 §4.1): type, code, checksum, identifier, sequence. */
const HEAD_BYTES = 8
const ECHO = { 4: { request: 8, reply: 0 }, 6: { request: 128, reply: 129 } } as const
/** Answers that are none of ours; a flood of them ends the wait. */
const STRAYS_MAX = 64
const OUTPUT_LENGTH_MAX = 8_192
/** What `ping` is told is in seconds; it gets a moment more to say so. */
const GRACE_MS = 500

let sequence = 0

/** `Pinger`: the socket where it is granted, else the program. Throws `net/timeout`, `net/unreachable`, `ping/unavailable`. */
export function hostPing(programs: Programs): Pinger {
  let granted = true
  return async (address, options) => {
    // A zone is for the program to read.
    if (granted && !address.includes('%')) {
      const ms = await socketPing(address, options)
      if (ms !== undefined) return ms
      granted = false
    }
    return await programPing(programs, address, options)
  }
}

/** Undefined: the system grants no such socket. */
export async function socketPing(
  address: string,
  { timeoutMs, bytes }: { timeoutMs: number; bytes: number },
): Promise<number | undefined> {
  const parsed = parseAddress(address)
  if (process.platform !== 'linux' || !parsed) return undefined
  const family = parsed.length === 4 ? 4 : 6
  const opened = await openPingLibc().catch(() => undefined)
  if (!opened) return undefined
  const { libc, ptr } = opened
  const fd = libc.socket(PING[family].domain, PING.type, PING[family].protocol)
  if (fd < 0) return undefined
  try {
    // The reads below wait in a thread of the runtime's pool, and no longer than this.
    const limit = new BigInt64Array([
      BigInt(Math.floor(timeoutMs / 1000)),
      BigInt(timeoutMs % 1000) * 1000n,
    ])
    libc.setsockopt(fd, PING.level, PING.receiveTimeout, ptr(limit), limit.byteLength)
    const to = socketAddress(parsed)
    const startedMs = performance.now()
    const number = sequence = (sequence + 1) & 0xffff
    const echo = echoOf(ECHO[family].request, { number, bytes })
    if (
      libc.connect(fd, ptr(to), to.length) !== 0 ||
      Number(libc.send(fd, ptr(echo), BigInt(echo.length), 0)) !== echo.length
    ) throw new TunnelError('net/unreachable', `Cannot reach ${address}: there is no way to it`)
    for (let stray = 0; stray < STRAYS_MAX; stray++) {
      const answer = await readOnce(fd, HEAD_BYTES + bytes)
      const ms = performance.now() - startedMs
      if (!answer || ms > timeoutMs) break
      const isOurs = answer[0] === ECHO[family].reply &&
        answer[6] === echo[6] && answer[7] === echo[7]
      if (isOurs) return ms
    }
    throw late(address, timeoutMs)
  } finally {
    libc.close(fd)
  }
}

/** The kernel fills in identifier and checksum. */
function echoOf(type: number, { number, bytes }: { number: number; bytes: number }): Uint8Array {
  const echo = new Uint8Array(HEAD_BYTES + bytes)
  echo.set([type, 0, 0, 0, 0, 0, number >> 8, number & 255])
  return echo
}

function readOnce(fd: number, bytesMax: number): Promise<Uint8Array | undefined> {
  const buffer = new Uint8Array(bytesMax)
  return new Promise((resolve) => {
    read(fd, buffer, 0, bytesMax, null, (error, count) => {
      resolve(error ? undefined : buffer.subarray(0, count))
    })
  })
}

/** `sockaddr_in` or `sockaddr_in6`, port 0. */
function socketAddress(address: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(address.length === 4 ? 16 : 28)
  const { domain } = PING[address.length === 4 ? 4 : 6]
  new DataView(bytes.buffer).setUint16(0, domain, true)
  bytes.set(address, address.length === 4 ? 4 : 8)
  return bytes
}

/** By the system's `ping`, whose words for the time are the same everywhere. */
export async function programPing(
  programs: Pick<Programs, 'start'>,
  address: string,
  { timeoutMs, bytes }: { timeoutMs: number; bytes: number },
): Promise<number> {
  if (!parseAddress(address)) throw new TunnelError('net/unknown-host', `Cannot find ${address}`)
  const seconds = Math.max(1, Math.ceil(timeoutMs / 1000))
  const argv = process.platform === 'win32'
    ? ['ping', '-n', '1', '-w', String(timeoutMs), '-l', String(bytes), address]
    : process.platform === 'darwin'
    ? [address.includes(':') ? 'ping6' : 'ping', '-n', '-c', '1', '-s', String(bytes), address]
    : ['ping', '-n', '-c', '1', '-W', String(seconds), '-s', String(bytes), address]
  let output = ''
  const take = (chunk: Uint8Array): void => {
    if (output.length < OUTPUT_LENGTH_MAX) output += new TextDecoder().decode(chunk)
  }
  const env = { PATH: process.env['PATH'] ?? '/usr/bin:/bin:/sbin', LC_ALL: 'C' }
  const program = await programs.start({ argv, env }, { output: take, errors: take }).catch(
    (cause) => {
      throw unavailable(address, cause)
    },
  )
  const timer = setTimeout(() => program.kill('kill'), timeoutMs + GRACE_MS)
  program.end()
  const { code } = await program.done
  clearTimeout(timer)
  const [, ms] = /time[=<]([0-9.]+) ?ms/.exec(output) ?? []
  if (ms !== undefined) return Number(ms)
  if (/not permitted|permission|lacking privilege/i.test(output)) throw unavailable(address, output)
  if (code === 0 || /100(\.0)?% (packet )?loss/.test(output) || code === undefined) {
    throw late(address, timeoutMs)
  }
  throw new TunnelError('net/unreachable', `Cannot reach ${address}: there is no way to it`, {
    cause: output,
  })
}

function late(address: string, timeoutMs: number): TunnelError {
  return new TunnelError(
    'net/timeout',
    `Cannot reach ${address}: no echo within ${timeoutMs / 1000} s`,
  )
}

function unavailable(address: string, cause: unknown): TunnelError {
  return new TunnelError(
    'ping/unavailable',
    `Cannot send an echo to ${address}: this system lets this user send none`,
    {
      cause,
      hint:
        'As root: sysctl net.ipv4.ping_group_range="0 2147483647", or install the program "ping"',
    },
  )
}
