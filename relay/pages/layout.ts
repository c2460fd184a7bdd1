/**
 * The frame of every page. Written with Hono's `html` templates, which escape what they hold, and
 * not as JSX files: Node runs our sources as they are and strips types only from plain TypeScript.
 */
import { html } from 'hono/html'
import { STYLE_PATH } from './style.ts'

/** What `html` makes: text that is escaped already. */
export type Page = ReturnType<typeof html>

/** `referrer` is for a page with a form, whose origin a browser tells only under another policy. */
export function layout(
  title: string,
  body: Page,
  { referrer = 'no-referrer' }: { referrer?: 'no-referrer' | 'same-origin' } = {},
): Page {
  return html`
    <!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <meta name="referrer" content="${referrer}">
        <title>${title}</title>
        <link rel="stylesheet" href="${STYLE_PATH}">
      </head>
      <body>
    ${body}
      </body>
    </html>
  `
}
