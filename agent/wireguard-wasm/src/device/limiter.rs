//! Handshakes of one source while under load: 20 a second with a burst of 5, for each IPv4 address
//! and each IPv6 /64 (as the Linux kernel does). A tree, since keys are chosen by strangers.

use super::endpoint::Endpoint;
use alloc::collections::BTreeMap;

const PACKETS_PER_SECOND: u64 = 20;
const BURST: u64 = 5;
const COST_MS: u64 = 1000 / PACKETS_PER_SECOND;
const TOKENS_MS_MAX: u64 = BURST * COST_MS;
/// Sources remembered at once; when it is full of busy ones, new sources are refused.
pub const SOURCES_MAX: usize = 8192;
const SWEEP_MS: u64 = 1000;

#[derive(Default)]
pub struct Limiter {
    sources: BTreeMap<[u8; 13], (u64, u64)>,
    swept_ms: u64,
}

impl Limiter {
    pub fn allow(&mut self, now_ms: u64, from: &Endpoint) -> bool {
        let key = from.prefix();
        if let Some((tokens, updated)) = self.sources.get_mut(&key) {
            *tokens = (*tokens + now_ms.saturating_sub(*updated)).min(TOKENS_MS_MAX);
            *updated = now_ms;
            if *tokens < COST_MS {
                return false;
            }
            *tokens -= COST_MS;
            return true;
        }
        if self.sources.len() >= SOURCES_MAX {
            self.sweep(now_ms);
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        self.sources.insert(key, (TOKENS_MS_MAX - COST_MS, now_ms));
        true
    }

    /// Forgets sources that have been quiet for a second: their buckets are full again.
    fn sweep(&mut self, now_ms: u64) {
        if now_ms < self.swept_ms + SWEEP_MS {
            return;
        }
        self.swept_ms = now_ms;
        self.sources.retain(|_, (_, updated)| now_ms.saturating_sub(*updated) < SWEEP_MS);
    }

    pub fn sources(&self) -> usize {
        self.sources.len()
    }
}
