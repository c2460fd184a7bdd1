/**
 * The entry on Bun: gathers the world, runs the command line, and alone ends the process. All but the
 * version is loaded when it is known to be wanted: installers and scripts ask for the version alone.
 */
import { VERSION } from './version.ts'

const argv = process.argv.slice(2)
if (argv.length === 1 && (argv[0] === '--version' || argv[0] === '-V')) {
  process.stdout.write(`${VERSION}\n`)
} else {
  /** Timers of the world keep nothing alive, so that this decides when the program is over. */
  const alive = setInterval(() => {}, 2_147_483_647)

  process.on('uncaughtException', (error: unknown) => {
    process.stderr.write(`sotto: a fault of its own: ${(error as Error)?.stack ?? error}\n`)
    process.exit(70)
  })

  const [{ runProgram }, { hostWorld }] = await Promise.all([
    import('./cli/program.ts'),
    import('./host/world.ts'),
  ])
  const code = await runProgram(argv, hostWorld())
  clearInterval(alive)
  // What is still on its way into a pipe would be lost with the process.
  await new Promise<void>((resolve) => process.stdout.write('', () => resolve()))
  process.exit(code)
}
