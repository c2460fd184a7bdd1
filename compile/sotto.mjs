#!/usr/bin/env node
// `sotto` from the clone: what `npx sotto …` runs.
import { join } from 'node:path'
import { ensureInstalled, ROOT, runOnBun } from './setup.mjs'

ensureInstalled()
runOnBun([join(ROOT, 'agent', 'main.ts'), ...process.argv.slice(2)])
