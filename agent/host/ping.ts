/**
 * One ICMP echo without rights: by a ping socket, where the system grants those to this user's groups
 * (`net.ipv4.ping_group_range`; Linux), else by the system's own `ping`, else not at all.
 */
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
/**
 * How often it is looked whether the echo has come, by a part of the time that it took so far. A read that waits
 * would take a thread of the runtime's pool: two dead hosts, and nothing else reads a file.
 */
const LOOK_MS_MIN = 1
const LOOK_PART = 16
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
    const to = socketAddress(parsed)
    const number = sequence = (sequence + 1) & 0xffff
    const echo = echoOf(ECHO[family].request, { number, bytes })
    const [sent, came] = [new BigInt64Array(2), new BigInt64Array(2)]
    // Once in vain, so that the system begins to write down when something comes.
    libc.ioctl(fd, PING.stamp, ptr(came))
    const startedMs = performance.now()
    libc.gettimeofday(ptr(sent), null)
    if (
      libc.connect(fd, ptr(to), to.length) !== 0 ||
      Number(libc.send(fd, ptr(echo), BigInt(echo.length), 0)) !== echo.length
    ) throw new TunnelError('net/unreachable', `Cannot reach ${address}: there is no way to it`)
    const answer = new Uint8Array(HEAD_BYTES + bytes)
    for (let stray = 0; stray < STRAYS_MAX;) {
      const count = Number(libc.recv(fd, ptr(answer), BigInt(answer.length), 0))
      const waitedMs = performance.now() - startedMs
      if (count < 0) {
        if (waitedMs >= timeoutMs) break
        await passed(Math.min(timeoutMs - waitedMs, Math.max(LOOK_MS_MIN, waitedMs / LOOK_PART)))
        continue
      }
      stray++
      const isOurs = count >= HEAD_BYTES && answer[0] === ECHO[family].reply &&
        answer[6] === echo[6] && answer[7] === echo[7]
      if (!isOurs) continue
      const isStamped = libc.ioctl(fd, PING.stamp, ptr(came)) === 0
      // The clock of the wall may have been set meanwhile.
      return isStamped ? Math.min(waitedMs, Math.max(0, millis(came) - millis(sent))) : waitedMs
    }
    throw late(address, timeoutMs)
  } finally {
    libc.close(fd)
  }
}

function passed(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

/** Of a `timeval`: seconds and microseconds. */
function millis([seconds = 0n, micros = 0n]: BigInt64Array): number {
  return Number(seconds) * 1000 + Number(micros) / 1000
}

/** The kernel fills in identifier and checksum. */
function echoOf(type: number, { number, bytes }: { number: number; bytes: number }): Uint8Array {
  const echo = new Uint8Array(HEAD_BYTES + bytes)
  echo.set([type, 0, 0, 0, 0, 0, number >> 8, number & 255])
  return echo
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
