//! The primitives against published vectors: RFC 7693, 7748, 8439, Wycheproof, the KDF vectors of
//! wireguard-go, and the Noise vector of cacophony.

mod common;
use blake2::digest::consts::{U16, U20, U28, U32};
use blake2::digest::{Digest, KeyInit, Mac, Update};
use blake2::{Blake2s, Blake2s256, Blake2sMac};
use wireguard_wasm::device::crypto::{self, Key};
use wireguard_wasm::device::stitched;
use wireguard_wasm::device::noise::{self, Symmetric};
use wycheproof::TestResult;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap()).collect()
}

fn key(text: &str) -> Key {
    hex(text).try_into().unwrap()
}

// BLAKE2s.

#[test]
fn rfc7693_appendix_b_abc() {
    let expected = key("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
    assert_eq!(crypto::hash(&[b"abc"]), expected);
    assert_eq!(crypto::hash(&[b"a", b"", b"bc"]), expected);
}

/// The deterministic bytes of the RFC's self test.
fn sequence(len: usize, seed: u32) -> Vec<u8> {
    let (mut a, mut b) = (0xDEAD_4BADu32.wrapping_mul(seed), 1u32);
    (0..len)
        .map(|_| {
            let next = a.wrapping_add(b);
            (a, b) = (b, next);
            (next >> 24) as u8
        })
        .collect()
}

#[test]
fn rfc7693_appendix_e_self_test_of_all_lengths_keyed_and_not() {
    let mut all = Blake2s256::new();
    macro_rules! size {
        ($size:ty, $len:literal) => {
            for len in [0usize, 3, 64, 65, 255, 1024] {
                let input = sequence(len, len as u32);
                Update::update(&mut all, &Blake2s::<$size>::digest(&input));
                let mut keyed = Blake2sMac::<$size>::new_from_slice(&sequence($len, $len)).unwrap();
                Mac::update(&mut keyed, &input);
                Update::update(&mut all, &keyed.finalize().into_bytes());
            }
        };
    }
    size!(U16, 16);
    size!(U20, 20);
    size!(U28, 28);
    size!(U32, 32);
    let expected = "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe";
    assert_eq!(all.finalize().to_vec(), hex(expected));
}

/// <https://git.zx2c4.com/wireguard-go/tree/device/kdf_test.go>
#[test]
fn kdf_vectors_of_wireguard_go() {
    let vectors = [
        (
            "746573742d6b6579",
            "746573742d696e707574",
            "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
            "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
            "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
        ),
        (
            "776972656775617264",
            "776972656775617264",
            "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
            "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
            "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
        ),
        (
            "",
            "",
            "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
            "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
            "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
        ),
    ];
    for (secret, input, first, second, third) in vectors {
        let three: [_; 3] = crypto::kdf(&hex(secret), &hex(input));
        assert_eq!([*three[0], *three[1], *three[2]], [key(first), key(second), key(third)]);
        let two: [_; 2] = crypto::kdf(&hex(secret), &hex(input));
        assert_eq!([*two[0], *two[1]], [key(first), key(second)]);
        let one: [_; 1] = crypto::kdf(&hex(secret), &hex(input));
        assert_eq!(*one[0], key(first));
    }
}

#[test]
fn hmac_hashes_keys_longer_than_a_block() {
    let long = [0xaa; 65];
    assert_eq!(crypto::hmac(&long, &[b"x"]), crypto::hmac(&crypto::hash(&[&long]), &[b"x"]));
}

// X25519.

#[test]
fn rfc7748_section_5_2_single() {
    for (scalar, point, expected) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        assert_eq!(*crypto::dh(&key(scalar), &key(point)).unwrap(), key(expected));
    }
}

/// One million rounds with RFC7748_ROUNDS=1000000.
#[test]
fn rfc7748_section_5_2_iterated() {
    let rounds: usize =
        std::env::var("RFC7748_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000);
    let mut scalar: Key = [0; 32];
    scalar[0] = 9;
    let mut point = scalar;
    for round in 1..=rounds {
        let next = *crypto::dh(&scalar, &point).unwrap();
        (point, scalar) = (scalar, next);
        let expected = match round {
            1 => "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
            1_000 => "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
            1_000_000 => "7c3911e0ab2586fd864497297e575e6f3bc601c0883c30df5f4dd2d24f665424",
            _ => continue,
        };
        assert_eq!(scalar, key(expected), "round {round}");
    }
}

#[test]
fn rfc7748_section_6_1_key_agreement() {
    let alice = key("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let bob = key("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    let alice_public = crypto::public_key(&alice);
    let bob_public = crypto::public_key(&bob);
    assert_eq!(
        alice_public,
        key("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    );
    assert_eq!(
        bob_public,
        key("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    );
    let shared = key("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(*crypto::dh(&alice, &bob_public).unwrap(), shared);
    assert_eq!(*crypto::dh(&bob, &alice_public).unwrap(), shared);
}

#[test]
fn wycheproof_x25519() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let mut count = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let public: Key = test.public_key[..].try_into().unwrap();
        let private: Key = test.private_key[..].try_into().unwrap();
        let zero = test.shared_secret[..].iter().all(|byte| *byte == 0);
        match crypto::dh(&private, &public) {
            Some(shared) => assert_eq!(shared[..], test.shared_secret[..], "{}", test.tc_id),
            None => assert!(zero, "{}", test.tc_id),
        }
        count += 1;
    }
    assert!(count > 500, "{count}");
}

// ChaCha20-Poly1305.

/// RFC 8439 §2.8.2; Appendix A.5 is among Wycheproof's.
#[test]
fn rfc8439_section_2_8_2() {
    let secret: Key = core::array::from_fn(|i| 0x80 + i as u8);
    let nonce: [u8; 12] = hex("070000004041424344454647").try_into().unwrap();
    let ad = hex("50515253c0c1c2c3c4c5c6c7");
    let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
the future, sunscreen would be it.";
    let mut body = plain.to_vec();
    let tag = crypto::aead_seal(&secret, &nonce, &ad, &mut body);
    assert_eq!(tag.to_vec(), hex("1ae10b594f09e26a7e902ecbd0600691"));
    assert_eq!(body[..16].to_vec(), hex("d31a8d34648e60db7b86afbc53ef7ec2"));
    assert_eq!(body[96..].to_vec(), hex("3ff4def08e4b7a9de576d26586cec64b6116"));
    assert!(crypto::aead_open(&secret, &nonce, &ad, &mut body, &tag));
    assert_eq!(body, plain);
}

#[test]
fn wycheproof_chacha20_poly1305_and_xchacha20_poly1305() {
    use wycheproof::aead::{TestName, TestSet};
    for name in [TestName::ChaCha20Poly1305, TestName::XChaCha20Poly1305] {
        let set = TestSet::load(name).unwrap();
        let (mut valid, mut invalid) = (0, 0);
        for group in &set.test_groups {
            for test in &group.tests {
                let sizes = (test.nonce.len(), test.tag.len(), test.key.len());
                let secret: Key = match test.key[..].try_into() {
                    Ok(secret) => secret,
                    Err(_) => continue,
                };
                let mut body = test.ct.to_vec();
                let Ok(tag) = test.tag[..].try_into() else { continue };
                let (opened, again) = match sizes.0 {
                    12 => {
                        let nonce = test.nonce[..].try_into().unwrap();
                        let opened = crypto::aead_open(&secret, &nonce, &test.aad, &mut body, &tag);
                        let mut plain = test.pt.to_vec();
                        let made = crypto::aead_seal(&secret, &nonce, &test.aad, &mut plain);
                        (opened, (plain, made))
                    }
                    24 => {
                        let nonce = test.nonce[..].try_into().unwrap();
                        let opened = crypto::xopen(&secret, &nonce, &test.aad, &mut body, &tag);
                        let mut plain = test.pt.to_vec();
                        let made = crypto::xseal(&secret, &nonce, &test.aad, &mut plain);
                        (opened, (plain, made))
                    }
                    _ => continue,
                };
                if test.result == TestResult::Invalid {
                    assert!(!opened, "{name:?} {}", test.tc_id);
                    assert_eq!(body[..], test.ct[..], "a refused text stays as it was");
                    invalid += 1;
                } else {
                    assert!(opened, "{name:?} {}", test.tc_id);
                    assert_eq!(body[..], test.pt[..]);
                    assert_eq!(again.0[..], test.ct[..]);
                    assert_eq!(again.1[..], test.tag[..]);
                    valid += 1;
                }
            }
        }
        assert!(valid > 150 && invalid > 50, "{name:?} {valid} {invalid}");
    }
}

#[test]
fn the_nonce_of_a_counter_is_four_zeros_and_little_endian() {
    let (mut ours, mut theirs) = (*b"text", *b"text");
    let tag = crypto::seal(&[1; 32], 0x0102_0304_0506_0708, b"", &mut ours);
    let nonce = [0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
    assert_eq!(tag, crypto::aead_seal(&[1; 32], &nonce, b"", &mut theirs));
    assert_eq!(ours, theirs);
}

// Noise.

/// tests/vectors/noise_ikpsk2.json names its source.
#[test]
fn noise_ikpsk2_vector() {
    let file: serde_json::Value =
        serde_json::from_str(include_str!("vectors/noise_ikpsk2.json")).unwrap();
    let vector = &file["vectors"][0];
    let bytes = |name: &str| hex(vector[name].as_str().unwrap());
    let secret = |name: &str| -> Key { bytes(name).try_into().unwrap() };
    let message = |number: usize, part: &str| {
        hex(vector["messages"][number][part].as_str().unwrap())
    };
    let psk: Key = hex(vector["init_psks"][0].as_str().unwrap()).try_into().unwrap();
    let (initiator, responder) = (secret("init_static"), secret("resp_static"));
    let (ours, theirs) = (crypto::public_key(&initiator), crypto::public_key(&responder));
    assert_eq!(theirs, secret("init_remote_static"));
    let both = crypto::dh(&initiator, &theirs).unwrap();

    let mut first = vec![0; noise::FIRST_BYTES];
    first.extend(message(0, "payload"));
    first.extend([0; 16]);
    let mut left = Symmetric::new(&bytes("init_prologue"), &theirs);
    let ephemeral = secret("init_ephemeral");
    noise::write_first(&mut left, &ephemeral, &ours, &theirs, &both, &mut first).unwrap();
    assert_eq!(first, message(0, "ciphertext"));

    let mut right = Symmetric::new(&bytes("resp_prologue"), &theirs);
    let stranger = noise::read_first(&mut right, &responder, &first).unwrap();
    assert_eq!(stranger.public, ours);
    let mut payload = vec![0; message(0, "payload").len()];
    noise::read_payload(&mut right, &both, &first[noise::FIRST_BYTES..], &mut payload).unwrap();
    assert_eq!(payload, message(0, "payload"));

    let mut second = vec![0; noise::SECOND_BYTES];
    second.extend(message(1, "payload"));
    second.extend([0; 16]);
    let answer = secret("resp_ephemeral");
    noise::write_second(&mut right, &answer, &stranger, &psk, &mut second).unwrap();
    assert_eq!(second, message(1, "ciphertext"));
    let mut payload = vec![0; message(1, "payload").len()];
    noise::read_second(&mut left, &ephemeral, &initiator, &psk, &second, &mut payload).unwrap();
    assert_eq!(payload, message(1, "payload"));
    assert_eq!((left.hash, right.hash), (secret("handshake_hash"), secret("handshake_hash")));

    let (keys, same) = (left.split(), right.split());
    assert_eq!((*keys.initiator, *keys.responder), (*same.initiator, *same.responder));
    for number in 2..6usize {
        let mut body = message(number, "payload");
        let secret = if number % 2 == 0 { &keys.initiator } else { &keys.responder };
        let tag = crypto::seal(secret, (number as u64 - 2) / 2, b"", &mut body);
        body.extend(tag);
        assert_eq!(body, message(number, "ciphertext"));
    }
}

// The stitched AEAD that the WASM module uses, here over plain arrays: the crate is its twin.

fn agree(secret: &Key, nonce: &[u8; 12], ad: &[u8], plain: &[u8]) {
    let (mut ours, mut theirs) = (plain.to_vec(), plain.to_vec());
    let tag = stitched::seal(secret, nonce, ad, &mut ours);
    assert_eq!(tag, crypto::aead_seal(secret, nonce, ad, &mut theirs), "{}", plain.len());
    assert!(ours == theirs, "{}", plain.len());
    let mut wrong = tag;
    wrong[plain.len() % 16] ^= 0x10;
    assert!(!stitched::open(secret, nonce, ad, &mut ours, &wrong));
    assert!(ours == theirs, "a refused text stays as it was");
    assert!(stitched::open(secret, nonce, ad, &mut ours, &tag));
    assert!(ours == plain, "{}", plain.len());
}

#[test]
fn stitched_agrees_with_the_crate_at_every_length() {
    let secret = core::array::from_fn(|i| i as u8 * 7);
    for len in (0..=2_048).chain([4_096, 8_920, 65_475]) {
        let plain: Vec<u8> = (0..len).map(|i| (i * 31 >> 3) as u8).collect();
        agree(&secret, &[len as u8; 12], &plain[..len.min(len % 40)], &plain);
    }
}

#[test]
fn stitched_agrees_with_the_crate_on_wycheproof() {
    use wycheproof::aead::{TestName, TestSet};
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let mut count = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (Ok(secret), Ok(nonce), Ok(tag)) =
            (test.key[..].try_into(), test.nonce[..].try_into(), test.tag[..].try_into())
        else {
            continue;
        };
        let mut body = test.ct.to_vec();
        let opened = stitched::open(secret, nonce, &test.aad, &mut body, &tag);
        assert_eq!(opened, test.result != TestResult::Invalid, "{}", test.tc_id);
        agree(secret, nonce, &test.aad, &test.pt);
        count += 1;
    }
    assert!(count > 250, "{count}");
}

/// Keys and texts that drive the words of Poly1305 to their bounds.
#[test]
fn stitched_poly1305_agrees_with_the_crate_on_extreme_keys() {
    let mut dice = common::Dice(8439);
    let fills = [0x00, 0x01, 0x03, 0x04, 0x0f, 0x7f, 0x80, 0xf0, 0xfb, 0xfc, 0xfe, 0xff];
    for round in 0..20_000usize {
        let mut fill = |len: usize| -> Vec<u8> {
            let mut bytes = vec![fills[dice.below(12) as usize]; len];
            for byte in &mut bytes {
                if dice.below(8) == 0 {
                    *byte = fills[dice.below(12) as usize];
                }
            }
            bytes
        };
        let secret: Key = fill(32).try_into().unwrap();
        let body = fill(round % 300);
        let expected = poly_twin(&secret, &body);
        assert_eq!(stitched::authenticate(&secret, b"", &body), expected, "round {round}");
    }
}

fn poly_twin(secret: &Key, body: &[u8]) -> [u8; 16] {
    use poly1305::Poly1305;
    use poly1305::universal_hash::{KeyInit, UniversalHash};
    let mut twin = Poly1305::new(secret.into());
    twin.update_padded(body);
    let mut lengths = [0; 16];
    lengths[8..].copy_from_slice(&(body.len() as u64).to_le_bytes());
    twin.update_padded(&lengths);
    twin.finalize().into()
}

/// The largest r, with texts of ones to 2,048 bytes: no word may pass 64 bits, which this build checks.
#[test]
fn stitched_poly1305_agrees_with_the_crate_at_its_bounds() {
    for r in [[0xff; 16], [0x0f; 16], [0xfc; 16], core::array::from_fn(|i| (i < 4) as u8 * 255)] {
        for (pad, fill) in [(0x00, 0xff), (0xff, 0xff), (0xff, 0x00), (0x00, 0xfb)] {
            let mut secret = [pad; 32];
            secret[..16].copy_from_slice(&r);
            for len in 0..=2_048 {
                let body = vec![fill; len];
                let expected = poly_twin(&secret, &body);
                assert_eq!(stitched::authenticate(&secret, b"", &body), expected, "{len}");
            }
        }
    }
}

/// With r = 1 the sum is that of the blocks: around p = 2^130 - 5, 2^130, and each carry on the way.
#[test]
fn stitched_poly1305_agrees_with_the_crate_around_p() {
    let mut secret = [0; 32];
    secret[0] = 1;
    let mut count = 0;
    for pad in [0x00, 0xff] {
        secret[16..].fill(pad);
        // Two blocks and the lengths are 3 · 2^128 + 32 · 2^64 and what the blocks hold: for 2^130 - 5
        // these have to hold 2^128 - 5 - 32 · 2^64.
        let middle = 0u128.wrapping_sub(5 + (32 << 64));
        for delta in 0..12 {
            for first in [0, 1, 4, 5, 0xffff_ffff, 1 << 32, u128::from(u64::MAX), 1 << 64, 1 << 96] {
                let second = (middle - 6 + delta).wrapping_sub(first);
                let body = [first.to_le_bytes(), second.to_le_bytes()].concat();
                let tag = stitched::authenticate(&secret, b"", &body);
                assert_eq!(tag, poly_twin(&secret, &body), "{delta} {first}");
                count += 1;
            }
        }
    }
    assert_eq!(count, 216);
    // Sums that carry out of one word, or all.
    for word in 0..4 {
        for many in 1..=6 {
            for value in [0xffff_ffffu128, 0xffff_fffe, 0x8000_0000, 1] {
                let body = (value << (word * 32)).to_le_bytes().repeat(many);
                let tag = stitched::authenticate(&secret, b"", &body);
                assert_eq!(tag, poly_twin(&secret, &body), "{word} {many} {value}");
            }
        }
    }
}

/// Texts that encrypt to runs of one byte.
#[test]
fn stitched_agrees_with_the_crate_on_extreme_texts() {
    for number in 0..200u8 {
        let secret = crypto::hash(&[&[number]]);
        let nonce = [number; 12];
        for fill in [0x00, 0xff, 0x80, 0x7f, 0xfb] {
            let mut stream = vec![0; 1_420];
            crypto::aead_seal(&secret, &nonce, b"", &mut stream);
            // Encrypts to a run of `fill`.
            let plain: Vec<u8> = stream.iter().map(|byte| byte ^ fill).collect();
            agree(&secret, &nonce, &[fill; 32], &plain);
        }
    }
}
