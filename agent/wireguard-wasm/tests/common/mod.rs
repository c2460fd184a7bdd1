//! Devices on a fake clock and a fake network.
#![allow(dead_code)]

use wireguard_wasm::device::{Device, Endpoint, Event, Notice, Now, Sent, crypto};

/// SplitMix64: the same numbers for the same seed everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.roll().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

pub struct Node {
    pub device: Device,
    pub private: [u8; 32],
    pub public: [u8; 32],
    pub at: Endpoint,
    pub ip: [u8; 4],
    dice: Dice,
}

pub fn node(number: u8) -> Node {
    let private = crypto::hash(&[&[number]]);
    let mut node = Node {
        device: Device::new(&private),
        private,
        public: crypto::public_key(&private),
        at: Endpoint::v4([192, 0, 2, number], 1000 + u16::from(number)),
        ip: [10, 0, 0, number],
        dice: Dice(u64::from(number)),
    };
    node.feed();
    node
}

/// An IPv4 packet of `len` bytes.
pub fn packet(from: [u8; 4], to: [u8; 4], len: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; len];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    bytes[12..16].copy_from_slice(&from);
    bytes[16..20].copy_from_slice(&to);
    bytes
}

impl Node {
    pub fn feed(&mut self) {
        let mut bytes = [0; 8192];
        self.dice.fill(&mut bytes);
        self.device.feed_entropy(&bytes);
    }

    pub fn know(&mut self, now: Now, other: &Node, endpoint: bool) -> u32 {
        let id = self.device.add_peer(&other.public).unwrap();
        assert!(self.device.allow(id, &other.ip, 32));
        if endpoint {
            self.device.set_endpoint(now, id, Some(other.at));
        }
        id
    }

    /// Sends a packet: the sealed datagram, or `None` when it was staged.
    pub fn send(&mut self, now: Now, to: [u8; 4], len: usize) -> Option<Vec<u8>> {
        self.send_packet(now, &packet(self.ip, to, len))
    }

    pub fn send_packet(&mut self, now: Now, packet: &[u8]) -> Option<Vec<u8>> {
        self.feed();
        let mut slot = vec![0; packet.len() + 64];
        slot[16..16 + packet.len()].copy_from_slice(packet);
        match self.device.encapsulate(now, &mut slot, packet.len()).unwrap() {
            Sent::Sealed { len, .. } => Some(slot[..len].to_vec()),
            Sent::Staged { .. } => None,
        }
    }

    pub fn receive(&mut self, now: Now, from: &Endpoint, datagram: &[u8]) -> Event {
        self.feed();
        self.device.receive(now, from, &mut datagram.to_vec())
    }

    /// All that the device wants to send now.
    pub fn poll(&mut self, now: Now) -> Vec<(Endpoint, Vec<u8>)> {
        self.feed();
        let mut slot = vec![0; 2048];
        let mut sent = Vec::new();
        while let Some(datagram) = self.device.poll(now, &mut slot) {
            sent.push((datagram.to, slot[..datagram.len].to_vec()));
        }
        sent
    }

    /// The one message that the device wants to send now.
    pub fn poll_one(&mut self, now: Now) -> Vec<u8> {
        let mut sent = self.poll(now);
        assert_eq!(sent.len(), 1, "one message");
        sent.remove(0).1
    }

    pub fn tick(&mut self, now: Now) -> Vec<u8> {
        self.feed();
        self.device.tick(now);
        self.poll(now).into_iter().map(|(_, bytes)| kind(&bytes)).collect()
    }

    pub fn notices(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| self.device.next_notice()).collect()
    }
}

/// The type of a message, 0x40 for a keepalive.
pub fn kind(datagram: &[u8]) -> u8 {
    if datagram[0] == 4 && datagram.len() == 32 { 0x40 } else { datagram[0] }
}

pub const KEEPALIVE: u8 = 0x40;

/// Two nodes that know each other; only `a` knows where the other is.
pub struct Pair {
    pub now: Now,
    pub a: Node,
    pub b: Node,
}

pub fn strangers() -> Pair {
    let now = Now { ms: 1_000_000, unix_ms: 1_700_000_000_000 };
    let (mut a, mut b) = (node(1), node(2));
    a.know(now, &b, true);
    b.know(now, &a, false);
    Pair { now, a, b }
}

/// Two nodes with a confirmed session, `a` its initiator.
pub fn connected() -> Pair {
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
    pair
}

impl Pair {
    pub fn pass(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.unix_ms += ms;
    }

    /// Carries messages both ways until there are none; their types, in order.
    pub fn exchange(&mut self) -> Vec<u8> {
        let mut log = Vec::new();
        loop {
            let before = log.len();
            for (_, datagram) in self.a.poll(self.now) {
                log.push(kind(&datagram));
                self.b.receive(self.now, &self.a.at, &datagram);
            }
            for (_, datagram) in self.b.poll(self.now) {
                log.push(kind(&datagram));
                self.a.receive(self.now, &self.b.at, &datagram);
            }
            if log.len() == before {
                return log;
            }
        }
    }

    pub fn a_sends(&mut self) -> Event {
        let sealed = self.a.send(self.now, self.b.ip, 100).expect("a session");
        self.b.receive(self.now, &self.a.at, &sealed)
    }

    pub fn b_sends(&mut self) -> Event {
        let sealed = self.b.send(self.now, self.a.ip, 100).expect("a session");
        self.a.receive(self.now, &self.b.at, &sealed)
    }

    /// Lets time pass in steps of 50 ms with all timers and messages; the types, in order.
    pub fn live(&mut self, ms: u64) -> Vec<u8> {
        let mut log = Vec::new();
        for _ in 0..ms / 50 {
            self.pass(50);
            self.a.device.tick(self.now);
            self.b.device.tick(self.now);
            log.extend(self.exchange());
        }
        log
    }
}

pub fn is_packet(event: Event) -> bool {
    matches!(event, Event::Packet { .. })
}
