/**
 * The one table of error codes: from module to the file that has its pages. A file is loaded when a
 * page of it is asked for, so that no command pays for them at its start.
 */
import type { ErrorTable, ErrorText } from './page.ts'

/** Codes offered in place of one that is not known. */
const NEAREST_MAX = 3

const load = {
  command_line: async () => (await import('./command_line.ts')).COMMAND_LINE,
  config: async () => (await import('./config.ts')).CONFIG,
  trust: async () => (await import('./trust.ts')).TRUST,
  pairing: async () => (await import('./pairing.ts')).PAIRING,
  messages: async () => (await import('./messages.ts')).MESSAGES,
  connection: async () => (await import('./connection.ts')).CONNECTION,
  login: async () => (await import('./login.ts')).LOGIN,
  relay: async () => (await import('./relay.ts')).RELAY,
  web: async () => (await import('./web.ts')).WEB,
  update: async () => (await import('./update.ts')).UPDATE,
  acme: async () => (await import('./acme.ts')).ACME,
  domains: async () => (await import('./domains.ts')).DOMAINS,
  wire: async () => (await import('./wire.ts')).WIRE,
  machine: async () => (await import('./machine.ts')).MACHINE,
  session: async () => (await import('./session.ts')).SESSION,
  tunnels: async () => (await import('./tunnels.ts')).TUNNELS,
  private_network: async () => (await import('./private_network.ts')).PRIVATE_NETWORK,
} satisfies Readonly<Record<string, () => Promise<ErrorTable>>>

/** All pages, modules in alphabetical order. */
export async function everyError(): Promise<ErrorTable> {
  const tables = await Promise.all(Object.values(load).map((one) => one()))
  const entries = tables.flatMap((table) => Object.entries(table))
  return Object.fromEntries(entries.sort(([a], [b]) => a < b ? -1 : 1))
}

/** The page of one code as text, ending in a line feed. */
export function renderError(code: string, [what, causes, remedy, command]: ErrorText): string {
  return [
    code,
    ...section('what happened', what),
    ...section('likely causes', causes),
    ...section('what to do', remedy),
    ...(command === undefined ? [] : section('command', command)),
    '',
  ].join('\n')
}

/** Codes that are spelled most like `typed`, best first. */
export function nearestCodes(typed: string, codes: readonly string[]): string[] {
  const [module, reason] = typed.split('/')
  const distances = codes.map((code) => {
    const [knownModule, knownReason] = code.split('/')
    // Who remembers one half of a code is helped by it.
    const half = Number(module === knownModule) + Number(reason === knownReason)
    return { code, far: distance(typed, code) - 2 * half }
  })
  const most = Math.max(2, Math.floor(typed.length / 2))
  return distances.filter(({ far }) => far <= most).sort((a, b) => a.far - b.far)
    .slice(0, NEAREST_MAX).map(({ code }) => code)
}

function section(title: string, words: string): string[] {
  return ['', title, ...wrapped(words).map((line) => `  ${line}`)]
}

function wrapped(words: string): string[] {
  return [...words.matchAll(/(?:.{1,90}|\S{91,})(?:\s+|$)/g)].map(([line]) => line.trimEnd())
}

/** Letters to add, to leave out or to change (Levenshtein). */
export function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = row[j - 1]! + Number(a[i - 1] !== b[j - 1])
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, swap))
    }
    row = next
  }
  return row[b.length]!
}
