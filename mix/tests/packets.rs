//! Packets from end to end: what is built unwraps to what went in, what is changed on the way is refused or cannot be
//! read, and each refusal has its name.
//!
//! The octets themselves are checked against the reference in `vectors`; here builder and mixes check each other, for
//! paths, addresses and messages at random. A failure prints the seed with which proptest repeats it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what only tests call")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use mix::crypto::keyset::SharedSecret;
use mix::crypto::pk::{PacketKey, PrivateKey};
use mix::crypto::stream::{StreamKey, prng};
use mix::crypto::surb_key::SurbKey;
use mix::crypto::{CounterRng, Digest, KeyId, sha1};
use mix::packet::build::{self, ENCRYPTED_FORWARD_LEN, Exit, Hop, Unbuildable};
use mix::packet::routing::InvalidRouting;
use mix::packet::subheader::{self, ENC_SUBHEADER_LEN, HEADER_REST_LEN, MAX_SUBHEADER_LEN, underflow_len};
use mix::packet::unwrap::{self, NotAdmitted, Novelty, Outcome, ReplayLog};
use mix::packet::{
    HEADER_LEN, Handle, HostName, HostRoute, InvalidPacket, NextHop, PACKET_LEN, PAYLOAD_LEN, Packet, Payload,
    RoutingType, Surb,
};
use mix::payload::decode::{DecodingKeys, OpenedWith, Undecodable, decode};
use mix::payload::encode::encode;
use mix::payload::fragment::Reassembly;
use mix::payload::{Capacity, Content, compress::decompress};
use proptest::prelude::*;
use proptest::sample::Index;

/// Packet keys that the mixes of all tests have. A path may come by one more than once.
static PACKET_KEYS: LazyLock<Vec<(PrivateKey, PacketKey)>> = LazyLock::new(|| {
    let mut rng = rng(1);
    let mut key = || PrivateKey::generate(2048, &mut rng).unwrap();
    (0..6).map(|_| key()).map(|private| (private.clone(), PacketKey::new(&private).unwrap())).collect()
});

/// Keys of recipients of encrypted forward messages, from the smallest to the largest that is allowed.
static RECIPIENT_KEYS: LazyLock<Vec<PrivateKey>> = LazyLock::new(|| {
    let mut rng = rng(2);
    [1024, 1536, 2048, 3072, 4096].map(|bits| PrivateKey::generate(bits, &mut rng).unwrap()).into()
});

fn rng(seed: u8) -> CounterRng {
    CounterRng::new(&StreamKey::new([seed; 16]))
}

/// A mix on a path: which of the keys it has, and where it is.
#[derive(Clone, Debug)]
struct Mix {
    key: usize,
    route: HostRoute,
}

impl Mix {
    fn hop(&self) -> Hop {
        Hop { packet_key: PACKET_KEYS[self.key].0.public_key(), route: self.route.clone() }
    }
}

fn mixes() -> impl Strategy<Value = Mix> {
    ("[a-z0-9]{1,12}(\\.[a-z0-9-]{1,12}){0,2}", any::<u16>(), any::<[u8; 20]>(), 0usize..6).prop_map(
        |(host, port, key_id, key)| Mix {
            key,
            route: HostRoute { host: HostName::parse(&host).unwrap(), port, key_id: KeyId(key_id) },
        },
    )
}

fn legs() -> impl Strategy<Value = Vec<Mix>> {
    prop::collection::vec(mixes(), 1..=8)
}

/// Exit types known and unknown, and addresses of any octets.
fn exits() -> impl Strategy<Value = Exit> {
    const KNOWN: &[RoutingType] = &[RoutingType::SMTP, RoutingType::MBOX, RoutingType::FRAGMENT, RoutingType::PING];
    let exit_type = prop_oneof![prop::sample::select(KNOWN), (0x0100..=u16::MAX).prop_map(RoutingType)];
    (exit_type, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(exit_type, address)| Exit { exit_type, address })
}

/// Exits whose recipient gets a handle.
fn exits_with_handle() -> impl Strategy<Value = Exit> {
    exits().prop_filter("has a handle", |exit| exit.exit_type.has_handle())
}

/// Messages that fit one payload and messages that need several, compressible and not.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..2000),
        1 => ("[a-z ]{1,40}", 1usize..4000).prop_map(|(words, times)| words.repeat(times).into_bytes()),
        2 => (any::<[u8; 16]>(), 20_000usize..120_000).prop_map(|(key, len)| prng(&StreamKey::new(key), len)),
    ]
}

fn hops(leg: &[Mix]) -> Vec<Hop> {
    leg.iter().map(Mix::hop).collect()
}

/// A replay log in memory.
#[derive(Default)]
struct Seen(HashSet<(Digest, Digest)>);

impl ReplayLog for Seen {
    type Error = Infallible;

    fn admit(&mut self, packet_key: &Digest, replay_hash: &Digest) -> Result<Novelty, Self::Error> {
        Ok(if self.0.insert((*packet_key, *replay_hash)) { Novelty::New } else { Novelty::Replay })
    }
}

#[derive(Debug, PartialEq)]
enum Refused {
    Invalid(InvalidPacket),
    Replayed,
}

fn process(packet: &Packet, key: &PacketKey, log: &mut Seen) -> Result<Outcome, Refused> {
    let admitted = unwrap::open(packet, &[key]).map_err(Refused::Invalid)?.admit(log).map_err(|e| match e {
        NotAdmitted::Replay => Refused::Replayed,
        NotAdmitted::Log(e) => match e {},
    })?;
    admitted.process().map_err(Refused::Invalid)
}

/// Sends the packet along the path. Each mix must name the one that comes next.
fn travel(mut packet: Packet, path: &[Mix]) -> Result<Outcome, Refused> {
    for (place, mix) in path.iter().enumerate() {
        match process(&packet, &PACKET_KEYS[mix.key].1, &mut Seen::default())? {
            Outcome::Relay { next, packet: inner } => {
                let follower = path.get(place + 1).expect("the last mix does not relay");
                assert_eq!(next, NextHop::Host(follower.route.clone()));
                packet = inner;
            }
            last => {
                assert_eq!(place, path.len() - 1, "the packet stops at the last mix");
                return Ok(last);
            }
        }
    }
    panic!("still in the network");
}

fn expect_exit(outcome: Outcome, exit: &Exit) -> (Payload, Option<Handle>) {
    let Outcome::Exit { exit_type, address, handle, payload } = outcome else { panic!("{outcome:?}") };
    assert_eq!((exit_type, &address), (exit.exit_type, &exit.address));
    assert_eq!(handle.is_some(), exit.exit_type.has_handle());
    (payload, handle)
}

/// The message in these contents: one singleton, or all fragments in any order.
fn put_together(contents: Vec<Content>) -> Vec<u8> {
    let mut reassembly: Option<Reassembly> = None;
    for content in contents {
        match content {
            Content::Singleton { compressed } => return decompress(&compressed, usize::MAX).unwrap(),
            Content::Fragment(fragment) => {
                let message = reassembly.get_or_insert_with(|| Reassembly::new(&fragment, u32::MAX).unwrap());
                message.add(fragment).unwrap();
            }
        }
    }
    decompress(&reassembly.unwrap().finish().unwrap(), usize::MAX).unwrap()
}

fn far_future() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn forward_message_arrives_as_it_was_sent(
        message in messages(), exit in exits(), leg1 in legs(), leg2 in legs(), seed: u8,
    ) {
        let mut rng = rng(seed);
        let path = [&leg1[..], &leg2].concat();
        let mut contents = Vec::new();
        for payload in encode(&message, Capacity::Plain, None, &mut rng).unwrap() {
            let payload = payload.into_payload().unwrap();
            let packet = build::forward(&payload, &exit, &hops(&leg1), &hops(&leg2), &mut rng).unwrap();
            let (arrived, handle) = expect_exit(travel(packet, &path).unwrap(), &exit);
            let decoded = decode(&arrived, handle.as_ref(), &DecodingKeys::default()).unwrap();
            prop_assert_eq!(decoded.opened_with, OpenedWith::Nothing);
            contents.push(decoded.content);
        }
        prop_assert!(put_together(contents) == message);
    }

    #[test]
    fn reply_arrives_at_whoever_made_the_reply_blocks(
        message in messages(), exit in exits_with_handle(), leg1 in legs(), leg2 in legs(), seed: u8,
    ) {
        let mut rng = rng(seed);
        let keys = [SurbKey::random(&mut rng), SurbKey::random(&mut rng)];
        let keys = DecodingKeys { surb_keys: &keys, private_keys: &[] };
        let path = [&leg1[..], &leg2].concat();
        let mut contents = Vec::new();
        for payload in encode(&message, Capacity::Plain, None, &mut rng).unwrap() {
            let surb = build::reply_block(&hops(&leg2), &exit, &keys.surb_keys[1], far_future(), &mut rng).unwrap();
            let surb = Surb::parse(&surb.to_bytes()).unwrap();
            let packet = build::reply(&payload.into_payload().unwrap(), &hops(&leg1), &surb, &mut rng).unwrap();
            let (arrived, handle) = expect_exit(travel(packet, &path).unwrap(), &exit);
            let decoded = decode(&arrived, handle.as_ref(), &keys).unwrap();
            prop_assert_eq!(decoded.opened_with, OpenedWith::SurbKey(1));
            contents.push(decoded.content);
        }
        prop_assert!(put_together(contents) == message);
    }

    #[test]
    fn encrypted_forward_message_is_read_with_the_key_of_its_recipient_alone(
        message in messages(), exit in exits_with_handle(), leg1 in legs(), leg2 in legs(), whose in 0usize..5, seed: u8,
    ) {
        let mut rng = rng(seed);
        let recipient = &RECIPIENT_KEYS[whose];
        let others: Vec<PrivateKey> =
            RECIPIENT_KEYS.iter().filter(|key| key.public_key() != recipient.public_key()).cloned().collect();
        let path = [&leg1[..], &leg2].concat();
        let mut contents = Vec::new();
        for content in encode(&message, Capacity::EncryptedForward, None, &mut rng).unwrap() {
            let (leg1, leg2, key) = (hops(&leg1), hops(&leg2), recipient.public_key());
            let packet = build::encrypted_forward(content.as_bytes(), &key, &exit, &leg1, &leg2, &mut rng).unwrap();
            let (arrived, handle) = expect_exit(travel(packet, &path).unwrap(), &exit);
            let keys = DecodingKeys { surb_keys: &[], private_keys: &RECIPIENT_KEYS };
            let decoded = decode(&arrived, handle.as_ref(), &keys).unwrap();
            prop_assert_eq!(decoded.opened_with, OpenedWith::PrivateKey(whose));
            if contents.is_empty() {
                let keys = DecodingKeys { private_keys: &others, ..keys };
                prop_assert_eq!(decode(&arrived, handle.as_ref(), &keys), Err(Undecodable::NoKey));
            }
            contents.push(decoded.content);
        }
        prop_assert!(put_together(contents) == message);
    }

    #[test]
    fn dummy_ends_at_the_last_mix(leg1 in legs(), leg2 in legs(), seed: u8) {
        let mut rng = rng(seed);
        let exit = Exit { exit_type: RoutingType::DROP, address: Vec::new() };
        let packet = build::forward(&Payload::random(&mut rng), &exit, &hops(&leg1), &hops(&leg2), &mut rng).unwrap();
        prop_assert_eq!(travel(packet, &[leg1, leg2].concat()), Ok(Outcome::Drop));
    }

    #[test]
    fn replay_is_refused_even_with_another_payload_and_second_header(
        leg1 in legs(), leg2 in legs(), rest in any::<[u8; 16]>(), seed: u8,
    ) {
        let mut rng = rng(seed);
        let exit = Exit { exit_type: RoutingType::SMTP, address: b"somebody@example.org".to_vec() };
        let packet = build::forward(&Payload::random(&mut rng), &exit, &hops(&leg1), &hops(&leg2), &mut rng).unwrap();
        let (key, mut log) = (&PACKET_KEYS[leg1[0].key].1, Seen::default());
        prop_assert!(process(&packet, key, &mut log).is_ok());
        prop_assert_eq!(process(&packet, key, &mut log), Err(Refused::Replayed));
        let (header1, _, _) = packet.parts();
        let other = [&header1[..], &prng(&StreamKey::new(rest), PACKET_LEN - header1.len())].concat();
        prop_assert_eq!(process(&Packet::from_bytes(&other).unwrap(), key, &mut log), Err(Refused::Replayed));
    }

    #[test]
    fn subheader_of_any_content_does_no_harm(
        content in prop::collection::vec(any::<u8>(), MAX_SUBHEADER_LEN), routing_type in 0u16..0x0110, info_len in 0u16..2100,
    ) {
        let mut content = content;
        let rest = prng(&StreamKey::new([3; 16]), HEADER_REST_LEN);
        // All that is refused first is right, so that what comes after is reached.
        content[..2].copy_from_slice(&subheader::VERSION);
        content[18..38].copy_from_slice(&sha1(&[&rest]).0);
        content[38..40].copy_from_slice(&info_len.to_be_bytes());
        content[40..42].copy_from_slice(&routing_type.to_be_bytes());
        let outcome = process(&packet_with(&content, &rest), &PACKET_KEYS[0].1, &mut Seen::default());
        let overrun = Refused::Invalid(InvalidPacket::RoutingInfoOverrun { len: usize::from(info_len) });
        prop_assert_eq!(outcome == Err(overrun), info_len > 1964);
    }
}

/// How a message that is meddled with was sent.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    Encrypted,
    Reply,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn flipped_bit_is_refused_or_leaves_nothing_to_read(
        way in prop::sample::select(&[Way::Plain, Way::Encrypted, Way::Reply][..]),
        leg1 in prop::collection::vec(mixes(), 1..=3),
        leg2 in prop::collection::vec(mixes(), 1..=3),
        place in any::<Index>(),
        // Headers are short beside the payload, but there is more in them to get wrong.
        bit in prop_oneof![0..8 * ENC_SUBHEADER_LEN, 0..8 * 4096usize, 0..8 * PACKET_LEN],
        seed: u8,
    ) {
        let mut rng = rng(seed);
        let exit = Exit { exit_type: RoutingType::SMTP, address: b"somebody@example.org".to_vec() };
        let surb_keys = [SurbKey::random(&mut rng)];
        let private_keys = &RECIPIENT_KEYS[2..3];
        let (hops1, hops2, path) = (hops(&leg1), hops(&leg2), [leg1, leg2].concat());
        let mut encoded = |capacity| encode(b"a message", capacity, None, &mut rng).unwrap().remove(0);
        let (plain, content) = (encoded(Capacity::Plain).into_payload().unwrap(), encoded(Capacity::EncryptedForward));
        let mut packet = match way {
            Way::Plain => build::forward(&plain, &exit, &hops1, &hops2, &mut rng),
            Way::Encrypted => {
                let key = private_keys[0].public_key();
                build::encrypted_forward(content.as_bytes(), &key, &exit, &hops1, &hops2, &mut rng)
            }
            Way::Reply => {
                let surb = build::reply_block(&hops2, &exit, &surb_keys[0], far_future(), &mut rng).unwrap();
                build::reply(&plain, &hops1, &surb, &mut rng)
            }
        }
        .unwrap();
        let (untouched, meddled) = path.split_at(place.index(path.len()));
        let on_second_leg = untouched.len() >= hops1.len();
        for mix in untouched {
            match process(&packet, &PACKET_KEYS[mix.key].1, &mut Seen::default()) {
                Ok(Outcome::Relay { packet: inner, .. }) => packet = inner,
                other => panic!("{other:?}"),
            }
        }
        let mut octets = packet.as_bytes().to_vec();
        octets[bit / 8] ^= 1 << (bit % 8);
        match travel(Packet::from_bytes(&octets).unwrap(), meddled) {
            Err(Refused::Invalid(InvalidPacket::WrongKey | InvalidPacket::HeaderDigest)) => {}
            Ok(outcome) => {
                let (payload, handle) = expect_exit(outcome, &exit);
                let keys = DecodingKeys { surb_keys: &surb_keys, private_keys };
                let decoded = decode(&payload, handle.as_ref(), &keys);
                if on_second_leg && (HEADER_LEN..2 * HEADER_LEN).contains(&(bit / 8)) {
                    // After the swap the second header is what is left of the first. It travels on, and nobody reads it.
                    prop_assert!(put_together(vec![decoded.unwrap().content]) == b"a message");
                } else {
                    prop_assert_eq!(decoded, Err(Undecodable::NoKey));
                }
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn noise_opens_under_no_key(key: [u8; 16]) {
        let noise = Packet::from_bytes(&prng(&StreamKey::new(key), PACKET_LEN)).unwrap();
        let keys: Vec<&PacketKey> = PACKET_KEYS.iter().map(|(_, key)| key).collect();
        prop_assert_eq!(unwrap::open(&noise, &keys).unwrap_err(), InvalidPacket::WrongKey);
    }
}

// What mixes refuse, by name.

/// A packet for the first key whose subheader has this content, before this rest of the header.
fn packet_with(subheader: &[u8], rest: &[u8]) -> Packet {
    let encrypted = PACKET_KEYS[0].0.public_key().encrypt(subheader, &mut rng(4)).unwrap();
    let headers = [&encrypted[..], rest].concat();
    Packet::from_bytes(&[&headers[..], &vec![0; PACKET_LEN - headers.len()]].concat()).unwrap()
}

/// What becomes of a packet whose only layer says this.
fn layer(routing_type: RoutingType, info: &[u8]) -> Result<Outcome, Refused> {
    let rest = [0; HEADER_REST_LEN];
    let underflow = vec![0; underflow_len(info.len())];
    let secret = SharedSecret::new([5; 16]);
    let subheader = subheader::pack(&secret, &sha1(&[&rest]), routing_type, info, &underflow);
    process(&packet_with(&subheader, &rest), &PACKET_KEYS[0].1, &mut Seen::default())
}

fn invalid(refusal: impl Into<InvalidPacket>) -> Result<Outcome, Refused> {
    Err(Refused::Invalid(refusal.into()))
}

#[test]
fn packet_of_another_length_is_refused() {
    for len in [0, 1, PACKET_LEN - 1, PACKET_LEN + 1] {
        assert_eq!(Packet::from_bytes(&vec![0; len]).unwrap_err(), InvalidPacket::Length { len });
    }
}

#[test]
fn payload_of_another_length_is_refused() {
    for len in [0, PAYLOAD_LEN - 1, PAYLOAD_LEN + 1, PACKET_LEN] {
        assert_eq!(Payload::from_bytes(&vec![0; len]).unwrap_err(), InvalidPacket::PayloadLength { len });
    }
}

#[test]
fn packet_for_another_mix_is_refused() {
    let packet = packet_with(&[0; MAX_SUBHEADER_LEN], &[0; HEADER_REST_LEN]);
    let others: Vec<&PacketKey> = PACKET_KEYS.iter().skip(1).map(|(_, key)| key).collect();
    assert_eq!(unwrap::open(&packet, &others).unwrap_err(), InvalidPacket::WrongKey);
    assert_eq!(unwrap::open(&packet, &[]).unwrap_err(), InvalidPacket::WrongKey);
}

#[test]
fn older_of_two_packet_keys_still_opens_and_names_its_own_log() {
    let exit = Exit { exit_type: RoutingType::DROP, address: Vec::new() };
    let hop = [some_mix(1, "mix").hop()];
    let packet = build::forward(&Payload::random(&mut rng(6)), &exit, &hop, &hop, &mut rng(6)).unwrap();
    let (newer, older) = (&PACKET_KEYS[2].1, &PACKET_KEYS[1].1);
    let opened = unwrap::open(&packet, &[newer, older]).unwrap();
    assert_eq!(opened.packet_key().0, older.public_key().key_id().0);
}

#[test]
fn short_subheader_is_refused() {
    let found = process(&packet_with(&[0; 213], &[0; HEADER_REST_LEN]), &PACKET_KEYS[0].1, &mut Seen::default());
    assert_eq!(found, invalid(InvalidPacket::SubheaderLength { len: 213 }));
}

#[test]
fn subheader_of_another_version_is_refused() {
    let found = process(&packet_with(&[1; 214], &[0; HEADER_REST_LEN]), &PACKET_KEYS[0].1, &mut Seen::default());
    assert_eq!(found, invalid(InvalidPacket::Version { major: 1, minor: 1 }));
}

#[test]
fn subheader_of_another_header_is_refused() {
    let digest = sha1(&[&[0; HEADER_REST_LEN]]);
    let subheader = subheader::pack(&SharedSecret::new([5; 16]), &digest, RoutingType::DROP, &[], &[0; 172]);
    let found = process(&packet_with(&subheader, &[1; HEADER_REST_LEN]), &PACKET_KEYS[0].1, &mut Seen::default());
    assert_eq!(found, invalid(InvalidPacket::HeaderDigest));
}

#[test]
fn routing_info_longer_than_the_header_is_refused() {
    let rest = [0; HEADER_REST_LEN];
    let mut subheader =
        subheader::pack(&SharedSecret::new([5; 16]), &sha1(&[&rest]), RoutingType::SMTP, &[], &[0; 172]).to_vec();
    subheader[38..40].copy_from_slice(&[0xff, 0xff]);
    let found = process(&packet_with(&subheader, &rest), &PACKET_KEYS[0].1, &mut Seen::default());
    assert_eq!(found, invalid(InvalidPacket::RoutingInfoOverrun { len: 0xffff }));
}

#[test]
fn routing_types_between_relaying_and_exits_are_refused() {
    for number in [0x0005, 0x00ff] {
        let found = layer(RoutingType(number), &[0; 30]);
        assert_eq!(found, invalid(InvalidPacket::UnknownRoutingType(RoutingType(number))));
    }
}

#[test]
fn routing_info_that_names_no_mix_is_refused() {
    assert_eq!(layer(RoutingType::FWD_HOST, &[0; 22]), invalid(InvalidRouting::Length { len: 22 }));
    assert_eq!(layer(RoutingType::SWAP_FWD_HOST, &[b'.'; 30]), invalid(InvalidRouting::HostName));
    assert_eq!(layer(RoutingType::FWD_IPV4, &[0; 25]), invalid(InvalidRouting::Length { len: 25 }));
    assert_eq!(layer(RoutingType::SWAP_FWD_IPV4, &[0; 27]), invalid(InvalidRouting::Length { len: 27 }));
}

#[test]
fn exit_info_without_room_for_a_handle_is_refused() {
    assert_eq!(layer(RoutingType::SMTP, &[0; 19]), invalid(InvalidRouting::MissingHandle { len: 19 }));
    assert!(layer(RoutingType::FRAGMENT, &[]).is_ok(), "fragments have none");
}

/// A replay log whose disk is full.
struct Full;

impl ReplayLog for Full {
    type Error = &'static str;

    fn admit(&mut self, _: &Digest, _: &Digest) -> Result<Novelty, Self::Error> {
        Err("no space left")
    }
}

#[test]
fn nothing_is_admitted_when_the_replay_log_fails() {
    let exit = Exit { exit_type: RoutingType::DROP, address: Vec::new() };
    let hop = [some_mix(0, "mix").hop()];
    let packet = build::forward(&Payload::random(&mut rng(6)), &exit, &hop, &hop, &mut rng(6)).unwrap();
    let opened = unwrap::open(&packet, &[&PACKET_KEYS[0].1]).unwrap();
    assert_eq!(opened.admit(&mut Full).unwrap_err(), NotAdmitted::Log("no space left"));
}

// What cannot be built, by name.

fn some_mix(key: usize, host: &str) -> Mix {
    Mix { key, route: HostRoute { host: HostName::parse(host).unwrap(), port: 1, key_id: KeyId([0; 20]) } }
}

/// A leg of `count` mixes with host names of `host_len` letters.
fn leg(count: usize, host_len: usize) -> Vec<Hop> {
    vec![some_mix(0, &"a".repeat(host_len)).hop(); count]
}

fn mailbox(len: usize) -> Exit {
    Exit { exit_type: RoutingType::SMTP, address: vec![b'a'; len] }
}

fn forward(exit: &Exit, leg1: &[Hop], leg2: &[Hop]) -> Result<Packet, Unbuildable> {
    build::forward(&Payload::random(&mut rng(7)), exit, leg1, leg2, &mut rng(7))
}

fn reply_block(leg: &[Hop], exit: &Exit, expires: SystemTime) -> Result<Surb, Unbuildable> {
    build::reply_block(leg, exit, &SurbKey::new(b"key".to_vec()), expires, &mut rng(7))
}

fn reply(leg1: &[Hop]) -> Result<Packet, Unbuildable> {
    let surb = reply_block(&leg(2, 100), &mailbox(9), far_future()).unwrap();
    build::reply(&Payload::random(&mut rng(7)), leg1, &surb, &mut rng(7))
}

#[test]
fn path_without_mixes_is_refused() {
    let leg = leg(1, 9);
    assert_eq!(forward(&mailbox(9), &[], &leg), Err(Unbuildable::EmptyLeg));
    assert_eq!(forward(&mailbox(9), &leg, &[]), Err(Unbuildable::EmptyLeg));
    assert_eq!(reply_block(&[], &mailbox(9), far_future()), Err(Unbuildable::EmptyLeg));
    assert_eq!(reply(&[]), Err(Unbuildable::EmptyLeg));
}

#[test]
fn leg_that_overruns_a_header_is_refused() {
    let (short, long) = (leg(8, 9), leg(11, 100));
    assert_eq!(forward(&mailbox(9), &long, &short), Err(Unbuildable::FirstLegTooLong));
    assert_eq!(forward(&mailbox(9), &short, &long), Err(Unbuildable::SecondLegTooLong));
    assert_eq!(forward(&mailbox(2000), &short, &short), Err(Unbuildable::SecondLegTooLong));
    assert_eq!(reply_block(&long, &mailbox(9), far_future()), Err(Unbuildable::SecondLegTooLong));
    assert_eq!(reply(&long), Err(Unbuildable::FirstLegTooLong));
}

#[test]
fn path_must_end_in_an_exit() {
    let leg = leg(1, 9);
    for routing_type in [RoutingType::FWD_HOST, RoutingType::SWAP_FWD_HOST, RoutingType(0x00ff)] {
        let exit = Exit { exit_type: routing_type, address: Vec::new() };
        assert_eq!(forward(&exit, &leg, &leg), Err(Unbuildable::NotAnExit(routing_type)));
    }
}

#[test]
fn replies_need_an_exit_that_hands_on_the_handle() {
    for exit_type in [RoutingType::DROP, RoutingType::FWD_HOST, RoutingType::FRAGMENT, RoutingType::PING] {
        let exit = Exit { exit_type, address: Vec::new() };
        assert_eq!(reply_block(&leg(1, 9), &exit, far_future()), Err(Unbuildable::NotAnExit(exit_type)));
    }
}

#[test]
fn mix_with_a_packet_key_of_another_size_is_refused() {
    let good = leg(1, 9);
    for key in RECIPIENT_KEYS.iter().filter(|key| key.public_key().bits() != 2048) {
        let odd = [Hop { packet_key: key.public_key(), ..good[0].clone() }];
        let refusal = Unbuildable::PacketKeySize { bits: key.public_key().bits() };
        assert_eq!(forward(&mailbox(9), &odd, &good), Err(refusal));
        assert_eq!(forward(&mailbox(9), &good, &odd), Err(refusal));
        assert_eq!(reply_block(&odd, &mailbox(9), far_future()), Err(refusal));
        assert_eq!(reply(&odd), Err(refusal));
    }
}

#[test]
fn encrypted_forward_content_of_another_length_is_refused() {
    let (leg, key) = (leg(1, 9), RECIPIENT_KEYS[0].public_key());
    for len in [0, ENCRYPTED_FORWARD_LEN - 1, ENCRYPTED_FORWARD_LEN + 1, PAYLOAD_LEN] {
        let found = build::encrypted_forward(&vec![0; len], &key, &mailbox(9), &leg, &leg, &mut rng(7));
        assert_eq!(found, Err(Unbuildable::ContentLength { len }));
    }
}

#[test]
fn reply_block_that_expires_outside_its_calendar_is_refused() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    let last = u64::from(u32::MAX);
    assert_eq!(reply_block(&leg(1, 9), &mailbox(9), before), Err(Unbuildable::Expiry));
    assert_eq!(reply_block(&leg(1, 9), &mailbox(9), at(last + 1)), Err(Unbuildable::Expiry));
    assert_eq!(reply_block(&leg(1, 9), &mailbox(9), at(last)).unwrap().expires(), at(last));
}

#[test]
fn encrypted_forward_message_needs_an_exit_that_hands_on_the_handle() {
    let (leg, key) = (leg(1, 9), RECIPIENT_KEYS[0].public_key());
    let content = vec![0; ENCRYPTED_FORWARD_LEN];
    for exit_type in [RoutingType::DROP, RoutingType::FRAGMENT, RoutingType::PING] {
        let exit = Exit { exit_type, address: Vec::new() };
        let found = build::encrypted_forward(&content, &key, &exit, &leg, &leg, &mut rng(7));
        assert_eq!(found, Err(Unbuildable::NotAnExit(exit_type)));
    }
}
