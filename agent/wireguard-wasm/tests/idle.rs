//! What idle flows cost one that is not: `cargo test --release --test idle -- --ignored
//! --nocapture`. Its figures are this machine's, so that it is run by hand.

use std::net::SocketAddr;
use std::time::Instant;
use wireguard_wasm::stack::*;

/// Packets side by side, without an allocation for each.
struct Train {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl PacketSink for Train {
    fn has_room(&self) -> bool {
        self.ends.len() < 256
    }
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let begin = self.bytes.len();
        self.bytes.resize(begin + length, 0);
        self.ends.push(begin + length);
        fill(&mut self.bytes[begin..])
    }
}

fn pass(from: &mut Train, to: &mut Stack, ms: u64, answers: &mut Train) {
    let mut begin = 0;
    for end in from.ends.drain(..) {
        to.receive(ms, &from.bytes[begin..end], answers);
        begin = end;
    }
    from.bytes.clear();
}

/// Gbit/s of one flow beside `idle` others.
fn run(idle: u16) -> f64 {
    let stack = |accepts: bool| {
        let secret = [accepts as u8; 16];
        let flows = StackOptions {
            incoming_max: 20_000,
            incoming_max_per_destination: 20_000,
            ..StackOptions::default()
        };
        Stack::new(StackOptions { accepts, secret, ..flows })
    };
    let mut ends = [stack(false), stack(true)];
    let mut trains = [0, 1].map(|_| Train { bytes: Vec::with_capacity(1 << 20), ends: Vec::new() });
    let mut last = 0;
    for port in 0..=idle {
        let near = SocketAddr::new("100.64.0.2".parse().unwrap(), 1_000 + port);
        last = ends[0].connect(near, "192.168.1.9:80".parse().unwrap(), 0).unwrap();
    }
    let (data, begin, mut got, mut far) = (vec![0x5a; 1 << 16], Instant::now(), 0usize, None);
    while begin.elapsed().as_millis() < 3_000 {
        let ms = begin.elapsed().as_millis() as u64;
        ends[0].write(last, &data);
        for own in 0..2 {
            let [one, other] = &mut trains;
            let (out, back) = if own == 0 { (one, other) } else { (other, one) };
            ends[own].poll(ms, out);
            let peer = &mut ends[1 - own];
            pass(out, peer, ms, back);
            while let Some((id, bits)) = ends[1 - own].changed() {
                if bits & change::INCOMING != 0 {
                    ends[1 - own].accept(id, ms);
                } else if own == 0 && bits & change::READABLE != 0 {
                    far = Some(id);
                }
            }
            while let Some(id) = far {
                let count = ends[1].peek(id).len();
                ends[1].consume(id, count);
                got += count;
                if count == 0 {
                    break;
                }
            }
        }
    }
    got as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9
}

#[test]
#[ignore = "its figures are the machine's"]
fn idle_flows_cost_the_active_one_little() {
    let mut best = [0.0f64; 3];
    for _ in 0..2 {
        for (place, idle) in best.iter_mut().zip([0, 1_000, 10_000]) {
            *place = place.max(run(idle));
        }
    }
    for (rate, idle) in best.iter().zip([0, 1_000, 10_000]) {
        println!("{idle:6} idle flows: {rate:.2} Gbit/s, {:.0} % of alone", rate / best[0] * 100.0);
    }
    assert!(best[1] >= best[0] * 0.8);
}
