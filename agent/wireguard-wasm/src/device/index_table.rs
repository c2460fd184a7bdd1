//! From a session index to the peer that owns it: open addressing with linear probing. The indices
//! are random and chosen by this side alone, so they are their own hash and cannot be flooded.

use alloc::boxed::Box;
use alloc::vec;

const SLOTS_MIN: usize = 64;
const EMPTY: u32 = u32::MAX;

pub struct IndexTable {
    slots: Box<[(u32, u32)]>,
    used: usize,
}

impl Default for IndexTable {
    fn default() -> Self {
        IndexTable { slots: vec![(0, EMPTY); SLOTS_MIN].into_boxed_slice(), used: 0 }
    }
}

impl IndexTable {
    pub fn len(&self) -> usize {
        self.used
    }

    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    pub fn get(&self, index: u32) -> Option<u32> {
        let mut at = index as usize & self.mask();
        loop {
            match self.slots[at] {
                (_, EMPTY) => return None,
                (key, peer) if key == index => return Some(peer),
                _ => at = (at + 1) & self.mask(),
            }
        }
    }

    /// `peer` is below `u32::MAX`; `index` must not be in the table.
    pub fn insert(&mut self, index: u32, peer: u32) {
        if (self.used + 1) * 2 > self.slots.len() {
            let doubled = vec![(0, EMPTY); self.slots.len() * 2].into_boxed_slice();
            let old = core::mem::replace(&mut self.slots, doubled);
            for (key, owner) in old.iter().filter(|slot| slot.1 != EMPTY) {
                self.place(*key, *owner);
            }
        }
        self.place(index, peer);
        self.used += 1;
    }

    fn place(&mut self, index: u32, peer: u32) {
        let mut at = index as usize & self.mask();
        while self.slots[at].1 != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.slots[at] = (index, peer);
    }

    pub fn remove(&mut self, index: u32) {
        let mut at = index as usize & self.mask();
        while self.slots[at].1 == EMPTY || self.slots[at].0 != index {
            if self.slots[at].1 == EMPTY {
                return;
            }
            at = (at + 1) & self.mask();
        }
        self.used -= 1;
        // Entries after the hole move back, so no tombstone is needed.
        let mut next = (at + 1) & self.mask();
        while self.slots[next].1 != EMPTY {
            let home = self.slots[next].0 as usize & self.mask();
            if (next.wrapping_sub(home) & self.mask()) >= (next.wrapping_sub(at) & self.mask()) {
                self.slots[at] = self.slots[next];
                at = next;
            }
            next = (next + 1) & self.mask();
        }
        self.slots[at] = (0, EMPTY);
    }
}
