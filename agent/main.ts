/** The entry on Bun: gathers the world, runs the command line, and alone ends the process. */
import { runProgram } from './cli/program.ts'
import { hostWorld } from './host/world.ts'

/** Timers of the world keep nothing alive, so that this decides when the program is over. */
const alive = setInterval(() => {}, 2_147_483_647)

process.on('uncaughtException', (error: unknown) => {
  process.stderr.write(`sotto: a fault of its own: ${(error as Error)?.stack ?? error}\n`)
  process.exit(70)
})

const code = await runProgram(process.argv.slice(2), hostWorld())
clearInterval(alive)
// What is still on its way into a pipe would be lost with the process.
await new Promise<void>((resolve) => process.stdout.write('', () => resolve()))
process.exit(code)
