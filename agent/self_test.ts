/**
 * `sotto self-test`, which `sotto update` asks of a program before it takes the place of this one: known
 * answers of the ciphers, a signature, and bytes over a connection of this machine. On no page.
 */
import { concat, EMPTY, equal, fromHex, hex, utf8 } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'
import { VERSION } from './version.ts'
import type { World } from './world.ts'

const TALK_MS_MAX = 10_000
/** RFC 8032 §7.1, test 2. */
const SEED = '4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb'
const PUBLIC = '3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c'
/** FIPS 180-4, of "abc". */
const ABC = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'

export async function selfTest(world: World): Promise<number> {
  const { crypto } = world
  need('SHA-256', hex(crypto.sha256(utf8('abc'))) === ABC)
  const seed = fromHex(SEED)
  const public32 = crypto.ed25519Public(seed)
  need('Ed25519', hex(public32) === PUBLIC)
  const message = Uint8Array.of(0x72)
  const signature = crypto.ed25519Sign(seed, message)
  need('Ed25519', crypto.ed25519Verify(public32, message, signature))
  need('Ed25519', !crypto.ed25519Verify(public32, Uint8Array.of(0x73), signature))
  const [one, two] = [crypto.randomBytes(32), crypto.randomBytes(32)]
  const shared = crypto.x25519Shared(one, crypto.x25519Public(two))
  need('X25519', equal(shared, crypto.x25519Shared(two, crypto.x25519Public(one))))
  const kem = crypto.mlkemKey(crypto.randomBytes(64))
  const sent = crypto.mlkemEncapsulate(kem.public1184, crypto.randomBytes(32))
  need('ML-KEM', equal(sent.shared32, kem.decapsulate(sent.ciphertext1088)))
  await talk(world)
  world.terminal.stdout.write(`sotto ${VERSION}: ok\n`)
  return 0
}

/** Listens at this machine, connects, and has its own words back. */
async function talk({ net, clock }: World): Promise<void> {
  const words = utf8('sotto')
  const listener = await net.listen({ host: '127.0.0.1', port: 0 }, (conn) => {
    conn.handle({
      data: (bytes) => void conn.write(bytes),
      end: () => conn.end(),
      closed: () => {},
    })
  })
  try {
    const conn = await net.connect({ host: '127.0.0.1', port: listener.port })
    const back = await new Promise<Uint8Array>((resolve) => {
      let came: Uint8Array = EMPTY
      const late = clock.after(TALK_MS_MAX, () => conn.abort())
      conn.handle({
        data: (bytes) => {
          came = concat(came, bytes)
          if (came.length >= words.length) conn.end()
        },
        end: () => {},
        closed: () => {
          late.cancel()
          resolve(came)
        },
      })
      conn.write(words)
    })
    need('TCP', equal(back, words))
  } finally {
    await listener.close()
  }
}

function need(what: string, holds: boolean): void {
  if (!holds) throw new TunnelError('update/fault', `Cannot rely on ${what} of this program`)
}
