/**
 * The way out to a relay: directly, or through the proxy that the environment names. Everything that
 * is said to a relay goes this way, the link, bulk links and its API alike; nothing else does, so that a
 * proxy never sees an upstream of this machine. TLS is with the relay, inside the proxy's tunnel.
 */
import { text } from '../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import type { Conn } from '../core/socket.ts'
import { parseAddress } from '../core/address.ts'
import { describeProxy, proxyFor } from './proxy.ts'
import type { Destination, Proxy } from './proxy.ts'
import { openTunnel } from './proxy_tunnel.ts'
import { VERSION } from './version.ts'
import type { LinkOptions, OpenLink, TlsConn, TlsConnectOptions, World } from './world.ts'

/** Connecting to the proxy, its TLS, its answer. */
const TUNNEL_MS = 10_000
/** Of a file of certificates: a whole system's has 300 kB. */
const CA_BYTES_MAX = 4_194_304

type OutWorld = Pick<World, 'env' | 'net' | 'tls' | 'clock' | 'files'>

export interface OutTarget {
  readonly host: string
  readonly port: number
}

/** A connection to a relay that speaks TLS, before TLS. Throws `net/…`, `proxy/…`. */
export function connectOut(world: OutWorld, target: OutTarget): Promise<Conn> {
  const proxy = proxyFor(world.env, { ...target, secure: true })
  return proxy ? through(world, proxy, { target }) : world.net.connect(target)
}

/** The same for TLS over it, which wants a stream socket. */
export function connectDuplexOut(world: OutWorld, target: OutTarget): Promise<Conn> {
  const proxy = proxyFor(world.env, { ...target, secure: true })
  return proxy ? through(world, proxy, { target, stream: true }) : world.net.connectDuplex(target)
}

/** `Net.connect` to a relay without TLS, which only this machine can have. */
export function connectClearOut(world: OutWorld, target: OutTarget): Promise<Conn> {
  const proxy = proxyFor(world.env, { ...target, secure: false })
  return proxy ? through(world, proxy, { target }) : world.net.connect(target)
}

/** `Tls.connect` to a relay. */
export async function connectTlsOut(
  world: OutWorld,
  target: OutTarget,
  options: Omit<TlsConnectOptions, 'target' | 'carrier'>,
): Promise<TlsConn> {
  const proxy = proxyFor(world.env, { ...target, secure: true })
  if (!proxy) return await world.tls.connect({ ...options, target })
  const carrier = await through(world, proxy, { target, stream: true })
  return await world.tls.connect({ servername: target.host, ...options, carrier })
}

/** `LinkPort.open` to a relay. */
export async function openLinkOut(
  world: OutWorld & Pick<World, 'link'>,
  url: string,
  options: LinkOptions,
): Promise<OpenLink> {
  const { protocol, hostname, port } = new URL(url)
  const secure = protocol === 'wss:'
  const to: Destination = {
    host: hostname.replace(/^\[|\]$/g, ''),
    port: Number(port) || (secure ? 443 : 80),
    secure,
  }
  const proxy = proxyFor(world.env, to)
  if (!proxy) return await world.link.open(url, options)
  return await world.link.open(url, {
    ...options,
    carrier: (timeoutMs) => through(world, proxy, { target: to, stream: true, timeoutMs }),
  })
}

interface Way {
  target: OutTarget
  /** On a stream socket, for TLS over it. */
  stream?: boolean
  timeoutMs?: number
}

async function through(world: OutWorld, proxy: Proxy, way: Way): Promise<Conn> {
  const { clock, net } = world
  const deadlineMs = clock.monotonic() + (way.timeoutMs ?? TUNNEL_MS)
  const leftMs = (): number => Math.max(1, deadlineMs - clock.monotonic())
  const { host, port } = way.target
  // Only `socks5h` leaves names to the proxy.
  const isLocal = proxy.kind === 'socks5' && !parseAddress(host)
  const to = { host: isLocal ? (await net.lookup(host))[0]! : host, port }
  const conn = await reach(world, proxy, { stream: way.stream === true, timeoutMs: leftMs() })
  await openTunnel(conn, { proxy, to, ports: { clock, timeoutMs: leftMs(), version: VERSION } })
  return conn
}

async function reach(
  world: OutWorld,
  proxy: Proxy,
  { stream, timeoutMs }: { stream: boolean; timeoutMs: number },
): Promise<Conn> {
  const target = { host: proxy.host, port: proxy.port }
  try {
    if (proxy.kind !== 'https') {
      const { net } = world
      return await (stream ? net.connectDuplex : net.connect)({ ...target, timeoutMs })
    }
    const ca = await environmentCa(world)
    return await world.tls.connect({
      target,
      servername: proxy.host,
      alpn: ['http/1.1'],
      timeoutMs,
      ...(ca ? { ca } : {}),
    })
  } catch (error) {
    if (isTunnelError(error, 'ca/file')) throw error
    const { message } = asTunnelError(error, 'net/failed')
    const found = message.slice(message.indexOf(': ') + 2)
    throw new TunnelError(
      'proxy/unreachable',
      `Cannot reach the proxy ${describeProxy(proxy)}: ${found}`,
      {
        cause: error,
        hint: isTunnelError(error, 'tls/untrusted')
          ? 'Name a PEM file with the CA of the proxy in SSL_CERT_FILE.'
          : `Check host and port in ${proxy.from}; unset it, or name the relay in NO_PROXY, to go ` +
            'without.',
      },
    )
  }
}

/** The certificates of SSL_CERT_FILE; undefined: those that come with the program. Throws `ca/file`. */
export async function environmentCa(
  world: Pick<World, 'env' | 'files'>,
): Promise<string[] | undefined> {
  const path = world.env['SSL_CERT_FILE']
  return path ? await readCa(world, path, 'SSL_CERT_FILE') : undefined
}

/** PEM certificates of a file. Throws `ca/file`. */
export async function readCa(
  { files }: Pick<World, 'files'>,
  path: string,
  from: string,
): Promise<string[]> {
  const wrong = (found: string, cause?: unknown): TunnelError =>
    new TunnelError(
      'ca/file',
      `Cannot read certificates from ${path} (${from}): found ${found}, expected PEM`,
      {
        cause,
        hint: 'It holds one or more blocks that begin with -----BEGIN CERTIFICATE-----.',
      },
    )
  let content: Uint8Array | undefined
  try {
    content = await files.read(path, { bytesMax: CA_BYTES_MAX })
  } catch (error) {
    throw wrong(asTunnelError(error, 'ca/file').message, error)
  }
  if (content === undefined) throw wrong('no such file')
  let words: string
  try {
    words = text(content)
  } catch {
    throw wrong('other bytes')
  }
  const blocks = words.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ??
    []
  if (blocks.length === 0) throw wrong('no certificate')
  return blocks
}
