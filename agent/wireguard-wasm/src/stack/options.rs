//! What a stack is made with, what a packet was to it, and what it counts.

use super::packet::{Drop, IcmpError};
use core::net::{IpAddr, SocketAddr};

pub struct StackOptions {
    /// Largest packet, 576 to 65,535 bytes.
    pub mtu: usize,
    pub flows_max: usize,
    /// SYNs that wait for `accept`, for one address and port: a host that is dead takes no more.
    pub incoming_max_per_destination: usize,
    pub incoming_max: usize,
    /// The most for each direction of a flow; it holds what it needs.
    pub buffer_bytes: usize,
    /// Of the buffers of all flows. Beyond it none grows over 16 KiB, and windows shrink to what
    /// there is.
    pub memory_bytes: usize,
    /// Whether losses that are few and come without a longer round trip leave the pace of a flow
    /// as it is.
    pub tolerant: bool,
    /// Whether a SYN to any address becomes an incoming flow; else it is answered by a reset.
    pub accepts: bool,
    /// 16 bytes that nobody can guess.
    pub secret: [u8; 16],
}

impl Default for StackOptions {
    fn default() -> StackOptions {
        StackOptions {
            mtu: 1420,
            flows_max: 16_384,
            incoming_max_per_destination: 128,
            incoming_max: 1_024,
            buffer_bytes: 8 * 1024 * 1024,
            memory_bytes: 512 * 1024 * 1024,
            tolerant: true,
            accepts: false,
            secret: [0; 16],
        }
    }
}

/// What a packet was, where it was not TCP of a flow.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// It was TCP; `changed` tells what came of it.
    Taken,
    Datagram {
        source: SocketAddr,
        destination: SocketAddr,
        payload: &'a [u8],
    },
    Echo {
        source: IpAddr,
        destination: IpAddr,
        request: bool,
        id: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    /// An ICMP error about a datagram of ours, from us to `destination`.
    Unreachable {
        source: SocketAddr,
        destination: SocketAddr,
        kind: IcmpError,
    },
    Dropped(Drop),
    /// The stack has as many flows as it may, or the sink has no room for an answer.
    Full,
}

/// Counted since the stack was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackStats {
    pub received: u64,
    pub dropped: u64,
    pub resets_sent: u64,
    pub flows_opened: u64,
}
