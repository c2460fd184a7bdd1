/**
 * docs/commands.md, made of the commands' own pages: `node_modules/.bin/bun compile/commands.ts > docs/commands.md`.
 * tests/agent/commands_document.test.ts says when the two differ.
 */
import { everyPage } from '../agent/cli/program.ts'

const INTRODUCTION = `# Commands

Every command and flag, word for word as \`--help\` prints it. Made by \`compile/commands.ts\`, not by hand.

From a clone each is typed as \`npx sotto …\`. Results go to standard output, all else to standard error; with \`--json\` each result is one
JSON object a line. Exit codes: 0 done, 1 an error, 2 a command line that cannot be read, 70 a fault of the program itself, 130 Ctrl-C, 143 told to go
(but a relay that was told to go, and drained, exits 0). \`sotto a2a send\` has a few more, on its page.

| variable | what it sets |
|---|---|
| \`SOTTO_RELAY\` | the relay, where no \`--relay\` says it |
| \`SOTTO_API_KEY\` | the API key, fleet token or admin key to be admitted with; never a flag, since a command line is read by every user |
| \`SOTTO_CLIENT_CERT\`, \`SOTTO_CLIENT_KEY\` | PEM files of a client certificate and its key, in place of an API key, where the relay has \`--client-ca\` |
| \`SOTTO_ADMIN_KEY\` | the key for commands that manage a relay |
| \`SOTTO_RELAY_FINGERPRINT\` | the identity that the relay must have |
| \`SOTTO_PROFILE\` | the profile, where no \`--profile\` says it ([login.md](login.md)) |
| \`SOTTO_HOME\` | one folder for all that is kept, in place of \`~/.config/sotto\` and \`~/.local/state/sotto\` |
| \`SOTTO_RELAY_…\` | settings of a relay: \`--public-ports\` is \`SOTTO_RELAY_PUBLIC_PORTS\` |
`

/** The whole document, ending in one line feed. */
export async function renderCommands(): Promise<string> {
  const pages = await everyPage()
  const sections = pages.map(({ path, text }) =>
    `## ${path}\n\n\`\`\`text\n${text.trimEnd()}\n\`\`\`\n`
  )
  return [INTRODUCTION, ...sections].join('\n')
}

if (import.meta.main) process.stdout.write(await renderCommands())
