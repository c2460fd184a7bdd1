/** What this package throws: a stable code, and a sentence that says what was found and expected. */

export type WireGuardCode =
  | 'wireguard/module'
  | 'wireguard/key'
  | 'wireguard/address'
  | 'wireguard/peer'
  | 'wireguard/packet'
  | 'wireguard/trapped'
  | 'wireguard/flow'
  | 'wireguard/closed'

export class WireGuardError extends Error {
  readonly code: WireGuardCode

  constructor(
    code: WireGuardCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options)
    this.name = 'WireGuardError'
    this.code = code
  }
}
