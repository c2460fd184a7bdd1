/** `sotto relay tokens`: fleet tokens, for many agents with one secret. */
import { credentialCommands } from '../cli/credential_commands.ts'

export const tokens = credentialCommands({
  path: 'tokens',
  one: 'a fleet token',
  many: 'fleet tokens',
  createExamples: [
    [
      "sotto relay tokens create --scope shops --name 'till-*' --max-agents 200",
      'One secret for 200 tills, which may claim nothing else.',
    ],
    [
      'sotto relay tokens create --scope shops --expires 12h > install.token',
      'One for an afternoon of installing, straight into a file.',
    ],
  ],
  createFlags: [
    {
      name: 'max-agents',
      value: 'COUNT',
      without: 'no limit',
      help: 'Most agents at once.',
    },
    {
      name: 'agent-label',
      value: 'NAME=PATTERN',
      many: true,
      without: 'none',
      help: 'A label that an agent must bring, and then none but these; * is any text.',
    },
  ],
})
