//! Two devices over a network that loses, delays, reorders, duplicates and corrupts, with clocks
//! that step; seeded, in virtual time. Claims: sessions always converge, what arrives is what was
//! sent and arrives once, and no nonce is used twice.

mod common;
use common::*;
use std::collections::{BTreeMap, HashSet};
use wireguard_wasm::device::{Event, Now};

struct World {
    dice: Dice,
    ms: u64,
    /// Datagrams under way: by arrival and number, with the receiver.
    wire: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    numbers: u64,
    nodes: [Node; 2],
    walls: [u64; 2],
    /// Receiver index and counter of every data message, for each sender.
    nonces: HashSet<(usize, Vec<u8>)>,
    arrived: HashSet<(usize, u64)>,
    sent: u64,
}

struct Weather {
    loss_percent: u64,
    delay_ms: u64,
    duplicate_percent: u64,
    corrupt_percent: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let start = Now { ms: 0, unix_ms: 1_700_000_000_000 };
        let mut nodes = [node(1), node(2)];
        let (left, right) = nodes.split_at_mut(1);
        left[0].know(start, &right[0], true);
        right[0].know(start, &left[0], true);
        World {
            dice: Dice(seed),
            ms: 0,
            wire: BTreeMap::new(),
            numbers: 0,
            nodes,
            walls: [1_700_000_000_000, 1_600_000_000_000],
            nonces: HashSet::new(),
            arrived: HashSet::new(),
            sent: 0,
        }
    }

    fn now(&self, who: usize) -> Now {
        Now { ms: self.ms, unix_ms: self.walls[who] + self.ms }
    }

    fn launch(&mut self, from: usize, datagram: Vec<u8>, weather: &Weather) {
        if datagram[0] == 4 {
            let fresh = self.nonces.insert((from, datagram[4..16].to_vec()));
            assert!(fresh, "a nonce was used twice");
        }
        let copies = 1 + u64::from(self.dice.below(100) < weather.duplicate_percent);
        for _ in 0..copies {
            if self.dice.below(100) < weather.loss_percent {
                continue;
            }
            let mut datagram = datagram.clone();
            if self.dice.below(100) < weather.corrupt_percent {
                let at = self.dice.below(datagram.len() as u64) as usize;
                datagram[at] ^= 1;
            }
            let arrival = self.ms + 1 + self.dice.below(weather.delay_ms + 1);
            self.numbers += 1;
            self.wire.insert((arrival, self.numbers), (1 - from, datagram));
        }
    }

    fn drain(&mut self, who: usize, weather: &Weather) {
        let now = self.now(who);
        for (_, datagram) in self.nodes[who].poll(now) {
            self.launch(who, datagram, weather);
        }
    }

    fn send(&mut self, who: usize, weather: &Weather) {
        let mut bytes = packet(self.nodes[who].ip, self.nodes[1 - who].ip, 60);
        bytes[20..28].copy_from_slice(&self.sent.to_le_bytes());
        self.sent += 1;
        let now = self.now(who);
        if let Some(sealed) = self.nodes[who].send_packet(now, &bytes) {
            self.launch(who, sealed, weather);
        }
        self.drain(who, weather);
    }

    fn run(&mut self, ms: u64, weather: &Weather, mut each: impl FnMut(&mut World)) {
        let end = self.ms + ms;
        while self.ms < end {
            each(self);
            self.ms += 10;
            while self.wire.first_key_value().is_some_and(|((due, _), _)| *due <= self.ms) {
                let (_, (who, mut datagram)) = self.wire.pop_first().unwrap();
                let (now, from) = (self.now(who), self.nodes[1 - who].at);
                self.nodes[who].feed();
                let event = self.nodes[who].device.receive(now, &from, &mut datagram);
                if let Event::Packet { start, len, .. } = event {
                    let number = u64::from_le_bytes(datagram[start + 20..start + 28].try_into().unwrap());
                    let expected = {
                        let mut bytes = packet(self.nodes[1 - who].ip, self.nodes[who].ip, 60);
                        bytes[20..28].copy_from_slice(&number.to_le_bytes());
                        bytes
                    };
                    assert_eq!(datagram[start..start + len], expected);
                    assert!(self.arrived.insert((who, number)), "a packet arrived twice");
                }
                self.drain(who, weather);
            }
            for who in 0..2 {
                let now = self.now(who);
                self.nodes[who].feed();
                let deadline = self.nodes[who].device.tick(now);
                assert!(deadline > self.ms);
                self.drain(who, weather);
            }
            for node in &self.nodes {
                assert!(node.device.sessions() <= 4);
            }
        }
    }
}

const FINE: Weather = Weather { loss_percent: 0, delay_ms: 5, duplicate_percent: 0, corrupt_percent: 0 };

#[test]
fn sessions_converge_after_any_weather_and_no_nonce_is_used_twice() {
    let seeds: u64 =
        std::env::var("WIREGUARD_SIMULATIONS").ok().and_then(|t| t.parse().ok()).unwrap_or(12);
    for seed in 0..seeds {
        let mut world = World::new(seed);
        let weather = Weather {
            loss_percent: world.dice.below(60),
            delay_ms: world.dice.below(2_000),
            duplicate_percent: world.dice.below(30),
            corrupt_percent: world.dice.below(20),
        };
        // Ten minutes of it: three generations of keys, with both sides talking and clocks stepping.
        world.run(600_000, &weather, |world| {
            for who in 0..2 {
                if world.dice.below(40) == 0 {
                    world.send(who, &weather);
                }
                if world.dice.below(3_000) == 0 {
                    let step = world.dice.below(7_200_000);
                    world.walls[who] = world.walls[who] + step - 3_600_000;
                }
            }
        });
        // Then the weather clears: within one retry both sides carry every packet.
        world.run(20_000, &FINE, |world| {
            if world.ms % 1_000 == 0 {
                world.send(0, &FINE);
                world.send(1, &FINE);
            }
        });
        let before = (world.sent, world.arrived.len() as u64);
        world.run(30_000, &FINE, |world| {
            if world.ms % 100 == 0 {
                world.send(0, &FINE);
                world.send(1, &FINE);
            }
        });
        world.run(1_000, &FINE, |_| {});
        let (sent, arrived) = (world.sent - before.0, world.arrived.len() as u64 - before.1);
        assert!(arrived >= sent, "seed {seed}: {arrived} of {sent} in fine weather");
        assert!(before.1 > 0, "seed {seed}: something arrived in bad weather");
    }
}

#[test]
fn a_quiet_hour_costs_a_handful_of_messages() {
    let mut world = World::new(99);
    world.run(1_000, &FINE, |world| {
        if world.ms == 0 {
            world.send(0, &FINE);
        }
    });
    world.run(3_600_000, &FINE, |_| {});
    assert!(world.numbers <= 6, "{} messages", world.numbers);
    assert_eq!(world.nodes[0].device.sessions() + world.nodes[1].device.sessions(), 0);
}
