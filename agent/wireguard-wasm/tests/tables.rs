//! The tables against slow twins, with seeded random operations.

mod common;
use common::Dice;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use wireguard_wasm::device::allowed_ips::{Address, AllowedIps, Trie};
use wireguard_wasm::device::deadlines::Deadlines;
use wireguard_wasm::device::index_table::IndexTable;
use wireguard_wasm::device::limiter::{Limiter, SOURCES_MAX};
use wireguard_wasm::device::replay::{Replay, WINDOW};
use wireguard_wasm::device::{Endpoint, padded};

/// A list of prefixes, searched from end to end.
fn slow_lookup<A: Address + Ord>(table: &BTreeMap<(u8, A), u32>, address: A) -> Option<u32> {
    (0..=A::BITS).rev().find_map(|cidr| table.get(&(cidr, address.masked(cidr))).copied())
}

fn compare_tries<A: Address + Ord + core::fmt::Debug>(seed: u64, draw: impl Fn(&mut Dice) -> A) {
    let mut dice = Dice(seed);
    let mut trie = Trie::<A>::default();
    let mut twin = BTreeMap::new();
    for step in 0..20_000 {
        let address = draw(&mut dice);
        let cidr = dice.below(u64::from(A::BITS) + 1) as u8;
        let peer = dice.below(20) as u32;
        match dice.below(20) {
            0..=6 => {
                assert!(trie.insert(address, cidr, peer));
                twin.insert((cidr, address.masked(cidr)), peer);
            }
            7..=12 => {
                let known = twin.iter().nth(dice.below(twin.len().max(1) as u64) as usize);
                let (cidr, address) = known.map_or((cidr, address), |(key, _)| *key);
                let expected = twin.get(&(cidr, address.masked(cidr))) == Some(&peer);
                assert_eq!(trie.remove(address, cidr, peer), expected, "seed {seed} step {step}");
                if expected {
                    twin.remove(&(cidr, address.masked(cidr)));
                }
            }
            13 if dice.below(20) == 0 => {
                trie.remove_peer(peer);
                twin.retain(|_, owner| *owner != peer);
            }
            _ => {
                let expected = slow_lookup(&twin, address);
                assert_eq!(trie.lookup(address), expected, "seed {seed} step {step}");
            }
        }
        assert_eq!(trie.len(), twin.len());
        assert!(trie.nodes() <= twin.len() * 2, "no node is left behind");
    }
    let listed: BTreeSet<_> = trie.list().into_iter().map(|(a, c, p)| ((c, a), p)).collect();
    assert_eq!(listed, twin.into_iter().collect());
}

#[test]
fn allowed_ips_v4_agree_with_the_slow_twin() {
    compare_tries::<u32>(1, |dice| dice.roll() as u32);
    // Few bits differ, so that prefixes nest deeply.
    compare_tries::<u32>(2, |dice| 0x0a00_0000 | (dice.roll() as u32 & 0x0000_0f0f));
}

#[test]
fn allowed_ips_v6_agree_with_the_slow_twin() {
    compare_tries::<u128>(3, |dice| u128::from(dice.roll()) << 64 | u128::from(dice.roll()));
    compare_tries::<u128>(4, |dice| 0xfd << 120 | u128::from(dice.roll() & 0xff) << 60);
}

#[test]
fn allowed_ips_refuse_wrong_lengths_and_prefixes() {
    let mut table = AllowedIps::default();
    assert!(!table.insert(&[1, 2, 3], 8, 0));
    assert!(!table.insert(&[1, 2, 3, 4], 33, 0));
    assert!(!table.insert(&[0; 16], 129, 0));
    assert!(table.insert(&[0; 4], 0, 1) && table.insert(&[0; 16], 0, 2));
    assert_eq!((table.lookup(&[9, 9, 9, 9]), table.lookup(&[9; 16])), (Some(1), Some(2)));
    assert_eq!(table.lookup(&[9; 5]), None);
}

#[test]
fn replay_agrees_with_the_slow_twin() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut window = Replay::default();
        let (mut seen, mut greatest) = (BTreeSet::new(), 0u64);
        let spread = [4, 100, 9_000, 20_000][seed as usize % 4];
        for _ in 0..20_000 {
            let counter = (greatest + dice.below(spread)).saturating_sub(dice.below(spread));
            let fresh = greatest.saturating_sub(counter) <= WINDOW && !seen.contains(&counter);
            assert_eq!(window.accept(counter, u64::MAX), fresh, "seed {seed} counter {counter}");
            if fresh {
                seen.insert(counter);
                greatest = greatest.max(counter);
            }
        }
    }
}

/// The steps that the kernel's self test of counters takes, in our own words.
#[test]
fn replay_edges() {
    let limit = u64::MAX - (1 << 13);
    let mut window = Replay::default();
    let mut expect = |counter: u64, fresh: bool| {
        assert_eq!(window.accept(counter, limit), fresh, "{counter}");
    };
    for (counter, fresh) in [(0, true), (1, true), (1, false), (9, true), (8, true), (7, true)] {
        expect(counter, fresh);
    }
    for (counter, fresh) in [(7, false), (WINDOW, true), (WINDOW - 1, true), (2, true), (2, false)] {
        expect(counter, fresh);
    }
    for (counter, fresh) in [(WINDOW + 16, true), (3, false), (WINDOW + 16, false)] {
        expect(counter, fresh);
    }
    for (counter, fresh) in [(WINDOW * 4, true), (WINDOW * 4 - (WINDOW - 1), true), (10, false)] {
        expect(counter, fresh);
    }
    for (counter, fresh) in [(WINDOW * 4 - WINDOW, true), (WINDOW * 4 - WINDOW - 1, false)] {
        expect(counter, fresh);
    }
    for (counter, fresh) in [(limit - 1, true), (limit, false), (u64::MAX, false), (limit - 1, false)]
    {
        expect(counter, fresh);
    }
    for (counter, fresh) in [(limit - 2, true), (limit - WINDOW, true), (limit - WINDOW - 2, false)] {
        expect(counter, fresh);
    }
}

/// The loops that the kernel's self test of counters takes: the whole window, from each side.
#[test]
fn replay_loops() {
    fn check(run: impl Iterator<Item = u64>, rest: &[(u64, bool)]) {
        let mut window = Replay::default();
        let mut expect = |counter: u64, fresh: bool| {
            assert_eq!(window.accept(counter, u64::MAX), fresh, "{counter} then {rest:?}");
        };
        for counter in run {
            expect(counter, true);
        }
        for &(counter, fresh) in rest {
            expect(counter, fresh);
        }
    }
    check(1..=WINDOW, &[(0, true), (0, false)]);
    check(2..=WINDOW + 1, &[(1, true), (0, false)]);
    check((0..=WINDOW).rev(), &[(0, false)]);
    check((1..=WINDOW + 1).rev(), &[(0, false)]);
    check((1..=WINDOW).rev(), &[(WINDOW + 1, true), (0, false)]);
    check((1..=WINDOW).rev(), &[(0, true), (WINDOW + 1, true)]);
}

#[test]
fn index_table_agrees_with_a_map() {
    let mut dice = Dice(5);
    let (mut table, mut twin) = (IndexTable::default(), HashMap::new());
    for step in 0..100_000u64 {
        // Keys that collide in their low bits, so that clusters form and wrap around.
        let key = (dice.below(64) | dice.below(40) << 26) as u32;
        match dice.below(3) {
            0 if !twin.contains_key(&key) => {
                table.insert(key, step as u32);
                twin.insert(key, step as u32);
            }
            1 => {
                table.remove(key);
                twin.remove(&key);
            }
            _ => assert_eq!(table.get(key), twin.get(&key).copied()),
        }
        assert_eq!(table.len(), twin.len());
    }
}

#[test]
fn deadlines_agree_with_a_sorted_list() {
    let mut dice = Dice(6);
    let (mut heap, mut twin) = (Deadlines::default(), BTreeMap::new());
    for _ in 0..50_000 {
        let peer = dice.below(100) as u32;
        if dice.below(3) == 0 {
            heap.set(peer, u64::MAX);
            twin.remove(&peer);
        } else {
            let deadline = dice.below(1_000);
            heap.set(peer, deadline);
            twin.insert(peer, deadline);
        }
        let first = twin.iter().map(|(peer, deadline)| (*deadline, *peer)).min();
        assert_eq!(heap.first(), first);
        assert_eq!(heap.get(peer), twin.get(&peer).copied());
    }
}

#[test]
fn the_limiter_counts_addresses_of_ipv4_and_64s_of_ipv6() {
    let mut limiter = Limiter::default();
    let burst = |limiter: &mut Limiter, from: Endpoint| {
        (0..10).filter(|_| limiter.allow(0, &from)).count()
    };
    assert_eq!(burst(&mut limiter, Endpoint::v4([10, 0, 0, 1], 1)), 5);
    assert_eq!(burst(&mut limiter, Endpoint::v4([10, 0, 0, 1], 2)), 0, "ports do not matter");
    assert_eq!(burst(&mut limiter, Endpoint::v4([10, 0, 0, 2], 1)), 5);
    let mut ip = [1; 16];
    assert_eq!(burst(&mut limiter, Endpoint::v6(ip, 1)), 5);
    ip[15] = 2;
    assert_eq!(burst(&mut limiter, Endpoint::v6(ip, 1)), 0, "the same /64");
    ip[7] = 2;
    assert_eq!(burst(&mut limiter, Endpoint::v6(ip, 1)), 5, "another /64");
}

#[test]
fn the_limiter_is_bounded_and_forgets_quiet_sources() {
    let mut limiter = Limiter::default();
    for source in 0..SOURCES_MAX as u32 + 100 {
        let allowed = limiter.allow(10, &Endpoint::v4(source.to_be_bytes(), 1));
        assert_eq!(allowed, source < SOURCES_MAX as u32);
    }
    assert!(limiter.allow(1_500, &Endpoint::v4([200, 1, 1, 1], 1)));
    assert_eq!(limiter.sources(), 1);
}

#[test]
fn padding_is_to_16_and_not_beyond_the_mtu() {
    for (len, mtu, expected) in [
        (0, 1420, 0),
        (1, 1420, 16),
        (16, 1420, 16),
        (1408, 1420, 1408),
        (1409, 1420, 1420),
        (1420, 1420, 1420),
        (1421, 1420, 1436),
        (1300, 1280, 1312),
        (1299, 1300, 1300),
        (1420, 0, 1424),
        (65_000, 0, 65_008),
    ] {
        assert_eq!(padded(len, mtu), expected, "{len} at {mtu}");
    }
}
