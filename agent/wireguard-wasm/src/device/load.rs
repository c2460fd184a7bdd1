//! Whether the device is under load: more handshake messages with a valid mac1 in one second than
//! the limit, and for one second after. (An X25519 costs some 0.1 ms and an initiation needs four,
//! so the default keeps handshakes of strangers below a tenth of a core.)

const WINDOW_MS: u64 = 1000;
const STICKY_MS: u64 = 1000;
pub const LIMIT_DEFAULT: u32 = 128;

pub struct Load {
    pub limit: u32,
    window_ms: u64,
    seen: u32,
    high_until_ms: u64,
}

impl Default for Load {
    fn default() -> Self {
        Load { limit: LIMIT_DEFAULT, window_ms: 0, seen: 0, high_until_ms: 0 }
    }
}

impl Load {
    pub fn count(&mut self, now_ms: u64) {
        if now_ms >= self.window_ms + WINDOW_MS {
            self.window_ms = now_ms;
            self.seen = 0;
        }
        self.seen = self.seen.saturating_add(1);
        if self.seen > self.limit {
            self.high_until_ms = now_ms + STICKY_MS;
        }
    }

    pub fn is_high(&self, now_ms: u64) -> bool {
        now_ms < self.high_until_ms
    }
}
