//! How fast one flow is over links with delay, loss and reordering, in virtual time: the same
//! figures on any machine. `cargo test --release --test link -- --nocapture` prints them (seconds
//! of virtual time: `seconds`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use wireguard_wasm::stack::*;

#[derive(Default)]
struct Packets(Vec<Vec<u8>>);

impl PacketSink for Packets {
    fn has_room(&self) -> bool {
        self.0.len() < 4_096
    }
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

#[derive(Clone, Copy)]
struct Link {
    bits_per_second: u64,
    queue_bytes: u64,
    rtt_ms: u64,
    loss_per_million: u64,
    jitter_us: u64,
    tolerant: bool,
    /// Both ends are looked at this often: programs on busy machines wake late.
    wakes_ms: u64,
    /// And by chance up to this much later still, one time in four.
    late_ms: u64,
    seconds: u64,
}

const GIGABIT: Link = Link {
    bits_per_second: 1_000_000_000,
    queue_bytes: 4_000_000,
    rtt_ms: 50,
    loss_per_million: 0,
    jitter_us: 0,
    tolerant: true,
    wakes_ms: 1,
    late_ms: 0,
    seconds: 8,
};

#[derive(Default)]
struct Way {
    busy_until_ns: u64,
    wire: BinaryHeap<Reverse<(u64, u64, usize, Vec<u8>)>>,
    full: u64,
    lost: u64,
    count: u64,
}

impl Way {
    fn send(&mut self, now_us: u64, flow: usize, packet: Vec<u8>, link: &Link, dice: &mut u64) {
        self.count += 1;
        let waiting = self.busy_until_ns.saturating_sub(now_us * 1_000)
            * (link.bits_per_second / 1_000_000)
            / 8_000;
        if waiting > link.queue_bytes {
            self.full += 1;
            return;
        }
        let begin = self.busy_until_ns.max(now_us * 1_000);
        // With the headers of WireGuard, UDP and IP.
        let bits = (packet.len() as u64 + 60) * 8;
        self.busy_until_ns = begin + bits * 1_000_000 / (link.bits_per_second / 1_000);
        if roll(dice) % 1_000_000 < link.loss_per_million {
            self.lost += 1;
            return;
        }
        let jitter = if link.jitter_us > 0 { roll(dice) % link.jitter_us } else { 0 };
        let at = self.busy_until_ns / 1_000 + link.rtt_ms * 500 + jitter;
        self.wire.push(Reverse((at, self.count, flow, packet)));
    }
}

fn roll(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn end(accepts: bool, link: &Link) -> Stack {
    let secret = [accepts as u8 + 1; 16];
    Stack::new(StackOptions { accepts, tolerant: link.tolerant, secret, ..StackOptions::default() })
}

/// One flow, its ends and how far it has come.
struct Flow {
    ends: [Stack; 2],
    id: FlowId,
    sent: usize,
    got: usize,
    half: usize,
}

impl Flow {
    /// Reads and checks, or writes, as much as there is to.
    fn pump(&mut self, own: usize, bytes: &[u8]) {
        loop {
            let count = if own == 1 {
                let piece = self.ends[1].peek(0);
                let count = piece.len().min(bytes.len() - self.got % bytes.len());
                assert!(piece[..count] == bytes[self.got % bytes.len()..][..count]);
                self.got += count;
                self.ends[1].consume(0, count);
                count
            } else {
                let room = self.ends[0].room(self.id);
                let count = room.len().min(bytes.len() - self.sent % bytes.len());
                room[..count].copy_from_slice(&bytes[self.sent % bytes.len()..][..count]);
                self.sent += count;
                self.ends[0].commit(self.id, count)
            };
            if count == 0 {
                return;
            }
        }
    }
}

/// Mbit/s of payload of flows over one link, each tolerant or not; prints them, and what was
/// dropped and lost.
fn race(name: &str, link: Link, tolerant: &[bool]) -> Vec<f64> {
    let (near, far) = ("100.64.0.2:40000".parse().unwrap(), "192.168.1.9:80".parse().unwrap());
    let mut flows: Vec<Flow> = tolerant
        .iter()
        .map(|tolerant| {
            let mut ends =
                [false, true].map(|accepts| end(accepts, &Link { tolerant: *tolerant, ..link }));
            let id = ends[0].connect(near, far, 1_000).unwrap();
            Flow { ends, id, sent: 0, got: 0, half: 0 }
        })
        .collect();
    let mut ways = [Way::default(), Way::default()];
    let mut dice = 0x9e37_79b9_7f4a_7c15;
    let mut asleep_until = [0; 2];
    let bytes: Vec<u8> = (0..65_521u32).map(|at| (at * at >> 7) as u8).collect();
    for ms in 1_000..1_000 + link.seconds * 1_000 {
        let now_us = ms * 1_000;
        for own in 0..2 {
            // Not both at once.
            if (ms + own as u64 * link.wakes_ms / 2) % link.wakes_ms != 0 || ms < asleep_until[own] {
                continue;
            }
            if link.late_ms > 0 && roll(&mut dice) % 4 == 0 {
                asleep_until[own] = ms + 1 + roll(&mut dice) % link.late_ms;
            }
            let mut answers: Vec<Packets> = flows.iter().map(|_| Packets::default()).collect();
            while ways[1 - own].wire.peek().is_some_and(|Reverse((at, ..))| *at <= now_us) {
                let Some(Reverse((_, _, flow, packet))) = ways[1 - own].wire.pop() else { break };
                flows[flow].ends[own].receive(ms, &packet, &mut answers[flow]);
            }
            for (flow, answers) in flows.iter_mut().zip(&mut answers) {
                while let Some((id, changes)) = flow.ends[own].changed() {
                    if changes & change::INCOMING != 0 {
                        flow.ends[own].accept(id, ms);
                    }
                    assert!(changes & change::CLOSED == 0, "{name}: closed at {ms} ms");
                }
                flow.pump(own, &bytes);
                flow.ends[own].poll(ms, answers);
                if ms <= 1_000 + link.seconds * 500 {
                    flow.half = flow.got;
                }
            }
            // Side by side, a packet of each in turn.
            let longest = answers.iter().map(|packets| packets.0.len()).max().unwrap_or(0);
            for at in 0..longest {
                for (flow, packets) in answers.iter_mut().enumerate() {
                    if let Some(packet) = packets.0.get_mut(at) {
                        ways[own].send(now_us, flow, core::mem::take(packet), &link, &mut dice);
                    }
                }
            }
        }
    }
    let rate = |bytes: usize, seconds: u64| bytes as f64 * 8.0 / seconds as f64 / 1e6;
    let rates: Vec<f64> = flows.iter().map(|flow| rate(flow.got, link.seconds)).collect();
    for (flow, whole) in flows.iter().zip(&rates) {
        println!(
            "{name:36} {whole:6.1} Mbit/s ({:6.1} in the second half), {} packets, \
             queue full {}, lost {}, buffers {} KiB",
            rate(flow.got - flow.half, link.seconds / 2),
            ways[0].count,
            ways[0].full,
            ways[0].lost,
            (flow.ends[0].buffered_bytes() + flow.ends[1].buffered_bytes()) / 1024,
        );
    }
    rates
}

fn run(name: &str, link: Link) -> f64 {
    race(name, link, &[link.tolerant])[0]
}

#[test]
fn a_clean_link_is_filled() {
    assert!(run("50 ms, no loss", GIGABIT) >= 600.0);
    assert!(run("50 ms, no loss, short queue", Link { queue_bytes: 500_000, ..GIGABIT }) >= 500.0);
    assert!(
        run("10 ms, 100 Mbit/s", Link { rtt_ms: 10, bits_per_second: 100_000_000, ..GIGABIT })
            >= 80.0
    );
    assert!(run("200 ms, no loss", Link { rtt_ms: 200, ..GIGABIT }) >= 150.0);
}

#[test]
fn late_wakes_do_not_slow_it_down() {
    let late = Link { queue_bytes: 8_000_000, ..GIGABIT };
    assert!(run("1 ms, wakes each 30 ms", Link { rtt_ms: 1, wakes_ms: 30, ..late }) >= 700.0);
    assert!(run("20 ms, wakes each 30 ms", Link { rtt_ms: 20, wakes_ms: 30, ..late }) >= 700.0);
    assert!(run("50 ms, wakes each 10 ms", Link { wakes_ms: 10, ..late }) >= 700.0);
    assert!(run("50 ms, wakes each 40 ms", Link { wakes_ms: 40, ..late }) >= 250.0);
}

#[test]
fn few_losses_do_not_slow_it_down() {
    assert!(run("50 ms, 0.1 %", Link { loss_per_million: 1_000, ..GIGABIT }) >= 150.0);
    let busy = Link { loss_per_million: 1_000, seconds: 4, late_ms: 10, ..GIGABIT };
    assert!(run("50 ms, 0.1 %, busy ends", busy) >= 200.0);
    assert!(run("20 ms, 0.1 %, busy ends", Link { rtt_ms: 20, ..busy }) >= 250.0);
    assert!(run("50 ms, 0.1 %, very busy ends", Link { late_ms: 30, ..busy }) >= 50.0);
    assert!(run("100 ms, 1 %", Link { rtt_ms: 100, loss_per_million: 10_000, ..GIGABIT }) >= 100.0);
}

#[test]
fn without_tolerance_it_is_cubic() {
    let strict = Link { tolerant: false, ..GIGABIT };
    assert!(run("50 ms, no loss, strict", strict) >= 600.0);
    assert!(run("50 ms, 0.1 %, strict", Link { loss_per_million: 1_000, ..strict }) >= 7.0);
    assert!(
        run("100 ms, 1 %, strict", Link { rtt_ms: 100, loss_per_million: 10_000, ..strict }) >= 1.0
    );
}

#[test]
fn reordering_does_not_collapse_it() {
    let link = Link { jitter_us: 25_000, bits_per_second: 100_000_000, ..GIGABIT };
    assert!(run("50 ms + 0-25 ms, 100 Mbit/s", link) >= 60.0);
    assert!(run("50 ms + 0-25 ms, 1 Gbit/s", Link { jitter_us: 25_000, ..GIGABIT }) >= 60.0);
    assert!(run("50 ms + 0-1 ms, 1 Gbit/s", Link { jitter_us: 1_000, ..GIGABIT }) >= 300.0);
}

#[test]
fn a_tolerant_flow_leaves_room_for_others() {
    let link = Link { bits_per_second: 100_000_000, seconds: 30, ..GIGABIT };
    for (name, queue_bytes) in [("long queue", 600_000), ("short queue", 100_000)] {
        let link = Link { queue_bytes, ..link };
        let fair = race(&format!("both strict, {name}"), link, &[false, false]);
        let rates = race(&format!("tolerant and strict, {name}"), link, &[true, false]);
        assert!(rates[1] >= fair[1] * 0.8, "the strict one is left {rates:?} of {fair:?}");
        assert!(rates.iter().sum::<f64>() >= 70.0);
    }
}
