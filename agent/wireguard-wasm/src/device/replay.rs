//! The sliding window over counters of received data messages (RFC 6479): a ring of bits that is
//! moved by whole words, so one word is given up to keep the move cheap.

const WORDS: usize = 128;
const WORD_BITS: u64 = 64;
/// Counters that lie this far behind the greatest one are refused.
pub const WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

pub struct Replay {
    greatest: u64,
    ring: [u64; WORDS],
}

impl Default for Replay {
    fn default() -> Self {
        Replay { greatest: 0, ring: [0; WORDS] }
    }
}

impl Replay {
    /// Marks the counter as seen; `false` when it was seen before, is too old, or is at the limit.
    /// Call it only with counters of messages that were authenticated.
    pub fn accept(&mut self, counter: u64, limit: u64) -> bool {
        if counter >= limit {
            return false;
        }
        let word = counter / WORD_BITS;
        if counter > self.greatest {
            let current = self.greatest / WORD_BITS;
            let moved = (word - current).min(WORDS as u64);
            for step in 1..=moved {
                self.ring[((current + step) % WORDS as u64) as usize] = 0;
            }
            self.greatest = counter;
        } else if self.greatest - counter > WINDOW {
            return false;
        }
        let slot = &mut self.ring[(word % WORDS as u64) as usize];
        let bit = 1 << (counter % WORD_BITS);
        let fresh = *slot & bit == 0;
        *slot |= bit;
        fresh
    }
}
