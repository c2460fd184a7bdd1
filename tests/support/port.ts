/**
 * Ports that a program of a test may be told to take. They lie below the range that the system hands out by
 * itself (32768 and up on Linux): no connection of another suite can take one between asking and listening.
 */
import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'
import type { Server } from 'node:net'

const FIRST = 12_000
const LAST = 31_999
const TRIES_MAX = 50

/** A port that is free, of TCP on every address. */
export async function freePort(): Promise<number> {
  return (await freePorts(1))[0]!
}

/** That many, no two the same. Rejects when fifty in a row are taken. */
export async function freePorts(count: number): Promise<number[]> {
  const servers: Server[] = []
  const ports: number[] = []
  try {
    for (let tries = 0; ports.length < count; tries++) {
      if (tries === TRIES_MAX + count) throw new Error(`No ${count} free ports, ${FIRST}-${LAST}`)
      const port = randomInt(FIRST, LAST + 1)
      const server = await listening(port)
      if (server === undefined) continue
      servers.push(server)
      ports.push(port)
    }
  } finally {
    await Promise.all(
      servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve()))),
    )
  }
  return ports
}

function listening(port: number): Promise<Server | undefined> {
  const server = createServer()
  return new Promise((resolve) => {
    server.once('error', () => resolve(undefined))
    server.listen(port, () => resolve(server))
  })
}
