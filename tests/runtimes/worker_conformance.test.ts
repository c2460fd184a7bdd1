// The conformance suite against workerd, as a real process; what only a Durable Object does is in
// worker.test.ts.
// runtimes: node
// seconds: 300
import { atEdge, EDGE } from '../support/relays.ts'
import { startWorker } from '../support/worker_relay.ts'
import { conformance } from './suite.ts'

conformance('worker', atEdge(startWorker), EDGE)
