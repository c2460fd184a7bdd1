/**
 * Words of `sotto.yaml` and about it: variables in texts, the name that was probably meant, and how
 * what was found is quoted.
 *
 *   ${NAME}  ${NAME:-default}  $$
 */
import { distance } from './errors/table.ts'

const VARIABLE = /\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?/g

/** The text with variables in place, or the first thing that is wrong with it. */
export function substitute(
  written: string,
  variables: Readonly<Record<string, string | undefined>>,
): string | { found: string; expected: string } {
  let wrong: { found: string; expected: string } | undefined
  const words = written.replace(VARIABLE, (all, name?: string, otherwise?: string) => {
    if (all === '$$') return '$'
    const value = name === undefined ? undefined : variables[name]
    // As in a shell: `:-` stands in for what is empty, too.
    if (value !== undefined && !(value === '' && otherwise !== undefined)) return value
    if (otherwise !== undefined) return otherwise
    wrong ??= name === undefined
      ? {
        found: `"$" in ${quoted(written)}`,
        expected: '${NAME}, ${NAME:-default}, or $$ for the sign itself',
      }
      : {
        found: `\${${name}}, which is not set`,
        expected: `a variable, or a default as in \${${name}:-default}`,
      }
    return ''
  })
  return wrong ?? words
}

export function quoted(words: string, mark = '"'): string {
  const short = words.length > 60 ? `${words.slice(0, 60)}…` : words
  return `${mark}${short}${mark}`
}

export function orWords(words: readonly string[]): string {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} or ${words.at(-1)}`
}

/** The known name that was probably meant. */
export function nearest(typed: string, known: readonly string[]): string | undefined {
  if (typed.length > 40) return undefined
  const lower = typed.toLowerCase().replaceAll('_', '-')
  const far = known.map((name) => ({ name, far: distance(lower, name) }))
    .sort((a, b) => a.far - b.far)[0]
  return far && far.far <= Math.max(1, Math.floor(far.name.length / 2)) ? far.name : undefined
}
