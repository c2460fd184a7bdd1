/** Waiting for something that the person may stop. */
import { TunnelError } from '../core/errors.ts'

export interface Stop {
  /** Never resolves; rejects with `world/stopped` when the signal fires. */
  readonly promise: Promise<never>
  /** Listens no longer. */
  done(): void
}

/** Race `promise` with what is waited for; the program gives the signal's exit code. */
export function stopped(signal: AbortSignal): Stop {
  let fail!: (error: TunnelError) => void
  const promise = new Promise<never>((_, reject) => void (fail = reject))
  promise.catch(() => {})
  const stop = (): void => fail(new TunnelError('world/stopped', 'Cannot go on: told to stop'))
  if (signal.aborted) stop()
  else signal.addEventListener('abort', stop, { once: true })
  return { promise, done: () => signal.removeEventListener('abort', stop) }
}
