//! The hash of a flow's ends.

use core::hash::{BuildHasher, Hasher};

#[derive(Clone)]
pub struct Keyed(pub [u8; 16]);

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;
    fn build_hasher(&self) -> KeyedHasher {
        let half = |at: usize| u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap());
        #[allow(deprecated)]
        KeyedHasher(core::hash::SipHasher::new_with_keys(half(0), half(8)))
    }
}

/// SipHash-2-4: who chooses ports and addresses cannot make all of them collide.
#[allow(deprecated)]
pub struct KeyedHasher(core::hash::SipHasher);

impl Hasher for KeyedHasher {
    fn finish(&self) -> u64 {
        self.0.finish()
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}
