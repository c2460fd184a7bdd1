//! The constants of time (whitepaper §6.1) and the five timers of a peer.

pub const REKEY_AFTER_TIME_MS: u64 = 120_000;
pub const REKEY_ATTEMPT_TIME_MS: u64 = 90_000;
pub const REKEY_TIMEOUT_MS: u64 = 5_000;
pub const KEEPALIVE_TIMEOUT_MS: u64 = 10_000;
/// Keys are overwritten this long after the last session began.
pub const ZERO_AFTER_MS: u64 = 3 * super::keypair::REJECT_AFTER_TIME_MS;
/// Initiations of one peer that come closer together are dropped.
pub const INITIATION_GAP_MS: u64 = 20;
/// An initiator that receives on a session of this age makes a new one.
pub const REKEY_ON_RECEIVE_MS: u64 =
    super::keypair::REJECT_AFTER_TIME_MS - KEEPALIVE_TIMEOUT_MS - REKEY_TIMEOUT_MS;

/// No deadline.
pub const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Timer {
    /// No answer to an initiation yet.
    Retransmit,
    /// Data was received and nothing sent since.
    Keepalive,
    /// Data was sent and nothing received since.
    NewHandshake,
    /// The keys have outlived their use.
    ZeroKeys,
    /// The keepalive that the owner asked for.
    Persistent,
}

pub const TIMERS: [Timer; 5] =
    [Timer::Retransmit, Timer::Keepalive, Timer::NewHandshake, Timer::ZeroKeys, Timer::Persistent];

/// Deadlines in milliseconds of the caller's steady clock.
pub struct Timers([u64; 5]);

impl Default for Timers {
    fn default() -> Self {
        Timers([NEVER; 5])
    }
}

impl Timers {
    pub fn set(&mut self, timer: Timer, deadline_ms: u64) {
        self.0[timer as usize] = deadline_ms;
    }

    pub fn cancel(&mut self, timer: Timer) {
        self.0[timer as usize] = NEVER;
    }

    pub fn pending(&self, timer: Timer) -> bool {
        self.0[timer as usize] != NEVER
    }

    pub fn next(&self) -> u64 {
        self.0.iter().copied().fold(NEVER, u64::min)
    }

    /// Takes the timer off when it is due.
    pub fn take_due(&mut self, timer: Timer, now_ms: u64) -> bool {
        let due = self.0[timer as usize] <= now_ms;
        if due {
            self.cancel(timer);
        }
        due
    }
}
