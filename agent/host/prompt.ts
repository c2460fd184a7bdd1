/**
 * Questions to the person. At a terminal the line is edited in raw mode; where standard input is a
 * file or a pipe, its next line is the answer. Questions go to standard error.
 */
import { LineEditor } from '../line_editor.ts'
import type { PromptOptions } from '../world.ts'

/** Of standard input that is no terminal: a line longer than that is no answer. */
const LINE_LENGTH_MAX = 4096
/** So long the keys that were pressed earlier are taken off a terminal before it is asked anything. */
const EARLY_MS = 150
/** For a signal that this process sends itself to come back. */
const INTERRUPT_MS = 500

/** What was read and not yet asked for. */
let pending = ''
let ended = false

/** The answer without its line feed; undefined when there will be none. One question at a time. */
export function prompt(options: PromptOptions): Promise<string | undefined> {
  if (options.signal?.aborted) return Promise.resolve(undefined)
  return process.stdin.isTTY ? promptTerminal(options) : readLine(options)
}

function promptTerminal(
  { question, complete, fresh, hidden, signal }: PromptOptions,
): Promise<string | undefined> {
  const { stdin, stderr } = process
  const editor = new LineEditor({ question, columns: stderr.columns || 80, complete, hidden })
  return new Promise((resolve) => {
    // Until the question can be read nothing is an answer to it.
    let asked = false
    let over = false
    const finish = (answer: string | undefined): void => {
      if (over) return
      over = true
      clearTimeout(early)
      stdin.off('data', typed)
      stdin.off('end', gone)
      signal?.removeEventListener('abort', stopped)
      stdin.setRawMode(false)
      stdin.pause()
      resolve(answer)
    }
    const typed = (keys: string | Uint8Array): void => {
      const text = typeof keys === 'string' ? keys : new TextDecoder().decode(keys)
      if (!asked && !text.includes('\x03')) return
      const { write, outcome, rest } = editor.feed(text)
      stderr.write(write)
      if (!outcome) return
      pending = rest ?? ''
      if (outcome === 'interrupt') interrupt()
      else finish(outcome === 'line' ? editor.text : undefined)
    }
    /** In raw mode Ctrl-C is a key like others; what it means is for those to say who hear the signal. */
    const interrupt = (): void => {
      process.kill(process.pid, 'SIGINT')
      // They hear it in a later turn, and must have when they learn that there is no answer.
      setTimeout(() => finish(undefined), INTERRUPT_MS)
    }
    const gone = (): void => finish(undefined)
    const stopped = (): void => {
      stderr.write('\r\n')
      finish(undefined)
    }
    const ask = (): void => {
      asked = true
      stderr.write(editor.start())
      const before = fresh ? '' : pending
      pending = ''
      if (before !== '') typed(before)
    }
    stdin.setRawMode(true)
    stdin.on('data', typed)
    stdin.on('end', gone)
    signal?.addEventListener('abort', stopped, { once: true })
    stdin.resume()
    const early = setTimeout(ask, fresh ? EARLY_MS : 0)
  })
}

function readLine({ signal }: PromptOptions): Promise<string | undefined> {
  const { stdin } = process
  return new Promise((resolve) => {
    const finish = (answer: string | undefined): void => {
      stdin.off('data', came)
      stdin.off('end', gone)
      stdin.off('error', gone)
      signal?.removeEventListener('abort', stopped)
      stdin.pause()
      resolve(answer)
    }
    const look = (): void => {
      const at = pending.indexOf('\n')
      if (at >= 0) {
        const line = pending.slice(0, at).replace(/\r$/, '')
        pending = pending.slice(at + 1)
        finish(line)
      } else if (pending.length > LINE_LENGTH_MAX) {
        pending = ''
        finish(undefined)
      } else if (ended) {
        const line = pending
        pending = ''
        finish(line === '' ? undefined : line)
      }
    }
    const came = (bytes: string | Uint8Array): void => {
      pending += typeof bytes === 'string' ? bytes : new TextDecoder().decode(bytes)
      look()
    }
    const gone = (): void => {
      ended = true
      look()
    }
    const stopped = (): void => finish(undefined)
    stdin.on('data', came)
    stdin.on('end', gone)
    stdin.on('error', gone)
    signal?.addEventListener('abort', stopped, { once: true })
    stdin.resume()
    look()
  })
}
