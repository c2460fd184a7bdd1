/**
 * What authorities took back: of each the newest list that was seen, one a line, so that no relay can
 * bring a withdrawn vouch back by keeping the list to itself.
 *
 *   known_withdrawals   KEY SEQUENCE SERIAL,SERIAL,…
 */
import { text, utf8 } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'
import { parseKey } from '../core/key.ts'
import type { Withdrawals } from './trust.ts'
import type { Files } from './world.ts'

const FILE_BYTES_MAX = 4_194_304
const AUTHORITIES_MAX = 256
const LINE = /^([a-z2-7]{52}) (\d{1,16}) (\d{1,16}(?:,\d{1,16})*)?$/

export interface WithdrawalPorts {
  path: string
  files: Pick<Files, 'read' | 'write'>
  /** Runs alone among all writers of the file. */
  locked<T>(run: () => Promise<T>): Promise<T>
}

interface Kept {
  sequence: number
  serials: readonly number[]
}

export class KnownWithdrawals implements Withdrawals {
  readonly #ports: WithdrawalPorts

  constructor(ports: WithdrawalPorts) {
    this.#ports = ports
  }

  /** Throws `trust/corrupt`. */
  async newest(authority: string): Promise<Kept | undefined> {
    return (await this.#read()).get(authority)
  }

  async keep(authority: string, sequence: number, serials: readonly number[]): Promise<void> {
    parseKey(authority)
    await this.#ports.locked(async () => {
      const all = await this.#read()
      if ((all.get(authority)?.sequence ?? -1) >= sequence) return
      all.delete(authority)
      all.set(authority, { sequence, serials })
      const lines = [...all].slice(-AUTHORITIES_MAX).map(([key, kept]) =>
        `${key} ${kept.sequence} ${kept.serials.join(',')}\n`
      )
      await this.#ports.files.write(this.#ports.path, utf8(lines.join('')))
    })
  }

  async #read(): Promise<Map<string, Kept>> {
    const { files, path } = this.#ports
    const content = await files.read(path, { bytesMax: FILE_BYTES_MAX })
    const lines = content === undefined ? [] : text(content).split('\n')
    const all = new Map<string, Kept>()
    for (const [i, line] of lines.entries()) {
      if (line === '') continue
      const [, key, sequence, serials] = LINE.exec(line) ?? []
      const numbers = [sequence, ...serials?.split(',') ?? []].map(Number)
      if (!isKey(key) || !numbers.every(Number.isSafeInteger)) {
        throw new TunnelError('trust/corrupt', `Cannot read ${path}: line ${i + 1} is no list`, {
          hint: 'Remove that line; the authority is asked again.',
        })
      }
      all.set(key, { sequence: numbers[0]!, serials: numbers.slice(1) })
    }
    return all
  }
}

function isKey(word: string | undefined): word is string {
  try {
    parseKey(word ?? '')
    return true
  } catch {
    return false
  }
}
