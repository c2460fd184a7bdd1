/** `sotto relay approve`: lets a machine in that shows this code, or turns it away. */
import { TunnelError } from '../../core/errors.ts'
import { isName } from '../../core/key.ts'
import { readUserCode } from '../../core/login.ts'
import { checkOperator, expiryOf, openApi, OPERATOR_FLAGS, readOperator } from '../cli/operator.ts'
import type { OperatorOptions } from '../cli/operator.ts'
import { command, isSet, listOf, textOf } from '../cli/page.ts'
import { printable } from '../cli/screen.ts'
import type { World } from '../world.ts'

interface ApproveOptions extends OperatorOptions {
  code: string
  scope: string | undefined
  names: string[]
  expires: string | undefined
  deny: boolean
  yes: boolean
}

function check(options: ApproveOptions): void {
  checkOperator(options)
  if (readUserCode(options.code) === undefined) {
    throw new TunnelError(
      'login/code',
      'Cannot approve: expected a code of eight letters such as WDJB-MJHT',
      { hint: 'The machine that runs "sotto login" shows it.' },
    )
  }
  if (options.scope !== undefined && !isName(options.scope)) {
    throw new TunnelError(
      'login/scope',
      `Cannot approve for the scope "${options.scope.slice(0, 63)}": expected 1 to 63 of a-z 0-9 -`,
    )
  }
  expiryOf(options.expires, 0)
}

async function run(options: ApproveOptions, world: World): Promise<number> {
  const { stdout, stderr } = world.terminal
  const { code, scope, names, deny, yes, json } = options
  const expiresAt = expiryOf(options.expires, world.clock.now())
  const { api } = await openApi(world, options)
  const asking = await api.call('POST', '/logins/look', { code }) as Record<string, string>
  const who = printable(`${asking['who']} at ${asking['address']}`)
  if (deny) {
    await api.call('POST', '/logins/deny', { code })
    if (json) stdout.write(`${JSON.stringify({ event: 'denied', ...asking })}\n`)
    else stderr.write(`turned away ${who}\n`)
    return 0
  }
  // A code that somebody else sent lets somebody else in: at a terminal it is asked once more.
  if (!yes && !json && stdout.isTTY) {
    stderr.write(`${who} asks\nidentity ${asking['fingerprint']}\n`)
    const answer = await world.terminal.prompt({
      question: 'Does its terminal show this code, and is it yours to let in? [y/N] ',
      signal: world.signal,
    })
    if (!/^y(es)?$/i.test(answer?.trim() ?? '')) {
      throw new TunnelError('login/unconfirmed', 'Nobody was let in', {
        hint: 'To turn it away for good, add --deny.',
      })
    }
  }
  const done = await api.call('POST', '/logins/approve', {
    code,
    ...(scope === undefined ? {} : { scope }),
    ...(names.length === 0 ? {} : { names }),
    ...(expiresAt === undefined ? {} : { expiresAt }),
  }) as Record<string, string>
  if (json) stdout.write(`${JSON.stringify({ event: 'approved', ...done })}\n`)
  else stdout.write(`let in ${who}, as scope ${done['scope']}\n`)
  return 0
}

export const approve = command<ApproveOptions>({
  page: {
    name: 'sotto relay approve',
    summary: 'let a machine in that shows this code',
    args: ['CODE'],
    examples: [
      ['sotto relay approve WDJB-MJHT', 'It gets a scope of its own.'],
      ['sotto relay approve WDJB-MJHT --scope home', 'It joins those of the scope "home".'],
      ['sotto relay approve WDJB-MJHT --deny', 'It is turned away.'],
    ],
    flags: [
      {
        name: 'scope',
        value: 'SCOPE',
        without: "a new one; your key's own where that is no admin key",
        help: 'Whose names it may claim.',
      },
      {
        name: 'name',
        value: 'PATTERN',
        many: true,
        without: 'any',
        help: 'Names that it may claim; * is any text, ? one character.',
      },
      {
        name: 'expires',
        value: 'WHEN',
        without: 'never',
        help: 'When its key ends: 90m, 12h, 30d, or a date such as 2030-01-31.',
      },
      { name: 'deny', help: 'Turn it away.' },
      { name: 'yes', help: 'Do not ask at a terminal.' },
      ...OPERATOR_FLAGS,
    ],
    more: `What the machine gets is an ordinary API key: "sotto relay keys list" shows it, and
"sotto relay keys revoke" ends it.`,
  },
  read: (given) => ({
    ...readOperator(given),
    code: given.args[0]!,
    scope: textOf(given, 'scope'),
    names: listOf(given, 'name'),
    expires: textOf(given, 'expires'),
    deny: isSet(given, 'deny'),
    yes: isSet(given, 'yes'),
  }),
  check,
  run,
})
