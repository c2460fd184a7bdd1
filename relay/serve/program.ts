/**
 * A relay as a program of its own, on Node and Deno: flags and variables in, one line of where it
 * listens out, signals to drain. On Bun the command `sotto relay` does this.
 */
import { formatKey } from '../../core/key.ts'
import { isTunnelError } from '../../core/errors.ts'
import { readSettings } from '../settings.ts'
import type { Settings } from '../settings.ts'
import { defaultDirectory } from './host.ts'
import type { RunningRelay } from './host.ts'

export async function runProgram(
  start: (settings: Settings) => Promise<RunningRelay>,
): Promise<void> {
  try {
    const settings = readSettings({
      flags: readFlags(process.argv.slice(2)),
      environment: process.env,
    })
    const dataDirectory = settings.dataDirectory || defaultDirectory(process.env)
    const running = await start({ ...settings, dataDirectory })
    const line = {
      event: 'listening',
      port: running.port,
      domain: settings.domain,
      key: formatKey(running.identity),
      fingerprint: running.fingerprint,
      ...(running.adminKey === undefined ? {} : { adminKey: running.adminKey }),
    }
    process.stdout.write(`${JSON.stringify(line)}\n`)
    let draining = false
    const stop = (): void => {
      if (draining) process.exit(1)
      draining = true
      running.drain().then(() => process.exit(0), () => process.exit(1))
    }
    // Not in vain before the files are looked at again anyway.
    process.on('SIGHUP', () => void running.renew().catch(() => {}))
    void running.replaced.then(stop)
    process.on('SIGTERM', stop)
    process.on('SIGINT', stop)
  } catch (error) {
    const words = error instanceof Error ? error.message : String(error)
    const hint = isTunnelError(error) && error.hint ? `\n${error.hint}` : ''
    process.stderr.write(`sotto relay: ${words}${hint}\n`)
    process.exit(1)
  }
}

/** `--name value`, `--name=value`, and `--name` alone for a switch. */
function readFlags(args: readonly string[]): Record<string, string> {
  const flags: Record<string, string> = {}
  for (let i = 0; i < args.length; i++) {
    const match = /^--([a-z][a-z-]*)(?:=(.*))?$/.exec(args[i]!)
    if (!match) throw new Error(`Cannot read "${args[i]}": expected --flag value`)
    const next = args[i + 1]
    if (match[2] !== undefined) flags[match[1]!] = match[2]
    else if (next !== undefined && !next.startsWith('--')) {
      flags[match[1]!] = next
      i++
    } else flags[match[1]!] = 'true'
  }
  return flags
}
