//! Every rule of the protocol as a claim with a fake clock (whitepaper §5 and §6; where it leaves
//! room, the Linux kernel and wireguard-go). Numbers in names are those of the list of rules.

mod common;
use common::*;
use wireguard_wasm::device::{
    Device, Drop, Endpoint, Event, Notice, Now, PeerError, SendError, crypto, keypair, tai64n,
};

// 1. Rekeying.

#[test]
fn r1_initiator_rekeys_on_send_at_120_s_not_before() {
    let mut pair = connected();
    pair.pass(119_999);
    assert!(is_packet(pair.a_sends()));
    assert_eq!(pair.exchange(), vec![]);
    pair.pass(1);
    assert!(is_packet(pair.a_sends()), "the old session still carries");
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
}

#[test]
fn r1_initiator_rekeys_on_receive_at_165_s_once_per_session() {
    let mut pair = connected();
    pair.pass(164_999);
    assert!(is_packet(pair.b_sends()));
    assert_eq!(pair.a.poll(pair.now).len(), 0);
    pair.pass(1);
    assert!(is_packet(pair.b_sends()));
    assert_eq!(pair.a.poll_one(pair.now)[0], 1);
    // The initiation is lost; within this session receiving asks for no second one, though the
    // retransmission timer does.
    pair.pass(5_000);
    assert!(is_packet(pair.b_sends()));
    assert_eq!(pair.a.poll(pair.now).len(), 0);
}

#[test]
fn r1_responder_never_rekeys_by_age() {
    let mut pair = connected();
    for _ in 0..17 {
        pair.pass(10_000);
        assert!(is_packet(pair.b_sends()));
        assert!(pair.b.poll(pair.now).is_empty(), "no initiation by the responder");
        let sealed = pair.a.device.tick(pair.now);
        assert!(sealed > 0);
        pair.a.poll(pair.now);
    }
}

#[test]
fn r1_data_without_an_answer_for_15_s_starts_a_handshake() {
    let mut pair = connected();
    assert!(pair.a.send(pair.now, pair.b.ip, 100).is_some());
    pair.pass(14_999);
    assert_eq!(pair.a.tick(pair.now), vec![]);
    pair.pass(1 + 333);
    assert_eq!(pair.a.tick(pair.now), vec![1]);
}

#[test]
fn r1_an_answer_stops_the_15_s_timer() {
    let mut pair = connected();
    pair.a_sends();
    pair.pass(9_000);
    pair.b_sends();
    pair.pass(6_500);
    assert_eq!(pair.a.tick(pair.now), vec![]);
}

#[test]
fn r1_messages_beyond_rekey_after_messages_start_a_handshake() {
    let mut pair = connected();
    pair.pass(6_000);
    assert!(pair.a.device.skip_counter(0, keypair::REKEY_AFTER_MESSAGES));
    assert!(is_packet(pair.a_sends()));
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
}

#[test]
fn r1_retries_come_after_5_s_with_jitter_up_to_333_ms() {
    let mut pair = strangers();
    pair.a.send(pair.now, pair.b.ip, 100);
    assert_eq!(pair.a.poll(pair.now).len(), 1);
    let mut gaps = Vec::new();
    for _ in 0..10 {
        let due = pair.a.device.next_deadline();
        gaps.push(due - pair.now.ms);
        let wait = due - pair.now.ms;
        pair.pass(wait);
        assert_eq!(pair.a.tick(pair.now), vec![1]);
    }
    assert!(gaps.iter().all(|gap| (5_000..=5_333).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "jitter varies");
}

// 2. Giving up, zeroing, keepalives.

#[test]
fn r2_gives_up_after_90_s_and_drops_what_waits() {
    let mut pair = strangers();
    pair.a.send(pair.now, pair.b.ip, 100);
    let mut tries = pair.a.poll(pair.now).len();
    let began = pair.now.ms;
    while pair.now.ms - began < 100_000 {
        pair.pass(50);
        tries += pair.a.tick(pair.now).len();
        if pair.now.ms - began < 90_000 {
            assert_eq!(pair.a.device.peer(0).unwrap().staged_packets(), 1);
        }
    }
    assert!((17..=18).contains(&tries), "{tries} tries");
    assert_eq!(pair.a.device.peer(0).unwrap().staged_packets(), 0);
    assert_eq!(pair.a.notices(), vec![Notice::GaveUp { peer: 0 }]);
}

#[test]
fn r2_user_data_restarts_the_90_s() {
    let mut pair = strangers();
    pair.a.send(pair.now, pair.b.ip, 100);
    let began = pair.now.ms;
    while pair.now.ms - began < 80_000 {
        pair.pass(50);
        pair.a.tick(pair.now);
    }
    pair.a.send(pair.now, pair.b.ip, 100);
    let mut tries = 0;
    while pair.now.ms - began < 165_000 {
        pair.pass(50);
        tries += pair.a.tick(pair.now).len();
    }
    assert!(tries >= 14, "{tries} tries after the second packet");
    assert_eq!(pair.a.notices(), vec![]);
}

#[test]
fn r2_user_data_after_giving_up_starts_again() {
    let mut pair = strangers();
    pair.a.send(pair.now, pair.b.ip, 100);
    for _ in 0..2_000 {
        pair.pass(50);
        pair.a.tick(pair.now);
    }
    assert_eq!(pair.a.tick(pair.now), vec![]);
    pair.a.send(pair.now, pair.b.ip, 100);
    assert_eq!(pair.a.poll_one(pair.now)[0], 1);
}

#[test]
fn r2_keys_are_overwritten_after_three_times_180_s() {
    let mut pair = connected();
    pair.pass(539_999);
    pair.a.tick(pair.now);
    assert_eq!(pair.a.device.sessions(), 1);
    pair.pass(1);
    pair.a.tick(pair.now);
    assert_eq!(pair.a.device.sessions(), 0);
    assert!(pair.a.notices().contains(&Notice::Expired { peer: 0 }));
}

#[test]
fn r2_a_session_of_180_s_neither_sends_nor_reads() {
    let mut pair = connected();
    let early = pair.b.send(pair.now, pair.a.ip, 100).unwrap();
    pair.pass(180_000);
    assert_eq!(
        pair.a.receive(pair.now, &pair.b.at, &early),
        Event::Dropped(Drop::Expired)
    );
    assert!(pair.a.send(pair.now, pair.b.ip, 100).is_none(), "staged");
    assert_eq!(pair.exchange(), vec![1, 2, 4]);
}

#[test]
fn r2_passive_keepalive_10_s_after_received_data_when_nothing_was_sent() {
    let mut pair = connected();
    pair.a_sends();
    pair.pass(9_999);
    assert_eq!(pair.b.tick(pair.now), vec![]);
    pair.pass(1);
    assert_eq!(pair.b.tick(pair.now), vec![KEEPALIVE]);
}

#[test]
fn r2_passive_keepalive_is_measured_from_the_first_data_received() {
    let mut pair = connected();
    pair.a_sends();
    pair.pass(6_000);
    pair.a_sends();
    pair.pass(4_000);
    assert_eq!(pair.b.tick(pair.now), vec![KEEPALIVE]);
    // More data had come meanwhile, so there is one more.
    pair.pass(10_000);
    assert_eq!(pair.b.tick(pair.now), vec![KEEPALIVE]);
    pair.pass(60_000);
    assert_eq!(pair.b.tick(pair.now), vec![]);
}

#[test]
fn r2_sending_replaces_the_passive_keepalive() {
    let mut pair = connected();
    pair.a_sends();
    pair.pass(5_000);
    pair.b_sends();
    pair.pass(5_000);
    assert_eq!(pair.b.tick(pair.now), vec![]);
}

#[test]
fn r2_keepalives_do_not_answer_keepalives() {
    let mut pair = connected();
    pair.a_sends();
    assert_eq!(pair.live(110_000), vec![KEEPALIVE], "one keepalive, then silence");
}

#[test]
fn r2_persistent_keepalive_counts_any_traffic_as_activity() {
    let mut pair = connected();
    pair.a.device.set_keepalive(pair.now, 0, 25);
    assert_eq!(pair.exchange(), vec![KEEPALIVE], "one at once");
    pair.pass(20_000);
    pair.b_sends();
    pair.pass(6_000);
    // The passive keepalive is due later than this: 10 s after the packet.
    assert_eq!(pair.a.tick(pair.now), vec![]);
    pair.pass(4_000);
    assert_eq!(pair.a.tick(pair.now), vec![KEEPALIVE], "the passive one");
    pair.pass(24_999);
    assert_eq!(pair.a.tick(pair.now), vec![]);
    pair.pass(1);
    assert_eq!(pair.a.tick(pair.now), vec![KEEPALIVE]);
}

// 3. Sessions.

#[test]
fn r3_responder_may_not_send_before_it_is_confirmed() {
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &pair.a.at, &initiation);
    let response = pair.b.poll_one(pair.now);
    assert!(pair.b.send(pair.now, pair.a.ip, 100).is_none());
    assert!(pair.b.poll(pair.now).is_empty());
    pair.a.receive(pair.now, &pair.b.at, &response);
    let keepalive = pair.a.poll_one(pair.now);
    assert_eq!(kind(&keepalive), KEEPALIVE, "at once, since nothing is queued");
    pair.b.receive(pair.now, &pair.a.at, &keepalive);
    let data = pair.b.poll_one(pair.now);
    assert!(is_packet(pair.a.receive(pair.now, &pair.b.at, &data)));
}

#[test]
fn r3_queued_data_takes_the_place_of_the_first_keepalive() {
    let mut pair = strangers();
    for _ in 0..3 {
        assert!(pair.a.send(pair.now, pair.b.ip, 100).is_none());
    }
    assert_eq!(pair.exchange(), vec![1, 2, 4, 4, 4]);
}

#[test]
fn r3_the_previous_session_stays_readable() {
    let mut pair = connected();
    let late = pair.b.send(pair.now, pair.a.ip, 100).unwrap();
    let later = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    pair.pass(6_000);
    pair.a.device.connect(pair.now, 0);
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
    assert!(is_packet(pair.a.receive(pair.now, &pair.b.at, &late)));
    assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &later)));
}

#[test]
fn r3_a_second_rotation_ends_the_first_session() {
    let mut pair = connected();
    let late = pair.b.send(pair.now, pair.a.ip, 100).unwrap();
    for _ in 0..2 {
        pair.pass(6_000);
        pair.a.device.connect(pair.now, 0);
        pair.exchange();
    }
    assert_eq!(
        pair.a.receive(pair.now, &pair.b.at, &late),
        Event::Dropped(Drop::UnknownIndex)
    );
    assert!(pair.a.device.sessions() <= 3);
}

#[test]
fn r3_a_late_response_to_a_superseded_initiation_is_dropped() {
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let first = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &pair.a.at, &first);
    let late = pair.b.poll_one(pair.now);
    pair.pass(6_000);
    assert_eq!(pair.a.device.tick(pair.now) > 0, true);
    let second = pair.a.poll_one(pair.now);
    assert_eq!(
        pair.a.receive(pair.now, &pair.b.at, &late),
        Event::Dropped(Drop::UnknownIndex)
    );
    pair.b.receive(pair.now, &pair.a.at, &second);
    assert_eq!(pair.exchange(), vec![2, KEEPALIVE]);
    assert!(is_packet(pair.a_sends()) && is_packet(pair.b_sends()));
}

#[test]
fn r3_simultaneous_initiations_converge_at_once() {
    let mut pair = strangers();
    pair.b.device.set_endpoint(pair.now, 0, Some(pair.a.at));
    pair.a.device.connect(pair.now, 0);
    pair.b.device.connect(pair.now, 0);
    let (from_a, from_b) = (pair.a.poll_one(pair.now), pair.b.poll_one(pair.now));
    pair.a.receive(pair.now, &pair.b.at, &from_b);
    pair.b.receive(pair.now, &pair.a.at, &from_a);
    pair.exchange();
    for _ in 0..3 {
        assert!(is_packet(pair.a_sends()) && is_packet(pair.b_sends()));
    }
    assert!(!pair.live(60_000).contains(&1), "and no further handshake");
}

#[test]
fn r3_a_forged_response_leaves_the_handshake_alive() {
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &pair.a.at, &initiation);
    let response = pair.b.poll_one(pair.now);
    for at in 12..60 {
        let mut forged = response.clone();
        forged[at] ^= 1;
        restamp(&mut forged, &pair.a.public);
        assert_eq!(
            pair.a.receive(pair.now, &pair.b.at, &forged),
            Event::Dropped(Drop::BadHandshake)
        );
    }
    let event = pair.a.receive(pair.now, &pair.b.at, &response);
    assert_eq!(event, Event::Handshake { peer: 0 });
    assert_eq!(
        pair.a.receive(pair.now, &pair.b.at, &response),
        Event::Dropped(Drop::BadHandshake),
        "a response works once"
    );
}

/// Makes mac1 right again after a change, as one who knows the public key can.
fn restamp(message: &mut [u8], receiver: &[u8; 32]) {
    let at = message.len() - 32;
    let key = crypto::hash(&[b"mac1----", receiver]);
    let mac1 = crypto::mac(&key, &[&message[..at]]);
    message[at..at + 16].copy_from_slice(&mac1);
}

// 4. Stamps and floods.

#[test]
fn r4_stamps_rise_when_the_clock_steps_back_and_are_whitened() {
    let mut last = tai64n::ZERO;
    let mut dice = Dice(4);
    let mut clock = 1_700_000_000_000u64;
    for _ in 0..10_000 {
        clock = clock.wrapping_add(dice.below(40)).wrapping_sub(dice.below(40));
        let stamp = tai64n::after(&last, clock);
        assert!(stamp > last);
        let nanos = u32::from_be_bytes(stamp[8..].try_into().unwrap());
        assert!(nanos < 1_000_000_000 && nanos % (1 << 24) == 0);
        last = stamp;
    }
    assert_eq!(&tai64n::after(&tai64n::ZERO, 0)[..8], &0x4000_0000_0000_000au64.to_be_bytes());
}

#[test]
fn r4_a_handshake_works_after_the_wall_clock_stepped_back() {
    let mut pair = connected();
    pair.pass(6_000);
    pair.now.unix_ms -= 86_400_000;
    pair.a.device.connect(pair.now, 0);
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
}

#[test]
fn r4_a_replayed_initiation_is_dropped() {
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &initiation),
        Event::Handshake { peer: 0 }
    );
    pair.pass(1_000);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &initiation),
        Event::Dropped(Drop::Replayed)
    );
}

#[test]
fn r4_initiations_within_20_ms_are_dropped() {
    let mut pair = strangers();
    // A second device with the same key plays the flooding peer.
    let mut twin = node(1);
    twin.know(pair.now, &pair.b, true);
    pair.a.device.connect(pair.now, 0);
    let first = pair.a.poll_one(pair.now);
    let later = Now { unix_ms: pair.now.unix_ms + 1_000, ..pair.now };
    twin.device.connect(later, 0);
    let second = twin.poll_one(later);
    pair.b.receive(pair.now, &pair.a.at, &first);
    pair.pass(19);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &second),
        Event::Dropped(Drop::RateLimited)
    );
    pair.pass(1);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &second),
        Event::Handshake { peer: 0 }
    );
}

#[test]
fn r4_an_all_zero_shared_secret_is_refused() {
    let mut device = Device::new(&[7; 32]);
    assert_eq!(device.add_peer(&[0; 32]), Err(PeerError::BadKey));
    let mut one = [0; 32];
    one[0] = 1;
    assert_eq!(device.add_peer(&one), Err(PeerError::BadKey));
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let mut initiation = pair.a.poll_one(pair.now);
    initiation[8..40].fill(0);
    restamp(&mut initiation, &pair.b.public);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &initiation),
        Event::Dropped(Drop::BadHandshake)
    );
}

// 5. mac1, load, cookies.

#[test]
fn r5_mac1_is_always_checked() {
    let mut pair = strangers();
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    for at in 0..132 {
        let mut wrong = initiation.clone();
        wrong[at] ^= 0x80;
        let expected = if at < 4 { Drop::Malformed } else { Drop::BadMac };
        assert_eq!(
            pair.b.receive(pair.now, &pair.a.at, &wrong),
            Event::Dropped(expected),
            "byte {at}"
        );
    }
}

/// A pair whose second node is under load at once.
fn loaded() -> Pair {
    let mut pair = strangers();
    pair.b.device.set_load_limit(0);
    pair
}

fn cookie_for(pair: &mut Pair) -> Vec<u8> {
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &initiation),
        Event::Dropped(Drop::UnderLoad)
    );
    let reply = pair.b.poll_one(pair.now);
    assert_eq!((reply[0], reply.len()), (3, 64));
    reply
}

#[test]
fn r5_under_load_a_cookie_is_asked_for_and_mac2_then_completes() {
    let mut pair = loaded();
    let reply = cookie_for(&mut pair);
    let event = pair.a.receive(pair.now, &pair.b.at, &reply);
    assert_eq!(event, Event::Cookie { peer: 0 });
    assert!(pair.a.poll(pair.now).is_empty(), "no retry before its time");
    assert_eq!(pair.live(6_000)[..3], [1, 2, KEEPALIVE]);
}

#[test]
fn r5_the_cookie_is_bound_to_address_and_port() {
    for change in 0..3 {
        let mut pair = loaded();
        let reply = cookie_for(&mut pair);
        pair.a.receive(pair.now, &pair.b.at, &reply);
        pair.pass(6_000);
        pair.a.device.tick(pair.now);
        let initiation = pair.a.poll_one(pair.now);
        let mut from = pair.a.at;
        let expected = match change {
            0 => Event::Handshake { peer: 0 },
            1 => {
                from.port += 1;
                Event::Dropped(Drop::UnderLoad)
            }
            _ => {
                from.ip[3] += 1;
                Event::Dropped(Drop::UnderLoad)
            }
        };
        assert_eq!(pair.b.receive(pair.now, &from, &initiation), expected);
    }
}

#[test]
fn r5_the_cookie_expires() {
    let mut pair = loaded();
    let reply = cookie_for(&mut pair);
    pair.a.receive(pair.now, &pair.b.at, &reply);
    pair.pass(114_000);
    pair.a.device.connect(pair.now, 0);
    assert_ne!(&pair.a.poll_one(pair.now)[132..], [0; 16], "used at 114 s");
    pair.pass(6_000);
    pair.a.device.connect(pair.now, 0);
    assert_eq!(&pair.a.poll_one(pair.now)[132..], [0; 16], "gone at 120 s");
}

#[test]
fn r5_the_secret_behind_cookies_expires_at_120_s() {
    use wireguard_wasm::device::cookie::{Checker, Generator};
    let public = crypto::public_key(&[9; 32]);
    let (mut checker, mut generator) = (Checker::new(&public), Generator::new(&public));
    let from = Endpoint::v6([1; 16], 5);
    checker.set_secret(0, [3; 32].into());
    let mut message = [1; 148];
    generator.stamp(0, &mut message);
    assert!(checker.mac1_valid(&message) && !checker.mac2_valid(0, &from, &message));
    let reply = checker.reply(&from, &message, &[5; 24]);
    assert!(generator.consume(100, &reply));
    message[20] = 2;
    generator.stamp(100, &mut message);
    assert!(checker.mac2_valid(100, &from, &message));
    assert!(checker.mac2_valid(119_999, &from, &message));
    assert!(!checker.mac2_valid(120_000, &from, &message));
    assert!(!generator.consume(100, &reply), "the reply answers an older mac1");
}

#[test]
fn r5_a_cookie_reply_neither_roams_nor_completes_anything() {
    let mut pair = loaded();
    let reply = cookie_for(&mut pair);
    let elsewhere = Endpoint::v4([203, 0, 113, 9], 9);
    let event = pair.a.receive(pair.now, &elsewhere, &reply);
    assert_eq!(event, Event::Cookie { peer: 0 });
    assert_eq!(pair.a.device.peer(0).unwrap().current_endpoint(), Some(&pair.b.at));
    assert!(pair.a.send(pair.now, pair.b.ip, 100).is_none());
    assert_eq!(pair.a.notices(), vec![]);
}

#[test]
fn r5_a_forged_cookie_reply_is_dropped() {
    let mut pair = loaded();
    let reply = cookie_for(&mut pair);
    for at in 8..64 {
        let mut forged = reply.clone();
        forged[at] ^= 1;
        assert_eq!(
            pair.a.receive(pair.now, &pair.b.at, &forged),
            Event::Dropped(Drop::Forged)
        );
    }
}

#[test]
fn r5_load_is_more_handshakes_in_a_second_than_the_limit_and_lasts_a_second() {
    let mut pair = strangers();
    pair.b.device.set_load_limit(3);
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &pair.a.at, &initiation);
    for _ in 0..2 {
        let event = pair.b.receive(pair.now, &pair.a.at, &initiation);
        assert_eq!(event, Event::Dropped(Drop::Replayed));
    }
    let event = pair.b.receive(pair.now, &pair.a.at, &initiation);
    assert_eq!(event, Event::Dropped(Drop::UnderLoad));
    pair.pass(1_000);
    let event = pair.b.receive(pair.now, &pair.a.at, &initiation);
    assert_eq!(event, Event::Dropped(Drop::Replayed));
}

#[test]
fn r5_a_source_with_a_cookie_is_held_to_20_a_second_with_a_burst_of_5() {
    let mut pair = loaded();
    let reply = cookie_for(&mut pair);
    pair.a.receive(pair.now, &pair.b.at, &reply);
    pair.pass(6_000);
    pair.a.device.tick(pair.now);
    let initiation = pair.a.poll_one(pair.now);
    let mut allowed = 0;
    for _ in 0..50 {
        let event = pair.b.receive(pair.now, &pair.a.at, &initiation);
        allowed += u32::from(event != Event::Dropped(Drop::RateLimited));
    }
    assert_eq!(allowed, 5);
    for _ in 0..20 {
        pair.pass(50);
        let event = pair.b.receive(pair.now, &pair.a.at, &initiation);
        assert_ne!(event, Event::Dropped(Drop::RateLimited));
        let event = pair.b.receive(pair.now, &pair.a.at, &initiation);
        assert_eq!(event, Event::Dropped(Drop::RateLimited));
    }
}

// 6. Roaming.

#[test]
fn r6_any_authenticated_packet_roams_and_the_last_sender_wins() {
    let mut pair = connected();
    let places = [Endpoint::v4([198, 51, 100, 7], 7), Endpoint::v6([2; 16], 8), pair.a.at];
    for place in places {
        let sealed = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
        pair.b.receive(pair.now, &place, &sealed);
        assert_eq!(pair.b.device.peer(0).unwrap().current_endpoint(), Some(&place));
    }
    let relay = Endpoint { path: 3, ..Endpoint::default() };
    pair.a.device.set_keepalive(pair.now, 0, 25);
    let keepalive = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &relay, &keepalive);
    assert_eq!(pair.b.device.peer(0).unwrap().current_endpoint(), Some(&relay));
}

#[test]
fn r6_handshake_messages_roam_on_both_sides() {
    let mut pair = strangers();
    let elsewhere = Endpoint::v4([203, 0, 113, 1], 1);
    pair.a.device.connect(pair.now, 0);
    let initiation = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &elsewhere, &initiation);
    let (to, response) = pair.b.poll(pair.now).remove(0);
    assert_eq!(to, elsewhere);
    pair.a.receive(pair.now, &elsewhere, &response);
    assert_eq!(pair.a.poll(pair.now)[0].0, elsewhere);
}

#[test]
fn r6_forged_and_replayed_packets_do_not_roam() {
    let mut pair = connected();
    let elsewhere = Endpoint::v4([203, 0, 113, 1], 1);
    let sealed = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    let mut forged = sealed.clone();
    forged[40] ^= 1;
    assert_eq!(
        pair.b.receive(pair.now, &elsewhere, &forged),
        Event::Dropped(Drop::Forged)
    );
    assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &sealed)));
    assert_eq!(
        pair.b.receive(pair.now, &elsewhere, &sealed),
        Event::Dropped(Drop::Replayed)
    );
    assert_eq!(pair.b.device.peer(0).unwrap().current_endpoint(), Some(&pair.a.at));
}

// 7. Cryptokey routing.

#[test]
fn r7_an_inner_source_must_belong_to_the_peer_that_sent_it() {
    let mut pair = connected();
    let mut third = node(3);
    pair.b.know(pair.now, &third, false);
    third.know(pair.now, &pair.b, true);
    for source in [third.ip, [8, 8, 8, 8], pair.b.ip] {
        let spoofed = packet(source, pair.b.ip, 60);
        let sealed = pair.a.send_packet(pair.now, &spoofed).unwrap();
        assert_eq!(
            pair.b.receive(pair.now, &pair.a.at, &sealed),
            Event::Dropped(Drop::ForeignSource)
        );
    }
}

#[test]
fn r7_the_inner_length_trims_padding_and_a_longer_one_drops() {
    let mut pair = connected();
    for len in 20..100 {
        let sealed = pair.a.send(pair.now, pair.b.ip, len).unwrap();
        assert_eq!(sealed.len(), len.next_multiple_of(16) + 32);
        let event = pair.b.receive(pair.now, &pair.a.at, &sealed);
        assert_eq!(event, Event::Packet { peer: 0, start: 16, len });
    }
}

#[test]
fn r7_what_is_not_ip_is_neither_sent_nor_delivered() {
    let mut pair = connected();
    let mut slot = [0; 200];
    for (first, len) in [(0x15, 60), (0x45, 19), (0x65, 39), (0xff, 60), (0, 60)] {
        slot[16] = first;
        let sent = pair.a.device.encapsulate(pair.now, &mut slot, len);
        assert_eq!(sent, Err(SendError::NotIp), "{first:02x} {len}");
    }
    slot[16] = 0x45;
    slot[18..20].copy_from_slice(&61u16.to_be_bytes());
    let sent = pair.a.device.encapsulate(pair.now, &mut slot, 60);
    assert_eq!(sent, Err(SendError::NotIp), "a length beyond the packet");
}

#[test]
fn r7_removal_of_a_prefix_and_of_a_peer_is_immediate() {
    let mut pair = connected();
    let first = pair.b.send(pair.now, pair.a.ip, 100).unwrap();
    let second = pair.b.send(pair.now, pair.a.ip, 100).unwrap();
    assert!(pair.a.device.disallow(0, &pair.b.ip, 32));
    assert_eq!(
        pair.a.receive(pair.now, &pair.b.at, &first),
        Event::Dropped(Drop::ForeignSource)
    );
    let mut slot = [0; 200];
    slot[16..116].copy_from_slice(&packet(pair.a.ip, pair.b.ip, 100));
    let sent = pair.a.device.encapsulate(pair.now, &mut slot, 100);
    assert_eq!(sent, Err(SendError::NoRoute));
    assert!(pair.a.device.remove_peer(0));
    assert_eq!(
        pair.a.receive(pair.now, &pair.b.at, &second),
        Event::Dropped(Drop::UnknownIndex)
    );
    assert_eq!(pair.a.device.sessions(), 0);
    assert!(!pair.a.device.remove_peer(0));
    assert_eq!(pair.a.device.next_deadline(), u64::MAX);
}

#[test]
fn r7_a_prefix_moves_between_peers() {
    let mut device = Device::new(&[1; 32]);
    let first = device.add_peer(&crypto::public_key(&[2; 32])).unwrap();
    let second = device.add_peer(&crypto::public_key(&[3; 32])).unwrap();
    device.allow(first, &[10, 1, 0, 0], 16);
    assert_eq!(device.route(&[10, 1, 2, 3]), Some(first));
    device.allow(second, &[10, 1, 255, 255], 16);
    assert_eq!(device.route(&[10, 1, 2, 3]), Some(second));
    assert!(!device.disallow(first, &[10, 1, 0, 0], 16), "no longer its own");
    assert_eq!(device.route(&[10, 1, 2, 3]), Some(second));
    device.remove_peer(second);
    assert_eq!(device.route(&[10, 1, 2, 3]), None);
}

#[test]
fn r7_ipv6_is_routed_by_its_own_prefixes() {
    let mut pair = connected();
    let net = |last: u8| {
        let mut ip = [0; 16];
        (ip[0], ip[15]) = (0xfd, last);
        ip
    };
    pair.a.device.allow(0, &net(0), 8);
    pair.b.device.allow(0, &net(1), 128);
    let mut v6 = vec![0; 60];
    v6[0] = 0x60;
    v6[5] = 20;
    v6[8..24].copy_from_slice(&net(1));
    v6[24..40].copy_from_slice(&net(2));
    let sealed = pair.a.send_packet(pair.now, &v6).unwrap();
    let event = pair.b.receive(pair.now, &pair.a.at, &sealed);
    assert_eq!(event, Event::Packet { peer: 0, start: 16, len: 60 });
}

// 8. Replay.

#[test]
fn r8_a_data_message_is_accepted_once_in_any_order_within_the_window() {
    let mut pair = connected();
    let sealed: Vec<_> =
        (0..200).map(|_| pair.a.send(pair.now, pair.b.ip, 60).unwrap()).collect();
    for datagram in sealed.iter().rev() {
        assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, datagram)));
    }
    for datagram in &sealed {
        assert_eq!(
            pair.b.receive(pair.now, &pair.a.at, datagram),
            Event::Dropped(Drop::Replayed)
        );
    }
}

#[test]
fn r8_a_message_older_than_the_window_is_dropped() {
    let mut pair = connected();
    let old = pair.a.send(pair.now, pair.b.ip, 60).unwrap();
    let fitting = pair.a.send(pair.now, pair.b.ip, 60).unwrap();
    // `old` has counter 1: the keepalive that confirmed had 0.
    pair.a.device.skip_counter(0, 2 + 8128);
    let newest = pair.a.send(pair.now, pair.b.ip, 60).unwrap();
    assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &newest)));
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &old),
        Event::Dropped(Drop::Replayed)
    );
    assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &fitting)));
}

#[test]
fn r8_each_session_has_its_own_window() {
    let mut pair = connected();
    pair.a.device.skip_counter(0, 1 << 40);
    assert!(is_packet(pair.a_sends()));
    pair.pass(6_000);
    pair.a.device.connect(pair.now, 0);
    pair.exchange();
    assert!(is_packet(pair.a_sends()), "low counters of the new session are fresh");
}

// 9. Malformed: see also malformed.rs.

#[test]
fn r9_reserved_bytes_must_be_zero_unless_they_are_the_peers() {
    let mut pair = connected();
    let mut sealed = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    sealed[2] = 7;
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &sealed),
        Event::Dropped(Drop::Malformed)
    );
    pair.b.device.set_reserved(0, [6, 7, 8]);
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &sealed),
        Event::Dropped(Drop::Malformed),
        "another's bytes"
    );
    sealed[1..4].copy_from_slice(&[6, 7, 8]);
    assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &sealed)));
}

#[test]
fn r9_a_handshake_with_reserved_bytes_completes_and_each_message_has_them() {
    let mut pair = strangers();
    pair.a.device.set_reserved(0, [1, 2, 3]);
    pair.b.device.set_reserved(0, [1, 2, 3]);
    pair.a.send(pair.now, pair.b.ip, 100);
    for turn in 0..3 {
        let (from, to) =
            if turn % 2 == 0 { (&mut pair.a, &mut pair.b) } else { (&mut pair.b, &mut pair.a) };
        let message = from.poll_one(pair.now);
        assert_eq!(message[1..4], [1, 2, 3]);
        let event = to.receive(pair.now, &from.at, &message);
        assert!(!matches!(event, Event::Dropped(_)), "{event:?}");
    }
}

// 10. Indices, counters, nonces.

#[test]
fn r10_indices_are_random_and_live_ones_differ() {
    let mut pair = strangers();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..500 {
        pair.pass(6_000);
        pair.a.device.connect(pair.now, 0);
        for (_, datagram) in pair.a.poll(pair.now) {
            seen.insert(datagram[4..8].to_vec());
        }
        assert!(pair.a.device.sessions() <= 4);
    }
    assert_eq!(seen.len(), 500);
}

#[test]
fn r10_counters_have_64_bits() {
    let mut pair = connected();
    pair.a.device.skip_counter(0, u64::from(u32::MAX));
    for expected in [u64::from(u32::MAX), 1 << 32, (1 << 32) + 1] {
        let sealed = pair.a.send(pair.now, pair.b.ip, 60).unwrap();
        assert_eq!(u64::from_le_bytes(sealed[8..16].try_into().unwrap()), expected);
        assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &sealed)));
    }
}

#[test]
fn r10_reject_after_messages_ends_a_session_for_sender_and_receiver() {
    let mut pair = connected();
    pair.pass(6_000);
    pair.a.device.skip_counter(0, keypair::REJECT_AFTER_MESSAGES - 1);
    assert!(is_packet(pair.a_sends()), "the last one");
    assert!(pair.a.send(pair.now, pair.b.ip, 100).is_none());
    assert_eq!(pair.exchange(), vec![1, 2, 4]);
    let mut beyond = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    beyond[8..16].copy_from_slice(&keypair::REJECT_AFTER_MESSAGES.to_le_bytes());
    assert_eq!(
        pair.b.receive(pair.now, &pair.a.at, &beyond),
        Event::Dropped(Drop::Expired)
    );
}

#[test]
fn r10_without_entropy_no_handshake_is_made() {
    let mut device = Device::new(&[1; 32]);
    let now = Now { ms: 1, unix_ms: 1 };
    let peer = device.add_peer(&crypto::public_key(&[2; 32])).unwrap();
    device.set_endpoint(now, peer, Some(Endpoint::v4([1, 1, 1, 1], 1)));
    device.connect(now, peer);
    let mut slot = [0; 2048];
    assert!(device.wants_entropy() && device.poll(now, &mut slot).is_none());
    device.feed_entropy(&[1; 8192]);
    let due = device.next_deadline();
    assert!(due <= 1 + 100 + 333);
    device.tick(Now { ms: due, unix_ms: 1 });
    assert_eq!(device.poll(now, &mut slot).unwrap().len, 148);
}

/// A device that comes up again with its keys alone counts from 0 again, so that the keys must be new.
#[test]
fn r10_after_a_restart_nonces_begin_anew_under_new_keys() {
    let mut pair = connected();
    let mut seen = std::collections::HashSet::new();
    let first = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
    seen.insert((first[4..8].to_vec(), first[16..].to_vec()));
    for life in 1..20u8 {
        let mut again = node(1);
        again.device = Device::new(&again.private);
        again.device.feed_entropy(&[life; 8192]);
        again.know(pair.now, &pair.b, true);
        pair.a = again;
        pair.pass(6_000);
        pair.a.device.connect(pair.now, 0);
        assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE], "life {life}");
        let sealed = pair.a.send(pair.now, pair.b.ip, 100).unwrap();
        assert_eq!(sealed[8..16], first[8..16], "the same counter");
        assert!(seen.insert((sealed[4..8].to_vec(), sealed[16..].to_vec())), "life {life}");
        assert!(seen.iter().filter(|(_, text)| *text == sealed[16..]).count() == 1);
        assert!(is_packet(pair.b.receive(pair.now, &pair.a.at, &sealed)));
    }
    let stale = pair.b.receive(pair.now, &pair.a.at, &first);
    assert!(matches!(stale, Event::Dropped(_)), "a session of the first life has ended");
}

// 11. Settings change live.

#[test]
fn r11_a_changed_psk_leaves_the_session_and_holds_for_the_next() {
    let mut pair = connected();
    pair.a.device.set_psk(0, &[9; 32]);
    assert!(is_packet(pair.a_sends()) && is_packet(pair.b_sends()));
    pair.pass(6_000);
    pair.a.device.connect(pair.now, 0);
    assert_eq!(pair.exchange(), vec![1, 2], "the other side has no such key");
    pair.b.device.set_psk(0, &[9; 32]);
    let log = pair.live(6_000);
    assert!(log.starts_with(&[1, 2, KEEPALIVE]), "{log:?}");
    pair.a.device.set_psk(0, &[0; 32]);
    pair.b.device.set_psk(0, &[0; 32]);
    pair.pass(6_000);
    pair.a.device.connect(pair.now, 0);
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
}

#[test]
fn r11_a_changed_private_key_forces_a_handshake() {
    let mut pair = connected();
    let in_flight = pair.b.send(pair.now, pair.a.ip, 100).unwrap();
    let private = [77; 32];
    pair.a.device.set_private_key(&private);
    assert!(is_packet(pair.a.receive(pair.now, &pair.b.at, &in_flight)), "still read");
    assert!(pair.a.send(pair.now, pair.b.ip, 100).is_none(), "not sent under the old key");
    pair.a.poll(pair.now);
    pair.b.device.remove_peer(0);
    let id = pair.b.device.add_peer(&crypto::public_key(&private)).unwrap();
    pair.b.device.allow(id, &pair.a.ip, 32);
    let log = pair.live(6_000);
    assert!(log.starts_with(&[1, 2, 4]), "{log:?}");
}

#[test]
fn r11_our_own_key_is_no_peer() {
    let own = crypto::public_key(&[5; 32]);
    let mut device = Device::new(&[4; 32]);
    let id = device.add_peer(&own).unwrap();
    device.set_private_key(&[5; 32]);
    assert!(device.peer(id).is_none());
    assert_eq!(device.add_peer(&own), Err(PeerError::BadKey));
}

#[test]
fn r11_a_persistent_keepalive_changes_live() {
    let mut pair = connected();
    pair.a.device.set_keepalive(pair.now, 0, 5);
    assert_eq!(pair.a.tick(pair.now), vec![KEEPALIVE]);
    pair.pass(5_000);
    assert_eq!(pair.a.tick(pair.now), vec![KEEPALIVE]);
    pair.a.device.set_keepalive(pair.now, 0, 0);
    pair.pass(50_000);
    assert_eq!(pair.a.tick(pair.now), vec![]);
}

#[test]
fn r11_a_persistent_keepalive_starts_a_handshake_when_there_is_no_session() {
    let mut pair = strangers();
    pair.a.device.set_keepalive(pair.now, 0, 25);
    assert_eq!(pair.exchange(), vec![1, 2, KEEPALIVE]);
}

// Bounds.

#[test]
fn staged_packets_are_bounded_and_the_oldest_give_way() {
    let mut pair = strangers();
    for number in 0..200u8 {
        let mut bytes = packet(pair.a.ip, pair.b.ip, 60);
        bytes[59] = number;
        pair.a.send_packet(pair.now, &bytes);
    }
    assert_eq!(pair.a.device.peer(0).unwrap().staged_packets(), 128);
    let initiation = pair.a.poll_one(pair.now);
    pair.b.receive(pair.now, &pair.a.at, &initiation);
    let response = pair.b.poll_one(pair.now);
    pair.a.receive(pair.now, &pair.b.at, &response);
    let mut expected = 72;
    for (_, mut datagram) in pair.a.poll(pair.now) {
        assert!(is_packet(pair.b.device.receive(pair.now, &pair.a.at, &mut datagram)));
        assert_eq!(datagram[16 + 59], expected);
        expected += 1;
    }
    assert_eq!(expected, 200);
}

#[test]
fn thousands_of_peers_tick_without_losing_an_initiation() {
    let mut a = node(1);
    let mut now = Now { ms: 1_000, unix_ms: 1_700_000_000_000 };
    let peers = 3_000u32;
    for number in 0..peers {
        let public = crypto::public_key(&crypto::hash(&[&number.to_le_bytes()]));
        let id = a.device.add_peer(&public).unwrap();
        a.device.set_endpoint(now, id, Some(Endpoint::v4(number.to_le_bytes(), 1)));
        a.device.set_keepalive(now, id, 25);
    }
    let mut reached = std::collections::HashSet::new();
    for _ in 0..200 {
        now.ms += 50;
        a.feed();
        a.device.tick(now);
        reached.extend(a.poll(now).into_iter().map(|(to, _)| to.ip));
    }
    assert_eq!(reached.len(), peers as usize);
}
