// The relay on Node: `npm run relay:node`.
import { startRelay } from './node.ts'
import { runProgram } from './program.ts'

await runProgram(startRelay)
