// The relay on Bun as a program of its own; `sotto relay` runs the same in the agent's binary.
import { startRelay } from './bun.ts'
import { runProgram } from './program.ts'

await runProgram(startRelay)
