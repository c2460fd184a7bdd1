// The conformance suite against `Deno.serve`, as on hosts that show no raw sockets.
// runtimes: node
// seconds: 300
import { atEdge, EDGE } from '../support/relays.ts'
import { startDenoDeploy } from '../support/worker_relay.ts'
import { conformance } from './suite.ts'

conformance('deno_deploy', atEdge(startDenoDeploy), EDGE)
