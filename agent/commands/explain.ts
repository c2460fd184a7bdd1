/** `sotto explain`: the page of an error code, or what there is. */
import { TunnelError } from '../../core/errors.ts'
import { command, isSet, JSON_FLAG, pageWidth, table } from '../cli/page.ts'
import type { Page } from '../cli/page.ts'
import type { ErrorModule } from '../errors/page.ts'
import { everyError, nearestCodes, renderError } from '../errors/table.ts'
import type { World } from '../world.ts'

/** Of a word that was no code, in the answer. */
const TYPED_LENGTH_MAX = 80

const PAGE: Page = {
  name: 'sotto explain',
  summary: 'what an error code means and what to do about it',
  args: ['[CODE]'],
  examples: [
    ['sotto explain trust/changed', 'what happened, likely causes, what to do'],
    ['sotto explain trust', 'the codes of one module'],
    ['sotto explain', 'the modules'],
  ],
  flags: [JSON_FLAG],
  more:
    'Codes are printed with --json, and beneath errors that offer no other remedy. The same pages\n' +
    'are in docs/errors.md.',
}

interface ExplainOptions {
  words: string | undefined
  json: boolean
}

export const explain = command<ExplainOptions>({
  page: PAGE,
  read: (given) => ({ words: given.args[0], json: isSet(given, 'json') }),
  check: () => {},
  run: runExplain,
})

async function runExplain({ words, json }: ExplainOptions, world: World): Promise<number> {
  const { stdout } = world.terminal
  const modules = await everyError()
  if (words === undefined) {
    const rows = Object.entries(modules).map(([name, { about }]) => [name, about] as const)
    if (json) { for (const [module, about] of rows) stdout.write(line({ module, about })) }
    else {
      const how = '"sotto explain MODULE" lists its codes, "sotto explain CODE" prints a page.'
      stdout.write(
        ['modules of error codes:', ...table(rows, pageWidth(stdout)), '', how, ''].join('\n'),
      )
    }
    return 0
  }
  const [name = '', reason] = words.split('/')
  const module = Object.hasOwn(modules, name) ? modules[name] : undefined
  if (reason === undefined && module) {
    const rows = Object.entries(module.codes).map(([reason, [what]]) =>
      [[name, reason].join('/'), what] as const
    )
    if (json) { for (const [code, what] of rows) stdout.write(line({ code, what })) }
    else {stdout.write(
        [`${name}: ${module.about}`, '', ...table(rows, pageWidth(stdout)), ''].join('\n'),
      )}
    return 0
  }
  const text = module && reason !== undefined && Object.hasOwn(module.codes, reason)
    ? module.codes[reason]
    : undefined
  if (!text) throw unknown(words, Object.entries(modules))
  const [what, causes, remedy, typed] = text
  stdout.write(
    json
      ? line({ code: words, what, causes, remedy, ...(typed && { command: typed }) })
      : renderError(words, text),
  )
  return 0
}

/** Each code with what happened. */
function pagesOf(name: string, { codes }: ErrorModule): [code: string, what: string][] {
  return Object.entries(codes).map(([reason, [what]]) => [[name, reason].join('/'), what])
}

function line(value: object): string {
  return `${JSON.stringify(value)}\n`
}

function unknown(
  words: string,
  modules: [string, ErrorModule][],
): TunnelError {
  const codes = modules.flatMap(([name, module]) => pagesOf(name, module).map(([code]) => code))
  const typed = words.slice(0, TYPED_LENGTH_MAX)
  const known = words.includes('/') ? codes : modules.map(([name]) => name)
  const near = nearestCodes(typed, known)
  return new TunnelError('explain/unknown', `Cannot explain "${typed}": there is no such code`, {
    hint: near.length > 0
      ? `Did you mean ${near.join(' or ')}?`
      : '"sotto explain" lists the modules; a newer sotto on the other side has newer codes.',
  })
}
