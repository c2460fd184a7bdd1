/** Pages about domains of a person's own, and about DNS. */
import type { ErrorTable } from './page.ts'

const CHECK = 'sotto domains check DOMAIN'
const SILENT =
  'Try again in a few minutes, or name another resolver. A relay asks the resolvers of its machine, or those of its --dns.'

export const DOMAINS: ErrorTable = {
  dns: {
    about: 'names and records of DNS',
    codes: {
      failed: [
        'DNS gives no answer for the name, neither that it is there nor that it is not.',
        'Its name servers are away, a DNSSEC signature is wrong, or the resolver is.',
        SILENT,
        CHECK,
      ],
      loop: [
        'The name is an alias of an alias, and so on without an end.',
        'Two CNAME records that name each other, or very many in a row.',
        "Look at the domain's CNAME records.",
        CHECK,
      ],
      malformed: [
        'An answer of DNS cannot be read, or is the answer to another question.',
        'Something in between that changes DNS, or somebody who forges answers.',
        SILENT,
      ],
      name: [
        'That is no host name that can be claimed.',
        'A star, an address, a single word, or letters that are not written as Punycode.',
        'Write it as certificates do, such as app.example.com or xn--bcher-kva.example.',
      ],
      none: [
        'There is no resolver to ask.',
        'The machine has no /etc/resolv.conf, as on Windows, or nothing that can be read in it.',
        'Name one by --dns ADDRESS.',
        'sotto domains check DOMAIN --dns 9.9.9.9',
      ],
      silent: [
        'A resolver did not answer.',
        'It is away, or a firewall keeps DNS in.',
        SILENT,
      ],
    },
  },
  domains: {
    about: 'domains of your own that lead to endpoints',
    codes: {
      busy: [
        'The relay asks the DNS of too many domains at once.',
        'Very many agents came back together.',
        'The agent asks again by itself.',
      ],
      closed: [
        'This relay takes no domains of others.',
        'It has no raw TCP port, as on Workers and Deno Deploy, or its operator wants none.',
        "Use the endpoint's own name, or another relay.",
        'sotto status',
      ],
      dns: [
        "The relay cannot ask the domain's DNS.",
        'Its name servers are away, or the resolver of the relay is.',
        'Nothing was given or taken. The agent asks again by itself; a name that was yours stays yours for a day.',
        CHECK,
      ],
      endpoint: [
        'A domain can lead only to a verified endpoint that your scope serves now.',
        'The tunnel has gone, or TLS does not end in the agent.',
        'Start it without --e2ee=false.',
        'sotto http 3000 --domain DOMAIN',
      ],
      handed: [
        "The CNAME of the domain leads to a label that was another scope's when the domain was claimed.",
        "That scope gave the label back, and nobody has changed the domain's DNS since: its owner may not know.",
        'Have the owner of the domain set the TXT record that the message shows.',
        CHECK,
      ],
      limit: [
        'Your scope has as many domains as it may on this relay.',
        'Many tunnels with domains of their own.',
        'Stop one that is not needed; the operator may offer another scope.',
        'sotto status',
      ],
      own: [
        "Names of the relay itself are nobody's to claim.",
        'The domain is the relay, or ends in one of its own.',
        'Choose a label there instead.',
        'sotto http 3000 --name NAME',
      ],
      restricted: [
        'Your key is for some names of its scope, and the domain does not lead to one of them by its DNS.',
        'A TXT record names the scope as a whole; a fleet token, or a key with --names, is a part of it.',
        "Have the domain's CNAME lead to a name of yours, or claim it with a key of the whole scope.",
        CHECK,
      ],
      refused: [
        'The relay would not lead the domain here.',
        'The link went away while it was asked.',
        'The agent asks again by itself.',
        CHECK,
      ],
      taken: [
        'Another scope has the domain, and its DNS names that one too.',
        'Two TXT records for two scopes; who came first keeps it.',
        "Take the other scope's record away, then try again.",
        CHECK,
      ],
      unproven: [
        "The domain's DNS does not say that your scope may have it.",
        'The records are not set yet, or name another scope or another relay; a resolver may remember that there were none for a few minutes.',
        'Set one of the records that the message shows. The agent asks again by itself.',
        CHECK,
      ],
    },
  },
}
