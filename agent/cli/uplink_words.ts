/** What a person is told of the link to the relay, by commands that hold one while they wait. */
import type { UplinkState } from '../uplink.ts'
import { waitWords } from './screen.ts'
import type { Screen } from './screen.ts'

export function uplinkTeller(screen: Screen): (state: UplinkState) => void {
  let told = false
  return (state) => {
    if (state.kind === 'down' && !told) {
      told = true
      const wait = waitWords(state.retryInMs)
      screen.tell(`no link to the relay (${state.reason}), trying again in ${wait}`, {
        again: true,
      })
    } else if (state.kind === 'up' && told) {
      told = false
      screen.tell('the relay is there again', { again: true })
    }
  }
}
