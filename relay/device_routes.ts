/**
 * The HTTP of logins: the two endpoints of RFC 8628 for devices, and the page `/device` where a person
 * enters a code, sees who asks, and lets it in. A page remembers nobody: whoever approves pastes a
 * key into that very form, or approves for themselves where this relay lets anybody sign up. Where
 * agents' pages are paths of the relay's own host there is no form: they could read it.
 */
import type { Context, Hono } from 'hono'
import { getCookie, setCookie } from 'hono/cookie'
import { equal, utf8 } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { formatKey } from '../core/key.ts'
import { readUserCode } from '../core/login.ts'
import { needNoToken, wantedCredential } from './api_rights.ts'
import type { AppEnv, AppPorts } from './app.ts'
import { base64url } from './base64url.ts'
import type { Grant } from './credentials.ts'
import type { LoginGrant } from './device.ts'
import { DeviceDesk } from './device_desk.ts'
import type { Asking } from './device_desk.ts'
import { grantOfSecret } from './failures.ts'
import { relayOrigin } from './install.ts'
import { closedPage, codePage, confirmPage, DEVICE_PATH, donePage } from './pages/device.ts'
import { Problem, problemOf, wrongMethod } from './problem.ts'

export const CODE_PATH = '/v1/device/code'
export const TOKEN_PATH = '/v1/device/token'
const GRANT_TYPE = 'urn:ietf:params:oauth:grant-type:device_code'
const CLIENT_ID = 'sotto'
/** RFC 6749 §7.1: who does not know this type must not use the token. */
const TOKEN_TYPE = 'sotto-sealed'
const COOKIE = '__Host-sotto-device'
const COOKIE_BYTES = 16
/** As the relay's other pages, but for forms that lead back here. */
const PAGE_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; " +
  "frame-ancestors 'none'"
const FIELD_LENGTH_MAX = 512

export function deviceRoutes(app: Hono<AppEnv>, ports: AppPorts): void {
  const desk = new DeviceDesk(ports)
  app.post(CODE_PATH, (c) => tellDevice(c, () => authorize(c, ports, desk)))
  app.post(TOKEN_PATH, (c) => tellDevice(c, () => token(c, ports, desk)))
  app.get(DEVICE_PATH, (c) => {
    // A script of any agent's page could read what is typed here.
    if (ports.paths) return show(c, closedPage({ relay: ports.settings.domain }))
    const cookie = freshCookie(c, ports)
    return show(
      c,
      codePage({
        relay: ports.settings.domain,
        code: readUserCode(c.req.query('user_code') ?? '') ?? '',
        form: desk.formToken(cookie),
      }),
    )
  })
  app.post(DEVICE_PATH, (c) => {
    if (ports.paths) throw foreignForm()
    return submitted(c, ports, desk)
  })
  app.all(CODE_PATH, wrongMethod('POST'))
  app.all(TOKEN_PATH, wrongMethod('POST'))
  app.all(DEVICE_PATH, wrongMethod('GET', 'POST'))
}

/** RFC 8628 §3.1 and §3.2. */
async function authorize(
  c: Context<AppEnv>,
  ports: AppPorts,
  desk: DeviceDesk,
): Promise<Response> {
  const fields = await readForm(c)
  needClient(fields)
  const offer = await desk.begin({
    agent: field(fields, 'agent'),
    seal: field(fields, 'seal'),
    who: field(fields, 'who'),
    signature: field(fields, 'signature'),
    address: c.get('address'),
    page: pageUrl(c, ports),
  })
  ports.log.info('login asked', { address: c.get('address') })
  return c.json({
    device_code: offer.deviceCode,
    user_code: offer.userCode,
    verification_uri: offer.page,
    verification_uri_complete: `${offer.page}?user_code=${offer.userCode}`,
    expires_in: offer.seconds,
    interval: offer.interval,
    relay: formatKey(ports.identity.public),
    signature: offer.signature,
  })
}

/** RFC 8628 §3.4 and §3.5. */
async function token(c: Context<AppEnv>, ports: AppPorts, desk: DeviceDesk): Promise<Response> {
  const fields = await readForm(c)
  needClient(fields)
  if (field(fields, 'grant_type') !== GRANT_TYPE) return refused(c, 'unsupported_grant_type')
  const answer = await desk.token(field(fields, 'device_code'))
  if (answer.state !== 'approved') return refused(c, answer.state)
  ports.log.info('login done', { scope: answer.scope })
  return c.json({
    access_token: answer.token,
    token_type: TOKEN_TYPE,
    scope: answer.scope,
    ...(answer.expiresAt === undefined ? {} : {
      expires_in: Math.max(1, Math.floor((answer.expiresAt - ports.clock.now()) / 1000)),
    }),
  })
}

/** Where people enter codes: this very host as it was dialled, where that is a name of ours. */
function pageUrl(c: Context<AppEnv>, ports: AppPorts): string {
  const { origin, hostname } = new URL(c.req.url)
  const own = ports.settings.names.includes(hostname)
  return `${own ? origin : relayOrigin(ports)}${DEVICE_PATH}`
}

/** Errors as RFC 6749 §5.2 has them. */
async function tellDevice(c: Context<AppEnv>, run: () => Promise<Response>): Promise<Response> {
  try {
    return await run()
  } catch (error) {
    if (isTunnelError(error, 'login/request')) return refused(c, 'invalid_request', error.message)
    if (isTunnelError(error, 'login/client')) return refused(c, 'invalid_client', error.message)
    const { status, message, code } = problemOf(error)
    if (status >= 500) throw error
    return c.json(
      {
        error: status === 429 ? 'temporarily_unavailable' : 'server_error',
        error_description: message,
        code,
      },
      status,
      status === 429 ? { 'retry-after': '600' } : {},
    )
  }
}

function refused(c: Context<AppEnv>, error: string, description?: string): Response {
  return c.json(
    { error, ...(description === undefined ? {} : { error_description: description }) },
    400,
    { pragma: 'no-cache' },
  )
}

function needClient(fields: URLSearchParams): void {
  if (fields.get('client_id') === CLIENT_ID) return
  throw new TunnelError('login/client', `Cannot log in: expected the client_id "${CLIENT_ID}"`)
}

/** Fields of a form, each at most once. Throws `login/request`. */
async function readForm(c: Context<AppEnv>): Promise<URLSearchParams> {
  const type = (c.req.header('content-type') ?? '').split(';')[0]!.trim().toLowerCase()
  if (type !== 'application/x-www-form-urlencoded') {
    throw new TunnelError('login/request', 'Cannot read the request: expected a URL-encoded form')
  }
  const fields = new URLSearchParams(await c.req.text())
  if (new Set(fields.keys()).size === [...fields.keys()].length) return fields
  throw new TunnelError('login/request', 'Cannot read the request: found a field twice')
}

function field(fields: URLSearchParams, name: string): string {
  const value = fields.get(name) ?? ''
  if (value !== '' && value.length <= FIELD_LENGTH_MAX) return value
  throw new TunnelError('login/request', `Cannot read the request: expected a field "${name}"`)
}

// The page

async function submitted(
  c: Context<AppEnv>,
  ports: AppPorts,
  desk: DeviceDesk,
): Promise<Response> {
  const fields = await readForm(c)
  const cookie = needOwnForm(c, desk, fields.get('form') ?? '')
  const form = desk.formToken(cookie)
  const code = (fields.get('code') ?? '').slice(0, 64)
  const relay = ports.settings.domain
  const address = c.get('address')
  let asking: Asking | undefined
  try {
    const step = fields.get('step')
    if (step === 'deny') {
      await desk.deny(code, address)
      return show(c, donePage({ relay, denied: true }))
    }
    if (step === 'signup' && ports.settings.openSignup) {
      asking = await desk.look(code, address)
      const scope = await desk.newScope(asking.who)
      await desk.approve(code, { scope, by: 'self' }, address)
      ports.log.info('login approved', { scope, address })
      return show(c, donePage({ relay, scope, asking }))
    }
    if (step === 'approve') {
      const key = (fields.get('key') ?? '').trim().slice(0, 256)
      // The key first: without a good one nothing is said of the code.
      const grant = await grantOfSecret(ports, { secret: key, address, path: DEVICE_PATH })
      // Who may do everything need not guess.
      asking = await desk.look(code, grant.admin ? undefined : address)
      const scope = (fields.get('scope') ?? '').trim()
      const done = await approveLogin(ports, desk, {
        code,
        grant,
        asking,
        ...(scope === '' ? {} : { scope: scope.slice(0, 64) }),
      })
      return show(c, donePage({ relay, scope: done.scope, asking }))
    }
    asking = await desk.look(code, address)
    return show(c, confirmPage({ relay, code, form, asking, signup: ports.settings.openSignup }))
  } catch (error) {
    const { status, message, hint } = problemOf(error)
    if (status >= 500) throw error
    const trouble = hint === undefined ? message : `${message}. ${hint}`
    // A code that was found stays found: what was wrong is the key or the scope.
    const again = fields.get('step') === 'approve' && !isTunnelError(error, 'login/code')
    if (again) {
      const facts = { relay, code, form, asking, signup: ports.settings.openSignup, trouble }
      return show(c, confirmPage(facts), status)
    }
    return show(c, codePage({ relay, code, form, trouble }), status)
  }
}

/** What an approver chose; without a scope it is a new one, or that of a key that is of one. */
export interface Approval {
  code: string
  grant: Grant
  asking: Asking
  scope?: string
  names?: string[]
  expiresAt?: string
}

/** Approves by a credential, for no more than it may do itself. Throws `api/…`, `login/…`. */
export async function approveLogin(
  ports: Pick<AppPorts, 'log'>,
  desk: DeviceDesk,
  { code, grant, asking, ...chosen }: Approval,
): Promise<LoginGrant> {
  needNoToken(grant)
  const scope = chosen.scope ?? (grant.admin ? await desk.newScope(asking.who) : grant.scope)
  const wanted = wantedCredential(grant, 'key', { ...chosen, scope })
  const done: LoginGrant = {
    scope: wanted.scope,
    by: grant.id,
    ...(wanted.names ? { names: wanted.names } : {}),
    ...(wanted.expiresAt === undefined ? {} : { expiresAt: wanted.expiresAt }),
  }
  await desk.approve(code, done)
  ports.log.info('login approved', { scope: done.scope, credential: grant.id })
  return done
}

/** A browser that has no cookie of ours yet gets one: it ties a form to who was given it. */
function freshCookie(c: Context<AppEnv>, { crypto }: AppPorts): string {
  const known = getCookie(c, COOKIE)
  if (known !== undefined && /^[A-Za-z0-9_-]{22}$/.test(known)) return known
  const made = base64url(crypto.randomBytes(COOKIE_BYTES))
  setCookie(c, COOKIE, made, { path: '/', secure: true, httpOnly: true, sameSite: 'Strict' })
  return made
}

/**
 * Another site that makes a browser send our form: it has not the cookie (SameSite), cannot read the
 * form's token, and browsers say where a form came from. Throws a 403.
 */
function needOwnForm(c: Context<AppEnv>, desk: DeviceDesk, form: string): string {
  const cookie = getCookie(c, COOKIE) ?? ''
  const site = c.req.header('sec-fetch-site')
  const origin = c.req.header('origin')
  const own = site === undefined
    ? origin !== undefined && URL.canParse(origin) &&
      new URL(origin).host === new URL(c.req.url).host
    : site === 'same-origin'
  if (own && cookie !== '' && equal(utf8(form), utf8(desk.formToken(cookie)))) return cookie
  throw foreignForm()
}

function foreignForm(): Problem {
  return new Problem(403, {
    code: 'login/form',
    message: 'Cannot take the form: it did not come from this page',
    hint: `Open ${DEVICE_PATH} again, with cookies allowed.`,
  })
}

function show(
  c: Context<AppEnv>,
  page: ReturnType<typeof codePage>,
  status: Problem['status'] = 200,
): Response | Promise<Response> {
  c.header('content-security-policy', PAGE_POLICY)
  // With no-referrer a browser would not say where a form comes from.
  c.header('referrer-policy', 'same-origin')
  return c.html(page, status)
}
