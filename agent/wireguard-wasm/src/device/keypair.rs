//! One session: two keys, a counter each way, and when it began.

use super::crypto::{self, Secret, TAG_BYTES};
use super::message::{DATA, DATA_HEADER_BYTES};
use super::replay::Replay;

pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
pub const REJECT_AFTER_TIME_MS: u64 = 180_000;

pub struct Keypair {
    pub local: u32,
    pub remote: u32,
    pub initiator: bool,
    pub created_ms: u64,
    /// False when a changed private key forbids to send on it.
    pub sendable: bool,
    /// u64 on every platform: a counter of the machine's word would repeat nonces on wasm32.
    counter: u64,
    send: Secret,
    receive: Secret,
    replay: Replay,
}

impl Keypair {
    pub fn new(
        (local, remote): (u32, u32),
        initiator: bool,
        now_ms: u64,
        send: Secret,
        receive: Secret,
    ) -> Keypair {
        Keypair {
            local,
            remote,
            initiator,
            created_ms: now_ms,
            sendable: true,
            counter: 0,
            send,
            receive,
            replay: Replay::default(),
        }
    }

    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.created_ms)
    }

    pub fn may_send(&self, now_ms: u64) -> bool {
        self.sendable
            && self.counter < REJECT_AFTER_MESSAGES
            && self.age_ms(now_ms) < REJECT_AFTER_TIME_MS
    }

    pub fn may_receive(&self, now_ms: u64) -> bool {
        self.age_ms(now_ms) < REJECT_AFTER_TIME_MS
    }

    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Moves the counter forward, for tests of the limits. It never moves back.
    pub fn skip_to(&mut self, counter: u64) {
        self.counter = self.counter.max(counter);
    }

    /// Seals `slot[16..16 + len]` in place (`len` padded already) and returns the whole length.
    /// The caller has asked `may_send` and `slot` holds `len + 32` bytes.
    pub fn seal(&mut self, slot: &mut [u8], len: usize) -> usize {
        let counter = self.counter;
        self.counter += 1;
        let (header, rest) = slot.split_at_mut(DATA_HEADER_BYTES);
        header[0] = DATA;
        header[1..4].fill(0);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        let tag = crypto::seal(&self.send, counter, &[], &mut rest[..len]);
        rest[len..len + TAG_BYTES].copy_from_slice(&tag);
        DATA_HEADER_BYTES + len + TAG_BYTES
    }

    /// Opens a data message in place; the plaintext is then at 16. `body` is all after the header.
    #[must_use]
    pub fn open(&self, counter: u64, body: &mut [u8]) -> bool {
        let (text, tag) = body.split_at_mut(body.len() - TAG_BYTES);
        let mut expected = [0; TAG_BYTES];
        expected.copy_from_slice(tag);
        crypto::open(&self.receive, counter, &[], text, &expected)
    }

    /// Marks an authenticated counter; `false` for a replay.
    #[must_use]
    pub fn accept(&mut self, counter: u64) -> bool {
        self.replay.accept(counter, REJECT_AFTER_MESSAGES)
    }
}
