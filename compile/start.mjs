// `npm start [-- PORT]`: a relay, an agent and a page of their own on this machine.
import { join } from 'node:path'
import { ensureInstalled, ROOT, runOnBun } from './setup.mjs'

ensureInstalled()
runOnBun([
  join(ROOT, 'agent', 'main.ts'),
  'demo',
  ...process.argv.slice(2),
  '--state',
  join(ROOT, '.sotto'),
])
