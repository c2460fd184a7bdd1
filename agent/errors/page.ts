/**
 * What a page about an error code says, and texts that many codes share. The tables beside it hold
 * one page for each code that the program can give; tests/agent/explain.test.ts proves that.
 */

/** What happened, likely causes, what to do, and where there is one the command to type. */
export type ErrorText = readonly [what: string, causes: string, remedy: string, command?: string]

export interface ErrorModule {
  /** What the module's errors have in common, as one line without a full stop. */
  readonly about: string
  readonly codes: Readonly<Record<string, ErrorText>>
}

/** By the word before the slash. */
export type ErrorTable = Readonly<Record<string, ErrorModule>>

/** Bytes of the wire that cannot be read. */
export function malformed(what: string): ErrorText {
  return [
    what,
    'The other side runs another version of sotto, is not sotto, or bytes were cut or changed on the way.',
    'Nothing of it was used. Update sotto on both sides, the relay first, and try again. If it stays, report it with both versions.',
    'sotto --version',
  ]
}

/** Bytes that no honest end could have sent. */
export function tampered(what: string): ErrorText {
  return [
    what,
    'Something between the two ends changed, replayed or swapped what was sent; seldom, one end has a fault or a wrong key.',
    'Nothing of it was accepted. Try again, if it repeats from another network, and compare the identities with the person at the other end.',
    'sotto peers verify NAME',
  ]
}

/** What a library of ours was asked to do and cannot. */
export function misused(what: string): ErrorText {
  return [
    what,
    'A program that uses sotto as a library gave it values out of range, or sotto has a fault of its own.',
    'Mend the calling program. If you typed a command and saw this, report it with the version and the line you typed.',
    'sotto --version',
  ]
}

/** What the other end may not do at that moment. */
export function disorder(what: string): ErrorText {
  return [
    what,
    'The two sides run versions that differ, or the other side breaks the protocol by a fault or on purpose.',
    'The connection was closed and an agent makes a new one by itself. If it repeats, update both sides, the relay first.',
    'sotto status',
  ]
}
