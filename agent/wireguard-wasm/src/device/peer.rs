//! One peer: its keys, its sessions (previous, current, next), its timers and its staged packets.
//! Rules are those of the whitepaper §6; where it leaves room, of the Linux kernel and wireguard-go.

use super::allowed_ips::{AllowedIps, read_header};
use super::cookie::Generator;
use super::crypto::{self, Key, Secret};
use super::endpoint::Endpoint;
use super::keypair::{Keypair, REKEY_AFTER_MESSAGES};
use super::message::{DATA_BYTES_MIN, DATA_HEADER_BYTES, u32_at, u64_at};
use super::noise::Symmetric;
use super::shared::{Notice, Shared};
use super::tai64n::{self, Tai64n};
use super::timers::*;
use super::{Drop, Event, SendError, Sent};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use zeroize::{Zeroize, Zeroizing};

/// Packets that wait for a session; a further one pushes out the oldest.
pub const STAGED_MAX: usize = 128;
/// Bytes that wait for sessions over all peers; at the limit new packets are refused.
pub const STAGED_BYTES_MAX: usize = 4 << 20;
/// When the outbox is full or entropy is short, a handshake is tried again after this time.
const AGAIN_MS: u64 = 100;

/// An initiation that waits for its response.
pub(super) struct Pending {
    pub local: u32,
    pub state: Symmetric,
    pub ephemeral: Secret,
}

#[derive(Default, Clone, Copy, Debug)]
pub struct Stats {
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Wall clock of the last confirmed handshake; 0 for never.
    pub last_handshake_unix_ms: u64,
}

pub struct Peer {
    pub(super) id: u32,
    pub(super) public: Key,
    pub(super) static_static: Option<Secret>,
    pub(super) psk: Secret,
    pub(super) cookies: Generator,
    pub(super) pending: Option<Pending>,
    pub(super) last_stamp: Tai64n,
    pub(super) last_initiation_ms: Option<u64>,
    sent_stamp: Tai64n,
    pub(super) last_sent_ms: Option<u64>,
    attempt_began_ms: u64,
    rekeyed_on_receive: bool,
    another_keepalive: bool,
    pub(super) current: Option<Box<Keypair>>,
    pub(super) previous: Option<Box<Keypair>>,
    pub(super) next: Option<Box<Keypair>>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) reserved: [u8; 3],
    persistent_ms: u64,
    pub(super) timers: Timers,
    staged: VecDeque<Vec<u8>>,
    pub(super) flush_queued: bool,
    pub(super) stats: Stats,
}

impl core::ops::Drop for Peer {
    fn drop(&mut self) {
        for packet in &mut self.staged {
            packet.zeroize();
        }
    }
}

/// The length of a packet with its padding: to 16 bytes, but not beyond the MTU (0: no MTU).
pub fn padded(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(16);
    }
    let last = if len > mtu { len % mtu } else { len };
    len - last + last.next_multiple_of(16).min(mtu)
}

impl Peer {
    pub(super) fn new(id: u32, public: Key, static_static: Option<Secret>) -> Peer {
        Peer {
            id,
            public,
            static_static,
            psk: Zeroizing::new([0; 32]),
            cookies: Generator::new(&public),
            pending: None,
            last_stamp: tai64n::ZERO,
            last_initiation_ms: None,
            sent_stamp: tai64n::ZERO,
            last_sent_ms: None,
            attempt_began_ms: 0,
            rekeyed_on_receive: false,
            another_keepalive: false,
            current: None,
            previous: None,
            next: None,
            endpoint: None,
            reserved: [0; 3],
            persistent_ms: 0,
            timers: Timers::default(),
            staged: VecDeque::new(),
            flush_queued: false,
            stats: Stats::default(),
        }
    }

    // Timers.

    pub(super) fn arm(&mut self, shared: &mut Shared, timer: Timer, deadline_ms: u64) {
        self.timers.set(timer, deadline_ms);
        // A deadline that moved back is found when the heap comes to it; one that moved forward
        // must be told.
        if deadline_ms < shared.deadlines.get(self.id).unwrap_or(NEVER) {
            shared.deadlines.set(self.id, deadline_ms);
        }
    }

    /// Any authenticated packet, either way, counts as life for the persistent keepalive.
    fn note_traversal(&mut self, shared: &mut Shared) {
        if self.persistent_ms > 0 {
            self.arm(shared, Timer::Persistent, shared.now.ms + self.persistent_ms);
        }
    }

    pub(super) fn note_received(&mut self, shared: &mut Shared, bytes: usize) {
        self.stats.received_bytes += bytes as u64;
        self.timers.cancel(Timer::NewHandshake);
        self.note_traversal(shared);
    }

    pub(super) fn note_sent(&mut self, shared: &mut Shared, bytes: usize) {
        self.stats.sent_bytes += bytes as u64;
        self.timers.cancel(Timer::Keepalive);
        self.note_traversal(shared);
    }

    pub(super) fn note_session(&mut self, shared: &mut Shared) {
        self.arm(shared, Timer::ZeroKeys, shared.now.ms + ZERO_AFTER_MS);
    }

    pub(super) fn note_complete(&mut self, shared: &mut Shared) {
        self.timers.cancel(Timer::Retransmit);
        self.rekeyed_on_receive = false;
        self.stats.last_handshake_unix_ms = shared.now.unix_ms;
        shared.notify(Notice::Connected { peer: self.id });
    }

    /// Runs every timer that is due.
    pub(super) fn run_timers(&mut self, shared: &mut Shared) {
        let now = shared.now.ms;
        for timer in TIMERS {
            if !self.timers.take_due(timer, now) {
                continue;
            }
            match timer {
                Timer::Retransmit if now - self.attempt_began_ms >= REKEY_ATTEMPT_TIME_MS => {
                    self.give_up(shared);
                }
                Timer::Retransmit => self.initiate(shared, true),
                Timer::Keepalive => {
                    self.send_keepalive(shared);
                    if core::mem::take(&mut self.another_keepalive) {
                        self.arm(shared, Timer::Keepalive, now + KEEPALIVE_TIMEOUT_MS);
                    }
                }
                Timer::NewHandshake => self.initiate(shared, false),
                Timer::ZeroKeys => self.expire(shared),
                Timer::Persistent => {
                    if self.persistent_ms > 0 {
                        self.arm(shared, Timer::Persistent, now + self.persistent_ms);
                        self.send_keepalive(shared);
                    }
                }
            }
        }
        shared.deadlines.set(self.id, self.timers.next());
    }

    fn give_up(&mut self, shared: &mut Shared) {
        self.timers.cancel(Timer::Keepalive);
        self.drop_staged(shared);
        self.drop_pending(shared);
        if !self.timers.pending(Timer::ZeroKeys) {
            self.note_session(shared);
        }
        shared.notify(Notice::GaveUp { peer: self.id });
    }

    fn expire(&mut self, shared: &mut Shared) {
        self.drop_keys(shared);
        shared.notify(Notice::Expired { peer: self.id });
    }

    // Keys.

    pub(super) fn drop_pending(&mut self, shared: &mut Shared) {
        if let Some(pending) = self.pending.take() {
            shared.index.remove(pending.local);
        }
    }

    /// Overwrites (by dropping) all sessions and a handshake under way.
    pub(super) fn drop_keys(&mut self, shared: &mut Shared) {
        self.drop_pending(shared);
        for slot in [&mut self.current, &mut self.previous, &mut self.next] {
            retire(slot.take(), shared);
        }
    }

    /// Forbids to send on the sessions there are; what the other side still sends is read.
    pub(super) fn retire_identity(&mut self, shared: &mut Shared) {
        self.drop_pending(shared);
        for slot in [&mut self.current, &mut self.previous, &mut self.next] {
            if let Some(pair) = slot {
                pair.sendable = false;
            }
        }
        self.last_sent_ms = None;
    }

    pub(super) fn begin_session(&mut self, shared: &mut Shared, pair: Keypair) {
        let pair = Some(Box::new(pair));
        if pair.as_ref().is_some_and(|pair| pair.initiator) {
            let old = match self.next.take() {
                // The other side may have begun to send on its own session: keep it readable.
                Some(next) => {
                    retire(self.current.take(), shared);
                    Some(next)
                }
                None => self.current.take(),
            };
            retire(core::mem::replace(&mut self.previous, old), shared);
            self.current = pair;
        } else {
            retire(core::mem::replace(&mut self.next, pair), shared);
            retire(self.previous.take(), shared);
        }
        self.note_session(shared);
    }

    // Sending.

    fn can_send(&self, shared: &Shared) -> bool {
        self.endpoint.is_some()
            && self.current.as_ref().is_some_and(|pair| pair.may_send(shared.now.ms))
    }

    /// Seals the packet at `slot[16..16 + len]`, or stages a copy of it and asks for a session.
    pub(super) fn send(
        &mut self,
        shared: &mut Shared,
        slot: &mut [u8],
        len: usize,
    ) -> Result<Sent, SendError> {
        if !self.can_send(shared) || !self.staged.is_empty() {
            self.stage(shared, &slot[DATA_HEADER_BYTES..DATA_HEADER_BYTES + len])?;
            if self.can_send(shared) {
                self.flush(shared);
            } else {
                self.initiate(shared, false);
            }
            return Ok(Sent::Staged { peer: self.id });
        }
        let sealed = self.seal(shared, slot, len);
        let to = self.endpoint.unwrap_or_default();
        Ok(Sent::Sealed { peer: self.id, to, len: sealed })
    }

    /// The caller has asked `can_send`, and `slot` holds the padded packet and 32 bytes more.
    fn seal(&mut self, shared: &mut Shared, slot: &mut [u8], len: usize) -> usize {
        let full = padded(len, shared.mtu);
        slot[DATA_HEADER_BYTES + len..DATA_HEADER_BYTES + full].fill(0);
        let Some(pair) = &mut self.current else { return 0 };
        let sealed = pair.seal(slot, full);
        slot[1..4].copy_from_slice(&self.reserved);
        let stale = pair.counter() > REKEY_AFTER_MESSAGES
            || (pair.initiator && pair.age_ms(shared.now.ms) >= REKEY_AFTER_TIME_MS);
        self.note_sent(shared, sealed);
        if len > 0 && !self.timers.pending(Timer::NewHandshake) {
            let wait = KEEPALIVE_TIMEOUT_MS + REKEY_TIMEOUT_MS + shared.entropy.jitter_ms();
            self.arm(shared, Timer::NewHandshake, shared.now.ms + wait);
        }
        if stale {
            self.initiate(shared, false);
        }
        sealed
    }

    fn stage(&mut self, shared: &mut Shared, packet: &[u8]) -> Result<(), SendError> {
        if self.staged.len() >= STAGED_MAX {
            if let Some(mut oldest) = self.staged.pop_front() {
                shared.staged_bytes -= oldest.len();
                oldest.zeroize();
            }
        }
        if shared.staged_bytes + packet.len() > STAGED_BYTES_MAX {
            return Err(SendError::Full);
        }
        shared.staged_bytes += packet.len();
        self.staged.push_back(packet.to_vec());
        Ok(())
    }

    pub(super) fn drop_staged(&mut self, shared: &mut Shared) {
        for mut packet in self.staged.drain(..) {
            shared.staged_bytes -= packet.len();
            packet.zeroize();
        }
    }

    pub(super) fn flush(&mut self, shared: &mut Shared) {
        if !self.staged.is_empty() && !self.flush_queued && self.can_send(shared) {
            self.flush_queued = true;
            shared.flushes.push_back(self.id);
        }
    }

    /// Seals the next staged packet into `slot`; `None` when none can be sent now.
    pub(super) fn send_staged(
        &mut self,
        shared: &mut Shared,
        slot: &mut [u8],
    ) -> Option<(Endpoint, usize)> {
        while self.can_send(shared) {
            let mut packet = self.staged.pop_front()?;
            shared.staged_bytes -= packet.len();
            let fits = padded(packet.len(), shared.mtu) + DATA_BYTES_MIN <= slot.len();
            if fits {
                slot[DATA_HEADER_BYTES..][..packet.len()].copy_from_slice(&packet);
            }
            let len = packet.len();
            packet.zeroize();
            if fits {
                let sealed = self.seal(shared, slot, len);
                return Some((self.endpoint?, sealed));
            }
        }
        if !self.staged.is_empty() {
            self.initiate(shared, false);
        }
        None
    }

    pub(super) fn staged(&self) -> usize {
        self.staged.len()
    }

    pub(super) fn send_keepalive(&mut self, shared: &mut Shared) {
        if !self.can_send(shared) {
            return self.initiate(shared, false);
        }
        if !self.staged.is_empty() {
            return self.flush(shared);
        }
        if !shared.has_room() {
            return self.arm(shared, Timer::Keepalive, shared.now.ms + AGAIN_MS);
        }
        let mut slot = [0; DATA_BYTES_MIN];
        let sealed = self.seal(shared, &mut slot, 0);
        let to = self.endpoint.unwrap_or_default();
        shared.post(Some(self.id), to, &slot[..sealed]);
    }

    /// Starts a handshake, or sends its initiation again; at most one in five seconds.
    pub(super) fn initiate(&mut self, shared: &mut Shared, retry: bool) {
        let now = shared.now.ms;
        if !retry {
            self.attempt_began_ms = now;
        }
        if self.endpoint.is_none() || shared.identity.is_none() || self.static_static.is_none() {
            return;
        }
        let since = self.last_sent_ms.map(|sent| now.saturating_sub(sent));
        let wait = match since {
            Some(since) if since < REKEY_TIMEOUT_MS => REKEY_TIMEOUT_MS - since,
            _ if shared.has_room() && self.post_initiation(shared).is_some() => {
                self.timers.cancel(Timer::Retransmit);
                REKEY_TIMEOUT_MS
            }
            _ => AGAIN_MS,
        };
        if !self.timers.pending(Timer::Retransmit) {
            let jitter = shared.entropy.jitter_ms();
            self.arm(shared, Timer::Retransmit, now + wait + jitter);
        }
    }

    pub(super) fn stamp_for(&mut self, unix_ms: u64) -> Tai64n {
        self.sent_stamp = tai64n::after(&self.sent_stamp, unix_ms);
        self.sent_stamp
    }

    // Receiving.

    /// An authenticated packet came from there: send there from now on.
    pub(super) fn heard_from(&mut self, shared: &mut Shared, from: &Endpoint) {
        if self.endpoint != Some(*from) {
            let moved = self.endpoint.replace(*from).is_some();
            if moved {
                shared.notify(Notice::Roamed { peer: self.id });
            }
        }
    }

    pub(super) fn receive_data(
        &mut self,
        shared: &mut Shared,
        allowed: &AllowedIps,
        from: &Endpoint,
        datagram: &mut [u8],
    ) -> Event {
        let now = shared.now.ms;
        let index = u32_at(datagram, 4);
        let counter = u64_at(datagram, 8);
        let is = |slot: &Option<Box<Keypair>>| slot.as_ref().is_some_and(|p| p.local == index);
        let confirms = is(&self.next);
        let slot = if is(&self.current) {
            &mut self.current
        } else if confirms {
            &mut self.next
        } else if is(&self.previous) {
            &mut self.previous
        } else {
            return Event::Dropped(Drop::UnknownIndex);
        };
        let Some(pair) = slot else { return Event::Dropped(Drop::UnknownIndex) };
        if !pair.may_receive(now) || counter >= super::keypair::REJECT_AFTER_MESSAGES {
            return Event::Dropped(Drop::Expired);
        }
        if !pair.open(counter, &mut datagram[DATA_HEADER_BYTES..]) {
            return Event::Dropped(Drop::Forged);
        }
        if !pair.accept(counter) {
            return Event::Dropped(Drop::Replayed);
        }
        self.heard_from(shared, from);
        if confirms {
            let old = core::mem::replace(&mut self.current, self.next.take());
            retire(core::mem::replace(&mut self.previous, old), shared);
            self.note_complete(shared);
            self.flush(shared);
        }
        self.note_received(shared, datagram.len());
        self.rekey_on_receive(shared);
        let len = datagram.len() - DATA_BYTES_MIN;
        if len == 0 {
            return Event::Keepalive { peer: self.id };
        }
        if self.timers.pending(Timer::Keepalive) {
            self.another_keepalive = true;
        } else {
            self.arm(shared, Timer::Keepalive, now + KEEPALIVE_TIMEOUT_MS);
        }
        let Some(header) = read_header(&datagram[DATA_HEADER_BYTES..DATA_HEADER_BYTES + len])
        else {
            return Event::Dropped(Drop::NotIp);
        };
        if allowed.lookup(header.source) != Some(self.id) {
            return Event::Dropped(Drop::ForeignSource);
        }
        Event::Packet { peer: self.id, start: DATA_HEADER_BYTES, len: header.length }
    }

    /// An initiator whose session nears its end makes a new one, once for each session.
    fn rekey_on_receive(&mut self, shared: &mut Shared) {
        let due = !self.rekeyed_on_receive
            && self.current.as_ref().is_some_and(|pair| {
                pair.initiator && pair.age_ms(shared.now.ms) >= REKEY_ON_RECEIVE_MS
            });
        if due {
            self.rekeyed_on_receive = true;
            self.initiate(shared, false);
        }
    }

    // Settings.

    pub(super) fn set_persistent(&mut self, shared: &mut Shared, seconds: u16) {
        let was = core::mem::replace(&mut self.persistent_ms, u64::from(seconds) * 1000);
        if self.persistent_ms == 0 {
            self.timers.cancel(Timer::Persistent);
            return;
        }
        self.arm(shared, Timer::Persistent, shared.now.ms + self.persistent_ms);
        if was == 0 {
            self.send_keepalive(shared);
        }
    }

    pub(super) fn set_endpoint(&mut self, shared: &mut Shared, to: Option<Endpoint>) {
        self.endpoint = to;
        if to.is_some() && !self.staged.is_empty() {
            if self.can_send(shared) {
                self.flush(shared);
            } else {
                self.initiate(shared, false);
            }
        } else if to.is_some() && self.persistent_ms > 0 && self.current.is_none() {
            self.initiate(shared, false);
        }
    }

    pub(super) fn derive_static(&mut self, private: &Key) {
        self.static_static = crypto::dh(private, &self.public);
    }
}

fn retire(pair: Option<Box<Keypair>>, shared: &mut Shared) {
    if let Some(pair) = pair {
        shared.index.remove(pair.local);
    }
}
