/**
 * Two agents in one program: one answers messages, the other sends one and counts what comes back.
 *
 *   SOTTO_RELAY=https://relay.example SOTTO_API_KEY=sk_… bun examples/a2a.ts FOLDER
 *   SOTTO_RELAY=https://relay.example SOTTO_API_KEY=sk_… node examples/a2a.ts FOLDER
 *
 * In real life each has a machine and a person of its own, who types "sotto pair", or
 * "sotto peers trust NAME KEY", where here the keys are put into the access table.
 */
import { connect, isTunnelError } from 'sotto'

const [folder] = process.argv.slice(2)
if (!folder) throw new Error('usage: a2a.ts FOLDER')

const client = await connect({ profile: `${folder}/client` })
client.listen(() => console.log('nobody may send to the client'))
const server = await connect({
  profile: `${folder}/server`,
  labels: { role: 'counter' },
  access: [
    { peer: client.key, services: ['a2a'] },
  ],
})

server.listen(async (message) => {
  let bytes = 0
  // As it comes: nobody holds the whole of it.
  for await (const part of message) bytes += part.length
  await message.reply('counted: ')
  return String(bytes)
})
server.onStream('shout', 'a2a', ({ conn }) => {
  conn.handle({
    data: (bytes) => void conn.write(new TextEncoder().encode(decode(bytes).toUpperCase())),
    end: () => conn.end(),
    closed: () => {},
  })
})

const reply = await client.send(server.name!, 'x'.repeat(100_000))
console.log(reply.status, reply.text(), reply.peer.key === server.key)

const { conn } = await client.openStream(server.name!, 'shout')
conn.write(new TextEncoder().encode('hello'))
conn.end()
console.log(await read(conn))

const [counter] = await client.agents('role=counter')
console.log(counter?.standing, counter?.online)

try {
  // Nobody has let the server do that.
  await server.send(client.key, 'hello')
} catch (error) {
  if (!isTunnelError(error)) throw error
  console.log(error.code)
}

await Promise.all([client.close(), server.close()])

function read(from: typeof conn): Promise<string> {
  return new Promise((resolve, reject) => {
    let said = ''
    from.handle({
      data: (bytes) => void (said += decode(bytes)),
      end: () => resolve(said),
      closed: (error) => error && reject(error),
    })
  })
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes)
}
