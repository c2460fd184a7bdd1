/**
 * A program that sends many messages by the library, for tests that break its way: `bun talk.ts FOLDER
 * NAME COUNT`. Prints `{"event": "sent", count}` now and then, and `{"event": "done", …}` at the end.
 */
import { connect } from '../../agent/library.ts'

const AT_ONCE = 8
const TOLD_EACH = 50

const [profile, name, count] = process.argv.slice(2)
const agent = await connect({ profile: profile! })
const say = (event: string, fields: object): void =>
  void process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`)
let next = 0
let delivered = 0
const codes: string[] = []

async function work(): Promise<void> {
  while (next < Number(count)) {
    const number = next++
    try {
      const { status } = await agent.send(name!, `message ${number}`, { timeoutMs: 90_000 })
      if (status === 'delivered') delivered++
      else codes.push(status)
    } catch (error) {
      codes.push((error as { code: string }).code)
    }
    if (number % TOLD_EACH === 0) say('sent', { count: number })
  }
}

await Promise.all(Array.from({ length: AT_ONCE }, work))
say('done', { delivered, codes })
await agent.close()
