/**
 * The two ends of one great stream by the library, for tests that break its way:
 * `stream_talk.ts receive FOLDER NAME` and `stream_talk.ts send FOLDER NAME BYTES`. Each hashes all
 * that passes, the receiver sends its sum back, and both print `{"event": "done", bytes, sum, …}`.
 */
import { createHash } from 'node:crypto'
import { connect } from '../../agent/library.ts'
import type { Agent } from '../../agent/library.ts'

const SERVICE = 'bulk'
const BLOCK_BYTES = 65_536

const say = (event: string, fields: object = {}): void =>
  void process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`)

const residentMax = (): number => process.resourceUsage().maxRSS * 1024

function receive(agent: Agent): void {
  let streams = 0
  agent.onStream(SERVICE, 'a2a', ({ conn }) => {
    const hash = createHash('sha256')
    let bytes = 0
    streams++
    conn.handle({
      data: (part) => {
        hash.update(part)
        bytes += part.length
      },
      end: () => {
        const sum = hash.digest('hex')
        say('done', { bytes, sum, streams, residentMax: residentMax() })
        conn.write(new TextEncoder().encode(sum))
        conn.end()
      },
      closed: (error) => void (error && say('broke', { message: error.message, bytes })),
    })
  })
  say('listening')
}

async function send(agent: Agent, to: string, total: number): Promise<void> {
  const { conn } = await agent.openStream(to, SERVICE)
  const hash = createHash('sha256')
  // No two blocks are alike, so that one lost, doubled or misplaced changes the sum.
  const pattern = crypto.getRandomValues(new Uint8Array(BLOCK_BYTES))
  let wake = (): void => {}
  let answer = ''
  const over = new Promise<void>((resolve, reject) => {
    conn.handle({
      data: (part) => void (answer += new TextDecoder().decode(part)),
      drain: () => wake(),
      end: () => {},
      closed: (error) => {
        wake()
        if (error) reject(error)
        else resolve()
      },
    })
  })
  over.catch(() => {})
  for (let sent = 0; sent < total; sent += BLOCK_BYTES) {
    const block = pattern.slice(0, Math.min(BLOCK_BYTES, total - sent))
    new DataView(block.buffer).setUint32(0, sent / BLOCK_BYTES)
    hash.update(block)
    const drained = new Promise<void>((resolve) => void (wake = resolve))
    const told = conn.write(block)
    if (told === 'lost') break
    if (told === 'queued') await drained
  }
  conn.end()
  await over
  say('done', { bytes: total, sum: hash.digest('hex'), answer, residentMax: residentMax() })
}

const [role, profile, name, total] = process.argv.slice(2)
const agent = await connect({
  profile: profile!,
  name: role === 'receive' ? name! : false,
  tell: (sentence) => say('told', { sentence }),
})
if (role === 'receive') receive(agent)
else {
  await send(agent, name!, Number(total))
  await agent.close()
}
