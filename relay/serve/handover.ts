/**
 * One relay in the place of another that runs with the same data, without a moment in which nobody
 * listens: both listen on the port (SO_REUSEPORT), the new one asks the old one by a socket in the data
 * folder, and the old one stops listening, sends its agents over and lets its visitors finish.
 */
import * as nodeCrypto from 'node:crypto'
import { chmod, rename, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { hex } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'

const WORD = 'take-over\n'
const ANSWER = 'going\n'
const ANSWER_MS_MAX = 5000

function pathIn(folder: string): string {
  return join(folder, 'relay.sock')
}

/**
 * Waits to be asked, once; `asked` has stopped listening when it returns. Only this machine's owner of
 * the folder can ask: it is 0700, and the socket 0600. Where no socket can be made nobody can ask.
 */
export async function awaitSuccessor(
  folder: string,
  asked: () => void,
): Promise<{ close(): Promise<void> }> {
  const path = pathIn(folder)
  let gone = false
  const server = createServer((socket) => {
    let text = ''
    socket.on('error', () => {})
    socket.setTimeout(ANSWER_MS_MAX, () => socket.destroy())
    socket.on('data', (bytes) => {
      text += bytes
      if (text.length > WORD.length || !WORD.startsWith(text)) return void socket.destroy()
      if (text !== WORD || gone) return
      gone = true
      asked()
      socket.end(ANSWER)
    })
  })
  server.unref()
  // A runtime removes the path that a socket was made at when it closes it, whoever is there by then: so it is
  // made at one of its own, and moved. Otherwise a third relay would not find the second.
  const own = `${path}.${hex(nodeCrypto.randomBytes(4))}`
  const open = await new Promise<boolean>((resolve) => {
    // A path that is too long for a socket, or a file system without them.
    server.once('error', () => resolve(false))
    server.listen(own, () => resolve(true))
  })
  if (open) {
    await chmod(own, 0o600).catch(() => {})
    await rename(own, path)
  }
  return {
    async close() {
      if (!open) return
      // Its path is the successor's by now, which has made it anew.
      if (!gone) await rm(path, { force: true })
      server.close()
    },
  }
}

/** Asks the relay that runs with this data to go; false: there is none. Throws `relay/take-over`. */
export function askPredecessor(folder: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(pathIn(folder))
    let text = ''
    let there = false
    const failed = (): void =>
      reject(
        new TunnelError(
          'relay/take-over',
          'Cannot take over from the relay that runs with this data: it does not answer',
          { hint: 'Stop it, and start this one without --take-over.' },
        ),
      )
    socket.setTimeout(ANSWER_MS_MAX, () => socket.destroy(new Error('late')))
    socket.on('connect', () => {
      there = true
      socket.write(WORD)
    })
    socket.on('data', (bytes) => text += bytes)
    socket.on('error', () => {})
    socket.on('close', () => {
      if (text === ANSWER) resolve(true)
      else if (there) failed()
      else resolve(false)
    })
  })
}
