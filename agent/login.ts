/**
 * Logging in to a relay by a code that a person approves: the device's side of RFC 8628, on a relay
 * whose identity is proven first, with what it says signed by that identity and the key sealed for
 * this login alone. docs/protocol.md, "Login".
 */
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { formatKey } from '../core/key.ts'
import {
  checkLoginOffer,
  openToken,
  readUserCode,
  signLoginRequest,
  WHO_LENGTH_MAX,
} from '../core/login.ts'
import type { LoginOffer, LoginRequest } from '../core/login.ts'
import { base64url, fromBase64url } from './base64.ts'
import type { Joining } from './join.ts'
import { RelayApi } from './relay_api.ts'
import type { World } from './world.ts'

const CODE_PATH = '/v1/device/code'
const TOKEN_PATH = '/v1/device/token'
const GRANT_TYPE = 'urn:ietf:params:oauth:grant-type:device_code'
const CLIENT_ID = 'sotto'
const TOKEN_TYPE = 'sotto-sealed'
const SEAL_BYTES = 32
/** Whatever a relay says: longer than this nobody waits, and no code lives. */
const LOGIN_SECONDS_MAX = 1800
const INTERVAL_SECONDS_MIN = 1
const SLOW_DOWN_SECONDS = 5
/** Between polls that fail on the way. */
const BACKOFF_SECONDS_MAX = 60

/** What the person must be told. */
export interface LoginCode {
  userCode: string
  /** Where it is entered, and the same with the code in it. */
  page: string
  pageWithCode: string
  seconds: number
}

export interface DeviceLoginOptions {
  code(code: LoginCode): void
  /** A poll failed on the way; it is tried again. */
  trouble(error: TunnelError): void
}

/** The API key. Throws `login/…`, `relay/…`, `trust/changed` and what joining throws. */
export async function deviceLogin(
  world: World,
  joining: Joining,
  options: DeviceLoginOptions,
): Promise<string> {
  const { crypto, clock } = world
  let relayKey: Uint8Array | undefined
  const api = new RelayApi(world, {
    ...joining,
    pin: (relay) => {
      if (!joining.pin(relay)) return false
      relayKey = relay
      return true
    },
  })
  await api.prove()
  const private32 = crypto.randomBytes(SEAL_BYTES)
  try {
    const request: LoginRequest = {
      relay: relayKey!,
      agent: joining.identity.public,
      seal: crypto.x25519Public(private32),
      who: whoAmI(world),
    }
    const offer = await askForCode({ world, api, joining, request })
    const page = `${joining.relay.origin}/device`
    options.code({
      userCode: offer.userCode,
      page,
      pageWithCode: `${page}?user_code=${offer.userCode}`,
      seconds: offer.seconds,
    })
    const endMs = clock.monotonic() + Math.min(offer.seconds, LOGIN_SECONDS_MAX) * 1000
    const token = await waitForToken({ world, api, options, endMs }, offer)
    const { deviceCode } = offer
    return openToken(crypto, token, { request, deviceCode, private32 })
  } finally {
    private32.fill(0)
  }
}

/** `ana@laptop`, in the characters that the request may hold. */
export function whoAmI({ username, hostname }: Pick<World, 'username' | 'hostname'>): string {
  const plain = (words: string): string => words.replace(/[^\x21-\x7e]+/g, '-')
  return `${plain(username) || 'user'}@${plain(hostname) || 'host'}`.slice(0, WHO_LENGTH_MAX)
}

interface Asking {
  world: World
  api: RelayApi
  joining: Joining
  request: LoginRequest
}

async function askForCode({ world, api, joining, request }: Asking): Promise<LoginOffer> {
  const { crypto } = world
  const { status, value } = await api.form(CODE_PATH, {
    client_id: CLIENT_ID,
    agent: formatKey(request.agent),
    seal: base64url(request.seal),
    who: request.who,
    signature: base64url(signLoginRequest(crypto, joining.identity, request)),
  })
  if (status !== 200) throw refused(value, status)
  const words = (name: string): string => typeof value[name] === 'string' ? value[name] : ''
  const offer: LoginOffer = {
    deviceCode: words('device_code'),
    userCode: words('user_code'),
    page: words('verification_uri'),
    seconds: Number(value['expires_in']),
    // RFC 8628 §3.2: five where the relay says nothing.
    interval: value['interval'] === undefined ? 5 : Number(value['interval']),
  }
  checkLoginOffer(crypto, { request, offer }, fromBase64url(words('signature')))
  if (readUserCode(offer.userCode) === offer.userCode) return offer
  throw new TunnelError('login/answer', 'Cannot log in: found a code of the relay that is none')
}

interface Waiting {
  world: World
  api: RelayApi
  options: DeviceLoginOptions
  endMs: number
}

/** RFC 8628 §3.4 and §3.5. */
async function waitForToken(
  { world, api, options, endMs }: Waiting,
  { deviceCode, interval }: LoginOffer,
): Promise<Uint8Array> {
  let seconds = Math.max(INTERVAL_SECONDS_MIN, interval)
  for (;;) {
    await pause(world, Math.min(seconds * 1000, endMs - world.clock.monotonic()))
    if (world.clock.monotonic() >= endMs) throw expired()
    let answer: Awaited<ReturnType<RelayApi['form']>>
    try {
      answer = await api.form(TOKEN_PATH, {
        client_id: CLIENT_ID,
        grant_type: GRANT_TYPE,
        device_code: deviceCode,
      })
    } catch (error) {
      // A network that is gone for a moment ends nothing; what proves wrong does.
      const away = isTunnelError(error) && /^(relay\/(unreachable|answer)|net\/|link\/timeout)/
        .test(error.code)
      if (!away) throw error
      options.trouble(error)
      seconds = Math.min(BACKOFF_SECONDS_MAX, seconds * 2)
      continue
    }
    const { status, value } = answer
    if (status === 200) {
      if (value['token_type'] === TOKEN_TYPE && typeof value['access_token'] === 'string') {
        return fromBase64url(value['access_token'])
      }
      throw new TunnelError(
        'login/answer',
        'Cannot log in: found a token of a kind that is unknown',
      )
    }
    if (value['error'] === 'slow_down') seconds += SLOW_DOWN_SECONDS
    else if (status === 429) seconds = Math.min(BACKOFF_SECONDS_MAX, seconds * 2)
    else if (value['error'] !== 'authorization_pending') throw refused(value, status)
  }
}

/** Rejects when the person stops the program. */
async function pause(world: World, ms: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const stop = (): void => {
      timer.cancel()
      reject(new TunnelError('login/stopped', 'The login was stopped'))
    }
    const timer = world.clock.after(ms, () => {
      world.signal.removeEventListener('abort', stop)
      resolve()
    })
    if (world.signal.aborted) stop()
    else world.signal.addEventListener('abort', stop, { once: true })
  })
}

function expired(): TunnelError {
  return new TunnelError('login/expired', 'Cannot log in: nobody approved the code in time', {
    hint: 'Run "sotto login" again for a new code.',
  })
}

function refused(value: Record<string, unknown>, status: number): TunnelError {
  const { error, error_description: words } = value
  if (error === 'expired_token') return expired()
  if (error === 'access_denied') {
    return new TunnelError('login/denied', 'Cannot log in: the code was turned away', {
      hint: 'Somebody said no, or wrong codes were tried too often. Run "sotto login" again.',
    })
  }
  if (status === 404 || status === 405) {
    return new TunnelError('login/answer', 'Cannot log in: this relay knows no logins', {
      hint: 'Have it updated, or log in with a key: sotto login RELAY --prompt-key',
    })
  }
  const said = typeof words === 'string' ? words : typeof error === 'string' ? error : ''
  return new TunnelError(
    'login/refused',
    `Cannot log in: the relay says ${JSON.stringify(said.slice(0, 200))}`,
  )
}
