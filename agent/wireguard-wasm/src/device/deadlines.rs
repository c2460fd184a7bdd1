//! A binary heap with one deadline for each peer and the place of each peer in it, so that a
//! deadline can move or go without a search and no stale entry is kept.

use alloc::vec::Vec;

const NOWHERE: u32 = u32::MAX;

#[derive(Default)]
pub struct Deadlines {
    heap: Vec<(u64, u32)>,
    place: Vec<u32>,
}

impl Deadlines {
    /// The earliest deadline and its peer.
    pub fn first(&self) -> Option<(u64, u32)> {
        self.heap.first().copied()
    }

    pub fn get(&self, peer: u32) -> Option<u64> {
        match self.place.get(peer as usize) {
            Some(&at) if at != NOWHERE => Some(self.heap[at as usize].0),
            _ => None,
        }
    }

    /// Sets the deadline of the peer, `u64::MAX` for none.
    pub fn set(&mut self, peer: u32, deadline: u64) {
        if self.place.len() <= peer as usize {
            self.place.resize(peer as usize + 1, NOWHERE);
        }
        let at = self.place[peer as usize];
        match (at, deadline) {
            (NOWHERE, u64::MAX) => {}
            (NOWHERE, _) => {
                self.heap.push((deadline, peer));
                self.place[peer as usize] = self.heap.len() as u32 - 1;
                self.up(self.heap.len() - 1);
            }
            (_, u64::MAX) => {
                self.heap.swap_remove(at as usize);
                self.place[peer as usize] = NOWHERE;
                if (at as usize) < self.heap.len() {
                    self.place[self.heap[at as usize].1 as usize] = at;
                    self.down(at as usize);
                    self.up(at as usize);
                }
            }
            _ => {
                self.heap[at as usize].0 = deadline;
                self.down(at as usize);
                self.up(at as usize);
            }
        }
    }

    fn swap(&mut self, left: usize, right: usize) {
        self.heap.swap(left, right);
        self.place[self.heap[left].1 as usize] = left as u32;
        self.place[self.heap[right].1 as usize] = right as u32;
    }

    fn up(&mut self, mut at: usize) {
        while at > 0 && self.heap[at] < self.heap[(at - 1) / 2] {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let left = at * 2 + 1;
            let mut least = at;
            for child in [left, left + 1] {
                if child < self.heap.len() && self.heap[child] < self.heap[least] {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }
}
