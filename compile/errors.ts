/**
 * docs/errors.md, made of the one table of error codes: `node_modules/.bin/bun compile/errors.ts > docs/errors.md`.
 * tests/agent/explain.test.ts says when the two differ.
 */
import { everyError } from '../agent/errors/table.ts'

const INTRODUCTION = `# Errors

Every error code, by module: what happened, likely causes, what to do, and where there is one the command to type. Made by
\`compile/errors.ts\` from the tables in \`agent/errors/page.ts\`'s folder, not by hand. \`sotto explain CODE\` prints the same. Codes stay
the same across releases; sentences may change.
`

/** The whole document, ending in one line feed. */
export async function renderErrors(): Promise<string> {
  const modules = Object.entries(await everyError())
  const contents = modules.map(([name, { about }]) => `- [${name}](#${name}): ${about}`)
  const sections = modules.flatMap(([name, { about, codes }]) => [
    `## ${name}\n\n${about[0]!.toUpperCase()}${about.slice(1)}.\n`,
    ...Object.entries(codes).map(([reason, [what, causes, remedy, command]]) =>
      [
        `### ${name}/${reason}\n`,
        `${escaped(what)}\n`,
        `**Likely causes.** ${escaped(causes)}\n`,
        `**What to do.** ${escaped(remedy)}\n`,
        ...(command === undefined ? [] : [`\`${command}\`\n`]),
      ].join('\n')
    ),
  ])
  return [INTRODUCTION, `${contents.join('\n')}\n`, ...sections].join('\n')
}

/** Words that markdown would read as marks. */
function escaped(text: string): string {
  return text.replace(/[*_<>|`[\]]/g, '\\$&')
}

if (import.meta.main) process.stdout.write(await renderErrors())
