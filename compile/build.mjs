// `npm run build [-- TARGET…]` and `npm run build:relay`: what is pinned, then the build itself on Bun.
import { join } from 'node:path'
import { ensureInstalled, ROOT, runOnBun } from './setup.mjs'

const [what, ...args] = process.argv.slice(2)
ensureInstalled()
runOnBun([join(ROOT, 'compile', `${what}.ts`), ...args])
