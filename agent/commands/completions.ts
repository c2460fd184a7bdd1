/** `sotto completions`: the script that a shell loads to complete command lines. */
import { TunnelError } from '../../core/errors.ts'
import { SCRIPTS, SHELLS } from '../cli/completion_scripts.ts'
import type { Shell } from '../cli/completion_scripts.ts'
import { command } from '../cli/page.ts'

interface CompletionsOptions {
  shell: string
}

export const completions = command<CompletionsOptions>({
  page: {
    name: 'sotto completions',
    summary: 'print what a shell loads to complete command lines',
    args: ['SHELL'],
    examples: [
      [
        'sotto completions bash > ~/.local/share/bash-completion/completions/sotto',
        'For each bash from now on, where bash-completion is installed.',
      ],
      ['sotto completions zsh > ~/.zfunc/_sotto', 'Where ~/.zfunc is in fpath before compinit.'],
      ['sotto completions fish > ~/.config/fish/completions/sotto.fish', 'For each fish.'],
      ['sotto completions powershell >> $PROFILE', 'For each PowerShell.'],
    ],
    flags: [],
    more:
      `SHELL is bash, zsh, fish or powershell. Completed are commands, flags, values that are known, and
names of pinned peers and relays; no relay is asked.`,
  },
  read: (given) => ({ shell: given.args[0]! }),
  check({ shell }) {
    if (SHELLS.includes(shell as Shell)) return
    throw new TunnelError(
      'cli/shell',
      `Cannot complete in "${shell.slice(0, 40)}": expected ${SHELLS.join(', ')}`,
      { hint: 'See "sotto completions --help".' },
    )
  },
  run({ shell }, world) {
    world.terminal.stdout.write(SCRIPTS[shell as Shell])
    return Promise.resolve(0)
  },
})
