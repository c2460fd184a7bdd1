/** `sotto relay keys`: API keys, each of one scope. */
import { credentialCommands } from '../cli/credential_commands.ts'

export const keys = credentialCommands({
  path: 'keys',
  one: 'an API key',
  many: 'API keys',
  createExamples: [
    ['sotto relay keys create --scope ana', 'A key for all names of the scope "ana".'],
    [
      "sotto relay keys create --scope ana --name 'web-*' --expires 30d > ana.key",
      'One that may claim certain names, for a month, straight into a file.',
    ],
  ],
  createFlags: [{ name: 'admin', help: 'An admin key, which may do everything.' }],
})
