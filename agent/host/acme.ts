/**
 * ACME by the library acme-client, which signs and counts nonces; what goes over the network goes our own
 * way, with our bounds, our roots and no waiting hidden inside: when a CA says "later", that is an error
 * that says when.
 */
import { createHash } from 'node:crypto'
import type { Authorization, Client, Order } from 'acme-client'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import type { ErrorCode } from '../../core/errors.ts'
import { retryAfterOf } from '../../core/renewal.ts'
import type { AcmeOrder, AcmePlace, AcmePort, CaAnswer } from '../acme_port.ts'

/** A CA under load may refuse many nonces in a row; each comes with a fresh one. */
const BAD_NONCES_MAX = 20
/** From the answered challenge, or the finished order, to the verdict. */
const VERDICT_MS_MAX = 120_000
const POLL_MS_MIN = 250
const POLL_MS_MAX = 10_000
const DETAIL_LENGTH_MAX = 300

export const hostAcme: AcmePort = { obtain, renewalInfo }

/** What the library keeps inside; its public face has no place for a transport. */
interface Inner {
  http: {
    maxBadNonceRetries: number
    request(url: string, method: string, options?: { data?: unknown }): Promise<Answer>
  }
  api: { createAccount(data: object): Promise<unknown> }
}

interface Answer {
  status: number
  headers: Record<string, string>
  // deno-lint-ignore no-explicit-any
  data: any
}

async function obtain(options: AcmeOrder): Promise<string> {
  const { signal } = options
  const { client, transport } = await open(options)
  try {
    if (options.accountUrl === undefined) await register(client, options)
    const order = await begin({ client, transport }, options)
    for (const authorization of await client.getAuthorizations(order)) {
      await authorize(client, { authorization, options })
    }
    let now = await settle(() => client.getOrder(order), { signal, done: ['ready', 'valid'] })
    if (now.status === 'ready') {
      await client.finalizeOrder(now, options.csr)
      now = await settle(() => client.getOrder(order), { signal, done: ['valid'] })
    }
    return await client.getCertificate(now)
  } catch (error) {
    throw transport.explained(error)
  }
}

async function open(options: AcmeOrder): Promise<{ client: Client; transport: Transport }> {
  const acme = await import('acme-client')
  const { directory, accountKey, accountUrl, eab } = options
  const client = new acme.Client({
    directoryUrl: directory,
    accountKey,
    ...(accountUrl === undefined ? {} : { accountUrl }),
    ...(eab ? { externalAccountBinding: { kid: eab.id, hmacKey: eab.key } } : {}),
  })
  const transport = new Transport(options)
  const { http } = client as unknown as Inner
  http.maxBadNonceRetries = BAD_NONCES_MAX
  // It asks for nonces by HEAD; GET gives them too (RFC 8555 §7.2).
  http.request = (url, _method, { data } = {}) => transport.request(url, data)
  return { client, transport }
}

async function register(client: Client, options: AcmeOrder): Promise<void> {
  const { contact, accountMade } = options
  const terms = await client.getTermsOfServiceUrl() ?? undefined
  // Not the client's own: of an account that another order has just made it asks for a change to nothing,
  // which CAs refuse. What there is is as good (RFC 8555 §7.3.1).
  await (client as unknown as Inner).api.createAccount({
    termsOfServiceAgreed: true,
    ...(contact === undefined ? {} : { contact: [`mailto:${contact}`] }),
  })
  await accountMade(client.getAccountUrl(), terms)
}

async function begin(
  { client, transport }: { client: Client; transport: Transport },
  options: AcmeOrder,
): Promise<Order> {
  const identifiers = [{ type: 'dns', value: options.name }]
  const { replaces } = options
  try {
    return await client.createOrder({ identifiers, ...(replaces ? { replaces } : {}) } as never)
  } catch (error) {
    const kind = transport.problem?.kind
    // Replaced already, or a CA that knows nothing of it: a plain order is as good (RFC 9773 §5).
    if (replaces && (kind === 'alreadyReplaced' || kind === 'malformed')) {
      return await client.createOrder({ identifiers } as never)
    }
    // A CA that has forgotten its accounts; a key of ours may have another one.
    if (kind !== 'accountDoesNotExist' || options.accountUrl === undefined) throw error
    const again = await open({ ...options, accountUrl: undefined })
    await register(again.client, options)
    Object.assign(client, { api: (again.client as unknown as { api: unknown }).api })
    return await client.createOrder({ identifiers } as never)
  }
}

async function authorize(
  client: Client,
  { authorization, options }: { authorization: Authorization; options: AcmeOrder },
): Promise<void> {
  if (authorization.status === 'valid') return
  const challenge = authorization.challenges.find(({ type }) => String(type) === 'tls-alpn-01')
  if (!challenge) {
    throw new TunnelError(
      'acme/challenge',
      `Cannot get a certificate for ${options.name}: the CA offers no TLS-ALPN-01 for it`,
    )
  }
  const words = await client.getChallengeKeyAuthorization(challenge)
  const digest = new Uint8Array(createHash('sha256').update(words).digest())
  const withdraw = await options.challenge(digest)
  try {
    await client.completeChallenge(challenge)
    const look = async (): Promise<Authorization> => {
      const [now] = await client.getAuthorizations(
        { authorizations: [authorization.url] } as never,
      )
      return now!
    }
    await settle(look, { signal: options.signal, done: ['valid'] })
  } finally {
    withdraw()
  }
}

/** Asks until the status is one that is waited for, a little less often each time. */
async function settle<T extends { status: string }>(
  look: () => Promise<T>,
  { signal, done }: { signal: AbortSignal; done: readonly string[] },
): Promise<T> {
  const untilMs = performance.now() + VERDICT_MS_MAX
  for (let waitMs = POLL_MS_MIN;; waitMs = Math.min(waitMs * 1.5, POLL_MS_MAX)) {
    const now = await look()
    if (done.includes(now.status)) return now
    if (!['pending', 'processing', 'ready'].includes(now.status)) throw new Verdict(now)
    if (performance.now() > untilMs) {
      throw new TunnelError(
        'acme/timeout',
        `Cannot get a certificate: the CA gave no verdict in ${VERDICT_MS_MAX / 1000} s`,
      )
    }
    await pause(waitMs, signal)
  }
}

/** What the CA thinks of an order or an authorization that came to nothing. */
class Verdict extends Error {
  // deno-lint-ignore no-explicit-any
  constructor(item: any) {
    const errors = [item.error, ...(item.challenges ?? []).map((one: Answer['data']) => one.error)]
    const detail = errors.find((one) => one)?.detail
    super(String(detail ?? `its order is ${item.status}`))
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(stopped())
    const over = (): void => {
      clearTimeout(timer)
      reject(stopped())
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', over)
      resolve()
    }, ms)
    signal.addEventListener('abort', over, { once: true })
  })
}

function stopped(): TunnelError {
  return new TunnelError('acme/stopped', 'Cannot get a certificate: it was stopped')
}

interface Problem {
  /** The last word of the type, such as `rateLimited`. */
  kind: string
  detail: string
  status: number
  retryAfterMs: number | undefined
}

/** One conversation with a CA. */
class Transport {
  /** What it refused last. */
  problem: Problem | undefined
  readonly #place: AcmePlace

  constructor(place: AcmePlace) {
    this.#place = place
  }

  async request(url: string, data?: unknown): Promise<Answer> {
    const body = data === undefined ? undefined : JSON.stringify(data)
    const answer = answerOf(await this.#place.ask(new URL(url), body))
    this.#note(answer)
    return answer
  }

  #note({ status, headers, data }: Answer): void {
    if (status < 400) return
    this.problem = {
      kind: String(data?.type ?? '').split(':').at(-1)!,
      detail: String(data?.detail ?? `it answered ${status}`),
      status,
      retryAfterMs: retryAfterOf(headers['retry-after'], Date.now()),
    }
  }

  /** The error for a person, with what the CA said of when to come back. */
  explained(error: unknown): TunnelError {
    if (isTunnelError(error)) return error
    const problem = error instanceof Verdict ? undefined : this.problem
    const { code, hint } = kindOf(problem)
    const detail = (problem?.detail ?? (error as Error).message).replace(/[^\x20-\x7e]+/g, ' ')
      .slice(0, DETAIL_LENGTH_MAX)
    const explained = new TunnelError(
      code,
      `Cannot get a certificate from ${new URL(this.#place.directory).host}: ${detail}`,
      { cause: error, ...(hint === undefined ? {} : { hint }) },
    )
    return Object.assign(explained, { retryAfterMs: problem?.retryAfterMs })
  }
}

function kindOf(problem: Problem | undefined): { code: ErrorCode; hint?: string } {
  if (!problem) {
    return {
      code: 'acme/validation',
      hint: 'The CA must reach the name at port 443: look at DNS and CAA records of the name.',
    }
  }
  const { kind, status } = problem
  if (kind === 'rateLimited' || status === 429) return { code: 'acme/limited' }
  if (kind === 'externalAccountRequired') {
    return {
      code: 'acme/binding',
      hint: 'Give --acme-eab-kid and the key that the CA gave you, by file or SOTTO_ACME_EAB_KEY.',
    }
  }
  if (kind === 'unauthorized' || kind === 'accountDoesNotExist') return { code: 'acme/account' }
  if (kind === 'caa') return { code: 'acme/caa' }
  if (status >= 500) return { code: 'acme/unavailable' }
  return { code: 'acme/refused' }
}

function answerOf({ status, fields, body }: CaAnswer): Answer {
  let data: unknown = new TextDecoder().decode(body)
  if (/json/.test(fields.get('content-type') ?? '')) {
    try {
      data = JSON.parse(data as string)
    } catch {
      // A proxy's page under a wrong name: as text it is refused where JSON was expected.
    }
  }
  return { status, headers: Object.fromEntries(fields), data }
}

async function renewalInfo(
  options: AcmePlace & { certificateId: string },
): Promise<{ info: unknown; retryAfter: string | undefined } | undefined> {
  const transport = new Transport(options)
  const { data: directory, status } = await transport.request(options.directory)
  const base = (directory as { renewalInfo?: unknown } | undefined)?.renewalInfo
  if (status !== 200 || typeof base !== 'string') return undefined
  const answer = await transport.request(`${base}/${options.certificateId}`)
  if (answer.status !== 200) throw transport.explained(new Error('no renewal information'))
  return { info: answer.data, retryAfter: answer.headers['retry-after'] }
}
