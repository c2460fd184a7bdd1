//! IP packets that are handled one by one: what a packet is, and the answers that need no flow.
//! RFC 791, 8200 (IP), 768 (UDP), 792 and 4443 (ICMP), 9293 §3.5.2 (resets).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpProtocol, IpRepr, Ipv4Packet,
    Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::sink::PacketSink;

/// An address and a port, of either family.
pub type SocketAddr = core::net::SocketAddr;

const HOP_LIMIT: u8 = 64;
const ICMP_HEADER_BYTES: usize = 8;
/// Of the packet that an ICMP error is about: RFC 792 asks for 8 bytes behind its header, RFC 4443
/// for as much as fits 1,280.
const QUOTED_BYTES_V4: usize = 576 - 20 - 8;
const QUOTED_BYTES_V6: usize = 1280 - 40 - 8;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// A header that is cut short, or contradicts itself.
    Malformed,
    Checksum,
    /// Fragments are not put together.
    Fragment,
    /// Neither TCP, UDP nor an ICMP echo, or an IPv6 extension header.
    Protocol,
    /// A source that nobody may have: multicast, unspecified, broadcast.
    Address,
}

/// The part of a packet that decides what becomes of it.
pub enum Parsed<'a> {
    Tcp {
        source: SocketAddr,
        destination: SocketAddr,
        tcp: TcpPacket<&'a [u8]>,
        ip: IpRepr,
    },
    Udp {
        source: SocketAddr,
        destination: SocketAddr,
        payload: &'a [u8],
    },
    /// An echo request or reply; `payload` is what is to come back.
    Echo {
        source: IpAddr,
        destination: IpAddr,
        request: bool,
        id: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    /// An ICMP error about a packet that we sent; `quoted` is how that began.
    Error {
        kind: IcmpError,
        quoted: &'a [u8],
    },
}

/// What an ICMP error says, in terms of both versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    NetUnreachable,
    HostUnreachable,
    PortUnreachable,
    Prohibited,
    /// With the MTU of the next hop; 0 where an old router does not say.
    TooBig(u32),
    Other,
}

/// Reads a packet as a hostile peer may have sent it; checksums are verified.
pub fn parse(packet: &[u8]) -> Result<Parsed<'_>, Drop> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        _ => Err(Drop::Malformed),
    }
}

fn parse_v4(packet: &[u8]) -> Result<Parsed<'_>, Drop> {
    let ip = Ipv4Packet::new_checked(packet).map_err(|_| Drop::Malformed)?;
    if !ip.verify_checksum() {
        return Err(Drop::Checksum);
    }
    if ip.more_frags() || ip.frag_offset() != 0 {
        return Err(Drop::Fragment);
    }
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    if source.is_multicast() || source.is_unspecified() || source.is_broadcast() {
        return Err(Drop::Address);
    }
    let range = ip.header_len() as usize..ip.total_len() as usize;
    let payload = &packet[range];
    let repr = IpRepr::Ipv4(smoltcp::wire::Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: ip.next_header(),
        payload_len: payload.len(),
        hop_limit: ip.hop_limit(),
    });
    match ip.next_header() {
        IpProtocol::Tcp => parse_tcp(repr, payload),
        IpProtocol::Udp => parse_udp(repr, payload),
        IpProtocol::Icmp => {
            let icmp = Icmpv4Packet::new_checked(payload).map_err(|_| Drop::Malformed)?;
            if !icmp.verify_checksum() {
                return Err(Drop::Checksum);
            }
            let (source, destination) = (IpAddr::V4(source), IpAddr::V4(destination));
            let kind = match (icmp.msg_type(), icmp.msg_code()) {
                (Icmpv4Message::EchoRequest | Icmpv4Message::EchoReply, 0) => {
                    return Ok(Parsed::Echo {
                        source,
                        destination,
                        request: icmp.msg_type() == Icmpv4Message::EchoRequest,
                        id: icmp.echo_ident(),
                        sequence: icmp.echo_seq_no(),
                        payload: &payload[ICMP_HEADER_BYTES..],
                    });
                }
                (Icmpv4Message::DstUnreachable, 0) => IcmpError::NetUnreachable,
                (Icmpv4Message::DstUnreachable, 1) => IcmpError::HostUnreachable,
                (Icmpv4Message::DstUnreachable, 3) => IcmpError::PortUnreachable,
                (Icmpv4Message::DstUnreachable, 4) => {
                    IcmpError::TooBig(u16::from_be_bytes([payload[6], payload[7]]) as u32)
                }
                (Icmpv4Message::DstUnreachable, 9 | 10 | 13) => IcmpError::Prohibited,
                (Icmpv4Message::DstUnreachable | Icmpv4Message::TimeExceeded, _) => {
                    IcmpError::Other
                }
                _ => return Err(Drop::Protocol),
            };
            Ok(Parsed::Error { kind, quoted: &payload[ICMP_HEADER_BYTES..] })
        }
        _ => Err(Drop::Protocol),
    }
}

fn parse_v6(packet: &[u8]) -> Result<Parsed<'_>, Drop> {
    let ip = Ipv6Packet::new_checked(packet).map_err(|_| Drop::Malformed)?;
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    if source.is_multicast() || source.is_unspecified() {
        return Err(Drop::Address);
    }
    let payload = &packet[ip.header_len()..ip.total_len()];
    let repr = IpRepr::Ipv6(smoltcp::wire::Ipv6Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: ip.next_header(),
        payload_len: payload.len(),
        hop_limit: ip.hop_limit(),
    });
    match ip.next_header() {
        IpProtocol::Tcp => parse_tcp(repr, payload),
        IpProtocol::Udp => parse_udp(repr, payload),
        IpProtocol::Icmpv6 => {
            let icmp = Icmpv6Packet::new_checked(payload).map_err(|_| Drop::Malformed)?;
            if !icmp.verify_checksum(&source, &destination) {
                return Err(Drop::Checksum);
            }
            if payload.len() < ICMP_HEADER_BYTES {
                return Err(Drop::Malformed);
            }
            let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
            let kind = match (icmp.msg_type(), icmp.msg_code()) {
                (Icmpv6Message::EchoRequest | Icmpv6Message::EchoReply, 0) => {
                    return Ok(Parsed::Echo {
                        source,
                        destination,
                        request: icmp.msg_type() == Icmpv6Message::EchoRequest,
                        id: icmp.echo_ident(),
                        sequence: icmp.echo_seq_no(),
                        payload: &payload[ICMP_HEADER_BYTES..],
                    });
                }
                (Icmpv6Message::DstUnreachable, 0) => IcmpError::NetUnreachable,
                (Icmpv6Message::DstUnreachable, 1 | 5 | 6) => IcmpError::Prohibited,
                (Icmpv6Message::DstUnreachable, 3) => IcmpError::HostUnreachable,
                (Icmpv6Message::DstUnreachable, 4) => IcmpError::PortUnreachable,
                (Icmpv6Message::PktTooBig, _) => IcmpError::TooBig(u32::from_be_bytes([
                    payload[4], payload[5], payload[6], payload[7],
                ])),
                (
                    Icmpv6Message::DstUnreachable
                    | Icmpv6Message::TimeExceeded
                    | Icmpv6Message::ParamProblem,
                    _,
                ) => IcmpError::Other,
                _ => return Err(Drop::Protocol),
            };
            Ok(Parsed::Error { kind, quoted: &payload[ICMP_HEADER_BYTES..] })
        }
        IpProtocol::Ipv6Frag => Err(Drop::Fragment),
        _ => Err(Drop::Protocol),
    }
}

fn parse_tcp(ip: IpRepr, payload: &[u8]) -> Result<Parsed<'_>, Drop> {
    let tcp = TcpPacket::new_checked(payload).map_err(|_| Drop::Malformed)?;
    if tcp.src_port() == 0 || tcp.dst_port() == 0 {
        return Err(Drop::Malformed);
    }
    let (source, destination) = (address(ip.src_addr()), address(ip.dst_addr()));
    Ok(Parsed::Tcp {
        source: SocketAddr::new(source, tcp.src_port()),
        destination: SocketAddr::new(destination, tcp.dst_port()),
        tcp,
        ip,
    })
}

fn parse_udp(ip: IpRepr, payload: &[u8]) -> Result<Parsed<'_>, Drop> {
    let udp = UdpPacket::new_checked(payload).map_err(|_| Drop::Malformed)?;
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    // RFC 8200 §8.1: over IPv6 a checksum of zero is none, and must not be.
    let absent = udp.checksum() == 0;
    if (absent && matches!(ip, IpRepr::Ipv6(_)))
        || (!absent && !udp.verify_checksum(&source, &destination))
    {
        return Err(Drop::Checksum);
    }
    if udp.dst_port() == 0 {
        return Err(Drop::Malformed);
    }
    let length = udp.len() as usize;
    Ok(Parsed::Udp {
        source: SocketAddr::new(address(source), udp.src_port()),
        destination: SocketAddr::new(address(destination), udp.dst_port()),
        payload: &payload[8..length],
    })
}

/// Of the standard library, whose types are smoltcp's own.
pub fn address(ip: smoltcp::wire::IpAddress) -> IpAddr {
    match ip {
        smoltcp::wire::IpAddress::Ipv4(four) => IpAddr::V4(four),
        smoltcp::wire::IpAddress::Ipv6(six) => IpAddr::V6(six),
    }
}

/// The start of a packet that an ICMP error quotes: whose TCP or UDP it was. Nothing else in it is
/// believed.
pub fn quoted_ends(quoted: &[u8]) -> Option<(bool, SocketAddr, SocketAddr)> {
    let (header, protocol, source, destination) = match quoted.first()? >> 4 {
        4 => {
            let header = (quoted[0] & 0x0f) as usize * 4;
            if header < 20 || quoted.len() < header + 4 {
                return None;
            }
            let four = |at: usize| {
                Ipv4Addr::new(quoted[at], quoted[at + 1], quoted[at + 2], quoted[at + 3])
            };
            (header, quoted[9], IpAddr::V4(four(12)), IpAddr::V4(four(16)))
        }
        6 => {
            if quoted.len() < 44 {
                return None;
            }
            let six = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&quoted[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            (40, quoted[6], IpAddr::V6(six(8)), IpAddr::V6(six(24)))
        }
        _ => return None,
    };
    let is_tcp = match protocol {
        6 => true,
        17 => false,
        _ => return None,
    };
    let port = |at: usize| u16::from_be_bytes([quoted[header + at], quoted[header + at + 1]]);
    Some((is_tcp, SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2))))
}

/// The sequence number of the TCP segment that an ICMP error quotes.
pub fn quoted_sequence(quoted: &[u8]) -> Option<u32> {
    let header = match quoted.first()? >> 4 {
        4 => (quoted[0] & 0x0f) as usize * 4,
        _ => 40,
    };
    Some(u32::from_be_bytes(quoted.get(header + 4..header + 8)?.try_into().ok()?))
}

/// The reset that answers `tcp`, by RFC 9293 §3.10.7.1; none for a reset.
pub fn reset(ip: &IpRepr, tcp: &TcpPacket<&[u8]>, sink: &mut impl PacketSink) {
    if tcp.rst() {
        return;
    }
    let (seq_number, ack_number) = if tcp.ack() {
        (tcp.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(tcp.seq_number() + tcp.segment_len()))
    };
    let answer = TcpRepr {
        src_port: tcp.dst_port(),
        dst_port: tcp.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let bytes = answer.buffer_len();
    let (source, destination) = (ip.dst_addr(), ip.src_addr());
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, bytes, HOP_LIMIT);
    emit(&ip, sink, |payload| {
        answer.emit(
            &mut TcpPacket::new_unchecked(payload),
            &source,
            &destination,
            &ChecksumCapabilities::default(),
        );
    });
}

/// A UDP datagram; false, and nothing sent, when it does not fit `mtu`, a family is not the
/// other's, or the sink is full.
pub fn udp(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    mtu: usize,
    sink: &mut impl PacketSink,
) -> bool {
    if source.is_ipv4() != destination.is_ipv4() || !sink.has_room() {
        return false;
    }
    let repr = UdpRepr { src_port: source.port(), dst_port: destination.port() };
    let bytes = repr.header_len() + payload.len();
    let (from, to) = (source.ip().into(), destination.ip().into());
    let ip = IpRepr::new(from, to, IpProtocol::Udp, bytes, HOP_LIMIT);
    if ip.buffer_len() > mtu {
        return false;
    }
    emit(&ip, sink, |buffer| {
        repr.emit(
            &mut UdpPacket::new_unchecked(buffer),
            &from,
            &to,
            payload.len(),
            |target| target.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    });
    true
}

/// An ICMP echo request or reply; false as `udp`.
pub fn echo(
    source: IpAddr,
    destination: IpAddr,
    (request, id, sequence): (bool, u16, u16),
    payload: &[u8],
    mtu: usize,
    sink: &mut impl PacketSink,
) -> bool {
    let kind = match (source, request) {
        (IpAddr::V4(_), true) => 8,
        (IpAddr::V4(_), false) => 0,
        (IpAddr::V6(_), true) => 128,
        (IpAddr::V6(_), false) => 129,
    };
    let [a, b] = id.to_be_bytes();
    let [c, d] = sequence.to_be_bytes();
    icmp(source, destination, [kind, 0, a, b, c, d], payload, mtu, sink)
}

/// The ICMP error `kind` about `packet`, which came from its source to `source`'s network. None is
/// sent about an ICMP error (the caller knows), nor about what is no whole IP header.
pub fn unreachable(
    source: IpAddr,
    packet: &[u8],
    kind: IcmpError,
    sink: &mut impl PacketSink,
) -> bool {
    let Some(destination) = (match packet.first().map(|byte| byte >> 4) {
        Some(4) => Ipv4Packet::new_checked(packet).ok().map(|ip| IpAddr::V4(ip.src_addr())),
        Some(6) => Ipv6Packet::new_checked(packet).ok().map(|ip| IpAddr::V6(ip.src_addr())),
        _ => None,
    }) else {
        return false;
    };
    let (head, quoted) = match destination {
        IpAddr::V4(_) => {
            let (code, mtu) = match kind {
                IcmpError::NetUnreachable => (0, 0),
                IcmpError::HostUnreachable | IcmpError::Other => (1, 0),
                IcmpError::PortUnreachable => (3, 0),
                IcmpError::TooBig(mtu) => (4, mtu.min(65_535)),
                IcmpError::Prohibited => (13, 0),
            };
            let [.., c, d] = mtu.to_be_bytes();
            ([3, code, 0, 0, c, d], QUOTED_BYTES_V4)
        }
        IpAddr::V6(_) => {
            let head = match kind {
                IcmpError::NetUnreachable => [1, 0, 0, 0, 0, 0],
                IcmpError::Prohibited => [1, 1, 0, 0, 0, 0],
                IcmpError::HostUnreachable | IcmpError::Other => [1, 3, 0, 0, 0, 0],
                IcmpError::PortUnreachable => [1, 4, 0, 0, 0, 0],
                IcmpError::TooBig(mtu) => {
                    let [a, b, c, d] = mtu.to_be_bytes();
                    [2, 0, a, b, c, d]
                }
            };
            (head, QUOTED_BYTES_V6)
        }
    };
    icmp(source, destination, head, &packet[..packet.len().min(quoted)], usize::MAX, sink)
}

/// `head` is the ICMP header without its checksum.
fn icmp(
    source: IpAddr,
    destination: IpAddr,
    head: [u8; 6],
    payload: &[u8],
    mtu: usize,
    sink: &mut impl PacketSink,
) -> bool {
    if source.is_ipv4() != destination.is_ipv4() || !sink.has_room() {
        return false;
    }
    let protocol = if source.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let ip = IpRepr::new(
        source.into(),
        destination.into(),
        protocol,
        ICMP_HEADER_BYTES + payload.len(),
        HOP_LIMIT,
    );
    if ip.buffer_len() > mtu {
        return false;
    }
    emit(&ip, sink, |buffer| {
        buffer[..2].copy_from_slice(&head[..2]);
        buffer[2..4].fill(0);
        buffer[4..8].copy_from_slice(&head[2..]);
        buffer[8..].copy_from_slice(payload);
        match (source, destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Icmpv6Packet::new_unchecked(buffer).fill_checksum(&source, &destination)
            }
            _ => Icmpv4Packet::new_unchecked(buffer).fill_checksum(),
        }
    });
    true
}

fn emit(ip: &IpRepr, sink: &mut impl PacketSink, payload: impl FnOnce(&mut [u8])) {
    sink.packet(ip.buffer_len(), |buffer| {
        let (header, rest) = buffer.split_at_mut(ip.header_len());
        ip.emit(&mut *header, &ChecksumCapabilities::default());
        payload(rest);
    });
}
