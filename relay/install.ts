/**
 * How a person with nothing but a URL gets the program: `/install.sh`, `/install.ps1` and
 * `/download/NAME`, where the relay has files of a release or knows where one is.
 *
 * What goes into a script is a host name, a port and keys, each held to its own alphabet here again:
 * a script that is piped into a shell must not depend on what a table elsewhere lets through.
 */
import type { Hono } from 'hono'
import type { AppEnv, AppPorts } from './app.ts'
import { Downloads, releaseLocation } from './downloads.ts'
import { installPs1 } from './pages/install_ps1.ts'
import { installSh } from './pages/install_sh.ts'
import { Problem, wrongMethod } from './problem.ts'

const ORIGIN =
  /^https:\/\/(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9-]{1,63}(?::[0-9]{1,5})?$/
const KEY = /^[A-Za-z0-9+/]{56}$/

export interface InstallFacts {
  /** The URL of this relay without a slash at its end. */
  origin: string
  /** Public keys of minisign, in base64. */
  keys: readonly string[]
}

/** The lines that install on each system; undefined where this relay hands out nothing. */
export interface InstallLines {
  unix: string
  windows: string
  /** Whether the visitor's browser says that it runs on Windows. */
  onWindows: boolean
}

export function relayOrigin({ settings, publicPort }: AppPorts): string {
  const port = publicPort()
  return `https://${settings.domain}${port === 443 ? '' : `:${port}`}`
}

export function installLines(ports: AppPorts, userAgent: string): InstallLines | undefined {
  if (!handsOut(ports)) return undefined
  const origin = relayOrigin(ports)
  return {
    unix: `curl -fsSL ${origin}/install.sh | sh`,
    windows: `irm ${origin}/install.ps1 | iex`,
    onWindows: /\bWindows\b/i.test(userAgent.slice(0, 512)),
  }
}

export function installRoutes(app: Hono<AppEnv>, ports: AppPorts): void {
  const { files, clock, settings } = ports
  const downloads = files && new Downloads(files, clock)
  for (
    const [path, script] of [['/install.sh', installSh], ['/install.ps1', installPs1]] as const
  ) {
    app.get(path, (c) => {
      if (!handsOut(ports)) throw nothing()
      return c.body(script(facts(ports)), 200, {
        'content-type': 'text/plain; charset=utf-8',
        'cache-control': 'no-cache',
      })
    })
    app.all(path, wrongMethod('GET'))
  }
  app.get('/download/:name', async (c) => {
    const name = c.req.param('name')
    if (downloads) {
      return await downloads.answer(name, { request: c.req.raw, address: c.get('address') })
    }
    if (settings.releaseUrl === '') throw nothing()
    return c.redirect(releaseLocation(settings.releaseUrl, name), 302)
  })
  app.all('/download/:name', wrongMethod('GET'))
}

/** Throws a 500 rather than put a word into a script that could be more than a word. */
export function facts(ports: AppPorts): InstallFacts {
  const origin = relayOrigin(ports)
  const keys = ports.settings.releaseKeys
  if (!ORIGIN.test(origin) || !keys.every((key) => KEY.test(key))) {
    throw new Problem(500, {
      code: 'install/unsafe',
      message: 'Cannot write the script: found a name or key that is none',
    })
  }
  return { origin, keys }
}

function handsOut({ files, settings }: AppPorts): boolean {
  return files !== undefined || settings.releaseUrl !== ''
}

function nothing(): Problem {
  return new Problem(404, {
    code: 'install/none',
    message: 'Cannot hand out the program: this relay has none',
    hint: 'Its host can set --downloads or --release-url.',
  })
}
