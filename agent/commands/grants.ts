/** `sotto relay grants`: names of one scope that agents of another may see and visit. */
import { isName } from '../../core/key.ts'
import { TunnelError } from '../../core/errors.ts'
import {
  checkOperator,
  openApi,
  OPERATOR_FLAGS,
  printList,
  readOperator,
  SCOPE_FLAG,
} from '../cli/operator.ts'
import type { OperatorOptions } from '../cli/operator.ts'
import { command, textOf } from '../cli/page.ts'
import type { Flag, Given } from '../cli/page.ts'

const NAMES = /^[a-z0-9*?-]{1,63}$/

interface ListOptions extends OperatorOptions {
  scope: string | undefined
}

export const listGrants = command<ListOptions>({
  page: {
    name: 'sotto relay grants list',
    summary: 'list the names that scopes show to each other',
    examples: [
      ['sotto relay grants list', 'What your scope shows, and what is shown to it.'],
      ['sotto relay grants list --scope ana --json', 'The same of one scope, for programs.'],
    ],
    flags: [SCOPE_FLAG, ...OPERATOR_FLAGS],
  },
  read: (given) => ({ ...readOperator(given), scope: textOf(given, 'scope') }),
  check: checkOperator,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { scope, json } = options
    printList(world, {
      items: await api.list('/grants', scope === undefined ? {} : { scope }),
      heads: { NAMES: 'names', SCOPE: 'scope', TO: 'to', SINCE: 'since' },
      json,
      none: 'no scope shows names to another',
    })
    return 0
  },
})

interface GrantOptions extends OperatorOptions {
  names: string
  to: string | undefined
  scope: string | undefined
}

const FLAGS: readonly Flag[] = [
  { name: 'to', value: 'SCOPE', help: 'Whose agents may see them.' },
  { name: 'scope', value: 'SCOPE', without: "your key's own", help: 'Whose names.' },
  ...OPERATOR_FLAGS,
]

export const addGrant = command<GrantOptions>({
  page: {
    name: 'sotto relay grants add',
    summary: 'show names of your scope to the agents of another',
    args: ['NAME'],
    examples: [
      ['sotto relay grants add builder --to ana', 'One name.'],
      [
        "sotto relay grants add 'edge-*' --scope fleet --to ana --key-file admin.key",
        'Many, of any scope, with the admin key.',
      ],
    ],
    flags: FLAGS,
    more:
      'NAME may hold * for any text and ? for one character. What a visitor may do there is for\n' +
      'the agent to say: sotto access.',
  },
  read: readGrant,
  check: checkGrant,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { names, to, scope, json } = options
    const added = await api.call('POST', '/grants', {
      names,
      to,
      ...(scope === undefined ? {} : { scope }),
    })
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify(added)}\n`)
    else stderr.write(`agents of ${to} may see ${names}\n`)
    return 0
  },
})

export const removeGrant = command<GrantOptions>({
  page: {
    name: 'sotto relay grants remove',
    summary: 'show names to another scope no more',
    args: ['NAME'],
    examples: [
      ['sotto relay grants remove builder --to ana', 'Streams that are open go on.'],
      [
        "sotto relay grants remove 'edge-*' --scope fleet --to ana",
        'As it was granted, word for word.',
      ],
    ],
    flags: FLAGS,
  },
  read: readGrant,
  check: checkGrant,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { names, to, scope, json } = options
    const words = new URLSearchParams({ names, to: to!, ...(scope === undefined ? {} : { scope }) })
    await api.call('DELETE', `/grants?${words}`)
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify({ removed: { names, to, scope } })}\n`)
    else stderr.write(`agents of ${to} see ${names} no more\n`)
    return 0
  },
})

function readGrant(given: Given): GrantOptions {
  return {
    ...readOperator(given),
    names: given.args[0]!,
    to: textOf(given, 'to'),
    scope: textOf(given, 'scope'),
  }
}

function checkGrant(options: GrantOptions): void {
  checkOperator(options)
  const { names, to, scope } = options
  if (!NAMES.test(names)) {
    throw new TunnelError(
      'cli/name',
      `Cannot use "${names}": expected 1 to 63 of a-z 0-9 and hyphens, with * and ? for others`,
    )
  }
  if (to === undefined) {
    throw new TunnelError('cli/scope', 'Cannot tell whose agents are meant: found no --to SCOPE')
  }
  for (const word of [to, ...(scope === undefined ? [] : [scope])]) {
    if (isName(word)) continue
    throw new TunnelError(
      'cli/name',
      `Cannot use "${word}": expected 1 to 63 of a-z 0-9 and inner hyphens`,
    )
  }
}
