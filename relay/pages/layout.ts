/**
 * The frame of every page. Written with Hono's `html` templates, which escape what they hold, and
 * not as JSX files: Node runs our sources as they are and strips types only from plain TypeScript.
 */
import { html } from 'hono/html'
import { STYLE_PATH } from './style.ts'

/** What `html` makes: text that is escaped already. */
export type Page = ReturnType<typeof html>

export function layout(title: string, body: Page): Page {
  return html`
    <!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <meta name="referrer" content="no-referrer">
        <title>${title}</title>
        <link rel="stylesheet" href="${STYLE_PATH}">
      </head>
      <body>
    ${body}
      </body>
    </html>
  `
}
