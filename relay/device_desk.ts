/**
 * The device authorization grant (RFC 8628) as this relay gives it: codes and their keyed hashes,
 * what is signed and sealed, and the scope that a login leads to. docs/protocol.md, "Login".
 */
import { hex, utf8 } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { KEY_BYTES } from '../core/crypto.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { fingerprint, isName, parseKey } from '../core/key.ts'
import {
  checkLoginRequest,
  makeUserCode,
  readUserCode,
  sealToken,
  signLoginOffer,
  USER_CODE_ALPHABET,
} from '../core/login.ts'
import type { LoginOffer, LoginRequest } from '../core/login.ts'
import { base64url, fromBase64url } from './base64url.ts'
import { INTERVAL_SECONDS, LOGIN_SECONDS, unknownCode } from './device.ts'
import type { Decision, Entered, LoginGrant, LoginRecord, Logins, PollState } from './device.ts'
import type { Credentials } from './credentials.ts'
import type { Registry } from './registry.ts'

const DEVICE_CODE_BYTES = 32
const DEVICE_CODE = /^[A-Za-z0-9_-]{43}$/
/** User codes drawn before the relay gives up: two that wait share a half one time in 320. */
const DRAWS_MAX = 8
const SCOPE_LETTERS = 4
const SCOPE_HINT_LENGTH_MAX = 40
const HASH_INFO = 'sotto login v1 codes'

export type LoginsPort = Pick<Logins, 'begin' | 'poll' | 'look' | 'settle'>

export interface DevicePorts {
  logins: LoginsPort
  clock: Clock
  crypto: Crypto
  identity: { readonly seed: Uint8Array; readonly public: Uint8Array }
  credentials: Pick<Credentials, 'create' | 'list'>
  registry: Pick<Registry, 'list' | 'isBlocked'>
}

/** A device authorization request, as it came. */
export interface DeviceRequest {
  agent: string
  seal: string
  who: string
  signature: string
  address: string
  /** Where codes are entered at this relay. */
  page: string
}

/** Who asks, as an approver sees it. */
export interface Asking {
  who: string
  fingerprint: string
  address: string
  /** Milliseconds since 1970. */
  at: number
  expires: number
}

export type TokenAnswer =
  | { state: PollState }
  | { state: 'approved'; token: string; scope: string; expiresAt?: number }

export class DeviceDesk {
  readonly #ports: DevicePorts
  #hashKey: Uint8Array | undefined

  constructor(ports: DevicePorts) {
    this.#ports = ports
  }

  /** Throws `login/request`, `login/limit`. */
  async begin(asked: DeviceRequest): Promise<LoginOffer & { signature: string }> {
    const { crypto, identity, logins } = this.#ports
    const { agent, seal, who, address, page } = asked
    const request = this.#request(asked)
    checkLoginRequest(crypto, request, bytesOf(asked.signature))
    const deviceCode = base64url(crypto.randomBytes(DEVICE_CODE_BYTES))
    for (let draw = 0; draw < DRAWS_MAX; draw++) {
      const userCode = makeUserCode(crypto)
      const device = this.#hash('device', deviceCode)
      const begun = await logins.begin({
        device,
        ...this.#userHashes(userCode),
        agent,
        seal,
        who,
        address,
      })
      if (!begun) continue
      const offer = {
        deviceCode,
        userCode,
        page,
        seconds: LOGIN_SECONDS,
        interval: INTERVAL_SECONDS,
      }
      const signature = signLoginOffer(crypto, identity.seed, { request, offer })
      return { ...offer, signature: base64url(signature) }
    }
    throw new TunnelError('login/limit', 'Cannot take the login now: too many wait')
  }

  /** What the device is told. Throws what `Credentials.create` throws. */
  async token(deviceCode: string): Promise<TokenAnswer> {
    const { crypto, identity, credentials, logins } = this.#ports
    if (!DEVICE_CODE.test(deviceCode)) return { state: 'invalid_grant' }
    const polled = await logins.poll(this.#hash('device', deviceCode))
    if (polled.state !== 'approved') return { state: polled.state }
    const { login, grant } = polled
    const { by: _, ...wanted } = grant
    const { secret } = await credentials.create({
      ...wanted,
      kind: 'key',
      label: `login of ${login.who}`,
    })
    const token = sealToken(crypto, identity.seed, {
      request: this.#request(login),
      deviceCode,
      secret,
    })
    const { scope, expiresAt } = grant
    return {
      state: 'approved',
      token: base64url(token),
      scope,
      ...(expiresAt === undefined ? {} : { expiresAt }),
    }
  }

  /** `address`: of one who showed no key. Throws `login/code`, `login/limit`. */
  async look(typed: string, address?: string): Promise<Asking> {
    return this.#asking(await this.#ports.logins.look(this.#entered(typed, address)))
  }

  /** Throws `login/code`, `login/limit`, `login/scope`. */
  async approve(typed: string, grant: LoginGrant, signup?: string): Promise<Asking> {
    if (!isName(grant.scope) || grant.scope === 'admin') {
      throw new TunnelError(
        'login/scope',
        `Cannot approve for the scope "${
          grant.scope.slice(0, 63)
        }": expected 1 to 63 of a-z 0-9 - ` +
          'and not "admin"',
      )
    }
    return await this.#settle(this.#entered(typed, signup), {
      approve: grant,
      ...(signup === undefined ? {} : { signup }),
    })
  }

  /** Throws `login/code`, `login/limit`. */
  async deny(typed: string, address?: string): Promise<Asking> {
    return await this.#settle(this.#entered(typed, address), { deny: true })
  }

  /**
   * A scope that nobody has. The hint is the word of who asks, so the letters after it, and not the
   * hint, keep one that claims to be somebody out of that person's scope.
   */
  async newScope(who: string): Promise<string> {
    const { crypto, credentials, registry } = this.#ports
    const hint = who.split('@')[0]!.toLowerCase().replace(/[^a-z0-9]+/g, '-')
      .slice(0, SCOPE_HINT_LENGTH_MAX).replace(/^-+|-+$/g, '') || 'user'
    for (let draw = 0; draw < DRAWS_MAX; draw++) {
      const letters = [...crypto.randomBytes(SCOPE_LETTERS)]
        .map((byte) => USER_CODE_ALPHABET[byte % USER_CODE_ALPHABET.length]!.toLowerCase())
      const scope = `${hint}-${letters.join('')}`
      const [known, names] = await Promise.all([
        credentials.list({ scope, limit: 1 }),
        registry.list(scope, { limit: 1 }),
      ])
      if (known.length + names.length === 0 && !registry.isBlocked(undefined, scope)) return scope
    }
    throw new TunnelError('login/scope', 'Cannot find a free scope: choose one with --scope')
  }

  /** What ties a form of the page to the browser that holds this cookie. */
  formToken(cookie: string): string {
    return this.#hash('form', cookie).slice(0, 32)
  }

  async #settle(entered: Entered, decision: Decision): Promise<Asking> {
    return this.#asking(await this.#ports.logins.settle(entered, decision))
  }

  #asking({ agent, who, address, at, expires }: LoginRecord): Asking {
    return {
      who,
      fingerprint: fingerprint(this.#ports.crypto, parseKey(agent)),
      address,
      at,
      expires,
    }
  }

  #request({ agent, seal, who }: Pick<LoginRecord, 'agent' | 'seal' | 'who'>): LoginRequest {
    try {
      return {
        relay: this.#ports.identity.public,
        agent: parseKey(agent),
        seal: bytesOf(seal),
        who,
      }
    } catch (error) {
      if (isTunnelError(error, 'login/request')) throw error
      throw new TunnelError('login/request', 'Cannot begin a login: found an agent that is no KEY')
    }
  }

  #entered(typed: string, address: string | undefined): Entered {
    const userCode = readUserCode(typed)
    if (userCode === undefined) throw unknownCode()
    return { ...this.#userHashes(userCode), ...(address === undefined ? {} : { address }) }
  }

  #userHashes(userCode: string): { user: string; check: string } {
    return {
      user: this.#hash('half', userCode.slice(0, 4)),
      check: this.#hash('user', userCode),
    }
  }

  /** A code is short enough to be tried out against a plain hash; the key is nowhere in the store. */
  #hash(kind: string, code: string): string {
    const { crypto, identity } = this.#ports
    this.#hashKey ??= crypto.hkdfSha256({
      key: identity.seed,
      salt: new Uint8Array(KEY_BYTES),
      info: HASH_INFO,
      bytes: KEY_BYTES,
    })
    return hex(crypto.hmacSha256(this.#hashKey, utf8(`${kind}\0${code}`)))
  }
}

/** Throws `login/request`. */
function bytesOf(text: string): Uint8Array {
  try {
    return fromBase64url(text)
  } catch {
    throw new TunnelError('login/request', 'Cannot begin a login: found what is no base64url')
  }
}
