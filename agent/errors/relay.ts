/** Pages about what a relay says: credentials, names, quotas, its API, its store and its start. */
import { malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const RELAY: ErrorTable = {
  backup: {
    about: 'the data of a relay in one file, and back',
    codes: {
      data: [
        'There is no data of a relay to back up.',
        'The folder is another one: a service has it where its --data says.',
        'Name the folder by --data.',
        'sotto relay backup --help',
      ],
      exists: [
        'What would be written is there already.',
        'A backup takes the place of no file, and is restored into an empty folder alone.',
        'Choose another name, or move what is there away.',
        'sotto relay backup --help',
      ],
      failed: [
        'The backup was not written, or not restored; nothing half-made is left.',
        'The disk is full, the rights do not suffice, or the file is damaged; the message says which.',
        'Do what the message asks for, as the user of the relay or root.',
        'sotto relay backup --help',
      ],
      file: [
        'That file is no backup of a relay.',
        'It is the store alone, was cut when it was copied, or is something else.',
        'Give a file that "sotto relay backup" made.',
        'sotto relay restore --help',
      ],
    },
  },
  relay: {
    about: 'the relay as agents and operators meet it',
    codes: {
      address: [
        'The address of the relay cannot be read.',
        'A path behind the host, a missing https://, or a typing error; the message says where it came from.',
        'Give https://host or https://host:port.',
        'sotto status --help',
      ],
      answer: malformed('The relay answered with something that is no HTTP.'),
      blocked: [
        'Your scope is blocked on this relay.',
        'Its operator cut it off, often for abuse or an unpaid bill.',
        'Ask the operator.',
        'sotto relay unblock --help',
      ],
      certificate: [
        'A certificate of the relay is not the one it should be, or cannot be loaded.',
        'To agents: something between ends TLS. To operators: file and key do not fit.',
        'Agents: try another network. Operators: check --cert and --key; the old one stays in use.',
        'sotto relay --help',
      ],
      credential: [
        'The credential for the relay is missing or cannot be read.',
        'SOTTO_API_KEY, or one of SOTTO_CLIENT_CERT and SOTTO_CLIENT_KEY, is not set or names no file.',
        'Log in with "sotto login RELAY", or set the variable. The operator makes keys by the command below.',
        'sotto relay keys create',
      ],
      'take-over': [
        'The relay that runs with this data did not answer the one that should take its place.',
        'It hangs, or is not ours.',
        'Stop it, and start this one without --take-over.',
        'sotto relay --help',
      ],
      downloads: [
        'The relay has no folder to hand programs out from.',
        'The path of --downloads is wrong, or names a file.',
        'Give the folder that holds SHA256SUMS and the programs.',
        'sotto relay --help',
      ],
      draining: [
        'The relay is going down and takes nobody in.',
        'It is being upgraded or moved.',
        'Wait: agents reconnect by themselves when it is back.',
        'sotto status',
      ],
      fault: [
        'The relay failed by a fault of its own.',
        'A defect, or its disk or database is in trouble.',
        'Try again; the operator finds the reason in its log.',
      ],
      identity: [
        'The secret identity of the relay cannot be read.',
        'The file was cut or changed.',
        'Restore it from a backup. Without it, agents that pinned this relay will refuse it.',
        'sotto relay --help',
      ],
      none: [
        'No relay is named.',
        'This is the first command on this machine.',
        'Log in to one with "sotto login RELAY"; or say --relay URL, set SOTTO_RELAY, or run one of your own.',
        'sotto relay',
      ],
      notice: [
        'The relay ended the admission with words of its own.',
        'The message has them.',
        'Do as they say, or ask the operator.',
        'sotto status',
      ],
      order: misused('A frame came before the agent was admitted.'),
      permissions: [
        'A secret file of the relay may be read by other users.',
        'It was copied, or restored from an archive.',
        'Type chmod 600 and the path in the message; if others may have read it, replace it.',
      ],
      proof: tampered('The relay could not prove that it is the one that is pinned.'),
      refused: [
        'The relay refused, and gave no code that is known here.',
        'A newer relay, or something else than a relay answers.',
        'Read the message, and update sotto.',
        'sotto --version',
      ],
      revoked: [
        'The link was ended because its credential or identity was revoked.',
        'The operator revoked it, or the identity revoked itself.',
        'Ask the operator for a new credential.',
        'sotto relay keys create',
      ],
      store: [
        'The relay cannot use its store and takes nobody in.',
        'Its disk is full or its database is damaged.',
        'Operators: look at the log and the disk. Others: try again later.',
      ],
      unreachable: [
        'The relay cannot be asked.',
        'A wrong address, no network, a proxy, or the relay is down.',
        'Check the address in a browser on the same machine.',
        'sotto status',
      ],
    },
  },
  credentials: {
    about: 'API keys and fleet tokens',
    codes: {
      expired: key('The key has expired.'),
      labels: [
        'The token admits only agents of certain labels, and this one has others.',
        'A label is missing or spelled in another way.',
        'Say what this agent is: --label NAME=VALUE, or "labels" in the profile.',
        'sotto http --help',
      ],
      missing: [
        'The request brought no credential and needs one.',
        'SOTTO_API_KEY or SOTTO_ADMIN_KEY is not set, or the header is missing.',
        'Set the variable, or send "Authorization: Bearer KEY".',
        'sotto relay keys create --help',
      ],
      revoked: key('The key was revoked.'),
      'too-many': [
        'The scope has as many credentials as it may.',
        'One was made at each start of something.',
        'Revoke those that are not in use.',
        'sotto relay keys list',
      ],
      unknown: key('The relay does not know the key.'),
      wanted: [
        'A credential was to be made with a value that cannot be.',
        'A label, a scope, a pattern or an end of validity that is out of bounds.',
        'The message says what is expected.',
        'sotto relay keys create --help',
      ],
    },
  },
  certificate: {
    about: 'client certificates in place of keys',
    codes: {
      authority: [
        'The file of --client-ca holds no authority.',
        "It is an agent's certificate, or no PEM.",
        'Give PEM certificates whose basic constraints say CA:TRUE.',
        'sotto relay --help',
      ],
      chain: client('The certificate does not lead to the authority of the relay.'),
      format: client('The certificate cannot be read.'),
      purpose: client('The certificate is for another purpose.'),
      revoked: [
        'The certificate was revoked.',
        'The operator ended it.',
        'Ask the operator for a new one.',
        'sotto relay certificates list',
      ],
      scope: client('The certificate names no scope.'),
      serial: [
        'The serial number cannot be read.',
        'It has other characters than hex digits, or too many.',
        'Take it from "openssl x509 -noout -serial -in FILE".',
        'sotto relay certificates revoke --help',
      ],
      signature: client('The certificate is signed in a way that is not taken.'),
      size: client('The certificate, or its chain, is too long.'),
      'too-many': [
        'The relay holds as many revoked certificates as it can.',
        'Those that have expired were never taken off.',
        'Restore the ones that have expired: they admit nobody anyway.',
        'sotto relay certificates list',
      ],
      validity: client('The certificate is not valid now.'),
    },
  },
  claim: {
    about: 'endpoints that an agent asks for',
    codes: {
      inspectable: [
        'This relay allows no endpoint that it could read.',
        'Its operator set it so.',
        'Leave out --e2ee=false: then TLS ends in the agent.',
        'sotto http --help',
      ],
      kind: malformed('An endpoint of an unknown kind was claimed.'),
      mode: [
        'An endpoint of that kind cannot be had in that way.',
        'UDP was to be encrypted, or a program claimed something that does not exist.',
        'For UDP: sotto udp PORT --e2ee=false --public-port N',
        'sotto udp --help',
      ],
      name: [
        'The name is none that an endpoint can have.',
        'Capitals, dots or underscores.',
        'Use 1 to 63 of a-z, 0-9 and inner hyphens.',
      ],
      'not-allowed': [
        'The credential does not allow that name.',
        'A fleet token is good for some patterns of names only.',
        'Choose a name that they allow, or ask the operator for another token.',
        'sotto relay tokens list',
      ],
      passthrough: [
        'This relay cannot pass TLS through to the agent.',
        'It runs where there is no raw TCP, as on Workers.',
        'Use --e2ee=false, which lets the relay read the traffic; or a private tunnel and sotto connect.',
        'sotto connect --help',
      ],
      port: malformed('A public port was claimed that is no number.'),
    },
  },
  endpoints: {
    about: 'endpoints that several processes serve',
    codes: {
      full: [
        'As many processes serve that name as may.',
        'Old ones were not ended, or a service starts more and more.',
        'End some of them.',
        'sotto status',
      ],
      mode: [
        'The name is being served in another way now.',
        'One process has it as http and another as tcp, or with another --e2ee.',
        'Stop the other tunnel first, or choose another --name.',
        'sotto status',
      ],
    },
  },
  registry: {
    about: 'names at the relay and whose they are',
    codes: {
      block: operator('What was to be blocked is neither one name nor one scope.'),
      blocked: [
        'The name or its scope is blocked on this relay.',
        'Its operator cut it off.',
        'Ask the operator.',
        'sotto relay unblock --help',
      ],
      name: [
        'The name is none that can be reserved.',
        'Capitals, dots, a hyphen at an end, or "xn--" at its beginning.',
        'Use 1 to 63 of a-z, 0-9 and inner hyphens.',
      ],
      passport: malformed('A passport was to be published that is too long or empty.'),
      quota: [
        'The relay keeps no more names or identities of your scope.',
        'Names of old tunnels are still reserved, or agents make a new identity at each start.',
        'Release names that are not needed, and keep the profile of agents.',
        'sotto relay names list',
      ],
      reserved: [
        'The name is kept for the operator of the relay.',
        'Names such as www and admin could deceive visitors.',
        'Choose another --name.',
      ],
      scope: malformed('A scope was named in a way that cannot be.'),
      stale: [
        'The relay has a newer passport of this identity.',
        'Two machines use one profile, or it was restored from a backup.',
        'Start the agent again: it signs above the number that the relay has.',
        'sotto status',
      ],
      taken: [
        'The name belongs to another scope on this relay.',
        'Somebody was first, or you use another key than before.',
        'Use the free name that the message offers, or your old key.',
        'sotto http 3000 --name NAME',
      ],
      'too-many': operator('The relay holds as many blocks as it can.'),
      unknown: [
        'Nobody has that name at the relay.',
        'A typing error, or it was released.',
        'Check the name and the relay.',
        'sotto relay names list',
      ],
      unowned: [
        'The name is not reserved any more.',
        'It was released while an agent was about to serve it.',
        'Start the tunnel again, which reserves it anew.',
        'sotto relay names list',
      ],
    },
  },
  grants: {
    about: 'names that one scope shows to another',
    codes: {
      limit: operator('There are as many grants as may be.'),
      names: operator('What was to be shown is no name or pattern.'),
      scope: operator("Names can be shown only to another scope than one's own."),
    },
  },
  quota: {
    about: 'how much a scope or an address may use',
    codes: {
      exceeded: [
        'A quota is used up; the message says which.',
        'More links, visitors or bytes than the operator allows for a time.',
        'Wait for as long as the message says, or ask the operator for more.',
        'sotto status',
      ],
      setting: operator('A quota was set that does not exist, or to no number.'),
    },
  },
  ports: {
    about: 'public ports of a relay',
    codes: {
      closed: [
        'This relay has no public ports.',
        'It runs where there are no raw sockets, or its operator opened none.',
        'Use a private tunnel here and sotto connect on the other side.',
        'sotto connect --help',
      ],
      range: [
        'That public port is not among those of the relay.',
        'The operator opened another range.',
        'Choose one of the range in the message, or 0 for any.',
        'sotto tcp --help',
      ],
      taken: [
        'No public port is free.',
        'Every one of the range is in use.',
        'Try again later, or ask the operator for a wider --public-ports.',
        'sotto relay --help',
      ],
    },
  },
  request: {
    about: 'questions that an agent asks over its link',
    codes: {
      field: malformed('A question to the relay has a field that cannot be read.'),
      passport: malformed('A passport came to the relay that is no base64.'),
      statement: malformed('A statement came to the relay that is no base64.'),
      unknown: [
        'The relay does not know that question.',
        'The relay is older than the agent.',
        'Ask the operator to update the relay.',
        'sotto --version',
      ],
    },
  },
  api: {
    about: 'the API by which a relay is managed',
    codes: {
      certificates: operator(
        'The relay admits nobody by a certificate, so that none can be revoked.',
      ),
      'content-type': operator('The request brought a body that is not declared as JSON.'),
      forbidden: [
        'The key may not do that.',
        'It is a key of a scope, and the admin key is needed; or it is for another scope.',
        'Set SOTTO_ADMIN_KEY, or ask the operator.',
        'sotto relay --help',
      ],
      live: [
        'The name is being served now, and is not released under its agent.',
        'A tunnel runs.',
        'Stop the tunnel first, or block the name.',
        'sotto relay block --help',
      ],
      'own-key': operator('A key cannot revoke itself.'),
      request: operator('The request to the API cannot be read.'),
      scope: operator('It is not clear which scope is meant, and the admin key belongs to none.'),
      unknown: operator('There is nothing of that name at the relay.'),
    },
  },
  store: {
    about: 'where a relay keeps what it must remember',
    codes: {
      busy: [
        'Another process held the database for too long.',
        'Two relays run on one data folder, or a backup holds it.',
        'Let one relay use a data folder.',
      ],
      closed: misused('The store was used after it was closed.'),
      corrupt: [
        'The database holds something that cannot be read.',
        'Another program changed it, or the disk is damaged.',
        'Restore a backup.',
      ],
      failed: [
        'The database reported an error.',
        'The disk is damaged or read-only, or its folder is gone.',
        'Look at the words of the message and at the disk.',
      ],
      full: [
        'The disk or the database is full.',
        'No space is left in the data folder.',
        'Free some space. What is stored can still be read, and links that are up stay up.',
      ],
      key: misused('A key of the store is empty, too long, or has other characters than ASCII.'),
      limit: misused('More was to be listed from the store at once than may be.'),
      newer: [
        'A newer version of sotto has written this database.',
        'An older relay was started on it.',
        'Start the newer version again, or give the older one another data folder.',
        'sotto --version',
      ],
      value: misused('A value for the store is no JSON.'),
    },
  },
  listen: {
    about: 'ports of the relay itself',
    codes: {
      failed: [
        'The relay could not listen on its port.',
        'A port below 1024 without the right to it, or an address that this machine does not have.',
        'Choose another port or address, or give the right (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE).',
        'sotto relay --help',
      ],
      taken: [
        'The port of the relay is taken.',
        'Another relay or a web server runs already.',
        'Stop it, or choose another port.',
        'sotto relay --help',
      ],
    },
  },
  download: {
    about: 'programs that a relay hands out',
    codes: {
      busy: [
        'Too many downloads run at once.',
        'Many machines are set up together, or one opens many connections.',
        'Try again in ten seconds.',
      ],
      range: [
        'A part of the file was asked for that lies behind its end.',
        'A download was resumed with a file of another version.',
        'Remove the part that was downloaded, and start again.',
      ],
      unknown: [
        'The release has no file of that name.',
        'There is no program for that system, or the name was mistyped.',
        'Look into SHA256SUMS beside it, which lists all files.',
      ],
    },
  },
  install: {
    about: 'the script that installs sotto from a relay',
    codes: {
      none: operator('The relay hands out no programs: --downloads and --release-url are not set.'),
      unsafe: [
        'The relay could not write the script with the name by which it was asked.',
        'The request names a host that cannot be one, or the relay was given a key that is none.',
        'Use the address of the relay as it is. Operators: check the release key.',
        'sotto relay --help',
      ],
    },
  },
  settings: {
    about: 'settings with which a relay is started',
    codes: {
      invalid: [
        'Settings of the relay cannot be used; the message has each of them.',
        'A typing error in a flag or in a variable SOTTO_RELAY_….',
        'Mend what the message names.',
        'sotto relay --help',
      ],
    },
  },
}

function key(what: string): ErrorText {
  return [
    what,
    'It was revoked, has run out, was cut when it was copied, or belongs to another relay.',
    'Check SOTTO_API_KEY and the relay; ask the operator for a new key.',
    'sotto relay keys create',
  ]
}

function client(what: string): ErrorText {
  return [
    what,
    'It was made by another authority or with other settings, or the clock is wrong.',
    'Compare it with what the message expects; openssl x509 -noout -text -in FILE shows what it says.',
    'sotto relay --help',
  ]
}

function operator(what: string): ErrorText {
  return [
    what,
    'A typing error, or a limit of the relay.',
    'The message says what is expected; each command of "sotto relay" has a page.',
    'sotto relay --help',
  ]
}
