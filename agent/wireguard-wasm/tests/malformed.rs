//! Bytes that no peer would send: cut, mutated, random. WIREGUARD_FUZZ_RUNS=2000000 for the long run.

mod common;
use common::*;
use wireguard_wasm::device::{Drop, Event};

/// One message of each type, with a receiver that would take it.
fn messages() -> Vec<(Pair, Vec<u8>, &'static str)> {
    let mut all = Vec::new();
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    all.push((pair, initiation, "initiation"));

    let mut pair = strangers();
    pair.b.device.set_endpoint(pair.now, 0, Some(pair.a.at));
    pair.b.device.connect(pair.now, 0);
    let initiation = pair.b.poll_one(pair.now);
    pair.a.receive(pair.now, &pair.b.at, &initiation);
    let response = pair.a.poll_one(pair.now);
    all.push((pair, response, "response"));

    let mut pair = strangers();
    pair.b.device.set_endpoint(pair.now, 0, Some(pair.a.at));
    pair.a.device.set_load_limit(0);
    pair.b.device.connect(pair.now, 0);
    let initiation = pair.b.poll_one(pair.now);
    pair.a.receive(pair.now, &pair.b.at, &initiation);
    let cookie = pair.a.poll_one(pair.now);
    all.push((pair, cookie, "cookie"));

    let mut pair = connected();
    let data = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    all.push((pair, data, "data"));

    let mut pair = connected();
    pair.a.device.set_keepalive(pair.now, 0, 25);
    let keepalive = pair.a.poll_one(pair.now);
    all.push((pair, keepalive, "keepalive"));
    all
}

fn dropped(event: Event) -> bool {
    matches!(event, Event::Dropped(_))
}

#[test]
fn every_truncation_and_extension_of_every_message_is_dropped_and_the_message_then_works() {
    for (mut pair, message, name) in messages() {
        for len in 0..message.len() {
            let event = pair.b.receive(pair.now, &pair.a.at, &message[..len]);
            assert!(dropped(event), "{name} cut to {len}: {event:?}");
        }
        for extra in 1..40 {
            let mut longer = message.clone();
            longer.extend(vec![0; extra]);
            assert!(dropped(pair.b.receive(pair.now, &pair.a.at, &longer)), "{name} + {extra}");
        }
        assert!(!dropped(pair.b.receive(pair.now, &pair.a.at, &message)), "{name}");
    }
}

#[test]
fn every_flipped_bit_of_every_message_is_dropped_and_the_message_then_works() {
    for (mut pair, message, name) in messages() {
        for bit in 0..message.len() * 8 {
            // mac2 of a handshake is read under load alone.
            if matches!(name, "initiation" | "response") && bit / 8 >= message.len() - 16 {
                continue;
            }
            let mut wrong = message.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let event = pair.b.receive(pair.now, &pair.a.at, &wrong);
            assert!(dropped(event), "{name} bit {bit}: {event:?}");
        }
        assert!(!dropped(pair.b.receive(pair.now, &pair.a.at, &message)), "{name}");
    }
}

#[test]
fn unknown_types_empty_and_huge_datagrams_are_malformed() {
    let mut pair = connected();
    for kind in (0..=255u8).filter(|kind| !(1..=4).contains(kind)) {
        for len in [0, 1, 4, 32, 64, 92, 148, 65_507] {
            let mut datagram = vec![0; len];
            datagram.iter_mut().take(1).for_each(|byte| *byte = kind);
            let event = pair.b.receive(pair.now, &pair.a.at, &datagram);
            assert_eq!(event, Event::Dropped(Drop::Malformed));
        }
    }
    let mut huge = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    huge.resize(65_507, 0);
    let event = pair.b.receive(pair.now, &pair.a.at, &huge);
    assert_eq!(event, Event::Dropped(Drop::Forged));
}

#[test]
fn a_receiver_index_that_nobody_has_is_dropped() {
    let mut pair = connected();
    for mut datagram in [vec![0; 92], vec![0; 64], vec![0; 128]] {
        datagram[0] = match datagram.len() {
            92 => 2,
            64 => 3,
            _ => 4,
        };
        datagram[4..8].copy_from_slice(&[1, 2, 3, 4]);
        let event = pair.b.receive(pair.now, &pair.a.at, &datagram);
        let expected = if datagram[0] == 2 { Drop::BadMac } else { Drop::UnknownIndex };
        assert_eq!(event, Event::Dropped(expected));
    }
}

#[test]
fn mutated_datagrams_never_panic_and_never_pass() {
    let runs: u64 =
        std::env::var("WIREGUARD_FUZZ_RUNS").ok().and_then(|t| t.parse().ok()).unwrap_or(20_000);
    let seed: u64 =
        std::env::var("WIREGUARD_FUZZ_SEED").ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut cases = messages();
    for run in 0..runs {
        let case = dice.below(cases.len() as u64) as usize;
        let (pair, message, name) = &mut cases[case];
        let mut datagram = message.clone();
        match dice.below(6) {
            0 => datagram.truncate(dice.below(datagram.len() as u64 + 1) as usize),
            1 => {
                let len = dice.below(200) as usize;
                datagram.resize(datagram.len() + len, dice.roll() as u8);
            }
            2 => {
                dice.fill(&mut datagram);
                datagram[0] = 1 + dice.below(5) as u8;
                datagram[1..4].fill(0);
            }
            _ => {}
        }
        for _ in 0..1 + dice.below(4) {
            if !datagram.is_empty() {
                let at = dice.below(datagram.len() as u64) as usize;
                datagram[at] ^= 1 + dice.below(255) as u8;
            }
        }
        // Half of the handshakes get a right mac1, and so reach the code behind it.
        let handshake = matches!((datagram.first(), datagram.len()), (Some(1), 148) | (Some(2), 92));
        if handshake && dice.below(2) == 0 {
            let key = wireguard_wasm::device::crypto::hash(&[b"mac1----", &pair.b.public]);
            let at = datagram.len() - 32;
            let mac1 = wireguard_wasm::device::crypto::mac(&key, &[&datagram[..at]]);
            datagram[at..at + 16].copy_from_slice(&mac1);
        }
        // The sender's index and mac2 are not part of what the handshake authenticates.
        let same_core = handshake
            && datagram.len() == message.len()
            && datagram[0] == message[0]
            && datagram[8..datagram.len() - 32] == message[8..message.len() - 32];
        if datagram == *message || same_core {
            continue;
        }
        let event = pair.b.receive(pair.now, &pair.a.at, &datagram);
        assert!(dropped(event), "seed {seed} run {run} {name}: {event:?}");
        if run % 64 == 0 {
            pair.pass(20);
            pair.b.poll(pair.now);
        }
    }
}
