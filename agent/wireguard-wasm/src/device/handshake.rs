//! The three handshake messages as bytes: written for a peer, and read by the device.

use super::crypto::{self, Key};
use super::endpoint::Endpoint;
use super::keypair::Keypair;
use super::message::*;
use super::noise::{self, FIRST_BYTES, IDENTIFIER, Stranger, Symmetric};
use super::peer::{Peer, Pending};
use super::shared::Shared;
use super::tai64n::Tai64n;
use super::timers::INITIATION_GAP_MS;
use super::{Device, Drop, Event};

/// Enough for an ephemeral key and a few draws of an index.
const ENTROPY_BYTES: usize = 64;
const STAMP_AT: usize = 8 + FIRST_BYTES;
const STAMP_SEALED: core::ops::Range<usize> = STAMP_AT..STAMP_AT + 28;

impl Peer {
    /// Builds an initiation and posts it; `None` when entropy is short.
    pub(super) fn post_initiation(&mut self, shared: &mut Shared) -> Option<()> {
        if shared.entropy.available() < ENTROPY_BYTES {
            return None;
        }
        let to = self.endpoint?;
        let ephemeral = shared.take_key()?;
        let local = shared.claim_index(self.id)?;
        self.drop_pending(shared);
        let stamp = self.stamp_for(shared.now.unix_ms);
        let identity = shared.identity.as_ref()?;
        let mut message = [0; INITIATION_BYTES];
        message[0] = INITIATION;
        message[SENDER_AT..8].copy_from_slice(&local.to_le_bytes());
        message[STAMP_AT..STAMP_AT + 12].copy_from_slice(&stamp);
        let mut state = Symmetric::new(IDENTIFIER, &self.public);
        noise::write_first(
            &mut state,
            &ephemeral,
            &identity.public,
            &self.public,
            self.static_static.as_ref()?,
            &mut message[8..STAMP_SEALED.end],
        )?;
        self.pending = Some(Pending { local, state, ephemeral });
        self.post_handshake(shared, to, &mut message);
        Some(())
    }

    fn post_handshake(&mut self, shared: &mut Shared, to: Endpoint, message: &mut [u8]) {
        self.cookies.stamp(shared.now.ms, message);
        message[1..4].copy_from_slice(&self.reserved);
        self.last_sent_ms = Some(shared.now.ms);
        self.note_sent(shared, message.len());
        shared.post(Some(self.id), to, message);
    }

    /// Answers an initiation and keeps the new session as `next` until the other side uses it.
    fn respond(
        &mut self,
        shared: &mut Shared,
        mut state: Symmetric,
        stranger: &Stranger,
        remote: u32,
    ) -> Option<()> {
        let to = self.endpoint?;
        let ephemeral = shared.take_key()?;
        let local = shared.claim_index(self.id)?;
        let mut message = [0; RESPONSE_BYTES];
        message[0] = RESPONSE;
        message[SENDER_AT..8].copy_from_slice(&local.to_le_bytes());
        message[8..12].copy_from_slice(&remote.to_le_bytes());
        let written =
            noise::write_second(&mut state, &ephemeral, stranger, &self.psk, &mut message[12..60]);
        if written.is_none() {
            shared.index.remove(local);
            return None;
        }
        let keys = state.split();
        let now = shared.now.ms;
        let pair = Keypair::new((local, remote), false, now, keys.responder, keys.initiator);
        self.begin_session(shared, pair);
        self.post_handshake(shared, to, &mut message);
        Some(())
    }

    /// Reads the response to our initiation. The handshake under way survives a false one.
    fn complete(&mut self, shared: &mut Shared, message: &[u8]) -> Option<()> {
        let pending = self.pending.as_ref().filter(|p| p.local == u32_at(message, 8))?;
        let identity = shared.identity.as_ref()?;
        let mut state = pending.state.clone();
        noise::read_second(
            &mut state,
            &pending.ephemeral,
            &identity.private,
            &self.psk,
            &message[12..60],
            &mut [],
        )?;
        let local = pending.local;
        self.pending = None;
        let keys = state.split();
        let ids = (local, u32_at(message, SENDER_AT));
        let pair = Keypair::new(ids, true, shared.now.ms, keys.initiator, keys.responder);
        self.begin_session(shared, pair);
        Some(())
    }
}

impl Device {
    /// mac1 always; under load, mac2 or a cookie, then the limit of the source.
    pub(super) fn admit(&mut self, from: &Endpoint, message: &[u8]) -> Result<(), Drop> {
        let now = self.shared.now.ms;
        let Some(checker) = &mut self.checker else { return Err(Drop::NoIdentity) };
        if !checker.mac1_valid(message) {
            return Err(Drop::BadMac);
        }
        self.load.count(now);
        if self.load.is_high(now) {
            if !checker.mac2_valid(now, from, message) {
                if !checker.secret_is_fresh(now) {
                    let secret = self.shared.take_key().ok_or(Drop::NoEntropy)?;
                    checker.set_secret(now, secret);
                }
                let mut nonce = [0; 24];
                if !self.shared.has_room() {
                    return Err(Drop::Full);
                }
                if !self.shared.entropy.take(&mut nonce) {
                    return Err(Drop::NoEntropy);
                }
                let reply = checker.reply(from, message, &nonce);
                self.shared.post(None, *from, &reply);
                return Err(Drop::UnderLoad);
            }
            if !self.limiter.allow(now, from) {
                return Err(Drop::RateLimited);
            }
        }
        if !self.shared.has_room() {
            return Err(Drop::Full);
        }
        if self.shared.entropy.available() < ENTROPY_BYTES {
            return Err(Drop::NoEntropy);
        }
        Ok(())
    }

    pub(super) fn receive_initiation(
        &mut self,
        from: &Endpoint,
        message: &[u8],
        reserved: [u8; 3],
    ) -> Result<Event, Drop> {
        let identity = self.shared.identity.as_ref().ok_or(Drop::NoIdentity)?;
        let mut state = Symmetric::new(IDENTIFIER, &identity.public);
        let stranger = noise::read_first(&mut state, &identity.private, &message[8..])
            .ok_or(Drop::BadHandshake)?;
        let id = *self.by_key.get(&stranger.public).ok_or(Drop::UnknownPeer)?;
        let peer = self.peers[id as usize].as_deref_mut().ok_or(Drop::UnknownPeer)?;
        if reserved != [0; 3] && reserved != peer.reserved {
            return Err(Drop::Malformed);
        }
        let mut stamp: Tai64n = [0; 12];
        let shared_key: &Key = peer.static_static.as_ref().ok_or(Drop::BadHandshake)?;
        noise::read_payload(&mut state, shared_key, &message[STAMP_SEALED], &mut stamp)
            .ok_or(Drop::BadHandshake)?;
        let now = self.shared.now.ms;
        if stamp <= peer.last_stamp {
            return Err(Drop::Replayed);
        }
        if peer.last_initiation_ms.is_some_and(|last| now < last + INITIATION_GAP_MS) {
            return Err(Drop::RateLimited);
        }
        peer.last_stamp = stamp;
        peer.last_initiation_ms = Some(now);
        peer.heard_from(&mut self.shared, from);
        peer.note_received(&mut self.shared, message.len());
        peer.respond(&mut self.shared, state, &stranger, u32_at(message, SENDER_AT))
            .ok_or(Drop::BadHandshake)?;
        Ok(Event::Handshake { peer: id })
    }

    pub(super) fn receive_response(
        &mut self,
        from: &Endpoint,
        message: &[u8],
        reserved: [u8; 3],
    ) -> Result<Event, Drop> {
        let id = self.shared.index.get(u32_at(message, 8)).ok_or(Drop::UnknownIndex)?;
        let peer = self.peers[id as usize].as_deref_mut().ok_or(Drop::UnknownIndex)?;
        if reserved != [0; 3] && reserved != peer.reserved {
            return Err(Drop::Malformed);
        }
        let shared = &mut self.shared;
        peer.complete(shared, message).ok_or(Drop::BadHandshake)?;
        peer.heard_from(shared, from);
        peer.note_received(shared, message.len());
        peer.note_complete(shared);
        // The responder may not send before it has heard from us on the new session.
        peer.send_keepalive(shared);
        Ok(Event::Handshake { peer: id })
    }

    /// A cookie reply changes nothing but the cookie: no endpoint, no handshake.
    pub(super) fn receive_cookie(
        &mut self,
        message: &[u8],
        reserved: [u8; 3],
    ) -> Result<Event, Drop> {
        let id = self.shared.index.get(u32_at(message, 4)).ok_or(Drop::UnknownIndex)?;
        let peer = self.peers[id as usize].as_deref_mut().ok_or(Drop::UnknownIndex)?;
        if reserved != [0; 3] && reserved != peer.reserved {
            return Err(Drop::Malformed);
        }
        if !peer.cookies.consume(self.shared.now.ms, &array_at(message, 0)) {
            return Err(Drop::Forged);
        }
        Ok(Event::Cookie { peer: id })
    }
}

/// Whether a public key can take part in a handshake at all: false for those of low order.
pub fn usable(public: &Key) -> bool {
    crypto::dh(&[0x40; 32], public).is_some()
}
