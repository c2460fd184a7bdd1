/**
 * Connections that do nothing, in a process of its own: each asks the byte server for one byte (see `loader.ts`),
 * so that it is known to lead through to it, and then waits until the process is ended.
 *
 *     bun held_flows.ts HOST PORT COUNT   → {"held":N}
 */
const AT_ONCE = 50
const CHECK_KIND = 67
/** A SHA-256 and the one byte. */
const ANSWER_BYTES = 33

function hold(hostname: string, port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const head = new Uint8Array(17)
  head[0] = CHECK_KIND
  head[15] = 1
  let got = 0
  Bun.connect({
    hostname,
    port,
    socket: {
      open: (socket) => void socket.write(head),
      data(_, bytes) {
        got += bytes.length
        if (got === ANSWER_BYTES) resolve()
      },
      close: () => reject(new Error(`it was closed after ${got} bytes`)),
      error: (_, error) => reject(error),
    },
  }).catch(reject)
  return promise
}

const [host, port, count] = process.argv.slice(2)
let left = Number(count)
await Promise.all(Array.from({ length: AT_ONCE }, async () => {
  while (left-- > 0) await hold(host!, Number(port))
}))
console.log(JSON.stringify({ held: Number(count) }))
setInterval(() => {}, 60_000)
