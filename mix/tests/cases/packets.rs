//! packets.json: packets built byte for byte, every hop of them unwrapped, and what is refused.

use std::collections::HashSet;

use mix::crypto::hash::Digest;
use mix::crypto::pk::{PacketKey, PrivateKey};
use mix::crypto::surb_key::SurbKey;
use mix::crypto::{CounterRng, KeyId};
use mix::packet::build::{self, Exit, Hop, Unbuildable};
use mix::packet::routing::InvalidRouting;
use mix::packet::unwrap::{self, NotAdmitted, Novelty, Outcome, ReplayLog};
use mix::packet::{HostName, HostRoute, InvalidPacket, Packet, Payload, RoutingType, Surb, header};
use mix::payload::Content;
use mix::payload::compress::decompress;
use mix::payload::decode::{self, DecodingKeys};
use mix::payload::{Capacity, encode};
use serde_json::Value;

use super::crypto::{Recorded, stream_key};
use crate::{Tally, b64, both_refuse, ensure, ensure_eq, hex, list, text, to_hex, we_differ, we_take};

pub fn run(file: &Value, tally: &mut Tally) {
    let servers: Vec<Server> = list(&file["servers"]).iter().map(Server::new).collect();
    for (part, value) in file.as_object().unwrap() {
        match part.as_str() {
            "servers" => servers.iter().for_each(|server| tally.case("server", || server.check())),
            "forward" => list(value).iter().for_each(|case| forward_case(case, &servers, tally)),
            "encrypted_forward" => list(value)
                .iter()
                .for_each(|case| tally.case(text(&case["id"]), || encrypted_forward_case(case, &servers))),
            "ipv4_forward" => tally.case("IPv4 routing", || {
                let packet = Packet::from_bytes(&b64(&value["packet_b64"])).unwrap();
                follow(packet, list(&value["hops"]), &servers).map(|_| ())
            }),
            "reply" => list(value).iter().for_each(|case| reply_case(case, &servers, tally)),
            "negative" => list(value).iter().for_each(|case| {
                tally.case(text(&case["label"]), || negative_case(case, list(&file["forward"]), &servers));
            }),
            "leg_capacity" => {
                list(value).iter().for_each(|case| tally.case("leg capacity", || leg_capacity_case(case)));
            }
            "note" => {}
            other => tally.case(other, || Err("unknown kind of case".into())),
        }
    }
}

struct Server {
    entry: Value,
    key: PacketKey,
    hop: Hop,
}

impl Server {
    fn new(entry: &Value) -> Self {
        let private = PrivateKey::from_der(&b64(&entry["packet_key_private_der_b64"])).unwrap();
        let route = HostRoute {
            host: HostName::parse(text(&entry["host"])).unwrap(),
            port: entry["port"].as_u64().unwrap() as u16,
            key_id: KeyId(hex(&entry["keyid_hex"]).try_into().unwrap()),
        };
        let hop = Hop { packet_key: private.public_key(), route };
        Self { entry: entry.clone(), key: PacketKey::new(&private).unwrap(), hop }
    }

    fn check(&self) -> Result<(), String> {
        ensure_eq!(to_hex(&self.hop.route.to_bytes()), text(&self.entry["fwd_routing_info_hex"]), "routing info");
        Ok(())
    }
}

/// A replay log in memory.
#[derive(Default)]
struct Seen(HashSet<(Digest, Digest)>);

impl ReplayLog for Seen {
    type Error = std::convert::Infallible;

    fn admit(&mut self, packet_key: &Digest, replay_hash: &Digest) -> Result<Novelty, Self::Error> {
        Ok(if self.0.insert((*packet_key, *replay_hash)) { Novelty::New } else { Novelty::Replay })
    }
}

fn leg(case: &Value, servers: &[Server]) -> Vec<Hop> {
    list(case).iter().map(|index| servers[index.as_u64().unwrap() as usize].hop.clone()).collect()
}

fn octets(entry: &Value) -> Vec<Vec<u8>> {
    list(entry).iter().map(hex).collect()
}

/// OAEP seeds in the order in which a header is built: the last mix first.
fn seeds(entry: &Value) -> Vec<Vec<u8>> {
    octets(entry).into_iter().rev().collect()
}

fn singleton(message: &Value, padding_key: &Value, expected: &Value) -> Result<Payload, String> {
    let mut rng = CounterRng::new(&stream_key(padding_key));
    let payloads =
        encode::encode(text(message).as_bytes(), Capacity::Plain, None, &mut rng).map_err(|e| e.to_string())?;
    let [payload] = payloads.as_slice() else { return Err("not a singleton".into()) };
    let payload = Payload::from_bytes(payload.as_bytes()).map_err(|e| e.to_string())?;
    ensure_eq!(mix::crypto::sha1(&[payload.as_bytes()]).to_string(), text(expected), "payload");
    Ok(payload)
}

fn forward_case(case: &Value, servers: &[Server], tally: &mut Tally) {
    let mut exit = Exit {
        exit_type: RoutingType(case["exit_type"].as_u64().unwrap() as u16),
        address: hex(&case["exit_info_hex"]),
    };
    // The reference puts a handle wherever it is told to; here the type decides, so the address begins with it.
    if case["tagged"] == true && !exit.exit_type.has_handle() && case.get("build_inputs").is_some() {
        we_differ("decoding handle of a type that has none");
        exit.address = [hex(&case["build_inputs"]["tag_hex"]), exit.address].concat();
    }
    let (leg1, leg2) = (leg(&case["path1"], servers), leg(&case["path2"], servers));
    if let Some(verdict) = case.get("build_error") {
        tally.case("fits a header", || fits_case(text(verdict), &exit, &leg1, &leg2));
        return;
    }
    tally.case(text(&case["id"]), || {
        let payload = singleton(&case["message"], &case["payload_padding_prng_key_hex"], &case["payload_sha1_hex"])?;
        let mut rng = recorded_forward(case, exit.exit_type.has_handle());
        let packet = build::forward(&payload, &exit, &leg1, &leg2, &mut rng).map_err(|e| e.to_string())?;
        ensure!(rng.is_used_up(), "less randomness taken than the reference took");
        if let Some(whole) = case.get("packet_b64") {
            ensure!(packet.as_bytes()[..] == b64(whole), "the packet differs");
        }
        ensure_eq!(packet.digest().to_string(), text(&case["packet_sha1_hex"]), "packet");
        if let Some(Outcome::Exit { payload: arrived, .. }) = follow(packet, list(&case["hops"]), servers)? {
            ensure!(arrived == payload, "another payload arrives");
        }
        Ok(())
    });
}

fn recorded_forward(case: &Value, has_handle: bool) -> Recorded {
    let inputs = &case["build_inputs"];
    let handle = if has_handle { hex(&inputs["tag_hex"]) } else { Vec::new() };
    Recorded::new(
        &[
            vec![handle],
            octets(&inputs["secrets1_hex"]),
            octets(&inputs["secrets2_hex"]),
            vec![b64(&inputs["padding2_b64"])],
            seeds(&inputs["oaep_seeds2_hex"]),
            vec![b64(&inputs["padding1_b64"])],
            seeds(&inputs["oaep_seeds1_hex"]),
        ]
        .concat(),
    )
}

fn fits_case(verdict: &str, exit: &Exit, leg1: &[Hop], leg2: &[Hop]) -> Result<(), String> {
    let mut rng = CounterRng::new(&mix::crypto::stream::StreamKey::new([5; 16]));
    let payload = Payload::random(&mut rng);
    let expected = match verdict {
        "ok" => None,
        // It counts the decoding handle twice when it looks whether an address fits.
        text if text.contains("second leg") && fits_without_the_second_handle(exit, leg2) => {
            return we_take(Some("address as long as a header holds"), text);
        }
        text if text.contains("won't fit in header") => Some(Unbuildable::SecondLegTooLong),
        text if text.contains("first leg") => Some(Unbuildable::FirstLegTooLong),
        text if text.contains("second leg") => Some(Unbuildable::SecondLegTooLong),
        other => return Err(format!("unknown verdict {other}")),
    };
    ensure_eq!(build::forward(&payload, exit, leg1, leg2, &mut rng).err(), expected, "verdict");
    Ok(())
}

fn fits_without_the_second_handle(exit: &Exit, leg2: &[Hop]) -> bool {
    let mut lens: Vec<usize> = leg2.iter().skip(1).map(|hop| hop.route.to_bytes().len()).collect();
    lens.push(exit.address.len() + 20);
    let once = header::fits(&lens);
    *lens.last_mut().expect("pushed above") += 20;
    once && !header::fits(&lens)
}

fn encrypted_forward_case(case: &Value, servers: &[Server]) -> Result<(), String> {
    let user = PrivateKey::from_der(&b64(&case["user_key_private_der_b64"])).unwrap();
    let message = text(&case["message"]).as_bytes();
    let payload = Payload::from_bytes(&b64(&case["e2e_encoded_payload_b64"])).unwrap();
    let handle = mix::packet::Handle(hex(&case["tag_hex"]).try_into().unwrap());
    if let Some(packet) = case.get("packet_b64") {
        let packet = Packet::from_bytes(&b64(packet)).unwrap();
        match follow(packet, list(&case["hops"]), servers)? {
            Some(Outcome::Exit { handle: found, payload: arrived, .. }) => {
                ensure!(found == Some(handle) && arrived == payload, "another payload arrives");
            }
            other => return Err(format!("ends in {other:?}")),
        }
    }
    ensure_eq!(decoded(&payload, &handle, &[], Some(&user))?, message, "decoded");

    // Our own encoder has other randomness; what it builds must decode to the same.
    let mut rng = CounterRng::new(&mix::crypto::stream::StreamKey::new([6; 16]));
    let content = encode::encode(message, Capacity::EncryptedForward, None, &mut rng).map_err(|e| e.to_string())?;
    let exit = Exit { exit_type: RoutingType::SMTP, address: b"a@b.example".to_vec() };
    let (leg1, leg2) = (leg(&case["path1"], servers), leg(&case["path2"], servers));
    let packet = build::encrypted_forward(content[0].as_bytes(), &user.public_key(), &exit, &leg1, &leg2, &mut rng)
        .map_err(|e| e.to_string())?;
    let path: Vec<&Server> =
        leg1.iter().chain(&leg2).map(|hop| servers.iter().find(|s| s.hop == *hop).unwrap()).collect();
    match take_all_layers(packet, &path)? {
        Outcome::Exit { handle: Some(handle), payload, .. } => {
            ensure_eq!(decoded(&payload, &handle, &[], Some(&user))?, message, "our own decoded");
        }
        other => return Err(format!("ends in {other:?}")),
    }
    Ok(())
}

/// The message that a recipient with these keys reads.
fn decoded(
    payload: &Payload,
    handle: &mix::packet::Handle,
    surb_keys: &[SurbKey],
    private: Option<&PrivateKey>,
) -> Result<Vec<u8>, String> {
    let keys = DecodingKeys { surb_keys, private_keys: private.map_or(&[], std::slice::from_ref) };
    match decode::decode(payload, Some(handle), &keys).map_err(|e| e.to_string())?.content {
        Content::Singleton { compressed } => decompress(&compressed, 1 << 20).map_err(|e| e.to_string()),
        Content::Fragment(_) => Err("a fragment".into()),
    }
}

fn take_all_layers(mut packet: Packet, path: &[&Server]) -> Result<Outcome, String> {
    for server in path {
        match process(&packet, server, &mut Seen::default()).map_err(|e| format!("{e:?}"))? {
            Outcome::Relay { packet: inner, .. } => packet = inner,
            last => return Ok(last),
        }
    }
    Err("still in the network".into())
}

#[derive(Debug, PartialEq)]
enum Refused {
    Invalid(InvalidPacket),
    Replayed,
}

fn process(packet: &Packet, server: &Server, log: &mut Seen) -> Result<Outcome, Refused> {
    let opened = unwrap::open(packet, &[&server.key]).map_err(Refused::Invalid)?;
    let admitted = opened.admit(log).map_err(|e| match e {
        NotAdmitted::Replay => Refused::Replayed,
        NotAdmitted::Log(e) => match e {},
    })?;
    admitted.process().map_err(Refused::Invalid)
}

/// Takes the packet through `hops` and compares all that the reference saw. Returns how it ended, unless refused.
fn follow(mut packet: Packet, hops: &[Value], servers: &[Server]) -> Result<Option<Outcome>, String> {
    let mut log = Seen::default();
    for hop in hops {
        let server = &servers[hop["server"].as_u64().unwrap() as usize];
        if let Some(replay_hash) = hop.get("replay_hash_hex") {
            let opened = unwrap::open(&packet, &[&server.key]).map_err(|e| e.to_string())?;
            ensure_eq!(opened.replay_hash().to_string(), text(replay_hash), "replay hash");
        }
        if let Some(application_key) = hop.get("application_key_hex") {
            let opened = unwrap::open(&packet, &[&server.key]).map_err(|e| e.to_string())?;
            let admitted = opened.admit(&mut Seen::default()).map_err(|e| format!("{e:?}"))?;
            ensure_eq!(to_hex(admitted.application_key().expose()), text(application_key), "application key");
        }
        let outcome = process(&packet, server, &mut log);
        ensure_eq!(process(&packet, server, &mut log).is_err(), true, "second time refused");
        match (text(&hop["result"]), outcome) {
            ("relay", Ok(Outcome::Relay { next, packet: inner })) => {
                check_relay(hop, &next, &inner)?;
                packet = inner;
            }
            ("deliver", Ok(outcome)) => {
                check_exit(hop, &outcome)?;
                return Ok(Some(outcome));
            }
            ("deliver", Err(refused)) => return check_missing_handle(hop, &refused).map(|()| None),
            ("drop", Ok(Outcome::Drop)) => return Ok(Some(Outcome::Drop)),
            ("error", Err(refused)) => return check_refusal(hop, &refused).map(|()| None),
            (theirs, ours) => return Err(format!("we have {ours:?}, the reference {theirs}")),
        }
    }
    Ok(None)
}

fn check_relay(hop: &Value, next: &mix::packet::NextHop, packet: &Packet) -> Result<(), String> {
    let (_, info) = next.to_routing();
    ensure_eq!(to_hex(&info), text(&hop["routing_info_hex"]), "routing info");
    ensure_eq!(Some(next.key_id()), KeyId::from_fingerprint(text(&hop["next_keyid_hex"])), "next key id");
    ensure_eq!(u64::from(next.port()), hop["next_port"].as_u64().unwrap(), "next port");
    let host = hop.get("next_host").or(hop.get("next_ip")).unwrap();
    ensure_eq!(next.host(), text(host), "next host");
    let (header1, header2, payload) = packet.parts();
    let sha1 = |octets: &[u8]| mix::crypto::sha1(&[octets]).to_string();
    for (octets, entry) in [
        (&header1[..], "next_header1_sha1_hex"),
        (&header2[..], "next_header2_sha1_hex"),
        (&payload[..], "next_payload_sha1_hex"),
        (&packet.as_bytes()[..], "next_packet_sha1_hex"),
    ] {
        if let Some(expected) = hop.get(entry) {
            ensure_eq!(sha1(octets), text(expected), entry);
        }
    }
    Ok(())
}

fn check_exit(hop: &Value, outcome: &Outcome) -> Result<(), String> {
    let Outcome::Exit { exit_type, address, handle, payload } = outcome else {
        return Err(format!("we have {outcome:?}, the reference delivers"));
    };
    ensure_eq!(u64::from(exit_type.0), hop["exit_type"].as_u64().unwrap(), "exit type");
    let info = [handle.as_ref().map_or(&[][..], |handle| &handle.0), address].concat();
    ensure_eq!(to_hex(&info), text(&hop["routing_info_hex"]), "routing info");
    if let Some(expected) = hop.get("payload_sha1_hex") {
        ensure_eq!(mix::crypto::sha1(&[payload.as_bytes()]).to_string(), text(expected), "payload");
    }
    Ok(())
}

/// The reference takes a packet without room for its handle off the network and refuses it in the delivery module; we
/// refuse it at once.
fn check_missing_handle(hop: &Value, refused: &Refused) -> Result<(), String> {
    let len = hex(&hop["routing_info_hex"]).len();
    let missing = Refused::Invalid(InvalidPacket::RoutingInfo(InvalidRouting::MissingHandle { len }));
    ensure_eq!(*refused, missing, "verdict");
    Ok(())
}

fn check_refusal(hop: &Value, refused: &Refused) -> Result<(), String> {
    let theirs = text(&hop["error"]);
    let known = [
        "Duplicate",
        "padding",
        "oaep",
        "too large",
        "digest",
        "version",
        "Unrecognized",
        "length",
        "hostname",
        "too short",
    ];
    let agreed = match refused {
        Refused::Replayed => theirs.contains("Duplicate"),
        Refused::Invalid(InvalidPacket::WrongKey) => {
            ["Bad padding", "data too large for modulus"].contains(&theirs) || theirs.contains("oaep")
        }
        Refused::Invalid(InvalidPacket::HeaderDigest) => theirs == "Invalid digest",
        Refused::Invalid(InvalidPacket::Version { .. }) => theirs == "Invalid protocol version",
        Refused::Invalid(InvalidPacket::UnknownRoutingType(_)) => theirs.starts_with("Unrecognized"),
        Refused::Invalid(InvalidPacket::SubheaderLength { .. }) => theirs.contains("length"),
        Refused::Invalid(InvalidPacket::RoutingInfo(InvalidRouting::HostName)) => theirs == "Nonsensical hostname",
        Refused::Invalid(InvalidPacket::RoutingInfo(InvalidRouting::Length { .. })) => {
            theirs.contains("too short") || theirs.contains("wrong length")
        }
        Refused::Invalid(_) => false,
    };
    let compared = known.iter().any(|word| theirs.contains(word));
    both_refuse(theirs, compared.then_some(agreed), refused)
}

fn reply_case(case: &Value, servers: &[Server], tally: &mut Tally) {
    let surb_case = &case["surb"];
    let expected = Surb::parse(&b64(&surb_case["surb_b64"])).unwrap();
    tally.case(&format!("make {}", text(&surb_case["id"])), || {
        let mut rng = Recorded::new(
            &[
                vec![hex(&surb_case["seed_tag_hex"]), b64(&surb_case["header_padding_b64"])],
                seeds(&surb_case["oaep_seeds_hex"]),
            ]
            .concat(),
        );
        let exit = Exit {
            exit_type: RoutingType(case["delivered_exit_type"].as_u64().unwrap() as u16),
            address: hex(&case["delivered_address_hex"]),
        };
        let key = SurbKey::new(hex(&surb_case["user_key_hex"]));
        let surb = build::reply_block(&leg(&surb_case["path"], servers), &exit, &key, expected.expires(), &mut rng)
            .map_err(|e| e.to_string())?;
        ensure!(rng.is_used_up(), "less randomness taken than the reference took");
        ensure_eq!(to_hex(&surb.to_bytes()), to_hex(&expected.to_bytes()), "SURB");
        ensure_eq!(u64::from(surb.use_by), surb_case["expires"].as_u64().unwrap(), "expiry");
        ensure_eq!(to_hex(surb.key.expose()), text(&surb_case["shared_key_hex"]), "key");
        ensure_eq!(surb.digest().to_string(), text(&surb_case["hex_digest"]), "digest");
        ensure_eq!(mix::payload::armor::surb_to_text(&surb), text(&surb_case["surb_ascii"]), "armour");
        Ok(())
    });
    tally.case(&format!("reply through {}", text(&surb_case["id"])), || {
        let payload =
            singleton(&case["reply_message"], &case["payload_padding_prng_key_hex"], &case["payload_sha1_hex"])?;
        let inputs = &case["build_inputs"];
        let mut rng = Recorded::new(
            &[octets(&inputs["secrets1_hex"]), vec![b64(&inputs["padding1_b64"])], seeds(&inputs["oaep_seeds1_hex"])]
                .concat(),
        );
        let packet = build::reply(&payload, &leg(&case["reply_path1"], servers), &expected, &mut rng)
            .map_err(|e| e.to_string())?;
        ensure!(rng.is_used_up(), "less randomness taken than the reference took");
        ensure_eq!(packet.digest().to_string(), text(&case["packet_sha1_hex"]), "packet");
        let Some(Outcome::Exit { exit_type, address, handle: Some(handle), payload }) =
            follow(packet, list(&case["hops"]), servers)?
        else {
            return Err("the reply does not arrive".into());
        };
        ensure_eq!(u64::from(exit_type.0), case["delivered_exit_type"].as_u64().unwrap(), "exit type");
        ensure_eq!(to_hex(&address), text(&case["delivered_address_hex"]), "address");
        ensure_eq!(to_hex(&handle.0), text(&case["delivered_tag_hex"]), "handle");
        let delivered = mix::crypto::sha1(&[payload.as_bytes()]).to_string();
        ensure_eq!(delivered, text(&case["delivered_payload_sha1_hex"]), "payload");
        let key = SurbKey::new(hex(&surb_case["user_key_hex"]));
        ensure_eq!(decoded(&payload, &handle, &[key], None)?, text(&case["reply_message"]).as_bytes(), "decoded");
        Ok(())
    });
}

fn negative_case(case: &Value, forward: &[Value], servers: &[Server]) -> Result<(), String> {
    let mut octets = match case.get("header1_b64") {
        Some(header1) => [b64(header1), vec![0; 30720]].concat(),
        None => {
            let base = forward.iter().find(|other| other["id"] == case["base"]).ok_or("unknown base")?;
            b64(&base["packet_b64"])
        }
    };
    for change in case.get("xor").map_or(&[][..], |changes| list(changes)) {
        octets[change[0].as_u64().unwrap() as usize] ^= change[1].as_u64().unwrap() as u8;
    }
    if let Some(len) = case.get("length") {
        octets.resize(len.as_u64().unwrap() as usize, 0);
    }
    match Packet::from_bytes(&octets) {
        Ok(packet) => follow(packet, list(&case["hops"]), servers).map(|_| ()),
        Err(InvalidPacket::Length { .. }) => {
            ensure_eq!(text(&case["hops"][0]["error"]), "Bad packet length", "verdict");
            Ok(())
        }
        Err(other) => Err(other.to_string()),
    }
}

fn leg_capacity_case(case: &Value) -> Result<(), String> {
    let relay_len = 22 + case["hostname_len"].as_u64().unwrap() as usize;
    let last_len = case["last_routing_info_len"].as_u64().unwrap() as usize;
    let holds = |hops: usize| header::fits(&[vec![relay_len; hops - 1], vec![last_len]].concat());
    let most = (1..40).take_while(|hops| holds(*hops)).count();
    ensure_eq!(most as u64, case["max_hops_in_leg"].as_u64().unwrap(), "hops");
    Ok(())
}
