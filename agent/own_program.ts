/**
 * The program itself, as a file that can be replaced: where it is, which releases it believes, and the
 * steps by which another takes its place. Whatever ends a step, `path` holds a whole program.
 */
export interface OwnProgram {
  /** Absolute, links resolved; undefined: it runs from its sources. */
  readonly path: string | undefined
  /** As files of a release name it, such as `linux-x64-musl`; undefined with `path`. */
  readonly target: string | undefined
  /** Public keys of minisign, in base64; none in a program that was built without. */
  readonly releaseKeys: readonly string[]
  /** Where the one before is kept. */
  readonly previous: string | undefined
  /** SHA-256 in hexadecimal of any file. Throws `files/…`. */
  hash(path: string): Promise<string>
  /** Removes what an earlier try left beside the program. Throws `files/…`. */
  tidy(): Promise<void>
  /** A new file beside the program, after `tidy`. Throws `files/…`. */
  stage(): Promise<StagedProgram>
  /** Puts the file at `path` where the program is, and the program where `previous` is. Throws `files/…`. */
  replace(path: string): Promise<void>
  /**
   * Whether `previous` is a plain file of whoever owns the program, which nobody else may write to: in a
   * folder such as /tmp others can put one there. Throws `files/…`.
   */
  isPreviousOurs(): Promise<boolean>
  /** The program and the one before change places. Throws `files/…`. */
  restore(): Promise<void>
  /** Other processes that run this very file; none where the system does not tell. */
  running(): Promise<readonly number[]>
}

/** Nobody may run it before `finish`. */
export interface StagedProgram {
  readonly path: string
  write(bytes: Uint8Array): Promise<void>
  /** Back to nothing, for a download that begins again. */
  restart(): Promise<void>
  /** On the disk, and SHA-256 of all that was written in hexadecimal. */
  finish(): Promise<string>
  /** Lets it be run. */
  allow(): Promise<void>
  /** Removes it; nothing happens once it has been put in place. */
  discard(): Promise<void>
}
