/**
 * One question to a CA over HTTPS, by whatever way out there is: proxies and roots as for a relay, each
 * on a connection of its own, with bounds.
 */
import { concat, utf8 } from '../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import { connectTlsOut } from './outward.ts'
import { exchangeOnce, parseResponse } from './relay_api.ts'
import type { Answer } from './relay_api.ts'
import { VERSION } from './version.ts'
import type { World } from './world.ts'

const CONNECT_MS_MAX = 20_000
const EXCHANGE_MS_MAX = 30_000
const ANSWER_BYTES_MAX = 1_048_576

export interface CaQuestion {
  readonly url: URL
  /** JSON, by POST; absent: GET. */
  readonly body?: string
  /** PEM certificates to trust in place of those that come with the program. */
  readonly ca: readonly string[] | undefined
  readonly signal: AbortSignal
}

export type CaWorld = Pick<World, 'env' | 'net' | 'tls' | 'clock' | 'files'>

/** Throws `acme/unreachable`, `acme/directory`, `acme/stopped`, `proxy/…`, `ca/file`. */
export async function askCa(
  world: CaWorld,
  { url, body, ca, signal }: CaQuestion,
): Promise<Answer> {
  if (url.protocol !== 'https:') {
    throw new TunnelError('acme/directory', `Cannot talk to the CA: found ${url}, expected https`)
  }
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const content = utf8(body ?? '')
  const lines = [
    `${body === undefined ? 'GET' : 'POST'} ${url.pathname}${url.search} HTTP/1.1`,
    `Host: ${url.host}`,
    `User-Agent: sotto/${VERSION}`,
    'Accept-Encoding: identity',
    'Connection: close',
    ...(body === undefined
      ? []
      : ['Content-Type: application/jose+json', `Content-Length: ${content.length}`]),
  ]
  let abort = (): void => {}
  try {
    const conn = await connectTlsOut(world, { host, port: Number(url.port) || 443 }, {
      servername: host,
      alpn: ['http/1.1'],
      timeoutMs: CONNECT_MS_MAX,
      ...(ca ? { ca } : {}),
    })
    abort = () => conn.abort()
    signal.addEventListener('abort', abort, { once: true })
    const exchanged = exchangeOnce(conn, concat(utf8(`${lines.join('\r\n')}\r\n\r\n`), content), {
      clock: world.clock,
      ms: EXCHANGE_MS_MAX,
      bytesMax: ANSWER_BYTES_MAX,
    })
    if (signal.aborted) abort()
    const { received, error } = await exchanged
    if (error && received.length === 0) throw error
    return parseResponse(received, url.host)
  } catch (error) {
    if (signal.aborted) {
      throw new TunnelError('acme/stopped', 'Cannot get a certificate: it was stopped')
    }
    if (isTunnelError(error) && /^(proxy|ca)\//.test(error.code)) throw error
    const cause = asTunnelError(error, 'acme/unreachable')
    throw new TunnelError(
      'acme/unreachable',
      `Cannot reach the CA at ${url.host}: ${cause.message.replace(/^Cannot [^:]*: /, '')}`,
      { cause: error, ...(cause.hint === undefined ? {} : { hint: cause.hint }) },
    )
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
