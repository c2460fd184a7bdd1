/** The page `/device`: a code goes in, who asks is shown, and a person lets it in or not. */
import { html } from 'hono/html'
import type { Asking } from '../device_desk.ts'
import { layout } from './layout.ts'
import type { Page } from './layout.ts'

export const DEVICE_PATH = '/device'

interface Facts {
  relay: string
  code: string
  /** Ties the form to this browser. */
  form: string
  /** What was wrong. */
  trouble?: string
}

export function codePage({ relay, code, form, trouble }: Facts): Page {
  return page(
    relay,
    html`
      <p>A machine that runs <code>sotto login</code> shows a code of eight letters.</p>
      ${alert(trouble)}
      <form method="post" action="${DEVICE_PATH}">
        <input type="hidden" name="form" value="${form}">
        <input type="hidden" name="step" value="look">
        <label for="code">Code</label>
        <input id="code" name="code" value="${code}" autocomplete="off" autocapitalize="characters"
          spellcheck="false" maxlength="16" placeholder="WDJB-MJHT" required autofocus class="code">
        <p><button>Continue</button></p>
      </form>
    `,
  )
}

export function confirmPage(
  { relay, code, form, trouble, asking, signup }: Facts & {
    asking: Asking | undefined
    signup: boolean
  },
): Page {
  return page(
    relay,
    html`
      ${asking
        ? who(asking, code)
        : html`<p>The code is <strong class="code">${code}</strong>.</p>`}
      ${alert(trouble)}
      ${signup
        ? html`
          <h2>It is mine</h2>
          <p>It gets a scope of its own at this relay.</p>
          <form method="post" action="${DEVICE_PATH}">
            ${hidden(form, code)}
            <p><button name="step" value="signup">Let my machine in</button></p>
          </form>
        `
        : ''}
      <h2>With a key of this relay</h2>
      <form method="post" action="${DEVICE_PATH}">
        ${hidden(form, code)}
        <label for="key">Admin key, or the API key whose scope it is to join</label>
        <input id="key" name="key" type="password" autocomplete="off" maxlength="256" required>
        <label for="scope">Scope <span class="quiet">(empty: a new one, or that of the API key)</span></label>
        <input id="scope" name="scope" autocomplete="off" spellcheck="false" maxlength="63"
          pattern="[a-z0-9]([a-z0-9\\-]*[a-z0-9])?">
        <p><button name="step" value="approve">Let it in</button></p>
      </form>
      <h2>I do not know it</h2>
      <form method="post" action="${DEVICE_PATH}">
        ${hidden(form, code)}
        <p><button name="step" value="deny">Turn it away</button></p>
      </form>
    `,
  )
}

/** Where no key may be typed into a page. */
export function closedPage({ relay }: { relay: string }): Page {
  return page(
    relay,
    html`
      <p>This relay serves pages of others under its own name, so it takes no key in a browser. Whoever has
      one lets the machine in with <code>sotto relay approve CODE</code>. Never type a key of this relay
      into a page.</p>
    `,
  )
}

export function donePage(
  { relay, denied = false, scope, asking }: {
    relay: string
    denied?: boolean
    scope?: string
    asking?: Asking
  },
): Page {
  return page(
    relay,
    denied ? html`<p>It was turned away. Nothing was let in.</p>` : html`
      <p><strong>${asking?.who ?? 'The machine'}</strong> may come in, as scope
      <code>${scope}</code>. Its terminal goes on by itself; this page can be closed.</p>
    `,
  )
}

function page(relay: string, body: Page): Page {
  return layout(
    `Log in to ${relay}`,
    html`
      <main>
        <h1>Let a machine in</h1>
        <p class="quiet">${relay}</p>
        ${body}
      </main>
    `,
    { referrer: 'same-origin' },
  )
}

function who({ who, address, fingerprint, at }: Asking, code: string): Page {
  return html`
    <p>Does that machine show the code <strong class="code">${code.toUpperCase()}</strong>, and this
    identity? Then it is the one that asks. If somebody sent you the code, turn it away.</p>
    <table>
      <tr>
        <th>It says it is</th>
        <td>${who}</td>
      </tr>
      <tr>
        <th>It asks from</th>
        <td>${address}</td>
      </tr>
      <tr>
        <th>Since</th>
        <td>${new Date(at).toISOString().slice(0, 16).replace('T', ' ')} UTC</td>
      </tr>
      <tr>
        <th>Identity</th>
        <td><code>${fingerprint}</code></td>
      </tr>
    </table>
  `
}

function hidden(form: string, code: string): Page {
  return html`
    <input type="hidden" name="form" value="${form}">
    <input type="hidden" name="code" value="${code}">
  `
}

function alert(trouble: string | undefined): Page | '' {
  return trouble === undefined ? '' : html`<p class="alert" role="alert">${trouble}</p>`
}
