//! The device: peers, their sessions, and the five calls that drive it.
//!
//! - `receive(now, from, datagram)` takes one datagram and decrypts it in place.
//! - `encapsulate(now, slot, len)` routes one packet to its peer and encrypts it in place.
//! - `poll(now, slot)` gives one message that the device itself wants to send; call until `None`.
//! - `tick(now)` runs timers that are due and returns the next deadline.
//! - `feed_entropy(bytes)` fills the pool that handshakes draw from.
//!
//! After any call that is not `poll`, poll until `None`; call `tick` at the deadline it returned or
//! after any other call (a call may bring the deadline forward: `next_deadline`).

pub mod allowed_ips;
pub mod batch;
pub mod cookie;
pub mod crypto;
pub mod deadlines;
pub mod endpoint;
pub mod entropy;
mod handshake;
pub mod index_table;
pub mod keypair;
pub mod lanes;
#[cfg(target_arch = "wasm32")]
pub mod lent;
pub mod limiter;
pub mod load;
pub mod message;
pub mod noise;
pub mod peer;
pub mod poly;
pub mod replay;
pub mod shared;
pub mod stitched;
pub mod tai64n;
pub mod timers;

use self::allowed_ips::{AllowedIps, read_header};
use self::cookie::Checker;
use self::crypto::Key;
use self::limiter::Limiter;
use self::load::Load;
use self::peer::Peer;
use self::shared::{Identity, Shared};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use zeroize::Zeroizing;

pub use self::endpoint::Endpoint;
pub use self::peer::{Stats, padded};
pub use self::shared::{Notice, Now};

/// Peers of one device; further ones are refused.
pub const PEERS_MAX: usize = 16_384;
/// The pool should be filled up when it has fallen below this.
pub const ENTROPY_LOW: usize = entropy::POOL_BYTES / 2;

/// What a datagram turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The IP packet is at `datagram[start..start + len]`; its source belongs to the peer.
    Packet { peer: u32, start: usize, len: usize },
    Keepalive { peer: u32 },
    /// A handshake message was accepted. A session may not be confirmed yet: see `Notice`.
    Handshake { peer: u32 },
    Cookie { peer: u32 },
    Dropped(Drop),
}

/// Why a datagram was dropped; each is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Drop {
    /// No type and length of §5.4, or reserved bytes that no peer uses.
    Malformed,
    NoIdentity,
    BadMac,
    /// Answered by a cookie.
    UnderLoad,
    RateLimited,
    UnknownPeer,
    UnknownIndex,
    BadHandshake,
    Expired,
    Forged,
    Replayed,
    NotIp,
    /// The inner source address is not one of the peer's.
    ForeignSource,
    NoEntropy,
    /// The outbox is full: poll.
    Full,
}
pub const DROPS: usize = 15;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The datagram is at `slot[..len]`.
    Sealed { peer: u32, to: Endpoint, len: usize },
    /// A copy waits for a session and comes out of `poll`.
    Staged { peer: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SendError {
    NotIp = 1,
    NoRoute,
    NoEndpoint,
    /// The slot does not hold the padded packet and 32 bytes more.
    SlotTooShort,
    /// Too many bytes wait for sessions.
    Full,
}

/// A message for the network, at `slot[..len]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// `None` for cookie replies, which go to strangers.
    pub peer: Option<u32>,
    pub to: Endpoint,
    pub len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerError {
    Exists,
    /// A public key of low order, or our own.
    BadKey,
    TooMany,
}

#[derive(Default)]
pub struct Device {
    pub(crate) shared: Shared,
    pub(crate) peers: Vec<Option<Box<Peer>>>,
    by_key: BTreeMap<Key, u32>,
    free: Vec<u32>,
    allowed: AllowedIps,
    checker: Option<Checker>,
    limiter: Limiter,
    load: Load,
    drops: [u64; DROPS],
    /// Peers with reserved bytes of their own; 0 lets any such message be dropped at once.
    with_reserved: usize,
}

impl Device {
    pub fn new(private: &Key) -> Device {
        let mut device = Device::default();
        device.set_private_key(private);
        device
    }

    /// Sets or changes the identity. Sessions under the old key are read until they expire, but the
    /// next packet to each peer asks for a new handshake.
    pub fn set_private_key(&mut self, private: &Key) {
        let identity = Identity::new(private);
        self.checker = Some(Checker::new(&identity.public));
        if let Some(&own) = self.by_key.get(&identity.public) {
            self.remove_peer(own);
        }
        for peer in self.peers.iter_mut().flatten() {
            peer.derive_static(private);
            peer.retire_identity(&mut self.shared);
        }
        self.shared.identity = Some(identity);
    }

    pub fn public_key(&self) -> Option<&Key> {
        self.shared.identity.as_ref().map(|identity| &identity.public)
    }

    /// The largest packet that is sent; padding stops there. 0 for none.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.shared.mtu = mtu;
    }

    /// Handshake messages in one second beyond which mac2 is asked for.
    pub fn set_load_limit(&mut self, messages: u32) {
        self.load.limit = messages;
    }

    pub fn feed_entropy(&mut self, bytes: &[u8]) -> usize {
        self.shared.entropy.feed(bytes)
    }

    pub fn wants_entropy(&self) -> bool {
        self.shared.entropy.available() < ENTROPY_LOW
    }

    // Peers.

    pub fn add_peer(&mut self, public: &Key) -> Result<u32, PeerError> {
        if self.by_key.contains_key(public) {
            return Err(PeerError::Exists);
        }
        if !handshake::usable(public) || self.public_key() == Some(public) {
            return Err(PeerError::BadKey);
        }
        if self.by_key.len() >= PEERS_MAX {
            return Err(PeerError::TooMany);
        }
        let identity = self.shared.identity.as_ref();
        let shared_key = identity.and_then(|identity| crypto::dh(&identity.private, public));
        let id = self.free.pop().unwrap_or(self.peers.len() as u32);
        let peer = Some(Box::new(Peer::new(id, *public, shared_key)));
        match self.peers.get_mut(id as usize) {
            Some(slot) => *slot = peer,
            None => self.peers.push(peer),
        }
        self.by_key.insert(*public, id);
        Ok(id)
    }

    /// Forgets the peer, its prefixes, its sessions and what waits for it, at once.
    pub fn remove_peer(&mut self, id: u32) -> bool {
        let Some(mut peer) = self.peers.get_mut(id as usize).and_then(Option::take) else {
            return false;
        };
        peer.drop_keys(&mut self.shared);
        peer.drop_staged(&mut self.shared);
        self.shared.deadlines.set(id, timers::NEVER);
        self.shared.outbox.retain(|message| message.peer != Some(id));
        self.shared.flushes.retain(|&queued| queued != id);
        self.with_reserved -= usize::from(peer.reserved != [0; 3]);
        self.by_key.remove(&peer.public);
        self.allowed.remove_peer(id);
        self.free.push(id);
        true
    }

    pub fn find_peer(&self, public: &Key) -> Option<u32> {
        self.by_key.get(public).copied()
    }

    pub fn peer(&self, id: u32) -> Option<&Peer> {
        self.peers.get(id as usize)?.as_deref()
    }

    fn with_peer<T>(&mut self, id: u32, act: impl FnOnce(&mut Peer, &mut Shared) -> T) -> Option<T> {
        let peer = self.peers.get_mut(id as usize)?.as_deref_mut()?;
        Some(act(peer, &mut self.shared))
    }

    /// All zero clears it. The next handshake uses it; the session there is stays.
    pub fn set_psk(&mut self, id: u32, psk: &Key) -> bool {
        self.with_peer(id, |peer, _| peer.psk = Zeroizing::new(*psk)).is_some()
    }

    pub fn set_endpoint(&mut self, now: Now, id: u32, to: Option<Endpoint>) -> bool {
        self.advance(now);
        self.with_peer(id, |peer, shared| peer.set_endpoint(shared, to)).is_some()
    }

    /// Seconds; 0 for none. Turning it on sends one at once.
    pub fn set_keepalive(&mut self, now: Now, id: u32, seconds: u16) -> bool {
        self.advance(now);
        self.with_peer(id, |peer, shared| peer.set_persistent(shared, seconds)).is_some()
    }

    /// The three bytes after the type, which some services use as an identifier.
    pub fn set_reserved(&mut self, id: u32, reserved: [u8; 3]) -> bool {
        let Some(old) =
            self.with_peer(id, |peer, _| core::mem::replace(&mut peer.reserved, reserved))
        else {
            return false;
        };
        self.with_reserved += usize::from(reserved != [0; 3]);
        self.with_reserved -= usize::from(old != [0; 3]);
        true
    }

    /// Asks for a handshake now, as a packet to the peer would.
    pub fn connect(&mut self, now: Now, id: u32) -> bool {
        self.advance(now);
        self.with_peer(id, |peer, shared| peer.initiate(shared, false)).is_some()
    }

    /// `ip` has 4 or 16 bytes. The prefix moves from the peer that had it.
    pub fn allow(&mut self, id: u32, ip: &[u8], cidr: u8) -> bool {
        self.peer(id).is_some() && self.allowed.insert(ip, cidr, id)
    }

    pub fn disallow(&mut self, id: u32, ip: &[u8], cidr: u8) -> bool {
        self.allowed.remove(ip, cidr, id)
    }

    pub fn route(&self, ip: &[u8]) -> Option<u32> {
        self.allowed.lookup(ip)
    }

    // Traffic.

    /// Time that runs backwards stands still.
    fn advance(&mut self, now: Now) {
        self.shared.now = Now { ms: now.ms.max(self.shared.now.ms), unix_ms: now.unix_ms };
    }

    /// Takes one datagram, decrypting data in place. The bytes are undefined after a drop.
    pub fn receive(&mut self, now: Now, from: &Endpoint, datagram: &mut [u8]) -> Event {
        self.advance(now);
        let event = self.receive_any(from, datagram);
        if let Event::Dropped(reason) = event {
            self.drops[reason as usize] += 1;
        }
        event
    }

    fn receive_any(&mut self, from: &Endpoint, datagram: &mut [u8]) -> Event {
        let Some(kind) = message::kind_of(datagram) else {
            return Event::Dropped(Drop::Malformed);
        };
        let reserved = message::array_at(datagram, 1);
        if reserved != [0; 3] {
            if self.with_reserved == 0 {
                return Event::Dropped(Drop::Malformed);
            }
            // The MACs are made over zeros, so that they hold wherever the bytes are stripped.
            datagram[1..4].fill(0);
        }
        let outcome = match kind {
            message::DATA => return self.receive_data(from, datagram, reserved),
            message::COOKIE => self.receive_cookie(datagram, reserved),
            message::INITIATION => self
                .admit(from, datagram)
                .and_then(|()| self.receive_initiation(from, datagram, reserved)),
            _ => self
                .admit(from, datagram)
                .and_then(|()| self.receive_response(from, datagram, reserved)),
        };
        outcome.unwrap_or_else(Event::Dropped)
    }

    fn receive_data(&mut self, from: &Endpoint, datagram: &mut [u8], reserved: [u8; 3]) -> Event {
        let id = self.shared.index.get(message::u32_at(datagram, 4));
        let Some(peer) = id.and_then(|id| self.peers[id as usize].as_deref_mut()) else {
            return Event::Dropped(Drop::UnknownIndex);
        };
        if reserved != [0; 3] && reserved != peer.reserved {
            return Event::Dropped(Drop::Malformed);
        }
        peer.receive_data(&mut self.shared, &self.allowed, from, datagram)
    }

    /// Sends the IP packet at `slot[16..16 + len]` to the peer that its destination belongs to. The
    /// slot holds the padded packet and 32 bytes more: `16 + padded(len, mtu) + 16`.
    pub fn encapsulate(
        &mut self,
        now: Now,
        slot: &mut [u8],
        len: usize,
    ) -> Result<Sent, SendError> {
        self.advance(now);
        let needed = padded(len, self.shared.mtu) + message::DATA_BYTES_MIN;
        if slot.len() < needed {
            return Err(SendError::SlotTooShort);
        }
        let header = read_header(&slot[message::DATA_HEADER_BYTES..][..len]);
        let to = header.ok_or(SendError::NotIp)?.destination;
        let id = self.allowed.lookup(to).ok_or(SendError::NoRoute)?;
        let peer = self.peers[id as usize].as_deref_mut().ok_or(SendError::NoRoute)?;
        if peer.endpoint.is_none() {
            return Err(SendError::NoEndpoint);
        }
        peer.send(&mut self.shared, slot, len)
    }

    /// Writes the next message into `slot`, which should hold the MTU, padded, and 32 bytes; a
    /// staged packet that does not fit is dropped.
    pub fn poll(&mut self, now: Now, slot: &mut [u8]) -> Option<Datagram> {
        self.advance(now);
        if slot.len() < message::INITIATION_BYTES {
            return None;
        }
        if let Some(message) = self.shared.outbox.pop_front() {
            slot[..message.len].copy_from_slice(&message.bytes[..message.len]);
            return Some(Datagram { peer: message.peer, to: message.to, len: message.len });
        }
        while let Some(&id) = self.shared.flushes.front() {
            let sealed = self.with_peer(id, |peer, shared| peer.send_staged(shared, slot)).flatten();
            if let Some((to, len)) = sealed {
                return Some(Datagram { peer: Some(id), to, len });
            }
            self.shared.flushes.pop_front();
            self.with_peer(id, |peer, _| peer.flush_queued = false);
        }
        None
    }

    /// Runs what is due and returns the next deadline, `u64::MAX` for none. A deadline that is not
    /// in the future means that the outbox was full: poll, then tick again.
    pub fn tick(&mut self, now: Now) -> u64 {
        self.advance(now);
        while let Some((deadline, id)) = self.shared.deadlines.first() {
            if deadline > self.shared.now.ms || !self.shared.has_room() {
                return deadline;
            }
            self.with_peer(id, |peer, shared| peer.run_timers(shared));
        }
        timers::NEVER
    }

    pub fn next_deadline(&self) -> u64 {
        self.shared.deadlines.first().map_or(timers::NEVER, |(deadline, _)| deadline)
    }

    /// Moves the counter of the current session forward, so that the limits of §6.1 can be tested.
    /// It cannot move back, so no nonce comes twice.
    pub fn skip_counter(&mut self, id: u32, counter: u64) -> bool {
        self.with_peer(id, |peer, _| peer.current.as_mut().map(|pair| pair.skip_to(counter)))
            .flatten()
            .is_some()
    }

    pub fn next_notice(&mut self) -> Option<Notice> {
        self.shared.notices.pop_front()
    }

    pub fn drops(&self) -> &[u64; DROPS] {
        &self.drops
    }

    /// Sessions and handshakes that hold an index.
    pub fn sessions(&self) -> usize {
        self.shared.index.len()
    }
}

impl Peer {
    pub fn public_key(&self) -> &Key {
        &self.public
    }

    pub fn current_endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    pub fn counters(&self) -> Stats {
        self.stats
    }

    pub fn staged_packets(&self) -> usize {
        self.staged()
    }
}
