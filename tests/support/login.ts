/** A machine that logs in, and a browser that approves: by any way to send a request. */
import type { Crypto } from '../../core/crypto.ts'
import { formatKey, generateIdentity, parseKey } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { checkLoginOffer, openToken, signLoginRequest } from '../../core/login.ts'
import type { LoginRequest } from '../../core/login.ts'
import { base64url, fromBase64url } from '../../relay/base64url.ts'

export type Send = (path: string, init: RequestInit) => Promise<Response>

export const GRANT_TYPE = 'urn:ietf:params:oauth:grant-type:device_code'

export function formBody(fields: Record<string, string>): RequestInit {
  return {
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: new URLSearchParams(fields).toString(),
  }
}

export class LoginDevice {
  readonly identity: Identity
  readonly request: LoginRequest
  readonly private32: Uint8Array
  readonly #crypto: Crypto
  readonly #send: Send
  deviceCode = ''
  userCode = ''
  interval = 0

  constructor(crypto: Crypto, send: Send, relayKey: string, who = 'ana@laptop') {
    this.#crypto = crypto
    this.#send = send
    this.identity = generateIdentity(crypto)
    this.private32 = crypto.randomBytes(32)
    this.request = {
      relay: parseKey(relayKey),
      agent: this.identity.public,
      seal: crypto.x25519Public(this.private32),
      who,
    }
  }

  fields(): Record<string, string> {
    const signature = signLoginRequest(this.#crypto, this.identity, this.request)
    return {
      client_id: 'sotto',
      agent: formatKey(this.request.agent),
      seal: base64url(this.request.seal),
      who: this.request.who,
      signature: base64url(signature),
    }
  }

  /** Begins, and checks what the relay signed. */
  async begin(): Promise<Record<string, unknown>> {
    const response = await this.#send('/v1/device/code', formBody(this.fields()))
    const answer = await response.json() as Record<string, unknown>
    if (response.status !== 200) {
      throw new Error(`status ${response.status}: ${JSON.stringify(answer)}`)
    }
    this.deviceCode = String(answer['device_code'])
    this.userCode = String(answer['user_code'])
    this.interval = Number(answer['interval'])
    checkLoginOffer(this.#crypto, {
      request: this.request,
      offer: {
        deviceCode: this.deviceCode,
        userCode: this.userCode,
        page: String(answer['verification_uri']),
        seconds: Number(answer['expires_in']),
        interval: this.interval,
      },
    }, fromBase64url(String(answer['signature'])))
    return answer
  }

  async poll(deviceCode = this.deviceCode): Promise<Record<string, unknown> & { status: number }> {
    const response = await this.#send(
      '/v1/device/token',
      formBody({ client_id: 'sotto', grant_type: GRANT_TYPE, device_code: deviceCode }),
    )
    return { status: response.status, ...await response.json() as Record<string, unknown> }
  }

  /** The API key of a good answer. */
  open(answer: Record<string, unknown>): string {
    return openToken(this.#crypto, fromBase64url(String(answer['access_token'])), {
      request: this.request,
      deviceCode: this.deviceCode,
      private32: this.private32,
    })
  }
}

/** A browser with one cookie, at the page `/device`. */
export class DevicePage {
  readonly #send: Send
  cookie = ''
  form = ''
  html = ''
  status = 0

  constructor(send: Send) {
    this.#send = send
  }

  async open(userCode = ''): Promise<Response> {
    const query = userCode === '' ? '' : `?user_code=${userCode}`
    return await this.#take(
      await this.#send(`/device${query}`, { headers: { cookie: this.cookie } }),
    )
  }

  async submit(
    fields: Record<string, string>,
    headers: Record<string, string> = { 'sec-fetch-site': 'same-origin' },
  ): Promise<Response> {
    const init = formBody({ form: this.form, ...fields })
    return await this.#take(
      await this.#send('/device', {
        ...init,
        headers: { ...init.headers as Record<string, string>, cookie: this.cookie, ...headers },
      }),
    )
  }

  async #take(response: Response): Promise<Response> {
    this.status = response.status
    this.html = await response.clone().text()
    const cookie = response.headers.get('set-cookie')?.split(';')[0]
    if (cookie !== undefined) this.cookie = cookie
    this.form = /name="form" value="([^"]+)"/.exec(this.html)?.[1] ?? this.form
    return response
  }
}
