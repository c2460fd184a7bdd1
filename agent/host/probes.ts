/** What `sotto doctor` asks of the system: names, interfaces, disk, certificates, bare UDP, path MTU. */
import { lookup } from 'node:dns/promises'
import { statfs } from 'node:fs/promises'
import { isIP } from 'node:net'
import { networkInterfaces } from 'node:os'
import { dirname } from 'node:path'
import * as tls from 'node:tls'
import { TunnelError } from '../../core/errors.ts'
import type { Conn } from '../../core/socket.ts'
import type { NetAddress, OpenDatagrams, Probes, TlsChain } from '../world.ts'
import { carrierOf } from './carrier.ts'
import { AF_INET, AF_INET6, openLibc, SOCK_CLOEXEC, SOCK_DGRAM } from './libc.ts'
import { bareHost, connectError } from './tcp.ts'

/** Certificates of one chain. */
const CHAIN_MAX = 16
/** Numbers of Linux: IPPROTO_IP and IP_MTU; IPPROTO_IPV6 and IPV6_MTU. */
const MTU_OPTIONS = { 4: [0, 14], 6: [41, 24] } as const
/** Any would do: nothing is sent. */
const PORT_DISCARD = 9

export const hostProbes: Probes = {
  async resolve(name) {
    try {
      const found = await lookup(bareHost(name), { all: true, verbatim: true })
      return found.map(({ address, family }) => ({ address, family: family === 6 ? 6 : 4 }))
    } catch (error) {
      throw connectError({ host: name, port: 0 }, error)
    }
  },
  interfaces: () =>
    Object.entries(networkInterfaces()).flatMap(([name, all]) =>
      (all ?? []).map(({ address, family, internal }) => ({
        name,
        address,
        // Runtimes differ: a word or a number.
        family: String(family).endsWith('6') ? 6 as const : 4 as const,
        internal,
      }))
    ),
  async space(path) {
    for (let folder = path;; folder = dirname(folder)) {
      try {
        const { bavail, blocks, bsize } = await statfs(folder)
        return { freeBytes: bavail * bsize, totalBytes: blocks * bsize }
      } catch (error) {
        const { code } = error as { code?: string }
        if ((code === 'ENOENT' || code === 'ENOTDIR') && dirname(folder) !== folder) continue
        throw new TunnelError('files/failed', `Cannot look at the disk of ${path}: ${code}`)
      }
    }
  },
  tlsChain,
  datagrams,
  pathMtu,
}

async function tlsChain(
  carrier: Conn,
  { servername, ca, timeoutMs }: Parameters<Probes['tlsChain']>[1],
): Promise<TlsChain> {
  const below = await carrierOf(carrier)
  return await new Promise((resolve, reject) => {
    const socket = tls.connect({
      socket: below,
      ...(isIP(servername) ? {} : { servername }),
      ALPNProtocols: ['http/1.1'],
      rejectUnauthorized: false,
      ...(ca ? { ca: [...tls.rootCertificates, ...ca] } : {}),
    })
    const late = setTimeout(() => {
      fail(new TunnelError('tls/timeout', `Cannot finish TLS with ${servername}: no answer`))
    }, timeoutMs)
    function fail(error: Error): void {
      clearTimeout(late)
      socket.destroy()
      reject(
        error instanceof TunnelError ? error : new TunnelError(
          'tls/handshake',
          `Cannot finish TLS with ${servername}: ${
            (error as { code?: string }).code ?? error.message
          }`,
        ),
      )
    }
    socket.once('error', fail)
    socket.once('close', () => fail(new Error('the connection was closed')))
    socket.once('secureConnect', () => {
      clearTimeout(late)
      const leaf = socket.getPeerCertificate(true)
      const wrongName = tls.checkServerIdentity(servername, leaf)
      const chain: TlsChain = {
        version: socket.getProtocol() ?? '',
        problem: problemOf(socket.authorized ? wrongName : socket.authorizationError),
        certificates: certificates(leaf),
      }
      socket.destroy()
      resolve(chain)
    })
  })
}

function problemOf(error: unknown): string | undefined {
  if (!error) return undefined
  return error instanceof Error ? (error as { code?: string }).code ?? error.message : String(error)
}

function certificates(leaf: tls.DetailedPeerCertificate): TlsChain['certificates'][number][] {
  const found: TlsChain['certificates'][number][] = []
  const seen = new Set<string>()
  for (
    let one: tls.DetailedPeerCertificate | undefined = leaf;
    one?.fingerprint256 && !seen.has(one.fingerprint256) && found.length < CHAIN_MAX;
    one = one.issuerCertificate
  ) {
    seen.add(one.fingerprint256)
    found.push({
      subject: nameOf(one.subject),
      issuer: nameOf(one.issuer),
      names: (one.subjectaltname ?? '').split(', ').filter((name) => name !== '')
        .map((name) => name.replace(/^(DNS|IP Address):/, '')),
      notBeforeMs: Date.parse(one.valid_from),
      notAfterMs: Date.parse(one.valid_to),
    })
  }
  return found
}

function nameOf(name: tls.Certificate | undefined): string {
  const { CN, O } = (name ?? {}) as { CN?: string; O?: string }
  return CN ?? O ?? ''
}

async function datagrams(family: 4 | 6): Promise<OpenDatagrams> {
  let take: Parameters<OpenDatagrams['handle']>[0] | undefined
  let closed = false
  const socket = await Bun.udpSocket({
    hostname: family === 4 ? '0.0.0.0' : '::',
    port: 0,
    binaryType: 'uint8array',
    socket: {
      data(_, datagram, port, address) {
        if (!closed) take?.(datagram, { address, port })
      },
      // An ICMP message about one far end says nothing of the others.
      error() {},
    },
  }).catch((error) => {
    throw connectError({ host: family === 4 ? '0.0.0.0' : '::', port: 0 }, error)
  })
  return {
    port: socket.port,
    send(datagram, { address, port }) {
      try {
        if (!closed) socket.send(datagram, port, address)
      } catch {
        // No route to there: as lost as on the way.
      }
    },
    handle(message) {
      take = message
    },
    close() {
      if (closed) return
      closed = true
      socket.close()
    },
  }
}

async function pathMtu({ address, family }: NetAddress): Promise<number | undefined> {
  if (process.platform !== 'linux') return undefined
  const bytes = socketAddress({ address, family })
  if (!bytes) return undefined
  try {
    const { libc, ptr } = await openLibc()
    const fd = libc.socket(family === 4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if (fd < 0) return undefined
    try {
      if (libc.connect(fd, ptr(bytes), bytes.length) !== 0) return undefined
      const value = new Int32Array(1)
      const length = new Uint32Array([4])
      const [level, option] = MTU_OPTIONS[family]
      const failed = libc.getsockopt(fd, level, option, ptr(value), ptr(length))
      return failed === 0 ? value[0] : undefined
    } finally {
      libc.close(fd)
    }
  } catch {
    return undefined
  }
}

/** `sockaddr_in` or `sockaddr_in6`; undefined for an address with a zone. */
function socketAddress({ address, family }: NetAddress): Uint8Array | undefined {
  const groups = family === 4 ? address.split('.').map(Number) : ipv6Bytes(address)
  if (!groups || groups.some((one) => !(one >= 0 && one <= 255))) return undefined
  const bytes = new Uint8Array(family === 4 ? 16 : 28)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, family === 4 ? AF_INET : AF_INET6, true)
  view.setUint16(2, PORT_DISCARD)
  bytes.set(groups, family === 4 ? 4 : 8)
  return bytes
}

function ipv6Bytes(address: string): number[] | undefined {
  try {
    // A URL writes every IPv6 address in one form, a dotted end included.
    const plain = new URL(`http://[${address}]`).hostname.slice(1, -1)
    const [head = '', tail] = plain.split('::')
    const words = (text: string): string[] => text === '' ? [] : text.split(':')
    const [first, last] = [words(head), words(tail ?? '')]
    const zeros = Array.from({ length: 8 - first.length - last.length }, () => '0')
    const all = tail === undefined ? first : [...first, ...zeros, ...last]
    return all.flatMap((word) => [parseInt(word, 16) >> 8, parseInt(word, 16) & 255])
  } catch {
    return undefined
  }
}
