/**
 * What a person may do with the URL of a running tunnel by one key: see it as a QR code, open it in
 * a browser, copy it. Only at a terminal; in a pipe, a service or the background there are no keys.
 */
import { asTunnelError } from '../../core/errors.ts'
import { utf8 } from '../../core/bytes.ts'
import { toBase64 } from '../base64.ts'
import type { ProgramSink, World } from '../world.ts'
import { qrPicture } from './qr.ts'
import type { Screen } from './screen.ts'

/** Of a URL that is opened or copied. */
const URL_LENGTH_MAX = 2048

type KeysWorld = Pick<World, 'terminal' | 'programs' | 'system' | 'env'>

export interface UrlKeys {
  /** Prints the QR code, as `--qr` does. */
  showQr(): Promise<void>
  stop(): void
}

/** Listens for keys until `stop`, and says which there are. */
export function urlKeys(world: KeysWorld, screen: Screen, url: string): UrlKeys {
  const { terminal } = world
  const acts: Readonly<Record<string, () => Promise<void> | void>> = {
    q: () => showQr(screen, url),
    o: () => openUrl(world, screen, url),
    c: () => copyUrl(terminal, screen, url),
    h: () => screen.say(HELP),
    '?': () => screen.say(HELP),
    // Back in the foreground: the shell wrote over the lines.
    '\x1a': () => screen.say(HELP),
  }
  let running = false
  const press = async (key: string): Promise<void> => {
    const act = acts[key.toLowerCase()]
    // A key that repeats itself does not start a browser for each.
    if (!act || running) return
    running = true
    try {
      await act()
    } catch (error) {
      screen.trouble(asTunnelError(error, 'cli/fault'))
    } finally {
      running = false
    }
  }
  const isWatched = terminal.stdout.isTTY && !screen.isJson
  const stop = isWatched && (screen.isLive || screen.looks.plain)
    ? terminal.keys?.((key) => void press(key))
    : undefined
  if (stop) screen.say(HELP)
  return { showQr: () => showQr(screen, url), stop: () => stop?.() }
}

const HELP = 'Keys: q QR code, o open in a browser, c copy the URL, h these keys, Ctrl-C stop.'

async function showQr(screen: Screen, url: string): Promise<void> {
  const { lines, width } = await qrPicture(url, screen.looks)
  if (screen.looks.plain) {
    return screen.say('A QR code is a picture; there is none in plain mode. The URL is above.')
  }
  if (width > screen.width) {
    return screen.say(
      `The window is too narrow for the QR code: it has ${screen.width} columns, ${width} are needed.`,
    )
  }
  screen.print(lines)
}

/** OSC 52, which most terminals know, also through SSH; none says whether it did it. */
function copyUrl(terminal: World['terminal'], screen: Screen, url: string): void {
  const safe = safeUrl(url)
  if (safe === undefined) return screen.say('That is no URL to copy.')
  terminal.stdout.write(`\x1b]52;c;${toBase64(utf8(safe))}\x07`)
  screen.say('Given to the terminal to copy; a few terminals do not take it.')
}

async function openUrl(world: KeysWorld, screen: Screen, url: string): Promise<void> {
  const safe = safeUrl(url)
  if (safe === undefined) return screen.say('That is no URL to open.')
  const { platform } = world.system
  const { env } = world
  const hasDesktop = platform !== 'linux' || env['DISPLAY'] || env['WAYLAND_DISPLAY'] ||
    env['BROWSER']
  const argv = platform === 'darwin'
    ? ['open', safe]
    : platform === 'windows'
    ? ['rundll32', 'url.dll,FileProtocolHandler', safe]
    : ['xdg-open', safe]
  if (!hasDesktop) return screen.say('There is no desktop here to open a browser on.')
  try {
    const kept = Object.entries(env).filter((entry): entry is [string, string] =>
      entry[1] !== undefined && !/^SOTTO_/.test(entry[0])
    )
    const program = await world.programs.start({ argv, env: Object.fromEntries(kept) }, SILENT)
    program.end()
    screen.say('Opened in a browser.')
  } catch {
    screen.say(`There is no "${argv[0]}" here to open a browser with.`)
  }
}

const SILENT: ProgramSink = { output: () => {}, errors: () => {} }

/** The relay names the host: nothing but a web address reaches a program or the clipboard. */
function safeUrl(words: string): string | undefined {
  if (words.length > URL_LENGTH_MAX) return undefined
  try {
    const url = new URL(words)
    return url.protocol === 'https:' || url.protocol === 'http:' ? url.href : undefined
  } catch {
    return undefined
  }
}
