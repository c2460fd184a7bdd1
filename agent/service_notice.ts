/**
 * What a long-running command tells its service manager: ready, reloading, stopping, and that it is
 * still alive. Where nobody asked to be told, nothing happens.
 */
import type { Timer } from '../core/clock.ts'
import type { World } from './world.ts'

type Surroundings = Pick<World, 'env' | 'clock' | 'system' | 'signal' | 'pid'>

/** Times that a manager may take a sign of life before it gives this process up. */
const SIGNS_WITHIN = 3

/** Its work is being done: tunnels are up, or the relay listens. `words` are what `status` shows. */
export async function tellReady(world: Surroundings, words: string): Promise<void> {
  await world.system.notify(['READY=1', `STATUS=${oneLine(words)}`])
}

/** Another word for `status`, such as that the relay is lost. */
export async function tellStatus(world: Surroundings, words: string): Promise<void> {
  await world.system.notify([`STATUS=${oneLine(words)}`])
}

/** Its configuration is being read again; `tellReady` ends it. */
export async function tellReloading(world: Surroundings): Promise<void> {
  const nowUs = await world.system.monotonicUs()
  await world.system.notify([
    'RELOADING=1',
    ...(nowUs === undefined ? [] : [`MONOTONIC_USEC=${nowUs}`]),
  ])
}

export async function tellStopping(world: Surroundings): Promise<void> {
  await world.system.notify(['STOPPING=1', 'STATUS=stopping'])
}

/**
 * A sign of life as often as the manager wants it (`WATCHDOG_USEC`), from the loop that does the work:
 * one that hangs is silent. Ends with the world's signal, or by what it gives.
 */
export function keepAlive(world: Surroundings): () => void {
  const { env, clock, system, signal, pid } = world
  const withinMs = Number(env['WATCHDOG_USEC']) / 1000
  const named = env['WATCHDOG_PID']
  if (!(withinMs > 0) || (named && named !== String(pid))) return () => {}
  let timer: Timer | undefined
  let over = false
  const sign = (): void => {
    if (over) return
    void system.notify(['WATCHDOG=1'])
    timer = clock.after(withinMs / SIGNS_WITHIN, sign)
  }
  const end = (): void => {
    over = true
    timer?.cancel()
    signal.removeEventListener('abort', stop)
  }
  // A drain goes on after the signal, and lives.
  const stop = (): void => void tellStopping(world)
  signal.addEventListener('abort', stop, { once: true })
  sign()
  return end
}

/** Assignments are lines. */
function oneLine(words: string): string {
  // deno-lint-ignore no-control-regex
  return words.replace(/[\x00-\x1f\x7f]+/g, ' ').slice(0, 200)
}
