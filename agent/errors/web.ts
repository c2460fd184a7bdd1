/** Pages about HTTP as visitors speak it, and about WebSockets. */
import { malformed } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const WEB: ErrorTable = {
  http: {
    about: 'requests of visitors and of programs',
    codes: {
      body: request('The body of the request is larger than the relay reads.'),
      broken: [
        'The answer broke off in the middle, or was no HTTP.',
        'The other side crashed, or does not speak HTTP at that port.',
        'Check the port and the log of the service.',
        'sotto status',
      ],
      expectation: request('The request expects something that is not done here.'),
      field: request('A header of the request cannot be read.'),
      framing: request('The request says its length in two ways, or in none that can be trusted.'),
      gateway: [
        'The relay could not reach the service behind the tunnel.',
        'The local service is not running, or its agent is just reconnecting.',
        'On the machine of the tunnel: check that the service runs, and look at the agent.',
        'sotto status',
      ],
      head: [
        'The service gave an answer whose head cannot be passed on.',
        'It is too large, or has headers that HTTP does not allow.',
        'Look at the headers that the service sends, often cookies.',
      ],
      host: request('The request names no host, or several.'),
      method: request('That method is not answered at this address.'),
      misdirected: [
        'The request is for a host that is not served at this relay.',
        'DNS leads to the wrong relay, or the name is not the one that the agent printed.',
        'Compare the address with the one that the agent printed.',
        'sotto status',
      ],
      moved: [
        'The tunnel begins one folder deeper; the browser was sent there.',
        'The address was typed without its last slash.',
        'Nothing: browsers follow by themselves. A program should use the address with the slash.',
      ],
      overload: [
        'The relay or the agent is at a limit and took no further visitor.',
        'Many visitors at once, or a service that answers slowly.',
        'Try again in a moment; the operator can allow more.',
        'sotto status',
      ],
      path: request('There is nothing at that path of the relay.'),
      request: request('The request is malformed.'),
      target: request('The request has a target that is no path.'),
      timeout: [
        'The visitor or the service took too long.',
        'The service hangs, or the body of the request stopped coming.',
        'Look why the service is slow. Long work should answer at once and be asked for later.',
        'sotto status',
      ],
      unknown: [
        'Nobody serves a tunnel of that name now.',
        'Its agent is not running, or the name was mistyped.',
        'Start the agent and load the page again.',
        'sotto http 3000 --name NAME',
      ],
      upgrade: request('The request wants another protocol in a way that cannot be.'),
      version: request('The request speaks another version of HTTP than 1.1.'),
    },
  },
  websocket: {
    about: 'the WebSocket under a link',
    codes: {
      frame: malformed('A WebSocket frame came that cannot be.'),
      size: malformed('A WebSocket message came that is larger than any frame of a link.'),
    },
  },
}

/** What a client of the relay sent. */
function request(what: string): ErrorText {
  return [
    what,
    'The program that asks is at fault, or a proxy between changed the request.',
    'Mend the request; curl -v shows what is sent. A browser that meets this is worth a report.',
  ]
}
