//! What all peers of a device share: its identity, the time, entropy, session indices, deadlines,
//! and what waits to be sent.

use super::crypto::{self, Key, Secret};
use super::deadlines::Deadlines;
use super::endpoint::Endpoint;
use super::entropy::Entropy;
use super::index_table::IndexTable;
use super::message::INITIATION_BYTES;
use alloc::collections::VecDeque;
use zeroize::Zeroizing;

/// Handshake messages, cookie replies and keepalives that wait for `poll`.
pub const OUTBOX_MAX: usize = 1024;
/// Notices that wait for the owner; the oldest are dropped.
pub const NOTICES_MAX: usize = 256;
pub const MTU_DEFAULT: usize = 1420;

/// The time of a call: `ms` of a clock that only rises (any origin), and `unix_ms` of the wall
/// clock, used for the stamps of initiations alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub ms: u64,
    pub unix_ms: u64,
}

/// A message ready to send, but for data that is sealed when it is polled.
pub struct Outgoing {
    pub peer: Option<u32>,
    pub to: Endpoint,
    pub len: usize,
    pub bytes: [u8; INITIATION_BYTES],
}

/// What the owner may want to know; a hint, since old ones are dropped when nobody reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A session was confirmed from both sides.
    Connected { peer: u32 },
    /// 90 seconds of initiations found no answer: resolve the endpoint anew.
    GaveUp { peer: u32 },
    /// The peer was heard, authenticated, from another endpoint.
    Roamed { peer: u32 },
    /// All keys of the peer were overwritten after 540 seconds without a new session.
    Expired { peer: u32 },
}

pub struct Identity {
    pub private: Secret,
    pub public: Key,
}

impl Identity {
    pub fn new(private: &Key) -> Identity {
        Identity { private: Zeroizing::new(*private), public: crypto::public_key(private) }
    }
}

pub struct Shared {
    pub now: Now,
    pub identity: Option<Identity>,
    pub entropy: Entropy,
    pub index: IndexTable,
    pub deadlines: Deadlines,
    pub outbox: VecDeque<Outgoing>,
    /// Peers that have a session and staged packets for it, each at most once.
    pub flushes: VecDeque<u32>,
    pub notices: VecDeque<Notice>,
    pub mtu: usize,
    /// Bytes of staged packets over all peers.
    pub staged_bytes: usize,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            now: Now::default(),
            identity: None,
            entropy: Entropy::default(),
            index: IndexTable::default(),
            deadlines: Deadlines::default(),
            outbox: VecDeque::with_capacity(OUTBOX_MAX),
            flushes: VecDeque::new(),
            notices: VecDeque::with_capacity(NOTICES_MAX),
            mtu: MTU_DEFAULT,
            staged_bytes: 0,
        }
    }
}

impl Shared {
    pub fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_MAX
    }

    /// The caller has asked `has_room`.
    pub fn post(&mut self, peer: Option<u32>, to: Endpoint, message: &[u8]) {
        let mut bytes = [0; INITIATION_BYTES];
        bytes[..message.len()].copy_from_slice(message);
        self.outbox.push_back(Outgoing { peer, to, len: message.len(), bytes });
    }

    pub fn notify(&mut self, notice: Notice) {
        if self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }

    /// A random index that no live session has, held by the peer from now on.
    pub fn claim_index(&mut self, peer: u32) -> Option<u32> {
        let mut bytes = [0; 4];
        loop {
            if !self.entropy.take(&mut bytes) {
                return None;
            }
            let index = u32::from_le_bytes(bytes);
            if self.index.get(index).is_none() {
                self.index.insert(index, peer);
                return Some(index);
            }
        }
    }

    pub fn take_key(&mut self) -> Option<Secret> {
        let mut key = Zeroizing::new([0; 32]);
        if self.entropy.take(&mut key[..]) { Some(key) } else { None }
    }
}
