/**
 * Answers between objects: an error crosses the border by its words alone and would lose its code,
 * so it travels as a value.
 */
import type { ErrorCode } from '../../core/errors.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'

export type Outcome<T> =
  | { ok: true; value: T }
  | { ok: false; error: { code: string; message: string; hint?: string } }

/** Runs and tells how it went; what is not of the error family is a fault, told to the log alone. */
export async function outcome<T>(run: () => T | Promise<T>): Promise<Outcome<T>> {
  try {
    return { ok: true, value: await run() }
  } catch (error) {
    if (isTunnelError(error)) {
      const { code, message, hint } = error
      return { ok: false, error: { code, message, ...(hint === undefined ? {} : { hint }) } }
    }
    console.error(error)
    const message = 'Cannot answer: the relay failed, its log says why'
    return { ok: false, error: { code: 'relay/fault', message } }
  }
}

/** The value, or the error thrown on this side. */
export async function valueOf<T>(answer: Promise<Outcome<T>>): Promise<T> {
  const { ok, ...rest } = await answer as { ok: boolean }
  if (ok) return (rest as { value: T }).value
  const { error } = rest as { error: { code: string; message: string; hint?: string } }
  throw new TunnelError(
    error.code as ErrorCode,
    error.message,
    error.hint === undefined ? {} : { hint: error.hint },
  )
}
