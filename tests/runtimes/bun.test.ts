// The relay on Bun as a real process. The tests' own side runs on Node, which shows certificates,
// close codes and half-closes as they are on the wire.
// runtimes: node
// seconds: 300
import { RAW, startBun } from '../support/relays.ts'
import { conformance } from './suite.ts'

conformance('bun', startBun, RAW)
