/**
 * Checks that run beside each other, each bounded in time and each ending in one line: ok, a warning, or
 * a failure with what to do about it. What a check throws is a failure like others; nothing of it is
 * changed on the way.
 */
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { stopped } from './stop.ts'
import type { World } from './world.ts'

/** A check that has not ended by then has failed. */
export const CHECK_MS_MAX = 15_000

export type Level = 'ok' | 'warning' | 'fail' | 'skipped'

export interface Finding {
  level: Level
  /** One line without a full stop. */
  words: string
  /** What the person can do, as a sentence or a command. */
  remedy?: string
  /** For programs. */
  facts?: Readonly<Record<string, unknown>>
}

export interface Check {
  name: string
  /** One word or two, for people. */
  title: string
  run(): Promise<Finding>
}

export interface Result extends Finding {
  check: string
  title: string
}

/** All of them, in their order; `told` hears each as soon as it and all before it are known. */
export async function runChecks(
  world: Pick<World, 'clock' | 'signal'>,
  checks: readonly Check[],
  told: (result: Result) => void = () => {},
): Promise<Result[]> {
  const stop = stopped(world.signal)
  try {
    const running = checks.map((check) => run(world, check))
    const results: Result[] = []
    for (const one of running) {
      const result = await Promise.race([one, stop.promise])
      results.push(result)
      told(result)
    }
    return results
  } finally {
    stop.done()
  }
}

export function ok(words: string, facts?: Finding['facts']): Finding {
  return { level: 'ok', words, ...(facts ? { facts } : {}) }
}

export function warning(words: string, remedy: string, facts?: Finding['facts']): Finding {
  return { level: 'warning', words, remedy, ...(facts ? { facts } : {}) }
}

export function fail(words: string, remedy: string, facts?: Finding['facts']): Finding {
  return { level: 'fail', words, remedy, ...(facts ? { facts } : {}) }
}

export function skipped(words: string, remedy?: string): Finding {
  return { level: 'skipped', words, ...(remedy === undefined ? {} : { remedy }) }
}

/** What was thrown, as a finding; the remedy is the error's own hint, or `otherwise`. */
export function failed(thrown: unknown, otherwise = 'sotto explain'): Finding {
  const error = asTunnelError(thrown, 'doctor/check')
  const remedy = error.hint ??
    (otherwise === 'sotto explain' ? `sotto explain ${error.code}` : otherwise)
  return fail(error.message, remedy, { code: error.code })
}

async function run({ clock }: Pick<World, 'clock'>, check: Check): Promise<Result> {
  const head = { check: check.name, title: check.title }
  let late: { cancel(): void } | undefined
  const tooLate = new Promise<never>((_, reject) => {
    late = clock.after(CHECK_MS_MAX, () =>
      reject(
        new TunnelError('doctor/timeout', `no end within ${CHECK_MS_MAX / 1000} s`, {
          hint: 'Something drops packets without a word, often a firewall.',
        }),
      ))
  })
  try {
    return { ...head, ...await Promise.race([check.run(), tooLate]) }
  } catch (error) {
    return { ...head, ...failed(error) }
  } finally {
    late?.cancel()
  }
}
