//! The pool of entropy that the caller fills and handshakes draw from. Bytes are used once and
//! overwritten. There is no generator behind it: an empty pool refuses.

use alloc::boxed::Box;
use zeroize::Zeroize;

pub const POOL_BYTES: usize = 8192;
/// Retries of handshakes are spread over this time (whitepaper §6.1).
pub const JITTER_MS_MAX: u64 = 333;

pub struct Entropy {
    pool: Box<[u8; POOL_BYTES]>,
    available: usize,
    /// Seed of the jitter, which need not be secret.
    jitter: u64,
}

impl Default for Entropy {
    fn default() -> Self {
        Entropy { pool: Box::new([0; POOL_BYTES]), available: 0, jitter: 0 }
    }
}

impl Drop for Entropy {
    fn drop(&mut self) {
        self.pool.zeroize();
    }
}

impl Entropy {
    /// Takes as many bytes as fit and returns their number.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(POOL_BYTES - self.available);
        self.pool[self.available..self.available + taken].copy_from_slice(&bytes[..taken]);
        self.available += taken;
        for byte in bytes.iter().take(taken.min(8)) {
            self.jitter = self.jitter.rotate_left(8) ^ u64::from(*byte);
        }
        taken
    }

    pub fn available(&self) -> usize {
        self.available
    }

    /// Fills `into`, or does nothing and returns `false` when the pool holds too little.
    #[must_use]
    pub fn take(&mut self, into: &mut [u8]) -> bool {
        if into.len() > self.available {
            return false;
        }
        let from = self.available - into.len();
        into.copy_from_slice(&self.pool[from..self.available]);
        self.pool[from..self.available].zeroize();
        self.available = from;
        true
    }

    /// 0 to 333 ms, by SplitMix64: jitter spreads load, it hides nothing.
    pub fn jitter_ms(&mut self) -> u64 {
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.jitter;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % (JITTER_MS_MAX + 1)
    }
}
