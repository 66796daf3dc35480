use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::fixture::{DAY, NICKNAMES, mix, mix_with, names, now};
use super::super::valid::BlockLists;
use super::*;
use crate::crypto::KeyId;
use crate::packet::{HostName, HostRoute, NextHop};

const SEED: u64 = 0x6d69_7867_6174_6502;

/// A request of a test, with what it borrows.
struct Asked {
    mixes: Mixes,
    address: ExitAddress,
    surb_at: NextHop,
    files: BTreeMap<String, Arc<Descriptor>>,
    packets: usize,
    reassembled: bool,
    message_size: u64,
    lifetime: u32,
}

fn asked_of(mixes: Mixes) -> Asked {
    Asked {
        mixes,
        address: ExitAddress::parse("bob@example.com").unwrap(),
        surb_at: surb_at(mix("Surb").key_id()),
        files: BTreeMap::new(),
        packets: 1,
        reassembled: false,
        message_size: 1000,
        lifetime: 1,
    }
}

/// Of the mixes A to H, all recommended.
fn asked() -> Asked {
    asked_of(network(&NICKNAMES))
}

fn network(nicknames: &[&str]) -> Mixes {
    Mixes::new(nicknames.iter().map(|nickname| mix(nickname)), names(nicknames), BlockLists::default())
}

fn surb_at(key_id: KeyId) -> NextHop {
    NextHop::Host(HostRoute { host: HostName::parse("mix.example").unwrap(), port: 48099, key_id })
}

fn name(nickname: &str) -> Nickname {
    nickname.parse().unwrap()
}

impl Asked {
    fn paths(&self, kind: PathKind, spec: &str, rng: &mut StdRng) -> Result<Vec<Path>, NoPath> {
        let spec = PathSpec::parse(spec, kind).unwrap();
        let target = match kind {
            PathKind::Reply => Target::Surb(&self.surb_at),
            PathKind::Forward | PathKind::Surb => Target::Exit(self.exit()),
        };
        let (packets, files) = (self.packets, &self.files);
        let valid_until = now() + DAY * self.lifetime;
        select(&self.mixes, &PathRequest { spec: &spec, target, packets, valid_until, files }, now(), rng)
    }

    fn exit(&self) -> Exit<'_> {
        let (address, message_size, reassembled) = (&self.address, self.message_size, self.reassembled);
        Exit { address, message_size, from: false, reassembled, attachments: false }
    }

    fn forward(&self, spec: &str) -> Result<Vec<Path>, NoPath> {
        self.paths(PathKind::Forward, spec, &mut StdRng::seed_from_u64(SEED))
    }
}

fn shown(path: &Path) -> String {
    let leg = |leg: &[Arc<Descriptor>]| leg.iter().map(|mix| mix.nickname().to_string()).collect::<Vec<_>>().join(",");
    format!("{}:{}", leg(&path.leg1), leg(&path.leg2))
}

/// Chi-square with 7 degrees of freedom exceeds 60 once in 10^10 times.
fn assert_uniform(counts: &BTreeMap<String, f64>) {
    assert_eq!(counts.len(), 8, "{counts:?}");
    let expected = counts.values().sum::<f64>() / 8.0;
    let chi_square: f64 = counts.values().map(|count| (count - expected).powi(2) / expected).sum();
    assert!(chi_square < 60.0, "chi-square {chi_square} of {counts:?}, seed {SEED:#x}");
}

#[test]
fn every_mix_is_as_likely_in_every_place() {
    println!("seed {SEED:#x}");
    let mut rng = StdRng::seed_from_u64(SEED);
    let asked = Asked { packets: 8000, ..asked() };
    let paths = asked.paths(PathKind::Forward, "?,?:?,?", &mut rng).unwrap();
    for place in 0..4 {
        let mut counts = BTreeMap::new();
        for path in &paths {
            let mix = path.hops().nth(place).unwrap();
            *counts.entry(mix.nickname().to_string()).or_insert(0.0) += 1.0;
        }
        assert_uniform(&counts);
    }
}

#[test]
fn common_exit_of_fragments_is_as_likely_to_be_any() {
    println!("seed {SEED:#x}");
    let mut rng = StdRng::seed_from_u64(SEED);
    let asked = Asked { packets: 2, reassembled: true, ..asked() };
    let mut counts = BTreeMap::new();
    for _ in 0..2000 {
        let paths = asked.paths(PathKind::Forward, "*2", &mut rng).unwrap();
        let exits: BTreeSet<_> = paths.iter().map(|path| path.leg2.last().unwrap().nickname()).collect();
        let [exit] = exits.into_iter().collect::<Vec<_>>().try_into().expect("one exit for both packets");
        *counts.entry(exit.to_string()).or_insert(0.0) += 1.0;
    }
    assert_uniform(&counts);
}

#[test]
fn each_packet_has_its_own_path() {
    let asked = Asked { packets: 20, ..asked() };
    let paths: BTreeSet<_> = asked.forward("*6").unwrap().iter().map(shown).collect();
    assert!(paths.len() > 15, "{paths:?}");
}

#[test]
fn about_is_normally_distributed_around_its_number_and_never_nothing() {
    println!("seed {SEED:#x}");
    let mut rng = StdRng::seed_from_u64(SEED);
    let drawn: Vec<f64> = (0..20_000).map(|_| about(10, &mut rng) as f64).collect();
    let mean = drawn.iter().sum::<f64>() / 20_000.0;
    let variance = drawn.iter().map(|hops| (hops - mean).powi(2)).sum::<f64>() / 20_000.0;
    // 1.5² and 1/12 for the rounding make 2.33; the standard errors are about 0.011 and 0.023.
    assert!((mean - 10.0).abs() < 0.07, "{mean}");
    assert!((variance - 2.33).abs() < 0.16, "{variance}");
    assert!((0..1000).all(|_| about(1, &mut rng) >= 1));
}

#[test]
fn path_without_a_swap_point_is_divided_at_its_middle() {
    assert_eq!(shown(&asked().forward("A,B,C,D,E").unwrap()[0]), "A,B,C:D,E");
    assert_eq!(shown(&asked().forward("A,B:C,D,E").unwrap()[0]), "A,B:C,D,E");
    let mut rng = StdRng::seed_from_u64(SEED);
    assert_eq!(shown(&asked().paths(PathKind::Reply, "A,B", &mut rng).unwrap()[0]), "A,B:");
    assert_eq!(shown(&asked().paths(PathKind::Surb, "A,B", &mut rng).unwrap()[0]), ":A,B");
}

#[test]
fn exit_that_the_address_names_comes_last_and_only_once() {
    let asked = Asked { address: ExitAddress::parse("mbox:frida@G").unwrap(), ..asked() };
    assert_eq!(shown(&asked.forward("A,B,C").unwrap()[0]), "A,B:C,G");
    assert_eq!(shown(&asked.forward("A,B,g").unwrap()[0]), "A,B:G");
    assert_eq!(shown(&asked.forward("A:B").unwrap()[0]), "A:B,G");
}

#[test]
fn mix_of_a_file_is_used_as_named() {
    let unlisted = mix("Hidden");
    let files = BTreeMap::from([("./hidden".to_owned(), Arc::clone(&unlisted))]);
    let asked = Asked { files, ..asked() };
    assert_eq!(shown(&asked.forward("A,./hidden,B").unwrap()[0]), "A,Hidden:B");
    let refused = asked.forward("A,./other,B");
    assert_eq!(refused, Err(NoPath::NoFile { name: "./other".to_owned() }));
}

#[test]
fn two_mixes_are_enough_when_neither_is_twice_in_a_row() {
    let asked = asked_of(network(&["A", "B"]));
    assert_eq!(shown(&asked.forward("A,*3").unwrap()[0]), "A,B:A,B");
    assert_eq!(shown(&asked.forward("A,?,A,?").unwrap()[0]), "A,B:A,B");
    assert_eq!(asked.forward("A,*2,B,B"), Err(NoPath::Twice { nickname: name("B") }));
    assert_eq!(asked.forward("A,?,B"), Err(NoPath::NoMixLeft { hop: 3 }));
}

#[test]
fn blocked_and_unrecommended_mixes_are_used_only_when_named() {
    let blocked = BlockLists { servers: names(&["C"]), entries: names(&["A"]), exits: names(&["B"]) };
    let known = ["A", "B", "C", "D", "E"].map(mix);
    let asked = asked_of(Mixes::new(known, names(&["A", "B", "C", "D"]), blocked));
    let mut rng = StdRng::seed_from_u64(SEED);
    for _ in 0..300 {
        let path = asked.paths(PathKind::Forward, "*3", &mut rng).unwrap().remove(0);
        let hops: Vec<_> = path.hops().map(|mix| mix.nickname().as_str()).collect();
        assert!(!hops.contains(&"C") && !hops.contains(&"E") && hops[0] != "A" && hops[2] != "B", "{hops:?}");
    }
    assert_eq!(shown(&asked.forward("A,C,E,B").unwrap()[0]), "A,C:E,B");
}

#[test]
fn specification_of_another_kind_is_refused() {
    let asked = asked();
    let spec = PathSpec::parse("A,B", PathKind::Reply).unwrap();
    let target = Target::Exit(asked.exit());
    let request = PathRequest { spec: &spec, target, packets: 1, valid_until: now() + DAY, files: &asked.files };
    let refused = select(&asked.mixes, &request, now(), &mut StdRng::seed_from_u64(SEED));
    assert_eq!(refused, Err(NoPath::Kind(PathKind::Reply)));
    let late = now() + DAY * 2;
    let spec = PathSpec::parse("A,B", PathKind::Forward).unwrap();
    let refused = select(&asked.mixes, &PathRequest { spec: &spec, ..request }, late, &mut StdRng::seed_from_u64(SEED));
    assert_eq!(refused, Err(NoPath::Past));
}

#[test]
fn named_mix_that_cannot_be_used_is_refused_by_name() {
    assert_eq!(asked().forward("A,Nobody"), Err(NoPath::Unknown { nickname: name("Nobody") }));
    let asked_for_long = Asked { lifetime: 5, ..asked() };
    assert_eq!(asked_for_long.forward("A,B"), Err(NoPath::NotInForce { nickname: name("A") }));
    assert_eq!(asked_for_long.forward("?,?"), Err(NoPath::NoMixes));
    assert_eq!(asked().forward("A,b,B,C"), Err(NoPath::Twice { nickname: name("B") }));
    assert_eq!(asked().forward("A:a"), Err(NoPath::Twice { nickname: name("A") }));
}

#[test]
fn mix_that_takes_or_makes_no_connections_is_refused_where_it_must() {
    let deaf = mix_with("Deaf", |fields| fields.listens_at = None);
    let mute = mix_with("Mute", |fields| fields.connects = false);
    let all = [deaf, mute, mix("A"), mix("B")];
    let asked = asked_of(Mixes::new(all, names(&["Mute", "A", "B"]), BlockLists::default()));
    assert_eq!(asked.forward("Deaf,A"), Err(NoPath::CannotStart { nickname: name("Deaf") }));
    let refused = NoPath::CannotRelay { mix: name("A"), next: name("Deaf") };
    assert_eq!(asked.forward("A,Deaf"), Err(refused));
    let refused = NoPath::CannotDeliver { nickname: name("Deaf"), why: CannotDeliver::Unreachable };
    assert_eq!(asked.forward("?,Deaf"), Err(refused));
    let refused = NoPath::CannotRelay { mix: name("Mute"), next: name("A") };
    assert_eq!(asked.forward("Mute,A"), Err(refused));
    assert_eq!(shown(&asked.forward("A,Mute").unwrap()[0]), "A:Mute");
    let mut rng = StdRng::seed_from_u64(SEED);
    let refused = asked.paths(PathKind::Surb, "Deaf,A", &mut rng);
    assert_eq!(refused, Err(NoPath::CannotStart { nickname: name("Deaf") }));
    let refused = asked.paths(PathKind::Reply, "A,Mute", &mut rng);
    assert_eq!(refused, Err(NoPath::CannotReachSurb { nickname: name("Mute") }));
    for _ in 0..100 {
        let path = asked.paths(PathKind::Forward, "*4", &mut rng).unwrap().remove(0);
        assert!(path.hops().take(3).all(|mix| mix.nickname().as_str() != "Mute"), "{}", shown(&path));
    }
}

#[test]
fn reply_does_not_stay_at_the_first_mix_of_its_surb() {
    let asked = Asked { surb_at: surb_at(mix("A").key_id()), ..asked_of(network(&["A", "B"])) };
    let mut rng = StdRng::seed_from_u64(SEED);
    assert_eq!(shown(&asked.paths(PathKind::Reply, "?", &mut rng).unwrap()[0]), "B:");
    let refused = asked.paths(PathKind::Reply, "A", &mut rng);
    assert_eq!(refused, Err(NoPath::Twice { nickname: name("A") }));
}

#[test]
fn network_that_lacks_what_is_needed_is_told_so() {
    assert_eq!(asked_of(Mixes::default()).forward("?,?"), Err(NoPath::NoMixes));
    let all_blocked = BlockLists { entries: names(&["A", "B"]), ..BlockLists::default() };
    let asked_nowhere = asked_of(Mixes::new([mix("A"), mix("B")], names(&["A", "B"]), all_blocked));
    assert_eq!(asked_nowhere.forward("?,?"), Err(NoPath::NoEntry));
    let too_large = Asked { message_size: 129 * 1024, reassembled: true, packets: 8, ..asked() };
    assert_eq!(too_large.forward("?,?"), Err(NoPath::NoExit));
    let why = CannotDeliver::Size { max: 128 * 1024 };
    assert_eq!(too_large.forward("?,A"), Err(NoPath::CannotDeliver { nickname: name("A"), why }));
    let user_of_nobody = Asked { address: ExitAddress::parse("mbox:frida").unwrap(), ..asked() };
    assert_eq!(user_of_nobody.forward("A,?"), Err(NoPath::MboxWithoutServer));
    assert_eq!(shown(&user_of_nobody.forward("A,B").unwrap()[0]), "A:B");
    assert_eq!(asked_of(network(&["A"])).forward("?,?"), Err(NoPath::NoMixLeft { hop: 2 }));
}

#[test]
fn path_that_its_headers_have_no_room_for_is_refused() {
    let too_long = |leg, hops| Err(NoPath::LegTooLong { leg, why: LegTooLong { hops } });
    // Host names of 11 octets: 117 for each mix, 16 in a leg at most.
    assert!(asked().forward("*32").is_ok());
    assert_eq!(asked().forward("*34"), too_long("first", 17));
    assert_eq!(asked().forward("?:*17"), too_long("second", 17));
    assert_eq!(asked().forward("*99:?"), too_long("first", 99));
    let long_address = format!("0x1234:{}", "x".repeat(1900));
    let asked = Asked { address: ExitAddress::parse(&long_address).unwrap(), ..asked() };
    assert_eq!(asked.forward("?:?,?"), too_long("second", 2));
    assert!(asked.forward("?:?").is_ok());
}

#[test]
fn debug_shows_no_mix() {
    assert_eq!(format!("{:?}", asked().forward("A,B,C").unwrap()), "[Path(2+1)]");
}

/// All that a path must be, said again in other words than the code above.
fn assert_obeys(asked: &Asked, kind: PathKind, paths: &[Path]) {
    assert_eq!(paths.len(), asked.packets);
    for path in paths {
        let hops: Vec<_> = path.hops().collect();
        match kind {
            PathKind::Forward => assert!(!path.leg1.is_empty() && !path.leg2.is_empty()),
            PathKind::Reply => assert!(!path.leg1.is_empty() && path.leg2.is_empty()),
            PathKind::Surb => assert!(path.leg1.is_empty() && !path.leg2.is_empty()),
        }
        for pair in hops.windows(2) {
            assert_ne!(pair[0].nickname(), pair[1].nickname());
            assert!(pair[0].can_relay() && pair[1].incoming().is_some());
        }
        assert!(hops.iter().all(|mix| mix.is_valid_during(now(), now() + DAY * asked.lifetime)));
        let last = hops.last().unwrap();
        if kind == PathKind::Reply {
            assert_ne!(last.key_id(), asked.surb_at.key_id());
        } else {
            assert_eq!(asked.exit().check(last, asked.packets), Ok(()));
        }
        if kind != PathKind::Surb {
            assert!(hops[0].can_start());
        }
        for leg in [&path.leg1, &path.leg2] {
            assert!(leg.len() <= 17);
        }
    }
    let exits: BTreeSet<_> = paths.iter().map(|path| path.hops().last().unwrap().nickname().clone()).collect();
    assert!(!asked.reassembled || kind == PathKind::Reply || exits.len() == 1);
}

/// A to H, none of them an exit for e-mail.
static RELAYS: LazyLock<Vec<Arc<Descriptor>>> =
    LazyLock::new(|| NICKNAMES.iter().map(|nickname| mix_with(nickname, |fields| fields.smtp = None)).collect());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn every_path_obeys_every_rule(
        elements in prop::collection::vec("[A-H]|\\?|\\*[0-6]|~[1-6]", 1..6),
        swap in prop::option::of(1_usize..5),
        kind in prop::sample::select(vec![PathKind::Forward, PathKind::Reply, PathKind::Surb]),
        packets in 1_usize..5,
        reassembled: bool,
        limited in 0_usize..8,
        seed: u64,
    ) {
        let mut spec = elements.join(",");
        if let (Some(at), PathKind::Forward) = (swap.filter(|at| *at < elements.len()), kind) {
            spec = format!("{}:{}", elements[..at].join(","), elements[at..].join(","));
        }
        let Ok(parsed) = PathSpec::parse(&spec, kind) else { return Ok(()) };
        // The first few mixes are no exits.
        let exits = NICKNAMES.iter().skip(limited).map(|nickname| mix(nickname));
        let known: Vec<_> = RELAYS.iter().take(limited).cloned().chain(exits).collect();
        let mixes = Mixes::new(known, names(&NICKNAMES), BlockLists::default());
        let asked = Asked { packets, reassembled, surb_at: surb_at(mix("C").key_id()), ..asked_of(mixes) };
        match asked.paths(kind, &spec, &mut StdRng::seed_from_u64(seed)) {
            Ok(paths) => assert_obeys(&asked, kind, &paths),
            // Such refusals are right only for what was named; those of chance have their own tests.
            Err(NoPath::Twice { nickname } | NoPath::CannotDeliver { nickname, .. }) => {
                prop_assert!(spec.contains(nickname.as_str()), "{parsed} at {nickname}");
            }
            Err(NoPath::LegTooLong { .. }) => prop_assert!(spec.contains(['*', '~'])),
            // The only exit there is was named for the place before the last.
            Err(NoPath::NoMixLeft { .. }) => prop_assert!(limited == 7 && spec.contains('H'), "{parsed}"),
            Err(refusal) => prop_assert!(false, "{parsed}: {refusal}"),
        }
    }
}
