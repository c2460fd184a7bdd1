/**
 * Read, decide, commit, and again when another was faster: each lost round means that somebody
 * else got through, so a few dozen rounds end every race that is not an attack.
 */
import { TunnelError } from '../../core/errors.ts'
import type { Commit, Store } from './store.ts'

/** Rounds before giving up. */
export const ROUNDS_MAX = 64

/**
 * Calls `decide` with fresh reads until its commit goes through, and returns its `result`. A
 * decision without `commit` writes nothing. Throws `store/busy` when every round was lost.
 */
export async function commitWhen<Result>(
  store: Store,
  decide: () => Promise<{ commit?: Commit; result: Result }>,
): Promise<Result> {
  for (let round = 0; round < ROUNDS_MAX; round++) {
    const { commit, result } = await decide()
    if (!commit || await store.commit(commit)) return result
  }
  throw new TunnelError(
    'store/busy',
    `Cannot commit: found the entry changed by others ${ROUNDS_MAX} times in a row`,
    { hint: 'Try again.' },
  )
}

/** Runs tasks one after the other, so that one process does not race against itself. */
export class Turnstile {
  #last: Promise<unknown> = Promise.resolve()

  run<Result>(task: () => Promise<Result>): Promise<Result> {
    const turn = this.#last.then(task, task)
    this.#last = turn.catch(() => {})
    return turn
  }
}
