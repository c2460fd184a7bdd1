/**
 * The one family of errors. A stable code for programs, a sentence for people, and the remedy
 * where one exists. Sentences say "Cannot ACTION SUBJECT: found X, expected Y".
 */

/** `module/reason`, stable across releases; programs switch on it, people search for it. */
export type ErrorCode = `${string}/${string}`

export interface TunnelErrorOptions {
  /** What the person can do about it, as a whole sentence or a command. */
  hint?: string
  /** The error below, kept for logs and never shown by default. */
  cause?: unknown
}

export class TunnelError extends Error {
  readonly code: ErrorCode
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: TunnelErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'TunnelError'
    this.code = code
    this.hint = options.hint
  }

  /** The shape that `--json` and the relay's API print. */
  toJSON(): { code: ErrorCode; message: string; hint?: string } {
    return this.hint === undefined
      ? { code: this.code, message: this.message }
      : { code: this.code, message: this.message, hint: this.hint }
  }
}

/** True when `error` is of the family and, where `code` is given, carries that code. */
export function isTunnelError(error: unknown, code?: ErrorCode): error is TunnelError {
  return error instanceof TunnelError && (code === undefined || error.code === code)
}

/** Brings anything thrown into the family without losing its text. */
export function asTunnelError(error: unknown, code: ErrorCode): TunnelError {
  if (error instanceof TunnelError) return error
  const text = error instanceof Error ? error.message : String(error)
  return new TunnelError(code, text, { cause: error })
}
