/** Who serves a readable name: the way from the live endpoints to the gateway. */
import type { Endpoints } from './endpoints.ts'
import type { Backend } from './gateway.ts'
import { Problem } from './problem.ts'

export interface PickOptions {
  /** Counting from 1 for one exchange: the next best is asked each time. */
  attempt: number
  blocked: boolean
  /** A stream was opened to a process. */
  opened?(): void
}

/** Undefined: nobody, or nobody more. Throws a 403 where the name is cut off. */
export function pickBackend(
  endpoints: Endpoints,
  name: string,
  { attempt, blocked, opened }: PickOptions,
): Backend | undefined {
  const endpoint = endpoints.get(name)
  if (endpoint?.mode !== 'inspectable') return undefined
  if (blocked) {
    throw new Problem(403, {
      code: 'relay/blocked',
      message: 'This tunnel was blocked by its relay',
    })
  }
  const serving = endpoints.pick(endpoint)[attempt - 1]
  if (!serving) return undefined
  let active = false
  return {
    open(visit) {
      const stream = serving.group.open(visit)
      active = true
      serving.active++
      opened?.()
      return stream
    },
    settled(result) {
      if (result === 'timeout') endpoints.failed(serving)
    },
    closed() {
      if (active) serving.active--
      active = false
    },
  }
}
