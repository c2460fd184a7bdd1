//! The device and the stack joined: a packet is decrypted, taken up, answered, laid and sealed in
//! the pools where it lies, and no object stands for it.
//!
//! A turn takes datagrams and messages, runs what is due, and leaves runs of sealed datagrams,
//! messages (what is not TCP) and the flows that have changed. The same turn over packets, without
//! a device, is for a network interface.

use crate::device::batch::{Descriptor, EndpointRecord, NO_PEER, Runs, SendErrors};
use crate::device::{Device, Endpoint, Event, Now, Sent, padded};
use crate::stack::{Drop, FlowId, IcmpError, PacketSink, Received, Stack};
use core::net::{IpAddr, SocketAddr};

/// Messages that a turn may leave; further ones are dropped, as datagrams may be.
pub const MESSAGES_MAX: usize = 2048;
/// Changes that a turn tells; the next tells the rest.
pub const CHANGES_MAX: usize = 4096;
/// Before and behind a packet.
const HEAD_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// Of `Message`.
pub mod kind {
    pub const DATAGRAM: u8 = 1;
    pub const ECHO_REQUEST: u8 = 2;
    pub const ECHO_REPLY: u8 = 3;
    /// The datagram from `source` to `destination` did not come there; `code` says why.
    pub const UNREACHABLE: u8 = 4;
}

/// 64 bytes about a datagram, an echo or an error; its payload lies elsewhere.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Message {
    pub kind: u8,
    /// 4 or 6.
    pub family: u8,
    /// Of an error: see `code_of`.
    pub code: u16,
    pub peer: u32,
    /// Of the payload, in the pool that the turn names.
    pub offset: u32,
    pub len: u32,
    /// IPv4 in the first four bytes.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// Of an echo: its identifier.
    pub source_port: u16,
    /// Of an echo: its sequence number.
    pub destination_port: u16,
    /// Of the next hop, with code 5.
    pub mtu: u32,
    pub zero: [u32; 2],
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Change {
    pub flow: FlowId,
    pub bits: u32,
}

pub fn code_of(kind: IcmpError) -> (u16, u32) {
    match kind {
        IcmpError::NetUnreachable => (1, 0),
        IcmpError::HostUnreachable => (2, 0),
        IcmpError::PortUnreachable => (3, 0),
        IcmpError::Prohibited => (4, 0),
        IcmpError::TooBig(mtu) => (5, mtu),
        IcmpError::Other => (6, 0),
    }
}

pub fn icmp_of(code: u16, mtu: u32) -> Option<IcmpError> {
    Some(match code {
        1 => IcmpError::NetUnreachable,
        2 => IcmpError::HostUnreachable,
        3 => IcmpError::PortUnreachable,
        4 => IcmpError::Prohibited,
        5 => IcmpError::TooBig(mtu),
        6 => IcmpError::Other,
        _ => return None,
    })
}

fn bytes_of(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(four) => bytes[..4].copy_from_slice(&four.octets()),
        IpAddr::V6(six) => bytes = six.octets(),
    }
    bytes
}

fn ip_of(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        4 => Some(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
        6 => Some(IpAddr::from(*bytes)),
        _ => None,
    }
}

impl Message {
    pub fn between(kind: u8, source: SocketAddr, destination: SocketAddr) -> Message {
        Message {
            kind,
            family: if source.is_ipv4() { 4 } else { 6 },
            source: bytes_of(source.ip()),
            destination: bytes_of(destination.ip()),
            source_port: source.port(),
            destination_port: destination.port(),
            ..Message::default()
        }
    }

    /// Source and destination; None for a family that there is not.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let source = SocketAddr::new(ip_of(self.family, &self.source)?, self.source_port);
        let destination =
            SocketAddr::new(ip_of(self.family, &self.destination)?, self.destination_port);
        Some((source, destination))
    }
}

/// Where a turn's packets go: slots in a pool, sealed at once, or left plain without a device.
struct Slots<'a, 'b> {
    device: Option<&'a mut Device>,
    now: Now,
    mtu: usize,
    pool: &'a mut [u8],
    at: usize,
    runs: &'a mut Runs<'b>,
    errors: &'a mut SendErrors,
}

impl Slots<'_, '_> {
    fn device(&mut self) -> Option<&mut Device> {
        self.device.as_deref_mut()
    }

    /// What the device itself has to say. False: there may be more than room.
    fn poll_device(&mut self) -> bool {
        loop {
            if !self.has_room() {
                return false;
            }
            let Some(device) = self.device.as_deref_mut() else { return true };
            let Some(datagram) = device.poll(self.now, &mut self.pool[self.at..]) else {
                return true;
            };
            let to = EndpointRecord::from(&datagram.to);
            self.runs.push(self.at, datagram.len, datagram.peer.unwrap_or(NO_PEER), to);
            self.at += datagram.len;
        }
    }
}

impl PacketSink for Slots<'_, '_> {
    fn has_room(&self) -> bool {
        // A handshake message is larger than the smallest MTU leaves.
        self.at + HEAD_BYTES + self.mtu + 15 + TAG_BYTES <= self.pool.len() && !self.runs.is_full()
    }

    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        if !self.has_room() || length > self.mtu {
            // The stack does not come here; a packet that cannot be sent is a lost one.
            self.errors[0] += 1;
            return fill(&mut alloc::vec![0; length]);
        }
        let Some(device) = self.device.as_deref_mut() else {
            let result = fill(&mut self.pool[self.at..][..length]);
            self.runs.push(self.at, length, NO_PEER, EndpointRecord::default());
            self.at += length;
            return result;
        };
        let room = HEAD_BYTES + padded(length, device.shared.mtu) + TAG_BYTES;
        let slot = &mut self.pool[self.at..][..room];
        let result = fill(&mut slot[HEAD_BYTES..][..length]);
        match device.encapsulate(self.now, slot, length) {
            Ok(Sent::Sealed { peer, to, len }) => {
                self.runs.push(self.at, len, peer, EndpointRecord::from(&to));
                self.at += len;
            }
            Ok(Sent::Staged { .. }) => {}
            Err(error) => self.errors[error as usize] += 1,
        }
        result
    }
}

/// The areas of a turn. What came in, and its senders; where packets go; messages both ways.
pub struct Areas<'a> {
    pub rx: &'a mut [u8],
    pub input: &'a [Descriptor],
    pub from: &'a [EndpointRecord],
    pub tx: &'a mut [u8],
    pub errors: &'a mut SendErrors,
    /// To be sent; payloads are in `payload`.
    pub outgoing: &'a [Message],
    pub payload: &'a [u8],
    /// That have come; payloads are in `rx`.
    pub messages: &'a mut [Message],
    pub changes: &'a mut [Change],
}

/// What a turn has left.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Turn {
    pub messages: usize,
    pub changes: usize,
    /// Send what there is and come again at once.
    pub more: bool,
    /// `u64::MAX` for none.
    pub deadline_ms: u64,
    /// Datagrams or messages that were refused: descriptors outside a pool, no room.
    pub refused: usize,
}

/// One turn: takes all that came, runs what is due, fills the runs.
pub fn turn(
    mut device: Option<&mut Device>,
    stack: &mut Stack,
    now: Now,
    areas: Areas,
    runs: &mut Runs,
) -> Turn {
    let Areas { rx, input, from, tx, errors, outgoing, payload, messages, changes } = areas;
    let mut turn = Turn::default();
    if let Some(device) = device.as_deref_mut() {
        device.tick(now);
    }
    let mtu = stack.mtu();
    let mut slots = Slots { device, now, mtu, pool: tx, at: 0, runs, errors };
    for descriptor in input {
        let start = descriptor.offset as usize;
        let slice =
            start.checked_add(descriptor.len as usize).and_then(|end| rx.get_mut(start..end));
        let (Some(train), Some(record)) = (slice, from.get(descriptor.third as usize)) else {
            turn.refused += 1;
            continue;
        };
        let endpoint = Endpoint::from(record);
        let size = match descriptor.fourth as usize {
            0 => train.len().max(1),
            size => size,
        };
        for (index, datagram) in train.chunks_mut(size).enumerate() {
            let (peer, begin, len) = match slots.device() {
                None => (NO_PEER, 0, datagram.len()),
                Some(device) => match device.receive(now, &endpoint, datagram) {
                    Event::Packet { peer, start, len } => (peer, start, len),
                    _ => continue,
                },
            };
            let packet = &datagram[begin..begin + len];
            let place = start + index * size + begin;
            let received = stack.receive(now.ms, packet, &mut slots);
            if let Some(message) = message_of(&received, peer, place, packet) {
                match messages.get_mut(turn.messages) {
                    Some(free) => {
                        *free = message;
                        turn.messages += 1;
                    }
                    None => turn.refused += 1,
                }
            }
        }
    }
    let mut more = !slots.poll_device();
    for message in outgoing {
        let end = (message.offset as usize).checked_add(message.len as usize);
        let bytes = end.and_then(|end| payload.get(message.offset as usize..end));
        if !bytes.is_some_and(|bytes| send(stack, now.ms, message, bytes, &mut slots)) {
            turn.refused += 1;
        }
    }
    let next = stack.poll(now.ms, &mut slots);
    more |= !slots.poll_device() || next.is_some_and(|at| at <= now.ms);
    while turn.changes < changes.len() {
        let Some((flow, bits)) = stack.changed() else { break };
        changes[turn.changes] = Change { flow, bits: bits as u32 };
        turn.changes += 1;
    }
    turn.more = more || turn.changes == changes.len();
    let own = slots.device().map_or(u64::MAX, |device| device.next_deadline());
    turn.deadline_ms = own.min(next.unwrap_or(u64::MAX));
    turn
}

fn message_of(received: &Received, peer: u32, place: usize, packet: &[u8]) -> Option<Message> {
    let lay = |message: Message, payload: &[u8]| {
        let inside = payload.as_ptr() as usize - packet.as_ptr() as usize;
        Some(Message {
            peer,
            offset: (place + inside) as u32,
            len: payload.len() as u32,
            ..message
        })
    };
    match *received {
        Received::Datagram { source, destination, payload } => {
            lay(Message::between(kind::DATAGRAM, source, destination), payload)
        }
        Received::Echo { source, destination, request, id, sequence, payload } => {
            let kind = if request { kind::ECHO_REQUEST } else { kind::ECHO_REPLY };
            let (source, destination) =
                (SocketAddr::new(source, id), SocketAddr::new(destination, sequence));
            lay(Message::between(kind, source, destination), payload)
        }
        Received::Unreachable { source, destination, kind } => {
            let (code, mtu) = code_of(kind);
            let message = Message::between(kind::UNREACHABLE, source, destination);
            Some(Message { code, mtu, peer, ..message })
        }
        Received::Taken
        | Received::Full
        | Received::Dropped(Drop::Malformed)
        | Received::Dropped(_) => None,
    }
}

/// False: it cannot be sent.
fn send(
    stack: &mut Stack,
    now_ms: u64,
    message: &Message,
    payload: &[u8],
    slots: &mut Slots,
) -> bool {
    let Some((source, destination)) = message.ends() else { return false };
    if !slots.has_room() {
        return false;
    }
    match message.kind {
        kind::DATAGRAM => stack.send_datagram(source, destination, payload, slots),
        kind::ECHO_REQUEST | kind::ECHO_REPLY => {
            let head =
                (message.kind == kind::ECHO_REQUEST, message.source_port, message.destination_port);
            stack.send_echo(source.ip(), destination.ip(), head, payload, slots)
        }
        kind::UNREACHABLE => icmp_of(message.code, message.mtu).is_some_and(|why| {
            stack.send_datagram_error(now_ms, (source, destination), payload, why, slots)
        }),
        _ => false,
    }
}

const _: () = assert!(size_of::<Message>() == 64 && size_of::<Change>() == 8);
