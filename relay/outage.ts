/**
 * Why an exchange could not be carried, as the visitor is told: one function for each place where it
 * goes wrong. The pages that say it are in `pages/failure.ts`.
 */
import { isTunnelError } from '../core/errors.ts'
import { StreamReset } from '../core/mux.ts'
import { Problem, problemOf } from './problem.ts'

/** What `Retry-After` says where nothing better is known. */
const RETRY_SECONDS = 5

/** Why a request could not be read. */
export function requestProblem(error: unknown): Problem {
  if (isTunnelError(error, 'exchange/size')) {
    return new Problem(431, { code: 'http/head', message: error.message })
  }
  if (isTunnelError(error, 'exchange/head')) {
    return new Problem(400, { code: 'http/head', message: error.message })
  }
  return problemOf(error)
}

/** Nobody serves `name`. */
export function unknownName(name: string): Problem {
  return new Problem(404, {
    code: 'http/unknown',
    message: `Cannot find the tunnel "${name}": nobody serves it now`,
    hint: 'If it is yours, start its agent and load this page again.',
  })
}

/** The service, or the agent in front of it, is not what it should be. */
export function badGateway(why: string): Problem {
  return new Problem(502, { code: 'http/gateway', message: `Cannot reach the service: ${why}` })
}

/** Later it may work. */
export function busy(why: string): Problem {
  return new Problem(503, {
    code: 'http/overload',
    message: `Cannot answer now: ${why}`,
    headers: { 'retry-after': String(RETRY_SECONDS) },
  })
}

/** Why a stream could not even be opened. */
export function openProblem(error: unknown): Problem {
  if (isTunnelError(error, 'mux/limit')) return busy('the agent has too many requests at once')
  if (isTunnelError(error) && /^(hub|mux)\//.test(error.code)) {
    return badGateway('its agent is gone')
  }
  return problemOf(error)
}

/** Why a stream ended before a response. What the agent says is told as it is. */
export function resetProblem(error: Error): Problem {
  const reset = error instanceof StreamReset ? error : undefined
  const reason = reset?.reason ?? ''
  switch (reset?.code) {
    case 'stream/unreachable':
      return badGateway(reason === '' ? 'the agent cannot reach it' : reason)
    case 'stream/timeout':
      return new Problem(504, {
        code: 'http/timeout',
        message: `Cannot reach the service: ${
          reason === '' ? 'its agent does not answer' : reason
        }`,
      })
    case 'stream/overload':
    case 'stream/draining':
    case 'stream/quota':
      return busy(reason === '' ? 'too many requests at once' : reason)
    case 'stream/blocked':
      return new Problem(403, {
        code: 'relay/blocked',
        message: 'This tunnel was blocked by its relay',
      })
    case 'stream/gone':
      return badGateway('its agent is gone')
    default:
      return badGateway(reason === '' ? 'its agent broke off' : reason)
  }
}
