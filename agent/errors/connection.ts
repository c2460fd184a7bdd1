/** Pages about the way to the relay and to other agents: links, admission, TLS, the network. */
import { disorder, malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const CONNECTION: ErrorTable = {
  net: {
    about: 'connections of the system, by TCP, UDP or a Unix socket',
    codes: {
      address: [
        'This machine has no such address to listen on.',
        'A typing error, an address of another machine, or an interface that is down.',
        'Name an address of this machine, or * for all of them.',
      ],
      denied: [
        'The system forbids the connection or the port.',
        'A port below 1024 without the right to it, a firewall, or a socket file of another user.',
        'Choose a port above 1023, or let the firewall or the file allow it.',
      ],
      failed: [
        'The system ended the connection.',
        'The network changed, or a firewall cut an idle connection.',
        'Try again; links are made anew by themselves.',
        'sotto status',
      ],
      'in-use': [
        'The port is taken by another program.',
        'The same command runs already, or another service has the port.',
        'Choose another port, or port 0 for any free one.',
      ],
      path: [
        'The path is too long for a socket between programs of this machine.',
        'The folder of the profile has a long name; systems allow about 100 bytes for a socket.',
        'Keep the profile in a folder with a shorter path, such as by SOTTO_HOME.',
      ],
      refused: [
        'Nothing listens at that address.',
        'The service is not running, or listens on another port or address.',
        'Start it, and compare the port with the one that it prints.',
        'sotto status',
      ],
      timeout: [
        'The other side did not answer in time.',
        'A firewall drops the packets, the machine is off, or the address is wrong.',
        'Check address and firewall; try the same address with another program.',
      ],
      'unknown-host': [
        'DNS knows no such host.',
        'A typing error, a name of another network, or no network at all.',
        'Check the spelling and whether other names can be looked up.',
      ],
      unreachable: [
        'There is no way to that address.',
        'No network, a VPN that is down, or an address of a family (IPv6) that is missing here.',
        'Check the network; try again when it is back.',
      ],
    },
  },
  link: {
    about: 'opening the link from the agent to the relay',
    codes: {
      order: disorder('The relay sent something during admission that has no place there.'),
      protocol: [
        'Agent and relay do not speak one protocol of links.',
        'One of the two is much older, or a program that is no agent tried.',
        'Update the older of the two, the relay first.',
        'sotto --version',
      ],
      refused: [
        "The relay's address answered, but opened no link.",
        'It is no sotto relay, a proxy between does not pass WebSockets, or the relay is going down.',
        'Open the address in a browser: a relay shows its page. Let proxies pass "Upgrade: websocket".',
        'sotto status',
      ],
      timeout: [
        'The relay did not answer in time.',
        'It is down, a firewall drops the packets, or the network is very slow.',
        'Check the address in a browser on the same machine.',
        'sotto status',
      ],
      tls: [
        'TLS with the relay failed.',
        'The relay has no TLS at that port, or a proxy between breaks it.',
        'A relay without TLS is reached by http://. Else check the port.',
        'sotto status',
      ],
      untrusted: [
        'The certificate of the relay cannot be trusted.',
        'It is self-signed, has expired, is for another name; or a proxy between ends TLS.',
        'Ask who runs the relay for its fingerprint and give it by --relay-fingerprint: then a self-signed one will do.',
        'sotto status --help',
      ],
      upgrade: [
        'That address of the relay is for agents, and a plain request came.',
        'It was opened in a browser, or a proxy took the WebSocket apart.',
        'Give agents the address of the relay alone. Let proxies pass "Upgrade: websocket".',
        'sotto status',
      ],
      welcome: malformed("The relay's welcome lacks something that it must say."),
    },
  },
  ca: {
    about: 'certificates of authorities that a file names',
    codes: {
      file: [
        'The file of CA certificates cannot be used.',
        'A typing error in the path, a file without the right to read it, or one that is not PEM.',
        'Name a file with blocks that begin with -----BEGIN CERTIFICATE-----, by --ca or SSL_CERT_FILE. A DER file becomes one by "openssl x509 -inform der -in FILE".',
        'sotto status --help',
      ],
    },
  },
  proxy: {
    about: 'the proxy that the environment names for the way to the relay',
    codes: {
      address: [
        'The variable that names the proxy cannot be read.',
        'Another scheme than http, https, socks5 or socks5h, a path behind the port, or a password with characters that a URL cannot hold.',
        'Write it as http://USER:PASSWORD@HOST:PORT, such characters as %XX; or unset the variable.',
      ],
      authentication: [
        'The proxy wants a user and a password, or does not take those that it got.',
        'None is set, one of them is mistyped or has expired, or the proxy asks for a kind of login other than Basic.',
        'Put them into the variable, as http://USER:PASSWORD@HOST:PORT, special characters as %XX.',
        'sotto status',
      ],
      denied: [
        'The proxy does not allow the way to the relay.',
        'Its rules forbid the port (many allow 443 alone), the host, or tunnels at all.',
        'Ask who runs the proxy to allow the host and port of the relay, or run the relay at port 443.',
        'sotto status',
      ],
      protocol: [
        'What answered is no proxy of that kind.',
        'The port is that of another service, or the scheme is wrong: http for a SOCKS proxy, or the other way round.',
        'Compare scheme and port with what the operator of the proxy says.',
      ],
      target: [
        'The proxy works, but does not reach the relay.',
        'The relay is down, its name is not known where the proxy is, or a firewall is in between.',
        'Check the name of the relay, and whether it can be reached from the network of the proxy.',
        'sotto status',
      ],
      timeout: [
        'The proxy gave no whole answer in time.',
        'It waits for the relay, is overloaded, or the port belongs to something that never speaks.',
        'Try again; compare the address of the proxy with what its operator says.',
      ],
      unreachable: [
        'There is no connection to the proxy itself.',
        'It is not running, the host or the port is wrong, or this network has no such proxy.',
        'Correct the variable. Outside that network unset it, or name the relay in NO_PROXY.',
      ],
    },
  },
  uplink: {
    about: 'the link that an agent keeps to its relay',
    codes: {
      busy: [
        'Too many questions to the relay wait for an answer.',
        'The link is slow, or a program asks faster than the relay answers.',
        'Ask less at once, or wait.',
        'sotto status',
      ],
      claim: [
        'The relay did not take the claim of an endpoint.',
        'The message says why; often the name belongs to another scope.',
        'Choose another --name, or ask the operator.',
        'sotto http --help',
      ],
      closed: [
        'The link was closed from this side.',
        'The command or the program that used it ended.',
        'Nothing. Start it again to go on.',
      ],
      down: [
        'There is no link to the relay now.',
        'The network or the relay is away; the agent tries again by itself.',
        'Wait, or look at what the agent says of its link.',
        'sotto status',
      ],
      protocol: disorder('The relay sent something on the link that has no place there.'),
      refused: [
        'The relay refused the link without saying why.',
        'An older relay, or a proxy that ended the connection.',
        'Ask who runs the relay: its log has the reason.',
        'sotto status',
      ],
      timeout: [
        'The relay did not answer a question in time.',
        'It is overloaded, or the network lost the link without a sign.',
        'Try again in a moment.',
        'sotto status',
      ],
      unreachable: [
        'The relay cannot be reached.',
        'A wrong address, no network, a firewall, or the relay is down.',
        'Check the address in a browser on the same machine.',
        'sotto status',
      ],
    },
  },
  admit: {
    about: 'admission: agent and relay prove to each other who they are',
    codes: {
      agent: malformed('The agent said something of itself that cannot be.'),
      'agent-forged': tampered('The hello of the agent is not signed by its identity.'),
      certificate: [
        'The relay takes no client certificates.',
        'It was started without an authority for them.',
        'Use an API key in SOTTO_API_KEY, or ask the operator for --client-ca.',
        'sotto relay --help',
      ],
      credential: [
        'The credential cannot be used to be admitted.',
        'SOTTO_API_KEY is empty, cut, or of another kind; or the relay wants one and none was given.',
        'Copy the whole key. The operator makes one by the command below.',
        'sotto relay keys create',
      ],
      ephemeral: tampered('The other end sent a key that gives no secret.'),
      forged: tampered('Bytes of admission were not sealed by the other end.'),
      name: [
        'The relay answers to other names than the one that was dialled.',
        'It was set up for another domain, or another relay answers at this address.',
        'Use the address that the relay prints; its operator sets it by --domain.',
        'sotto relay --help',
      ],
      order: disorder('A message of admission came out of turn.'),
      range: malformed('A message of admission has a number that is too large.'),
      reflected: tampered('The own identity of the relay came as that of an agent.'),
      relay: malformed('The relay said something of itself that cannot be.'),
      'relay-changed': [
        'The relay has another identity than the one that is pinned.',
        'It was set up anew without its old key, or something else answers in its place.',
        'Ask who runs it for its fingerprint; give it once by --relay-fingerprint if it is the new one.',
        'sotto status',
      ],
      'relay-forged': tampered('The relay did not sign the challenge of this link.'),
      revoked: [
        'The identity of this agent was revoked.',
        'You or somebody with its revocation certificate ended it.',
        'Make a new identity by a fresh SOTTO_HOME, and pair with your peers anew.',
        'sotto pair',
      ],
      role: malformed('An agent came in a role that does not exist.'),
      size: malformed('A message of admission is too long.'),
      target: malformed('A hello came that is meant for another agent than its address says.'),
      trailing: malformed('Bytes follow after the end of a message of admission.'),
      truncated: malformed('A message of admission ends before its time.'),
      version: [
        'Agent and relay speak different versions of admission.',
        'One of the two is much older.',
        'Update the older of the two, the relay first.',
        'sotto --version',
      ],
    },
  },
  bulk: {
    about: 'further connections to the relay for much traffic',
    codes: {
      certificate: tampered('A second connection to the relay met another certificate.'),
    },
  },
  tls: {
    about: 'TLS with visitors, upstreams and other agents',
    codes: {
      carrier: [
        'TLS inside a connection failed.',
        'The other side ended it, or refused the certificate.',
        'Look at the message, and try again.',
      ],
      certificate: [
        'A certificate or its key cannot be used.',
        'A wrong file, a key that does not belong to it, or a format other than PEM.',
        'Check both with openssl; leave them out to let sotto make one.',
        'sotto http --help',
      ],
      handshake: [
        'TLS with a visitor or a service could not be agreed on.',
        'A visitor that does not trust the certificate, an old version of TLS, or no TLS at all at that port.',
        'For a service: check the port and whether it speaks TLS. A single visitor that fails is no fault of yours.',
      ],
      refused: [
        'A visitor came without a certificate that is allowed.',
        'The endpoint lets only some agents in.',
        'Allow its identity if you know it.',
        'sotto access allow --help',
      ],
      target: misused('TLS was to be opened to nothing.'),
      timeout: [
        'TLS was not finished in time.',
        'A slow network, or a client that only opens a connection.',
        'Nothing, if it is one visitor. Else check the network.',
      ],
      untrusted: [
        'The certificate of the service cannot be trusted.',
        'It is self-signed, has expired, or is for another name.',
        'Give the service a good certificate, or look up the flag for self-signed ones.',
        'sotto http --help',
      ],
    },
  },
  dial: {
    about: 'reaching another agent',
    codes: {
      broken: [
        'The connection to the other agent broke while it was made.',
        'Its agent stopped, or the network changed.',
        'Try again.',
        'sotto connect --help',
      ],
      fault: [
        'Reaching the other agent met an error that has no page of its own.',
        'The words of the message say which.',
        'Try again; if it stays, report it with the version.',
        'sotto --version',
      ],
      name: [
        'That is no name of an agent.',
        'Capitals, slashes, or a whole URL.',
        'Give a name such as db, or SCOPE.NAME for one that another scope shows you.',
        'sotto agents',
      ],
      passport: [
        'No passport of the other agent could be had that can be trusted.',
        'It has run out, is forged, or the relay keeps it back.',
        'Let the other agent be started anew, and check both clocks.',
        'sotto agents',
      ],
      refused: [
        'The other agent does not let this one in.',
        'Your identity is not allowed at that endpoint.',
        'Tell its owner your fingerprint, so that it can be allowed.',
        'sotto identity',
      ],
      unknown: [
        'Nobody shows an agent of that name or identity to you.',
        'It is away, mistyped, or belongs to another scope that has not granted it.',
        'Look who is there.',
        'sotto agents',
      ],
    },
  },
  directory: {
    about: 'the list of agents that the relay gives',
    codes: { answer: malformed('The list of agents cannot be read.') },
  },
  hub: {
    about: 'where the relay joins visitors and links',
    codes: {
      full: [
        'Every link of the agent carries as many streams as it may.',
        'Very many visitors at once, or a service that never ends its answers.',
        'Run the tunnel in a second process too: visitors are shared out.',
        'sotto status',
      ],
      gone: [
        'The agent was there and has no link now.',
        'Its network changed or it was stopped.',
        'It comes back by itself if it runs. Try again.',
        'sotto status',
      ],
      links: [
        'The relay takes no more links of this agent or scope.',
        'Many processes run, or old ones were never ended.',
        'End those that are not needed, or ask the operator for a larger quota.',
        'sotto status',
      ],
      order: disorder('A stream was opened under a number that is in use.'),
      scope: misused('Links of two scopes were to be joined.'),
      stream: disorder('A frame came on a stream that was never opened.'),
    },
  },
  visit: {
    about: 'links to visit another agent through the relay',
    codes: {
      closed: [
        'This agent is closing and opens no new visit.',
        'The command was told to end.',
        'Nothing. Start it again to go on.',
      ],
      limit: [
        'As many visits to other agents are open as may be.',
        'Many connections at once through one command.',
        'Close some, or wait.',
        'sotto status',
      ],
      link: visited('The link for a visit could not be opened.'),
      protocol: visited('The link for a visit broke by something that has no place on it.'),
    },
  },
  shared: {
    about: 'one link that several users share',
    codes: {
      fault: visited('The shared link met an error that has no page of its own.'),
      lost: visited('The shared link is gone.'),
      order: disorder('A frame came on a shared link that has no place there.'),
      silent: visited('The other side of the shared link does not answer any more.'),
    },
  },
}

function visited(what: string): ErrorText {
  return [
    what,
    'The network changed, or the relay or the other agent was restarted.',
    'Try again: a new link is opened by itself.',
    'sotto status',
  ]
}
