/** Pages about private networks: their proxies, forwards, addresses, files, and the far side's rules. */
import type { ErrorTable } from './page.ts'

const QUICK =
  'See "man wg-quick" for what the sections hold. The line is the one that the message names; keys are never shown.'

export const PRIVATE_NETWORK: ErrorTable = {
  exit: {
    about: 'what the serving side of a private network dials for others',
    codes: {
      busy: [
        'The serving side has as much open for this client as it allows.',
        'Very many connections at once, or many to a machine that does not answer.',
        'Wait until some of them end, or close them. Others in the network are not affected.',
      ],
      denied: [
        'The serving side does not dial that address.',
        'It is in none of the routes that it offers, or it is that machine itself, of one link alone, or for many receivers.',
        'Ask whoever serves the network to offer the route, such as --route 192.168.1.0/24. Loopback and link-local addresses must be asked for by name.',
      ],
      route: [
        'That is no network that can be routed.',
        'A typing error, a host name, or an address with letters around it.',
        'Write it as 192.168.1.0/24 or fd00:1::/64; one address alone will do as well.',
      ],
      routes: [
        'There are too many routes.',
        'A list of single addresses where networks would do.',
        'Join neighbours into larger networks.',
      ],
    },
  },
  forward: {
    about: 'fixed ways through a private network',
    codes: {
      format: [
        'That is no forward.',
        'A part is missing, the port is none, or an IPv6 address has no brackets.',
        'Write PORT:HOST:PORT as ssh does, such as -L 5432:db.internal:5432 or -U 53:[fd00::53]:53.',
      ],
      reverse: [
        'This network opens no connections to us, so nothing can be listened for in it.',
        'The other end is one that is only dialled.',
        'Use -L from the other side.',
      ],
    },
  },
  lease: {
    about: 'addresses that a serving agent gives to its clients',
    codes: {
      busy: [
        'Another process is writing the list of addresses.',
        'Two commands at once.',
        'Try again.',
      ],
      client: [
        'An address is given to an identity alone.',
        'A client without a name, or one of very many letters.',
        'Give it a name of up to 256 letters.',
      ],
      corrupt: [
        'The list of addresses cannot be read.',
        'It was changed by hand, or a disk is at fault.',
        'Move the file away. Clients get new addresses then; printed files of stock clients must be made again.',
      ],
      full: [
        'All addresses of the subnet are taken.',
        'Many clients that came once and kept theirs.',
        'Release one that nobody uses, or serve with a larger --subnet.',
      ],
      subnet: [
        'That subnet cannot be used, or none is free.',
        'It is no IPv4 network between /12 and /30, or interfaces of this machine cover all that could be chosen.',
        'Name one that nothing else uses, such as --subnet 10.99.0.0/24.',
      ],
      unknown: [
        'Nobody of that name has an address in the network.',
        'A typing error, or it was released before.',
        'Look who has one.',
        'sotto wg release NET',
      ],
    },
  },
  ping: {
    about: 'echoes of the machine that serves a network',
    codes: {
      unavailable: [
        'The serving machine lets its user send no ICMP echo.',
        'Its group is outside net.ipv4.ping_group_range, and there is no program "ping" that may.',
        'Try TCP instead, or as root on that machine: sysctl net.ipv4.ping_group_range="0 2147483647".',
      ],
    },
  },
  socks: {
    about: 'the local proxy into a private network',
    codes: {
      listen: [
        'The proxy cannot listen there.',
        'That is no port, or no address of this machine.',
        'Write --listen :1080 for this machine alone, or an address with a port.',
      ],
      open: [
        'Everybody who reaches the proxy would be in the private network.',
        'It was to listen on more than this machine, without a password.',
        'Add a user and password, or listen on this machine alone.',
      ],
    },
  },
  tun: {
    about: 'the interface of this machine in a private network',
    codes: {
      all: [
        'The network does not lead everywhere, so not all of this machine can be routed into it.',
        'Whoever serves it named some routes and not 0.0.0.0/0.',
        'Ask whoever serves it for --route 0.0.0.0/0, and --route ::/0 where it has IPv6; or leave --all out.',
      ],
      denied: [
        'This user may not make interfaces.',
        'Only root may, or who has CAP_NET_ADMIN.',
        'Run it as root, whose profile is its own: its identity must be let in by whoever serves. Without root there are "sotto wg socks5" and "sotto wg forward".',
      ],
      failed: [
        'The system made no interface, for a reason of its own.',
        'A limit, a security module, or a container that lacks something.',
        'Look at the number of the error, and at the system log.',
      ],
      full: [
        'This machine has as many interfaces of sotto as it may.',
        'Sixteen run at once.',
        'Stop one of them.',
        'sotto wg status',
      ],
      gone: [
        'The interface was removed while it was used.',
        'Somebody deleted it, or the network was set up anew by another program.',
        'Start the command again. Programs that manage networks can be told to leave it alone by its name.',
      ],
      ip: [
        'Addresses and routes could not be set.',
        'The program "ip" of iproute2 is missing, is that of BusyBox, or refuses what the message quotes.',
        'Install iproute2 (apt-get install iproute2, dnf install iproute, apk add iproute2) and run the command as root.',
      ],
      missing: [
        'The system has no /dev/net/tun.',
        'The module "tun" is not loaded, or a container was not given the device.',
        'Load it (modprobe tun), or start the container with --device /dev/net/tun --cap-add NET_ADMIN.',
      ],
      names: [
        'Names cannot be asked of that network.',
        'Whoever serves it does so without --dns.',
        'Ask for it, or leave --dns out here.',
      ],
      route: [
        'A route that was asked for is not served.',
        'A typing error, or whoever serves the network named another.',
        'See what it leads to: without --route the routes are listed at the start.',
      ],
      system: [
        'This system cannot do that: interfaces are for Linux on x86-64 and arm64.',
        'Another system.',
        'Use the network by its proxy or by ports.',
        'sotto wg socks5 NET',
      ],
      taken: [
        'An interface of that name is there already.',
        'Another "sotto wg tun", or some other program.',
        'See "ip link", and name another, such as --name sotto1.',
      ],
    },
  },
  wgconfig: {
    about: 'configuration files of WireGuard',
    codes: {
      key: [
        'A section has a key that it does not know.',
        'A typing error, a key in the wrong section, or one of another program such as AmneziaWG.',
        QUICK,
      ],
      missing: [
        'Something that the file needs is not there.',
        'No [Interface], a peer without its PublicKey, or a tunnel without its Target.',
        QUICK,
      ],
      section: [
        'A section is unknown, or a line stands before the first one.',
        'A typing error in the brackets, or a file of another program.',
        'Sections are [Interface], [Peer], and [Socks5], [http], [TCPClientTunnel], [TCPServerTunnel], [UDPProxyTunnel], [STDIOTunnel], [Resolve].',
      ],
      size: [
        'The file has more than can be meant.',
        'It is another file, or many files in one.',
        'Split it, or name the right one.',
      ],
      syntax: [
        'A line is neither a section nor a key with its value.',
        'A key without an equals sign, or a file of another format.',
        QUICK,
      ],
      twice: [
        'Something is there twice that can only be there once.',
        'Two files in one, or a peer that was added again.',
        'Remove one of them.',
      ],
      value: [
        'A value cannot be read.',
        'A number out of range, an address with a typing error, a key that was cut when it was copied, or an empty environment variable.',
        QUICK,
      ],
    },
  },
}
