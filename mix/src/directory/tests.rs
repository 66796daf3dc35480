//! What descriptors and directories must refuse, and that what is made here is read here. That it is also read by the
//! reference is shown by the vectors, whose texts have the same form.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::info::Unwritable;
use super::policy::InvalidRule;
use super::signed::InvalidThreshold;
use super::vote::{self, Clique, InvalidClique, InvalidVote, Vote};
use super::*;
use crate::crypto::pk::PrivateKey;
use crate::crypto::stream::StreamKey;
use crate::crypto::{CounterRng, KeyId, sha1};
use crate::packet::HostName;

/// 2026-11-20, a midnight.
const DAY0: u64 = 1_795_132_800;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn day(n: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(DAY0) + n * DAY
}

fn rng(seed: u8) -> CounterRng {
    CounterRng::new(&StreamKey::new([seed; 16]))
}

/// Making keys is slow, so all tests share these.
static KEYS: LazyLock<Vec<PrivateKey>> =
    LazyLock::new(|| (0..5).map(|seed| PrivateKey::generate(2048, &mut rng(seed)).unwrap()).collect());

fn name(nickname: &str) -> Nickname {
    nickname.parse().unwrap()
}

fn fields(nickname: &str) -> DescriptorFields {
    DescriptorFields {
        nickname: name(nickname),
        published: day(0) + Duration::from_secs(36_672),
        valid_after: day(0),
        valid_until: day(30),
        contact: "ops@alice.example".to_owned(),
        contact_fingerprint: None,
        comments: Some("a mix".to_owned()),
        packet_key: KEYS[4].public_key(),
        software: "mixgate 0.1.0".to_owned(),
        why_insecure: None,
        listens_at: Some((HostName::parse("mix.example").unwrap(), 48099)),
        takes_from: Policy::default(),
        connects: true,
        connects_to: Policy::default(),
        smtp: Some(Delivery { max_size: 100 * 1024, allow_from: false, mime: Some(5000 * 1024) }),
        mbox: Some(Delivery { max_size: 32 * 1024, allow_from: true, mime: None }),
        fragmented: Some(33),
    }
}

fn signed(nickname: &str, key: usize, change: impl FnOnce(&mut DescriptorFields)) -> Arc<Descriptor> {
    let mut fields = fields(nickname);
    change(&mut fields);
    Arc::new(fields.sign(&KEYS[key], &mut rng(9)).unwrap())
}

fn same(_: &mut DescriptorFields) {}

fn key_id(key: usize) -> KeyId {
    KEYS[key].public_key().key_id()
}

fn voter(key: usize) -> Voter {
    Voter { key_id: key_id(key), url: format!("http://dir{key}.example/") }
}

fn directory_fields(descriptors: Vec<Arc<Descriptor>>) -> DirectoryFields {
    DirectoryFields {
        status: Status::Consensus,
        valid_after: day(1),
        valid_until: day(2),
        recommended: descriptors.iter().map(|descriptor| descriptor.nickname().clone()).collect(),
        voters: vec![voter(3)],
        client_versions: vec!["0.0.8alpha3".to_owned(), "0.0.7".to_owned()],
        server_versions: vec!["0.0.8".to_owned(), "0.0.8rc2".to_owned(), "0.0.8alpha3".to_owned()],
        descriptors,
    }
}

fn trust(keys: &[usize], threshold: usize) -> Trust {
    Trust::new(keys.iter().map(|key| key_id(*key)), threshold).unwrap()
}

fn directory(descriptors: Vec<Arc<Descriptor>>) -> Directory {
    let text = directory_fields(descriptors).sign(&KEYS[3], &mut rng(9)).unwrap();
    Directory::parse(&text, &trust(&[3], 1), day(1)).unwrap()
}

/// Signs a text of one's own, so that only its content can be refused.
fn resigned(text: &str, key: usize) -> String {
    let blank = |line: &&str| !line.starts_with("Digest:") && !line.starts_with("Signature:");
    let rest: Vec<_> = text.lines().skip(1).filter(blank).collect();
    let stub = format!("[Server]\nDigest:\nSignature:\n{}\n", rest.join("\n"));
    let digest = sha1(&[stub.as_bytes()]);
    let signature = KEYS[key].sign(&digest.0, &mut rng(8)).unwrap();
    let (digest, signature) = (value::to_base64(&digest.0), value::to_base64(&signature));
    stub.replacen("Digest:", &format!("Digest: {digest}"), 1).replacen(
        "Signature:",
        &format!("Signature: {signature}"),
        1,
    )
}

fn changed(from: &str, to: &str) -> Result<Descriptor, InvalidDescriptor> {
    let descriptor = signed("Alice", 0, same);
    assert!(descriptor.text().contains(from), "{from}");
    Descriptor::parse(&resigned(&descriptor.text().replacen(from, to, 1), 0))
}

#[test]
fn a_descriptor_says_what_its_fields_said() {
    let descriptor = signed("Alice", 0, same);
    assert_eq!(descriptor.nickname().as_str(), "Alice");
    assert_eq!(descriptor.key_id(), key_id(0));
    assert_eq!(descriptor.published(), day(0) + Duration::from_secs(36_672));
    assert_eq!((descriptor.valid_after(), descriptor.valid_until()), (day(0), day(30)));
    assert_eq!(descriptor.smtp(), Some(&Delivery { max_size: 102_400, allow_from: false, mime: Some(5_120_000) }));
    assert_eq!(descriptor.mbox(), Some(&Delivery { max_size: 32_768, allow_from: true, mime: None }));
    assert_eq!(descriptor.fragmented(), Some(33));
    assert_eq!((descriptor.secure_configuration(), descriptor.why_insecure()), (Some(true), None));
    assert_eq!((descriptor.comments(), descriptor.contact()), (Some("a mix"), "ops@alice.example"));
    assert!(descriptor.can_relay() && descriptor.can_start() && descriptor.supports_packets());
    let route = descriptor.route().unwrap();
    assert_eq!((route.host.as_str(), route.port, route.key_id), ("mix.example", 48099, key_id(0)));
    assert_eq!(Descriptor::parse(descriptor.text()).as_ref(), Ok(descriptor.as_ref()));
}

/// Rules as an operator writes them.
fn policy(rules: &[&str]) -> Policy {
    Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

#[test]
fn rules_are_published_in_order_in_the_grammar_of_the_specification_and_read_back() {
    let descriptor = signed("Alice", 0, |fields| {
        fields.takes_from = policy(&["deny 10.1.0.0/16", "allow 10.0.0.0/8 1-65535", "deny 2001:db8::/32", "allow *"]);
        fields.connects_to = policy(&["deny 192.0.2.7 25", "allow * 1-65535"]);
    });
    let incoming =
        "Protocols: 0.3\nDeny: 10.1.0.0/255.255.0.0\nAllow: 10.0.0.0/255.0.0.0 1-65535\nAllow: *\n[Outgoing/MMTP]";
    let outgoing = "Protocols: 0.3\nDeny: 192.0.2.7 25\nAllow: * 1-65535\n";
    assert!(descriptor.text().contains(incoming), "{}", descriptor.text());
    assert!(descriptor.text().contains(outgoing), "{}", descriptor.text());
    let (incoming, outgoing) = (&descriptor.incoming().unwrap().policy, &descriptor.outgoing().unwrap().policy);
    assert_eq!(*incoming, policy(&["deny 10.1.0.0/16", "allow 10.0.0.0/8 1-65535", "allow *"]));
    assert_eq!(*outgoing, policy(&["deny 192.0.2.7 25", "allow * 1-65535"]));
}

#[test]
fn rules_decide_who_relays_to_whom_where_a_mix_is_named_by_address() {
    let at = |nickname, key, host: &'static str, change: fn(&mut DescriptorFields)| {
        signed(nickname, key, |fields| {
            fields.listens_at = Some((HostName::parse(host).unwrap(), 48099));
            change(fields);
        })
    };
    let open = at("Alice", 0, "192.0.2.1", same);
    let picky = at("Bob", 1, "192.0.2.2", |fields| fields.connects_to = policy(&["deny 192.0.2.1", "allow *"]));
    let shy = at("Carol", 2, "192.0.2.3", |fields| fields.takes_from = policy(&["allow 192.0.2.2"]));
    let named = at("Dave", 3, "mix.example", same);
    assert!(open.can_relay_to(&picky) && !picky.can_relay_to(&open), "Bob does not connect to Alice");
    assert!(picky.can_relay_to(&shy) && !open.can_relay_to(&shy), "Carol takes from Bob alone");
    assert!(picky.can_relay_to(&named) && named.can_relay_to(&shy), "nobody knows the address of a name");
    assert!(picky.can_relay_to(&picky));
}

#[test]
fn a_mix_that_takes_no_connections_has_no_route() {
    let outage = signed("Alice", 0, |fields| {
        fields.listens_at = None;
        fields.connects = false;
        (fields.smtp, fields.mbox, fields.fragmented) = (None, None, None);
    });
    let other = signed("Bob", 1, same);
    assert_eq!((outage.route(), outage.hop()), (None, None));
    assert_eq!(
        other.hop().map(|hop| (hop.packet_key, hop.route)),
        Some((KEYS[4].public_key(), other.route().unwrap()))
    );
    assert!(!outage.can_relay() && !outage.can_start());
    assert!(!outage.can_relay_to(&other) && !other.can_relay_to(&outage) && other.can_relay_to(&other));
    assert!(outage.smtp().is_none() && outage.mbox().is_none() && outage.fragmented().is_none());
}

#[test]
fn fields_that_would_forge_a_line_are_not_signed() {
    let refused = |change: fn(&mut DescriptorFields)| {
        let mut fields = fields("Alice");
        change(&mut fields);
        fields.sign(&KEYS[0], &mut rng(9)).unwrap_err()
    };
    let contact = refused(|fields| fields.contact = "a\nPacket-Versions: 9".to_owned());
    assert_eq!(contact, Unsignable::Text(Unwritable { key: "Contact".to_owned() }));
    let comments = refused(|fields| fields.comments = Some("gr\u{fc}n".to_owned()));
    assert_eq!(comments, Unsignable::Text(Unwritable { key: "Comments".to_owned() }));
    assert_eq!(refused(|fields| fields.valid_until += DAY * 4_000_000), Unsignable::Date);
    assert_eq!(
        refused(|fields| fields.valid_until = fields.valid_after),
        Unsignable::Invalid(InvalidDescriptor::NeverValid)
    );
    let long = refused(|fields| fields.comments = Some("x".repeat(1025)));
    assert!(matches!(long, Unsignable::Invalid(InvalidDescriptor::Entry(InvalidEntry::Value { key: "Comments", .. }))));
    let small = PrivateKey::generate(1024, &mut rng(7)).unwrap();
    assert_eq!(
        fields("Alice").sign(&small, &mut rng(9)),
        Err(Unsignable::Invalid(InvalidDescriptor::IdentityKeySize { bits: 1024 }))
    );
}

#[test]
fn each_bad_value_is_refused_by_its_key() {
    let bad = [
        ("Port: 48099", "Port: 65536", InvalidValue::Number { max: 65535 }),
        ("Port: 48099", "Port: -1", InvalidValue::Number { max: 65535 }),
        ("Valid-After: 2026-11-20", "Valid-After: 2026-02-30", InvalidValue::Date),
        ("Hostname: mix.example", "Hostname: mix_example", InvalidValue::HostName),
        ("Allow-From: yes", "Allow-From: maybe", InvalidValue::Boolean),
        ("Maximum-Size: 100", "Maximum-Size: -5", InvalidValue::Number { max: u32::MAX }),
        ("MIME-Maximum-Size: 5000", "MIME-Maximum-Size: much", InvalidValue::Number { max: u32::MAX }),
        ("Published: 2026-11-20 10:11:12", "Published: yesterday", InvalidValue::Time),
    ];
    for (from, to, expected) in bad {
        match changed(from, to) {
            Err(InvalidDescriptor::Entry(InvalidEntry::Value { why, .. })) => assert_eq!(why, expected, "{to}"),
            other => panic!("{to}: {other:?}"),
        }
    }
    let rule = changed("[Outgoing/MMTP]", "Deny: nobody\n[Outgoing/MMTP]");
    let address = InvalidValue::AddressPattern(InvalidRule::Address);
    match rule {
        Err(InvalidDescriptor::Entry(InvalidEntry::Value { key, why, .. })) => {
            assert_eq!((key, why), ("Deny", address))
        }
        other => panic!("{other:?}"),
    }
    let twice = changed("Port: 48099", "Port: 48099\nPort: 48099");
    assert!(matches!(twice, Err(InvalidDescriptor::Entry(InvalidEntry::Duplicate { key: "Port", .. }))));
}

#[test]
fn a_key_with_another_exponent_is_refused() {
    let der = KEYS[4].public_key().to_der();
    let mut odd = der.clone();
    // The last octets of the DER form are the exponent, 01 00 01.
    *odd.last_mut().unwrap() = 3;
    match changed(&value::to_base64(&der), &value::to_base64(&odd)) {
        Err(InvalidDescriptor::Entry(InvalidEntry::Value { key: "Packet-Key", why, .. })) => {
            assert_eq!(why, InvalidValue::Exponent);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_server_section_comes_first() {
    let descriptor = signed("Alice", 0, same);
    let moved = format!("[Testing]\nPlatform: x\n{}", descriptor.text());
    assert_eq!(Descriptor::parse(&moved), Err(InvalidDescriptor::NoServerSection));
}

#[test]
fn a_descriptor_from_a_clock_that_is_ahead_waits() {
    let descriptor = signed("Alice", 0, same);
    let published = descriptor.published();
    assert_eq!(descriptor.check_published(published - Duration::from_secs(600)), Ok(()));
    let refused = descriptor.check_published(published - Duration::from_secs(601));
    assert_eq!(refused, Err(InvalidDescriptor::PublishedInFuture));
}

#[test]
fn newer_descriptors_supersede_only_what_they_cover() {
    let lasting = |from: u32, until: u32, published: u64| {
        signed("Alice", 0, move |fields| {
            (fields.valid_after, fields.valid_until) = (day(from), day(until));
            fields.published = day(0) + Duration::from_secs(published);
        })
    };
    let old = lasting(0, 10, 0);
    let (first, second, gap, older) = (lasting(0, 5, 10), lasting(5, 12, 20), lasting(6, 12, 20), lasting(0, 10, 0));
    let superseded =
        |others: &[&Arc<Descriptor>], now| old.is_superseded_by(others.iter().map(|other| other.as_ref()), now);
    assert!(superseded(&[&second, &first], day(0)));
    assert!(!superseded(&[&first], day(0)));
    assert!(!superseded(&[&first, &gap], day(0)));
    assert!(superseded(&[&first, &gap], day(6)), "what is past needs no cover");
    assert!(!superseded(&[&older], day(0)), "published at the same time");
    let stranger = signed("Bob", 1, |fields| fields.published = day(1));
    assert!(!superseded(&[&stranger], day(0)));
}

#[test]
fn the_directory_gives_for_each_mix_the_newest_descriptor_in_force() {
    let newer = signed("Alice", 0, |fields| {
        fields.published = day(1);
        fields.valid_until = day(20);
    });
    let (old, bob) = (signed("Alice", 0, same), signed("bob", 1, |fields| fields.valid_until = day(3)));
    let found = directory(vec![bob.clone(), old.clone(), newer.clone()]);
    assert_eq!(found.descriptors().len(), 3);
    assert_eq!(found.live(day(1)), [newer.clone(), bob.clone()]);
    assert_eq!(found.live(day(3)), [newer.clone(), bob.clone()]);
    assert_eq!(found.live(day(4)), std::slice::from_ref(&newer));
    assert_eq!(found.live(day(21)), std::slice::from_ref(&old));
    assert_eq!(found.live_during(day(1), day(25)), [old]);
    assert_eq!(found.by_nickname(&name("ALICE"), day(1)), Some(newer));
    assert!(found.is_recommended(&bob));
    assert_eq!(found.client_versions(), ["0.0.7", "0.0.8alpha3"]);
    assert_eq!(found.server_versions(), ["0.0.8alpha3", "0.0.8rc2", "0.0.8"]);
    assert!(found.is_valid_at(day(1)) && !found.is_valid_at(day(2)) && !found.is_valid_at(day(0)));
}

#[test]
fn a_directory_that_too_few_trusted_servers_signed_is_refused() {
    let text = directory_fields(vec![signed("Alice", 0, same)]).sign(&KEYS[3], &mut rng(9)).unwrap();
    let parse = |text: &str, trust: &Trust| Directory::parse(text, trust, day(1)).map(|found| found.signers().len());
    assert_eq!(parse(&text, &trust(&[3], 1)), Ok(1));
    assert_eq!(parse(&text, &trust(&[2], 1)), Err(InvalidDirectory::Untrusted { signers: 0, needed: 1 }));
    assert_eq!(parse(&text, &trust(&[2, 3], 2)), Err(InvalidDirectory::Untrusted { signers: 1, needed: 2 }));
    let unsigned = text.split_at(text.find("[Directory-Info]").unwrap()).1;
    assert_eq!(parse(unsigned, &trust(&[3], 1)), Err(InvalidDirectory::Unsigned));
    let changed = text.replace("alice", "mallory");
    assert_eq!(parse(&changed, &trust(&[3], 1)), Err(InvalidDirectory::Digest { signer: key_id(3) }));
    let doubled = format!("{}{text}", text.split_at(text.find("[Directory-Info]").unwrap()).0);
    assert_eq!(parse(&doubled, &trust(&[2, 3], 2)), Err(InvalidDirectory::Untrusted { signers: 1, needed: 2 }));
    let smuggled = format!("[Recommended-Software]\n{text}");
    assert_eq!(parse(&smuggled, &trust(&[3], 1)), Err(InvalidDirectory::UnsignedSection { line: 1 }));
    let crowd = text.split_at(text.find("[Directory-Info]").unwrap()).0.repeat(65) + unsigned;
    assert_eq!(parse(&crowd, &trust(&[3], 1)), Err(InvalidDirectory::TooManySignatures));
}

#[test]
fn trust_needs_a_threshold_that_can_be_met_and_missed() {
    assert_eq!(Trust::new([key_id(0)], 0), Err(InvalidThreshold { threshold: 0, signers: 1 }));
    assert_eq!(Trust::new([key_id(0), key_id(0)], 2), Err(InvalidThreshold { threshold: 2, signers: 1 }));
    assert_eq!(Trust::majority([]), Err(InvalidThreshold { threshold: 1, signers: 0 }));
    assert_eq!(Trust::majority([key_id(0), key_id(1)]), Ok(trust(&[0, 1], 2)));
}

#[test]
fn one_malformed_descriptor_is_left_out_and_one_forged_spoils_all() {
    let (alice, bob) = (signed("Alice", 0, same), signed("Bob", 1, same));
    let sign = |body: &str| {
        let signature = signed::Signature::make(body, &KEYS[3], &mut rng(9)).unwrap();
        Directory::parse(&(signature.text() + body), &trust(&[3], 1), day(1))
    };
    let body = directory_fields(vec![alice.clone(), bob.clone()]).body().unwrap();
    let bad_port = resigned(&alice.text().replace("48099", "65536"), 0);
    let found = sign(&body.replace(alice.text(), &bad_port)).unwrap();
    assert_eq!(found.descriptors(), [bob]);
    assert!(matches!(&found.skipped(), [(_, InvalidDescriptor::Entry(InvalidEntry::Value { key: "Port", .. }))]));
    let forged = sign(&body.replace("a mix", "A mix")).unwrap_err();
    assert!(matches!(forged, InvalidDirectory::Descriptor { why: InvalidDescriptor::Digest, .. }), "{forged:?}");
}

/// A directory of Alice and Bob whose text was changed before it was signed.
fn changed_directory(from: &str, to: &str) -> Result<Directory, InvalidDirectory> {
    let body = directory_fields(vec![signed("Alice", 0, same), signed("Bob", 1, same)]).body().unwrap();
    assert!(body.contains(from), "{from}");
    let body = body.replacen(from, to, 1);
    let signature = signed::Signature::make(&body, &KEYS[3], &mut rng(9)).unwrap();
    Directory::parse(&(signature.text() + &body), &trust(&[3], 1), day(1))
}

#[test]
fn a_directory_need_not_recommend_any_software() {
    let section =
        "[Recommended-Software]\nMixminionClient: 0.0.7, 0.0.8alpha3\nMixminionServer: 0.0.8alpha3, 0.0.8rc2, 0.0.8\n";
    let found = changed_directory(section, "").unwrap();
    assert_eq!((found.client_versions(), found.server_versions(), found.descriptors().len()), (&[][..], &[][..], 2));
    let twice = changed_directory(section, &section.repeat(2)).unwrap_err();
    assert!(matches!(twice, InvalidDirectory::Entry(InvalidEntry::DuplicateSection { .. })), "{twice:?}");
}

#[test]
fn a_recommended_name_that_is_no_nickname_is_left_out() {
    let found = changed_directory("alice, bob", "alice, 9bad,, under_score").unwrap();
    assert_eq!(found.recommended().iter().map(Nickname::as_str).collect::<Vec<_>>(), ["alice"]);
}

#[test]
fn a_descriptor_holds_up_to_and_with_the_midnight_that_ends_it() {
    let descriptor = signed("Alice", 0, same);
    let (last, after) = (day(30), day(30) + Duration::from_secs(1));
    assert!(descriptor.is_valid_at(day(0)) && descriptor.is_valid_at(last) && !descriptor.is_valid_at(after));
    assert!(!descriptor.is_expired_at(last) && descriptor.is_expired_at(after));
}

#[test]
fn an_address_nobody_uses_may_stand_there_twice_but_must_be_one() {
    assert!(changed("Hostname:", "IP: 192.0.2.1\nIP: 192.0.2.2\nHostname:").is_ok());
    let odd = changed("Hostname:", "IP: 192.0.2.1\nIP: here\nHostname:");
    assert!(matches!(odd, Err(InvalidDescriptor::Entry(InvalidEntry::Value { key: "IP", .. }))));
}

#[test]
fn one_nickname_belongs_to_one_identity() {
    let conflict = |descriptors| {
        let text = directory_fields(descriptors).sign(&KEYS[3], &mut rng(9)).unwrap();
        Directory::parse(&text, &trust(&[3], 1), day(1)).unwrap_err()
    };
    let two_keys = conflict(vec![signed("Alice", 0, same), signed("alice", 1, same)]);
    assert!(matches!(two_keys, InvalidDirectory::NicknameConflict { .. }), "{two_keys:?}");
    let two_names = conflict(vec![signed("Alice", 0, same), signed("Bob", 0, same)]);
    assert!(matches!(two_names, InvalidDirectory::NicknameConflict { .. }), "{two_names:?}");
}

fn clique(keys: &[usize]) -> Clique {
    Clique::new(keys.iter().map(|key| voter(*key))).unwrap()
}

fn cast(clique: &Clique, key: usize, descriptors: &[&Arc<Descriptor>]) -> String {
    let wanted = directory_fields(descriptors.iter().map(|descriptor| Arc::clone(descriptor)).collect());
    vote::cast(&wanted, clique, &KEYS[key], &mut rng(9)).unwrap()
}

fn votes(clique: &Clique, texts: &[String]) -> Vec<Vote> {
    texts.iter().map(|text| Vote::parse(text, clique, day(1), day(1)).unwrap()).collect()
}

fn names(fields: &DirectoryFields) -> Vec<&str> {
    fields.descriptors.iter().map(|descriptor| descriptor.nickname().as_str()).collect()
}

#[test]
fn what_more_than_half_of_the_clique_wants_is_listed() {
    let (alice, bob) = (signed("Alice", 0, same), signed("Bob", 1, same));
    let clique = clique(&[0, 1, 2, 3]);
    let texts = [cast(&clique, 0, &[&alice, &bob]), cast(&clique, 1, &[&alice, &bob]), cast(&clique, 2, &[&alice])];
    let outcome = vote::tabulate(&votes(&clique, &texts), &clique, day(1)).unwrap();
    assert_eq!(names(&outcome), ["Alice"], "half is not a majority");
    assert_eq!(outcome.recommended.iter().map(Nickname::as_str).collect::<Vec<_>>(), ["alice"]);
    assert_eq!((outcome.status, outcome.valid_after, outcome.valid_until), (Status::Consensus, day(1), day(2)));
    assert_eq!(outcome.client_versions, ["0.0.7", "0.0.8alpha3"]);
    let mut reversed = votes(&clique, &texts);
    reversed.reverse();
    assert_eq!(vote::tabulate(&reversed, &clique, day(1)).unwrap().body(), outcome.body());
    let silence = vote::tabulate(&votes(&clique, &texts)[..1], &clique, day(1)).unwrap();
    assert!(silence.descriptors.is_empty() && silence.recommended.is_empty() && silence.client_versions.is_empty());
}

#[test]
fn a_vote_counts_once_and_superseded_or_late_descriptors_not_at_all() {
    let alice = signed("Alice", 0, same);
    let newer = signed("Alice", 0, |fields| fields.published = day(1));
    let expired = signed("Alice", 0, |fields| fields.valid_until = day(1));
    let far = signed("Bob", 1, |fields| (fields.valid_after, fields.valid_until) = (day(32), day(60)));
    let clique = clique(&[2, 3]);
    let texts = [cast(&clique, 2, &[&alice, &expired, &far]), cast(&clique, 3, &[&newer, &far])];
    let outcome = vote::tabulate(&votes(&clique, &texts), &clique, day(1)).unwrap();
    assert_eq!(outcome.descriptors, [newer]);
    let twice = votes(&clique, &[texts[0].clone(), texts[0].clone()]);
    assert!(vote::tabulate(&twice, &clique, day(1)).unwrap().descriptors.is_empty());
}

#[test]
fn an_identity_with_two_nicknames_is_listed_under_none() {
    let clique = clique(&[2, 3]);
    let (one, other) = (signed("Alice", 0, same), signed("Alicia", 0, same));
    let texts = [cast(&clique, 2, &[&one]), cast(&clique, 3, &[&other])];
    assert!(vote::tabulate(&votes(&clique, &texts), &clique, day(1)).unwrap().descriptors.is_empty());
}

#[test]
fn each_vote_that_does_not_count_is_refused_by_name() {
    let alice = signed("Alice", 0, same);
    let clique = clique(&[2, 3]);
    let good = cast(&clique, 2, &[&alice]);
    let parse = |text: &str, day| Vote::parse(text, &clique, day, day).map(|vote| vote.voter());
    assert_eq!(parse(&good, day(1)), Ok(key_id(2)));
    assert_eq!(parse(&good, day(2)), Err(InvalidVote::Day));
    let stranger = cast(&clique, 1, &[&alice]);
    let untrusted = InvalidDirectory::Untrusted { signers: 0, needed: 1 };
    assert_eq!(parse(&stranger, day(1)), Err(InvalidVote::Directory(untrusted)));
    let consensus = directory_fields(vec![alice.clone()]).sign(&KEYS[2], &mut rng(9)).unwrap();
    assert_eq!(parse(&consensus, day(1)), Err(InvalidVote::Directory(InvalidDirectory::NotVote)));
    let elsewhere = cast(&Clique::new([voter(2)]).unwrap(), 2, &[&alice]);
    assert_eq!(parse(&elsewhere, day(1)), Err(InvalidVote::Voters));
    let both = collect(&good, &[&cast(&clique, 3, &[&alice])]);
    assert_eq!(parse(&both.text, day(1)), Err(InvalidVote::Signatures { count: 2 }));
    let body = good.split_at(good.find("[Directory-Info]").unwrap()).1;
    let unsorted = body.replace("0.0.7, 0.0.8alpha3", "0.0.8alpha3, 0.0.7");
    let signature = signed::Signature::make(&unsorted, &KEYS[2], &mut rng(9)).unwrap();
    assert_eq!(parse(&(signature.text() + &unsorted), day(1)), Err(InvalidVote::Order));
    assert_eq!(Clique::new([]), Err(InvalidClique));
    let elsewhere = Voter { url: "http://other.example/".to_owned(), ..voter(2) };
    assert_eq!(Clique::new([voter(2), elsewhere]), Err(InvalidClique));
}

fn collect(own: &str, others: &[&str]) -> vote::Collected {
    vote::collect_signatures(own, others, &clique(&[1, 2, 3])).unwrap()
}

#[test]
fn signatures_of_the_same_text_are_collected_and_others_reported() {
    let agreed = directory_fields(vec![signed("Alice", 0, same)]);
    let by = |key: usize| agreed.sign(&KEYS[key], &mut rng(9)).unwrap();
    let other = directory_fields(vec![]).sign(&KEYS[3], &mut rng(9)).unwrap();
    let collected = collect(&by(1), &[&by(2), &other, "junk", &by(0), &by(1)]);
    assert_eq!(collected.signers, [key_id(1), key_id(2)].into_iter().collect());
    assert_eq!(collected.different, [1, 2, 3], "another text, no directory, no member");
    let found = Directory::parse(&collected.text, &trust(&[1, 2, 3], 2), day(1)).unwrap();
    assert_eq!(found.signers(), &collected.signers);
    let alone = vote::collect_signatures(&by(0), &[], &clique(&[1])).unwrap_err();
    assert_eq!(alone, InvalidDirectory::Untrusted { signers: 0, needed: 1 });
}

prop_compose! {
    fn any_fields()(
        nickname in "[A-Za-z][A-Za-z0-9-]{0,23}",
        contact in "[!-~]{1,256}",
        comments in proptest::option::of("[!-~]([ -~]{0,200}[!-~])?"),
        insecure in proptest::option::of("[!-~]{1,40}"),
        start in 0u32..5000, lifetime in 1u32..400, second in 0u64..86_400,
        host in "[a-z0-9-]{1,20}(\\.[a-z0-9-]{1,20}){0,3}", port in any::<u16>(),
        listens in any::<bool>(), connects in any::<bool>(),
        smtp in proptest::option::of((0u64..4_000_000, any::<bool>(), proptest::option::of(0u64..4_000_000))),
        mbox in proptest::option::of((0u64..4_000_000, any::<bool>(), Just(None))),
        fragmented in proptest::option::of(0u64..1_000_000),
    ) -> DescriptorFields {
        let delivery = |(kilobytes, allow_from, mime): (u64, bool, Option<u64>)| Delivery {
            max_size: kilobytes * 1024,
            allow_from,
            mime: mime.map(|kilobytes| kilobytes * 1024),
        };
        DescriptorFields {
            nickname: name(&nickname),
            published: day(start) + Duration::from_secs(second),
            valid_after: day(start),
            valid_until: day(start + lifetime),
            contact,
            comments,
            why_insecure: insecure,
            listens_at: listens.then(|| (HostName::parse(&host).unwrap(), port)),
            connects,
            smtp: smtp.map(delivery),
            mbox: mbox.map(delivery),
            fragmented,
            ..fields("Alice")
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_signed_is_read_back(fields in any_fields()) {
        let descriptor = fields.sign(&KEYS[0], &mut rng(9)).unwrap();
        prop_assert_eq!(descriptor.nickname().as_str(), fields.nickname.as_str());
        prop_assert_eq!(descriptor.contact(), &fields.contact);
        prop_assert_eq!(descriptor.comments(), fields.comments.as_deref());
        prop_assert_eq!(descriptor.why_insecure(), fields.why_insecure.as_deref());
        prop_assert_eq!(descriptor.published(), fields.published);
        prop_assert_eq!((descriptor.valid_after(), descriptor.valid_until()), (fields.valid_after, fields.valid_until));
        prop_assert_eq!(descriptor.incoming().map(|found| (found.host.clone(), found.port)), fields.listens_at);
        prop_assert_eq!(descriptor.outgoing().is_some(), fields.connects);
        prop_assert_eq!(descriptor.smtp(), fields.smtp.as_ref());
        prop_assert_eq!(descriptor.mbox(), fields.mbox.as_ref());
        prop_assert_eq!(descriptor.fragmented(), fields.fragmented);
        prop_assert_eq!(descriptor.packet_key(), &fields.packet_key);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_flipped_bit_is_refused(position in any::<prop::sample::Index>(), bit in 0u8..7) {
        let descriptor = signed("Alice", 0, same);
        let mut octets = descriptor.text().as_bytes().to_vec();
        let at = position.index(octets.len());
        octets[at] ^= 1 << bit;
        let text = String::from_utf8(octets).unwrap();
        // A space may become a tab, a line end another one, without a change of meaning: but only then.
        let unchanged = Descriptor::parse(&text).is_ok_and(|found| found == *descriptor);
        prop_assert!(Descriptor::parse(&text).is_err() || unchanged, "{}", text);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*", lines in proptest::collection::vec("(\\[[A-Za-z/-]{1,12}\\]|[A-Za-z-]{1,12}: ?[ -~]{0,30})", 0..12)) {
        let lines = lines.join("\n");
        for text in [text.as_str(), &lines, &format!("[Server]\n{lines}"), &format!("[Directory]\n{lines}"), &format!("[Directory-Info]\n{lines}")] {
            let _ = Descriptor::parse(text);
            let _ = Directory::parse(text, &trust(&[3], 1), day(1));
            let _ = Vote::parse(text, &clique(&[1]), day(1), day(1));
        }
    }
}

#[test]
fn sentence_of_an_error_is_there_once_in_all_its_causes() {
    let refused = InvalidValue::TooLong { max: 1024 };
    let entry = InvalidEntry::Value { key: "Comments", line: 9, why: refused };
    let why = Unsignable::Invalid(InvalidDescriptor::Entry(entry));
    let all = std::iter::successors(Some(&why as &dyn std::error::Error), |why| why.source());
    let sentences: Vec<_> = all.map(ToString::to_string).collect();
    assert_eq!(sentences, ["Comments on line 9: longer than 1024 characters"]);
}
