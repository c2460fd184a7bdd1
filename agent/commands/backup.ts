/**
 * `sotto relay backup` and `sotto relay restore`: the data of a relay on this machine in one file, and
 * back. The relay's code is loaded only here.
 */
import { TunnelError } from '../../core/errors.ts'
import type { BackupResult } from '../../relay/serve/backup.ts'
import { command, isSet, JSON_FLAG, textOf } from '../cli/page.ts'
import type { Flag, Given } from '../cli/page.ts'
import { Screen } from '../cli/screen.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'

interface BackupOptions {
  file: string
  data: string | undefined
  json: boolean
}

const DATA: Flag = {
  name: 'data',
  value: 'PATH',
  without: 'that of "sotto relay"',
  help: "The relay's folder, as its --data says.",
}

const MORE = `The file holds the relay's identity, its keys and its certificates, and the store:
whoever has it can be this relay. It is written 0600; keep it as you keep a private key.`

export const backup = command<BackupOptions>({
  page: {
    name: 'sotto relay backup',
    summary: 'write the data of a relay into one file, while it runs',
    args: ['FILE'],
    examples: [
      ['sotto relay backup relay-monday.backup', 'Of the relay of this user.'],
      [
        'sotto relay backup /mnt/safe/relay.backup --data /var/lib/sotto/relay',
        'Of a service, as its user or root.',
      ],
    ],
    flags: [DATA, JSON_FLAG],
    more: MORE,
  },
  read,
  check,
  async run({ file, data, json }, world) {
    const { backUp, openBunSql } = await code()
    const path = atWork(world, file)
    const made = await backUp(folder(world, data), path, openBunSql)
    return tell(world, { made, json, words: `backed up into ${made.path}` })
  },
})

export const restoreBackup = command<BackupOptions>({
  page: {
    name: 'sotto relay restore',
    summary: 'put a backup into an empty folder, for a relay to run with',
    args: ['FILE'],
    examples: [
      ['sotto relay restore relay-monday.backup', 'For the relay of this user.'],
      [
        'sotto relay restore relay.backup --data /var/lib/sotto/relay',
        'On a new machine: names, keys and the identity that agents pinned are there again.',
      ],
    ],
    flags: [DATA, JSON_FLAG],
    more:
      `What was revoked, blocked or made since the backup is not known to it: look at those again.
Two relays with one identity must not run at once.`,
  },
  read,
  check,
  async run({ file, data, json }, world) {
    const { restore, openBunSql } = await code()
    const made = await restore(atWork(world, file), folder(world, data), openBunSql)
    return tell(world, { made, json, words: `restored into ${made.path}` })
  },
})

function read(given: Given): BackupOptions {
  return { file: given.args[0] ?? '', data: textOf(given, 'data'), json: isSet(given, 'json') }
}

function check({ file }: BackupOptions): void {
  if (file !== '') return
  throw new TunnelError('cli/usage', 'Cannot find the backup: found no FILE, expected its path')
}

async function code() {
  const [{ backUp, restore }, { openBunSql }] = await Promise.all([
    import('../../relay/serve/backup.ts'),
    import('../../relay/serve/bun_sqlite.ts'),
  ])
  return { backUp, restore, openBunSql }
}

function folder(world: World, data: string | undefined): string {
  return data === undefined ? `${new Profile(world).stateDir}/relay` : atWork(world, data)
}

function atWork(world: World, path: string): string {
  return path.startsWith('/') ? path : `${world.directory}/${path}`
}

function tell(
  world: World,
  { made, json, words }: { made: BackupResult; json: boolean; words: string },
): number {
  if (json) world.terminal.stdout.write(`${JSON.stringify(made)}\n`)
  else new Screen(world, { json }).tell(`${words} (${made.bytes} bytes)`)
  return 0
}
