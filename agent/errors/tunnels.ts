/** Pages about agreements on private networks: what two agents say in a session before packets pass. */
import { disorder, malformed, tampered } from './page.ts'
import type { ErrorTable } from './page.ts'

export const TUNNELS: ErrorTable = {
  agreement: {
    about: 'what two agents agree on before a private network is up',
    codes: {
      address: malformed('The agreement names an address that no private network may have.'),
      channel: disorder('The agreement names a packet channel that is there already.'),
      endpoint: malformed('The agreement names an endpoint that is none.'),
      envelope: malformed('A message of the agreement has an unknown type or length.'),
      fault: [
        'The agreement ended by an error that has no page of its own.',
        'The words of the message say which.',
        'An agent tries again by itself. If it stays, report it with both versions.',
        'sotto --version',
      ],
      key: malformed('The agreement names a key that is none.'),
      mtu: malformed('The agreement names a packet size that cannot be.'),
      network: malformed(
        'A list of networks in the agreement is not in order, or has one that is none.',
      ),
      order: disorder('A message of the agreement came where it has no place.'),
      range: malformed('A number in the agreement is too large.'),
      reason: malformed('A refusal has a reason that is not known.'),
      reflected: tampered('Our own key came back as that of the other end.'),
      trailing: malformed('A message of the agreement is longer than it says.'),
      truncated: malformed('A message of the agreement is cut off.'),
      version: [
        'The two agents agree on private networks in different versions.',
        'One of them runs an older sotto.',
        'Update both.',
        'sotto update',
      ],
    },
  },
  network: {
    about: 'a private network, as its server or its members see it',
    codes: {
      fault: [
        'The serving agent could not take us in.',
        'It is ending, or our place was taken by another session of ours; its words say which.',
        'Nothing, where it comes back by itself. Else ask whoever serves the network.',
        'sotto wg status',
      ],
      full: [
        'The network has no address left.',
        'Its subnet is small, or you are in it with very many processes.',
        'Whoever serves it may release addresses that nobody uses, or name a larger --subnet.',
        'sotto wg release NET',
      ],
      gone: [
        'The network was lost.',
        'Its agent was stopped, or the way to it broke for longer than a minute.',
        'It is joined again by itself, under the same address.',
        'sotto wg status',
      ],
      member: [
        'A port of the serving machine leads to a member that is not in the network.',
        'It has not joined, its name is another one here, or it has left.',
        'See who is there; the name is the one under which it is pinned, or that of a stock client.',
        'sotto wg status',
      ],
      order: disorder('The serving agent found a message of ours out of place.'),
      revoked: [
        'The right to be in the network was taken back.',
        'Whoever serves it removed the rule, forgot the pin, or narrowed --peer.',
        'Ask whoever serves it.',
        'sotto identity',
      ],
      running: [
        'This network is served already.',
        'Another process of this profile runs it.',
        'End that one first, or choose another name.',
        'sotto wg status',
      ],
      subnet: [
        'The network cannot be told from networks of this machine.',
        'This machine has the addresses that the network would lease.',
        'Whoever serves it may name another --subnet.',
        'sotto wg serve --help',
      ],
      udp: [
        'Stock clients need a UDP port, and the network has none.',
        'It is not served on this machine now, or without --udp and --public-udp.',
        'Serve it here with one of them, and make the configuration then.',
        'sotto wg serve --help',
      ],
      version: [
        'The serving agent speaks another version of private networks.',
        'One of the two runs an older sotto.',
        'Update both.',
        'sotto update',
      ],
    },
  },
  stock: {
    about: 'clients of WireGuard that are no agents',
    codes: {
      corrupt: [
        'The list of stock clients cannot be read.',
        'It was changed by hand, or a disk is at fault.',
        'Move the file away; clients need new configurations then.',
      ],
      full: [
        'There are as many stock clients as one network takes.',
        'Configurations that nobody uses any more.',
        'Release those.',
        'sotto wg release NET',
      ],
      taken: [
        'There is a stock client of that name already.',
        'Its configuration was printed once and is kept nowhere.',
        'Choose another name, or release the old one and make it anew.',
        'sotto wg release NET',
      ],
    },
  },
}
