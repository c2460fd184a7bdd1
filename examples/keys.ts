/** Prints this agent's KEY, which others pin: `bun examples/keys.ts FOLDER`. */
import { connect } from 'sotto'

const agent = await connect({ profile: process.argv[2]!, name: false })
console.log(agent.key)
await agent.close()
