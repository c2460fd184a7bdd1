/**
 * One order at a CA (RFC 8555) by the library acme-client, which signs and counts nonces. The requests
 * are made here: with roots of the operator's choice, within bounds, and with no retry of its own, so
 * that a CA which says "later" is not asked again before. Bun, Node and Deno share it.
 */
import type { Authorization, Client } from 'acme-client'
import { createHash, X509Certificate } from 'node:crypto'
import { request as requestHttps } from 'node:https'
import type { IncomingHttpHeaders } from 'node:http'
import { TunnelError } from '../../core/errors.ts'
import { retryAfterOf } from '../../core/renewal.ts'
import { makeCertificate } from '../certificate.ts'
import type { CertificatePair } from '../certificate.ts'

const REQUEST_MS_MAX = 30_000
const ANSWER_BYTES_MAX = 1_048_576
/** A CA may refuse nonces in a row; each refusal brings another. */
const BAD_NONCES_MAX = 20
/** How often the library asks for a verdict, and how it waits between: 0.25 s to 10 s, two minutes in all. */
const VERDICTS = { backoffAttempts: 18, backoffMin: 250, backoffMax: 10_000 }
const DETAIL_LENGTH_MAX = 300

export interface Ca {
  /** URL of its directory. */
  directory: string
  /** PEM roots to trust when talking to it; undefined: the system's. */
  roots: string | undefined
  contact: string
  /** External account binding; the key is base64url. */
  binding: { id: string; key: string } | undefined
}

/** An account as it is kept. */
export interface Account {
  directory: string
  /** PEM. */
  key: string
  /** Empty before it was made. */
  url: string
}

export interface OrderOptions {
  ca: Ca
  account: Account
  names: readonly string[]
  /** The certificate that this one replaces (RFC 9773 §5). */
  replaces: string | undefined
  accountMade(account: Account): Promise<void>
  /** Serves this pair to who asks for `name` by `acme-tls/1`, until the returned call. */
  challenge(name: string, pair: CertificatePair): Promise<() => Promise<void>>
}

/** A new key for an account. */
export async function newAccount(directory: string): Promise<Account> {
  const { crypto } = await import('acme-client')
  return { directory, key: String(await crypto.createPrivateEcdsaKey()), url: '' }
}

/**
 * The certificate of `names` and its key. Throws `acme/failed`, with `retryAfterMs` on the error where
 * the CA said when to come back.
 */
export async function orderCertificate(options: OrderOptions): Promise<CertificatePair> {
  const { ca, names } = options
  const wire = new Wire(ca.roots)
  try {
    const acme = await import('acme-client')
    const client = await signedIn(wire, options)
    const identifiers = names.map((value) => ({ type: 'dns', value }))
    const replaces = options.replaces
    const order = await client.createOrder(
      { identifiers, ...(replaces ? { replaces } : {}) } as never,
    )
      // Replaced already, or unknown to the CA: a plain order is as good.
      .catch((error) => {
        if (!replaces) throw error
        return client.createOrder({ identifiers } as never)
      })
    for (const authorization of await client.getAuthorizations(order)) {
      if (authorization.status !== 'valid') await answer(client, { authorization, options })
    }
    const key = await acme.crypto.createPrivateEcdsaKey()
    const [, csr] = await acme.crypto.createCsr({ altNames: [...names] }, key)
    const done = await client.finalizeOrder(await client.getOrder(order), csr)
    const cert = await client.getCertificate(done)
    return { cert, key: String(key) }
  } catch (error) {
    throw wire.explained(error, { names, directory: ca.directory })
  }
}

async function signedIn(wire: Wire, { ca, account, accountMade }: OrderOptions): Promise<Client> {
  const acme = await import('acme-client')
  const client = new acme.Client({
    directoryUrl: ca.directory,
    accountKey: account.key,
    ...(account.url === '' ? {} : { accountUrl: account.url }),
    ...(ca.binding
      ? { externalAccountBinding: { kid: ca.binding.id, hmacKey: ca.binding.key } }
      : {}),
    ...VERDICTS,
  })
  // What the library keeps inside; its public face has no place for a transport.
  const { http } = client as unknown as {
    http: { maxBadNonceRetries: number; request: Wire['request'] }
  }
  http.maxBadNonceRetries = BAD_NONCES_MAX
  http.request = (url, method, data) => wire.request(url, method, data)
  if (account.url !== '') return client
  await client.createAccount({
    termsOfServiceAgreed: true,
    ...(ca.contact === '' ? {} : { contact: [`mailto:${ca.contact}`] }),
  })
  await accountMade({ ...account, url: client.getAccountUrl() })
  return client
}

async function answer(
  client: Client,
  { authorization, options }: { authorization: Authorization; options: OrderOptions },
): Promise<void> {
  const name = authorization.identifier.value
  const challenge = authorization.challenges.find(({ type }) => String(type) === 'tls-alpn-01')
  if (!challenge) throw new Error(`the CA offers no TLS-ALPN-01 for ${name}`)
  const words = await client.getChallengeKeyAuthorization(challenge)
  const authorized = createHash('sha256').update(words).digest()
  const pair = await makeCertificate([name], Date.now(), { authorization: authorized })
  const withdraw = await options.challenge(name, pair)
  try {
    await client.completeChallenge(challenge)
    await client.waitForValidStatus(challenge)
  } finally {
    await withdraw()
  }
}

/** What the CA suggests for a certificate, and its Retry-After; undefined where it has no such thing. */
export async function renewalInfo(
  ca: Ca,
  certificateId: string,
): Promise<{ info: unknown; retryAfter: string | undefined } | undefined> {
  const wire = new Wire(ca.roots)
  const { data } = await wire.request(ca.directory, 'get')
  const base = (data as { renewalInfo?: unknown }).renewalInfo
  if (typeof base !== 'string') return undefined
  const { status, data: info, headers } = await wire.request(`${base}/${certificateId}`, 'get')
  return status === 200 ? { info, retryAfter: headers['retry-after'] } : undefined
}

/** The validity of a PEM chain's leaf. */
export function validityOf(pem: string): { notBeforeMs: number; notAfterMs: number } {
  const { validFrom, validTo } = new X509Certificate(pem)
  return { notBeforeMs: Date.parse(validFrom), notAfterMs: Date.parse(validTo) }
}

interface Answer {
  status: number
  headers: IncomingHttpHeaders
  // deno-lint-ignore no-explicit-any
  data: any
  config: { url: string }
}

/** One conversation; remembers what was refused last. */
class Wire {
  readonly #roots: string | undefined
  #problem: Answer | undefined

  constructor(roots: string | undefined) {
    this.#roots = roots
  }

  async request(url: string, method: string, options: { data?: unknown } = {}): Promise<Answer> {
    if (!url.startsWith('https:')) throw new Error(`found ${url}, expected https`)
    const answer = await this.#ask(url, { method, data: options.data })
    this.#problem = answer.status >= 400 ? answer : undefined
    return answer
  }

  #ask(url: string, { method, data }: { method: string; data: unknown }): Promise<Answer> {
    const body = data === undefined ? '' : JSON.stringify(data)
    return new Promise((resolve, reject) => {
      const asked = requestHttps(url, {
        method: method.toUpperCase(),
        agent: false,
        headers: {
          'content-type': 'application/jose+json',
          'content-length': new TextEncoder().encode(body).length,
          'user-agent': 'sotto-relay',
        },
        ...(this.#roots === undefined ? {} : { ca: this.#roots }),
      }, (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (part: string) => {
          text += part
          if (text.length > ANSWER_BYTES_MAX) asked.destroy(new Error('its answer is too long'))
        })
        response.on('error', reject)
        response.on('end', () => {
          clearTimeout(late)
          const { statusCode: status = 0, headers } = response
          resolve({ status, headers, data: parsed(text, headers['content-type']), config: { url } })
        })
      })
      const late = setTimeout(
        () => asked.destroy(new Error(`no answer within ${REQUEST_MS_MAX / 1000} s`)),
        REQUEST_MS_MAX,
      )
      asked.on('error', (error) => {
        clearTimeout(late)
        reject(error)
      })
      asked.end(body)
    })
  }

  explained(error: unknown, of: { names: readonly string[]; directory: string }): TunnelError {
    const { data, headers } = this.#problem ?? {}
    const words = String(data?.detail ?? (error as Error).message ?? error)
      .replace(/[^\x20-\x7e]+/g, ' ').slice(0, DETAIL_LENGTH_MAX)
    const explained = new TunnelError(
      'acme/failed',
      `Cannot get a certificate for ${of.names.join(', ')} from ${
        new URL(of.directory).host
      }: ${words}`,
      { cause: error },
    )
    const retryAfterMs = retryAfterOf(headers?.['retry-after'], Date.now())
    return Object.assign(explained, { retryAfterMs })
  }
}

function parsed(text: string, type = ''): unknown {
  if (!type.includes('json')) return text
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
