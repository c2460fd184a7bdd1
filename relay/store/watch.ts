/**
 * Calls a poll again and again, never twice at once, until cancelled. A poll that fails is told
 * and tried again: a full disk must not end the watch for revocations.
 */
import type { Clock, Timer } from '../../core/clock.ts'

export interface WatchOptions {
  /** Milliseconds between two polls; default 500, so that a revocation acts within a second. */
  everyMs?: number
  failed?(error: unknown): void
}

export function watch(
  clock: Clock,
  poll: () => Promise<void>,
  { everyMs = 500, failed }: WatchOptions,
): Timer {
  let timer: Timer | undefined
  let cancelled = false
  const next = (): void => {
    if (!cancelled) timer = clock.after(everyMs, run)
  }
  const run = (): void => {
    poll().catch((error) => failed?.(error)).then(next)
  }
  next()
  return {
    cancel() {
      cancelled = true
      timer?.cancel()
    },
  }
}
