/** The page at `/`: what answers here, what it can read and what not, and how to use it. */
import { html } from 'hono/html'
import type { InstallLines } from '../install.ts'
import { layout } from './layout.ts'
import type { Page } from './layout.ts'

export interface IndexFacts {
  domain: string
  secureDomain: string
  appsDomain: string
  /** The relay's identity as people compare it. */
  fingerprint: string
  /** The URL of this relay without a slash at its end. */
  origin: string
  version: string
  /** Whether verified endpoints work here: it takes raw TCP. */
  passthrough: boolean
  inspectable: boolean
  /** Undefined where this relay hands out no programs. */
  install: InstallLines | undefined
}

export function indexPage(facts: IndexFacts): Page {
  // Not in the template: there the formatter would indent the second line.
  const commands = `sotto login ${facts.origin.replace('https://', '')}\nsotto http 3000`
  return layout(
    `sotto relay ${facts.domain}`,
    html`
      <main>
              <h1>sotto relay</h1>
              <p class="quiet">${facts.domain}, version ${facts.version}</p>
              <p>This host passes traffic between people and services that stand behind it. It routes by name and
            moves bytes; what it serves is published by the agents that link to it, not by this page.</p>
              <p>With <code>sotto</code>, a program on your machine, a port of it gets a URL here that others can
            open in their browsers.</p>
              ${facts.install ? installation(facts.install) : ''}
              <h2>Publish a local port</h2>
              <pre>${commands}</pre>
              <h2>What this relay can read</h2>
              <table>
            ${facts.passthrough
              ? html`
                <tr>
                  <th>NAME.${facts.secureDomain}</th>
                  <td>Nothing. TLS ends in the agent that published the name; the
                relay sees the name, the addresses and how much is sent.</td>
                </tr>
              `
              : html`
                <tr>
                  <th>sotto connect</th>
                  <td>Nothing. TLS ends in the two agents. This relay has no raw TCP port, so
                browsers cannot reach verified endpoints through it.</td>
                </tr>
              `}
            ${facts.inspectable
              ? html`
                <tr>
                  <th>NAME.${facts.appsDomain}</th>
                  <td>Everything. TLS ends here; who publishes there chose it with
                <code>--e2ee=false</code>.</td>
                </tr>
              `
              : ''}
              </table>
              <h2>This relay's identity</h2>
              <p><code>${facts.fingerprint}</code></p>
              <p
                class="quiet">Agents pin it. Compare it with what the host of this relay told you by another way: this
            page alone proves nothing.</p>
              <h2>For programs</h2>
              <p><a href="/v1/relay">/v1/relay</a>, <a href="/api/v1/docs">the API</a> and
            <a href="/api/v1/openapi.json">its document</a>, <a href="/healthz">/healthz</a>,
            <a href="/readyz">/readyz</a></p>
            </main>
    `,
  )
}

/** The line for the visitor's own system first; no script chooses, the browser's own word does. */
function installation({ unix, windows, onWindows }: InstallLines): Page {
  const [first, second] = onWindows ? [windows, unix] : [unix, windows]
  const script = onWindows ? '/install.ps1' : '/install.sh'
  const names = ['Linux and macOS, in a shell', 'Windows, in PowerShell']
  const [here, other] = onWindows ? names.toReversed() : names
  return html`
    <h2>Install</h2>
    <p>${here}:</p>
    <pre>${first}</pre>
    <details>
      <summary>${other}</summary>
      <pre>${second}</pre>
    </details>
    <p
      class="quiet">The line runs what this relay sends: <a href="${script}">read it</a> first if you do not
      trust its host with your machine. It asks for no more rights than you have, and says what it does.</p>
  `
}
