/** A CA that speaks ACME (RFC 8555), as an agent sees it: the order of one certificate, and when to renew. */

export interface AcmePort {
  /**
   * One certificate for one name, from the account to the chain (PEM, leaf first). Throws `acme/…`, with
   * `retryAfterMs` on the error where the CA said when to come back: see `retryAfterMs`.
   */
  obtain(options: AcmeOrder): Promise<string>
  /**
   * Renewal information of a certificate (RFC 9773): what the CA answered as JSON, undefined where it
   * has none. Throws `acme/…`.
   */
  renewalInfo(
    options: AcmePlace & { readonly certificateId: string },
  ): Promise<{ readonly info: unknown; readonly retryAfter: string | undefined } | undefined>
}

export interface CaAnswer {
  readonly status: number
  /** By name in lower case. */
  readonly fields: ReadonlyMap<string, string>
  readonly body: Uint8Array
}

export interface AcmePlace {
  /** URL of the directory. */
  readonly directory: string
  /** One exchange with the CA, by POST where there is a body. Throws `acme/…`, `proxy/…`. */
  ask(url: URL, body?: string): Promise<CaAnswer>
  readonly signal: AbortSignal
}

export interface AcmeOrder extends AcmePlace {
  /** PEM, PKCS #8, P-256. */
  readonly accountKey: string
  /** Where the account is, once it was made. */
  readonly accountUrl: string | undefined
  /** External account binding: key id, and the HMAC key in base64url. */
  readonly eab: { readonly id: string; readonly key: string } | undefined
  /** An e-mail address. */
  readonly contact: string | undefined
  /** The account is at this URL from now on; `terms` is what was agreed to. */
  accountMade(url: string, terms: string | undefined): Promise<void>
  readonly name: string
  /** PEM. */
  readonly csr: string
  /** The certificate that this one takes the place of (RFC 9773 §5). */
  readonly replaces: string | undefined
  /** Answers TLS-ALPN-01 with this SHA-256 from when the promise resolves until the returned call. */
  challenge(digest: Uint8Array): Promise<() => void>
}

/** How long a CA asked to wait, on an error of its own. */
export function retryAfterMs(error: unknown): number | undefined {
  const value = (error as { retryAfterMs?: unknown } | undefined)?.retryAfterMs
  return typeof value === 'number' ? value : undefined
}
