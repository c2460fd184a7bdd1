/**
 * What a visitor of a readable endpoint sees when the relay has to answer in the place of the
 * service: a small page for people, JSON for programs, by what they accept. Nothing in it comes from
 * elsewhere, and it runs no script: it is shown on an origin that belongs to somebody else.
 */
import { html } from 'hono/html'
import type { Fields } from '../../core/exchange.ts'
import { utf8 } from '../../core/bytes.ts'
import type { Problem } from '../problem.ts'

const TITLES: Readonly<Record<number, string>> = {
  308: 'Moved',
  400: 'The request cannot be read',
  403: 'Not allowed here',
  404: 'There is no such tunnel',
  405: 'Not with this method',
  408: 'The request came too slowly',
  413: 'The request is too large',
  417: 'That cannot be expected',
  421: 'Not served here',
  429: 'Too many requests',
  431: 'The request has too much of a head',
  500: 'The relay failed',
  502: 'The service does not answer',
  503: 'Too busy',
  504: 'The service took too long',
}

const STYLE = 'body{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;' +
  'padding:0 1em;color:#222;background:#fff}code{word-break:break-word}' +
  '@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}'

/** The whole answer that tells `problem`; `accept` is the request's field of that name. */
export function failure(
  problem: Problem,
  accept: string,
): { status: number; headers: Fields; body: Uint8Array } {
  const page = /\btext\/html\b/i.test(accept)
  const body = utf8(page ? pageOf(problem) : `${JSON.stringify({ error: problem.toJSON() })}\n`)
  const headers: Fields = [
    ['Content-Type', page ? 'text/html; charset=utf-8' : 'application/json'],
    ['Content-Length', String(body.length)],
    ['Cache-Control', 'no-store'],
    ['Vary', 'Accept'],
    ['X-Content-Type-Options', 'nosniff'],
  ]
  if (page) {
    headers.push(['Content-Security-Policy', "default-src 'none'; style-src 'unsafe-inline'"])
  }
  for (const [name, value] of Object.entries(problem.headers)) headers.push([name, value])
  return { status: problem.status, headers, body }
}

function pageOf(problem: Problem): string {
  const title = TITLES[problem.status] ?? 'That did not work'
  return String(html`
    <!doctype html>
    <html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
    <title>${problem.status}: ${title}</title>
    <style>${STYLE}</style>
    <h1>${title}</h1>
    <p><code>${problem.message}</code></p>
    ${problem.hint === undefined ? '' : html`<p>${problem.hint}</p>`}
    <p><small>${problem.status} ${problem.code}</small></p>
    </html>
  `)
}
