//! Chooses the mixes of a path (path-spec 3.4).
//!
//! A pure function of mixes, request, time and dice. The grammar of what is asked for is `spec`'s, the rules are `valid`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{CryptoRng, RngExt};

use super::address::ExitAddress;
use super::spec::{PathElement, PathKind, PathSpec};
use super::valid::{CannotDeliver, Exit, LegTooLong, Mixes, Target, check_leg, is_same, may_follow, route_len};
use crate::directory::{Descriptor, Nickname};

/// Standard deviation of the number of mixes that `~N` stands for (path-spec 3.4, step 4).
const ABOUT_DEVIATION: f64 = 1.5;
/// How often a path is drawn anew when what came out does not fit its headers. Chance may pile up mixes or long host
/// names; if it does so this often, the specification is to blame.
const DRAWS: usize = 16;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PathRequest<'a> {
    /// How the path should look.
    pub spec: &'a PathSpec,
    /// What is behind its last mix.
    pub target: Target<'a>,
    /// How many paths: one for each packet of a message. When the exit reassembles, all have the same exit.
    pub packets: usize,
    /// Until when the mixes must keep their keys: a day for packets sent now, its lifetime for a SURB.
    pub valid_until: SystemTime,
    /// The descriptors in the files that the specification names.
    pub files: &'a BTreeMap<String, Arc<Descriptor>>,
}

/// The mixes that one packet goes through.
#[derive(Clone, PartialEq, Eq)]
pub struct Path {
    /// Up to and with the swap point. Empty for a SURB.
    pub leg1: Vec<Arc<Descriptor>>,
    /// From behind the swap point to the exit. Empty for a reply, whose second leg is the SURB.
    pub leg2: Vec<Arc<Descriptor>>,
}

/// Why there is no path as asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum NoPath {
    /// A reply path ends at a SURB, all others at an exit.
    #[error("a path specification for {0:?} paths cannot lead there")]
    Kind(PathKind),
    /// The path should be valid until a time that is past.
    #[error("the path should be valid until a time that is past")]
    Past,
    /// Nobody of that nickname is known.
    #[error("no mix called {nickname} is known")]
    Unknown {
        /// Who was named.
        nickname: Nickname,
    },
    /// The descriptor in that file was not handed in.
    #[error("{name} is neither the nickname of a mix nor a file that holds a descriptor")]
    NoFile {
        /// What was named.
        name: String,
    },
    /// The mix changes its keys too soon, or has not begun to use them.
    #[error("no descriptor of {nickname} holds for all the time that the packet may take")]
    NotInForce {
        /// Who was named.
        nickname: Nickname,
    },
    /// The mix does not understand our packets.
    #[error("{nickname} does not understand packets of version 0.3")]
    PacketVersion {
        /// Who was named.
        nickname: Nickname,
    },
    /// The first mix takes no connections, or we have no protocol in common with it.
    #[error("packets cannot be sent to {nickname}, the first mix of the path")]
    CannotStart {
        /// Who was named.
        nickname: Nickname,
    },
    /// A mix has no protocol in common with the one behind it.
    #[error("{mix} cannot relay to {next}")]
    CannotRelay {
        /// Who was named.
        mix: Nickname,
        /// Who was named behind it.
        next: Nickname,
    },
    /// The last mix of a reply path relays to nobody.
    #[error("{nickname} cannot relay to the first mix of the reply block")]
    CannotReachSurb {
        /// Who was named.
        nickname: Nickname,
    },
    /// One mix twice in a row hides nothing.
    #[error("{nickname} is there twice in a row")]
    Twice {
        /// Who was named.
        nickname: Nickname,
    },
    /// The mix named last cannot deliver the message.
    #[error("{nickname} {why}")]
    CannotDeliver {
        /// Who was named.
        nickname: Nickname,
        /// Why not.
        why: CannotDeliver,
    },
    /// A name means something to one exit alone.
    #[error("an mbox: address needs its exit, as mbox:name@server or as the last mix of the path")]
    MboxWithoutServer,
    /// No mix may be chosen at all.
    #[error("no recommended mix is known that holds for all the time that the packet may take")]
    NoMixes,
    /// No mix may be the first.
    #[error("no recommended mix is known where packets can enter the network")]
    NoEntry,
    /// No mix may be the last.
    #[error("no recommended mix is known that can deliver the message")]
    NoExit,
    /// Those that could be there cannot stand beside those before them.
    #[error("no mix is left for hop {hop} of the path, since none may be twice in a row")]
    NoMixLeft {
        /// Which, from 1.
        hop: usize,
    },
    /// The routing info overflows a header.
    #[error("the {leg} leg of the path is too long: {why}")]
    LegTooLong {
        /// "first" or "second".
        leg: &'static str,
        /// How long it was.
        why: LegTooLong,
    },
}

/// Chooses as many paths as the request has packets. Each keeps all rules: mixes in force from `now` on, recommended and
/// not blocked unless named, none twice in a row, each able to relay to the next, the last able to deliver, both legs
/// within their headers. Among the mixes that may stand in a place, each is as likely as any other.
///
/// # Errors
/// [`NoPath`], by what is missing.
pub fn select(
    mixes: &Mixes,
    request: &PathRequest<'_>,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<Vec<Path>, NoPath> {
    let plan = Plan::new(mixes, request, now)?;
    let Target::Exit(Exit { reassembled: true, .. }) = request.target else {
        return (0..request.packets).map(|_| plan.path(&plan.last, rng)).collect();
    };
    // One exit for all. Where mixes are few, one may leave no room for the others, so all get their chance.
    let mut exits = plan.last.clone();
    exits.shuffle(rng);
    let mut outcome = Err(NoPath::NoExit);
    for exit in &exits {
        outcome = (0..request.packets).map(|_| plan.path(std::slice::from_ref(exit), rng)).collect();
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// A place, or some, before the dice are thrown.
#[derive(Clone, Copy)]
enum Slot<'a> {
    Fixed(&'a Arc<Descriptor>),
    Random(usize),
    About(usize),
}

/// The request with its names looked up, and who may be chosen where.
struct Plan<'a> {
    target: Target<'a>,
    kind: PathKind,
    /// The slots of both legs, the second empty where the path is one whole or divided late.
    slots: (Vec<Slot<'a>>, Vec<Slot<'a>>),
    splits_at_middle: bool,
    /// Who may be anywhere between first and last.
    anywhere: Vec<&'a Arc<Descriptor>>,
    /// Who may be first.
    first: Vec<&'a Arc<Descriptor>>,
    /// Who may be last. The one mix that was named, if it was.
    last: Vec<&'a Arc<Descriptor>>,
}

impl<'a> Plan<'a> {
    fn new(mixes: &'a Mixes, request: &'a PathRequest<'a>, now: SystemTime) -> Result<Self, NoPath> {
        let (spec, target) = (request.spec, request.target);
        if matches!(target, Target::Surb(_)) != (spec.kind() == PathKind::Reply) {
            return Err(NoPath::Kind(spec.kind()));
        }
        if request.valid_until < now {
            return Err(NoPath::Past);
        }
        let lookup = Lookup { mixes, request, now };
        let slots = lookup.slots()?;
        let all: Vec<_> = slots.0.iter().chain(&slots.1).copied().collect();
        check_named(&all)?;

        let anywhere = mixes.choosable(now, request.valid_until);
        // The first mix of a SURB is where it enters its second leg, not where anyone is seen to enter the network.
        let is_surb = spec.kind() == PathKind::Surb;
        let starts = |mix: &Descriptor| if is_surb { mix.incoming().is_some() } else { mix.can_start() };
        let may_enter = |mix: &Descriptor| starts(mix) && (is_surb || mixes.may_enter(mix));
        let first = match all.first() {
            Some(Slot::Fixed(mix)) if starts(mix) => vec![*mix],
            Some(Slot::Fixed(mix)) => return Err(NoPath::CannotStart { nickname: mix.nickname().clone() }),
            _ => anywhere.iter().copied().filter(|mix| may_enter(mix)).collect(),
        };
        let last = match all.last() {
            Some(Slot::Fixed(mix)) => {
                lookup.check_last(mix)?;
                vec![*mix]
            }
            _ => lookup.last(&anywhere)?,
        };
        let has_free = |slot: &Slot<'_>| !matches!(slot, Slot::Fixed(_));
        if anywhere.is_empty() && all.iter().any(has_free) {
            return Err(NoPath::NoMixes);
        }
        if first.is_empty() {
            return Err(NoPath::NoEntry);
        }
        if last.is_empty() {
            return Err(NoPath::NoExit);
        }
        Ok(Self { target, kind: spec.kind(), slots, splits_at_middle: spec.splits_at_middle(), anywhere, first, last })
    }

    /// A path that ends at one of `last`.
    fn path(&self, last: &[&'a Arc<Descriptor>], rng: &mut impl CryptoRng) -> Result<Path, NoPath> {
        let mut draws = 1;
        loop {
            match self.draw(last, rng) {
                Err(NoPath::LegTooLong { .. }) if draws < DRAWS => draws += 1,
                outcome => return outcome,
            }
        }
    }

    fn draw(&self, last: &[&'a Arc<Descriptor>], rng: &mut impl CryptoRng) -> Result<Path, NoPath> {
        let mut places = expand(&self.slots.0, rng);
        let explicit = places.len();
        places.extend(expand(&self.slots.1, rng));
        let first_len = match self.kind {
            PathKind::Forward if self.splits_at_middle => places.len().div_ceil(2),
            PathKind::Forward => explicit,
            PathKind::Reply => places.len(),
            PathKind::Surb => 0,
        };
        // Before the work of choosing: a place that no header has room for needs no mix.
        self.check_lens(first_len, &vec![MIN_ROUTE_LEN; places.len()])?;
        let hops = fill(&self.candidates(&places, last), rng)?;
        let lens: Vec<_> = hops.iter().map(|mix| route_len(mix)).collect();
        self.check_lens(first_len, &lens)?;
        let (leg1, leg2) = hops.split_at(first_len);
        let owned = |leg: &[&Arc<Descriptor>]| leg.iter().map(|mix| Arc::clone(mix)).collect();
        Ok(Path { leg1: owned(leg1), leg2: owned(leg2) })
    }

    /// Checks both legs, given the length of the routing info that leads to each mix.
    fn check_lens(&self, first_len: usize, routes: &[usize]) -> Result<(), NoPath> {
        // Each mix holds the routing info of the one behind it.
        let mut lens: Vec<_> = routes.iter().skip(1).copied().collect();
        lens.push(self.target.routing_info_len());
        let (leg1, leg2) = lens.split_at(first_len);
        check_leg(leg1).map_err(|why| NoPath::LegTooLong { leg: "first", why })?;
        check_leg(leg2).map_err(|why| NoPath::LegTooLong { leg: "second", why })
    }

    /// Who may be in each place.
    fn candidates(
        &self,
        places: &[Option<&'a Arc<Descriptor>>],
        last: &[&'a Arc<Descriptor>],
    ) -> Vec<Vec<&'a Arc<Descriptor>>> {
        // Never empty: a specification stands for one mix at least.
        let end = places.len() - 1;
        let who = |(index, place): (usize, &Option<&'a Arc<Descriptor>>)| match place {
            Some(mix) => vec![*mix],
            None if index == 0 && index == end => {
                self.first.iter().copied().filter(|mix| last.iter().any(|other| Arc::ptr_eq(mix, other))).collect()
            }
            None if index == 0 => self.first.clone(),
            None if index == end => last.to_vec(),
            None => self.anywhere.clone(),
        };
        places.iter().enumerate().map(who).collect()
    }
}

/// Octets of the shortest routing info that leads to a mix: port, key id, a host name of one letter.
const MIN_ROUTE_LEN: usize = 2 + 20 + 1;

/// Finds what the specification names.
struct Lookup<'a> {
    mixes: &'a Mixes,
    request: &'a PathRequest<'a>,
    now: SystemTime,
}

impl<'a> Lookup<'a> {
    fn slots(&self) -> Result<(Vec<Slot<'a>>, Vec<Slot<'a>>), NoPath> {
        let all = |elements: &'a [PathElement]| -> Result<Vec<_>, NoPath> {
            let present = elements.iter().filter(|element| element.min_hops() > 0);
            present.map(|element| self.slot(element)).collect()
        };
        let (first, second) = self.request.spec.elements();
        let (first, mut second) = (all(first)?, all(second)?);
        if let Target::Exit(Exit { address, .. }) = self.request.target
            && let Some(server) = address.server()
            && !matches!(second.last(), Some(Slot::Fixed(mix)) if mix.nickname() == server)
        {
            second.push(Slot::Fixed(self.named(server)?));
        }
        Ok((first, second))
    }

    fn slot(&self, element: &'a PathElement) -> Result<Slot<'a>, NoPath> {
        Ok(match element {
            PathElement::Random(hops) => Slot::Random(*hops),
            PathElement::About(hops) => Slot::About(*hops),
            PathElement::Named(nickname) => Slot::Fixed(self.named(nickname)?),
            PathElement::File(name) => {
                let mix = self.request.files.get(name).ok_or_else(|| NoPath::NoFile { name: name.clone() })?;
                if !mix.is_valid_during(self.now, self.request.valid_until) {
                    return Err(NoPath::NotInForce { nickname: mix.nickname().clone() });
                }
                Slot::Fixed(understanding(mix)?)
            }
        })
    }

    fn named(&self, nickname: &Nickname) -> Result<&'a Arc<Descriptor>, NoPath> {
        let mix = self.mixes.named(nickname, self.now, self.request.valid_until).ok_or_else(|| {
            let nickname = nickname.clone();
            if self.mixes.knows(&nickname) { NoPath::NotInForce { nickname } } else { NoPath::Unknown { nickname } }
        })?;
        understanding(mix)
    }

    /// Whether the mix that was named last can be there.
    fn check_last(&self, mix: &Descriptor) -> Result<(), NoPath> {
        let nickname = || mix.nickname().clone();
        match self.request.target {
            Target::Exit(exit) => {
                exit.check(mix, self.request.packets).map_err(|why| NoPath::CannotDeliver { nickname: nickname(), why })
            }
            Target::Surb(first_hop) if first_hop.key_id() == mix.key_id() => {
                Err(NoPath::Twice { nickname: nickname() })
            }
            Target::Surb(_) if mix.outgoing().is_none() => Err(NoPath::CannotReachSurb { nickname: nickname() }),
            Target::Surb(_) => Ok(()),
        }
    }

    /// Those of `anywhere` that can be last.
    fn last(&self, anywhere: &[&'a Arc<Descriptor>]) -> Result<Vec<&'a Arc<Descriptor>>, NoPath> {
        let may_exit = match self.request.target {
            Target::Exit(Exit { address: ExitAddress::Mbox { .. }, .. }) => return Err(NoPath::MboxWithoutServer),
            Target::Exit(_) => |mixes: &Mixes, mix: &Descriptor| mixes.may_exit(mix),
            Target::Surb(_) => |_: &Mixes, _: &Descriptor| true,
        };
        let suits = |mix: &&Arc<Descriptor>| self.check_last(mix).is_ok() && may_exit(self.mixes, mix);
        Ok(anywhere.iter().copied().filter(suits).collect())
    }
}

fn understanding(mix: &Arc<Descriptor>) -> Result<&Arc<Descriptor>, NoPath> {
    if mix.supports_packets() { Ok(mix) } else { Err(NoPath::PacketVersion { nickname: mix.nickname().clone() }) }
}

/// Checks mixes that were named beside each other: whom to blame is clear here, and no more once the dice are thrown.
fn check_named(slots: &[Slot<'_>]) -> Result<(), NoPath> {
    for pair in slots.windows(2) {
        let [Slot::Fixed(mix), Slot::Fixed(next)] = pair else { continue };
        if is_same(mix, next) {
            return Err(NoPath::Twice { nickname: next.nickname().clone() });
        }
        if !may_follow(mix, next) {
            return Err(NoPath::CannotRelay { mix: mix.nickname().clone(), next: next.nickname().clone() });
        }
    }
    Ok(())
}

/// One place for each mix; those not named are empty.
fn expand<'a>(slots: &[Slot<'a>], rng: &mut impl CryptoRng) -> Vec<Option<&'a Arc<Descriptor>>> {
    let mut places = Vec::new();
    for slot in slots {
        match slot {
            Slot::Fixed(mix) => places.push(Some(*mix)),
            Slot::Random(hops) => places.extend(std::iter::repeat_n(None, *hops)),
            Slot::About(hops) => places.extend(std::iter::repeat_n(None, about(*hops, rng))),
        }
    }
    places
}

/// About `hops`, but at least one: normally distributed, rounded to the nearest (path-spec 3.4, step 4).
fn about(hops: usize, rng: &mut impl CryptoRng) -> usize {
    // Box and Muller. 1 - x, since random() may be 0 but never 1, and the logarithm needs it the other way.
    let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
    (hops as f64 + ABOUT_DEVIATION * normal).round().max(1.0) as usize
}

/// Chooses one candidate for each place, from last to first (path-spec 3.4, step 6), so that each may follow the one
/// before it.
fn fill<'a>(
    candidates: &[Vec<&'a Arc<Descriptor>>],
    rng: &mut impl CryptoRng,
) -> Result<Vec<&'a Arc<Descriptor>>, NoPath> {
    // First, from first to last, drop whoever nobody can come before: no choice made below leads to a dead end.
    let mut places: Vec<Vec<&Arc<Descriptor>>> = Vec::new();
    for (index, place) in candidates.iter().enumerate() {
        let before = places.last();
        let reachable =
            |mix: &&Arc<Descriptor>| before.is_none_or(|before| before.iter().any(|one| may_follow(one, mix)));
        let place: Vec<_> = place.iter().copied().filter(reachable).collect();
        if place.is_empty() {
            return Err(NoPath::NoMixLeft { hop: index + 1 });
        }
        places.push(place);
    }
    let mut hops: Vec<&Arc<Descriptor>> = Vec::new();
    for place in places.iter().rev() {
        let next = hops.last();
        let fitting: Vec<_> =
            place.iter().copied().filter(|mix| next.is_none_or(|next| may_follow(mix, next))).collect();
        hops.push(fitting.choose(rng).expect("whoever was kept has someone before it"));
    }
    hops.reverse();
    Ok(hops)
}

impl Path {
    /// All mixes, from first to last.
    pub fn hops(&self) -> impl Iterator<Item = &Arc<Descriptor>> {
        self.leg1.iter().chain(&self.leg2)
    }
}

/// Shows lengths alone: the path of a packet is what the network is there to hide.
impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({}+{})", self.leg1.len(), self.leg2.len())
    }
}

#[cfg(test)]
mod tests {
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
            Exit { address, message_size, from: false, reassembled }
        }

        fn forward(&self, spec: &str) -> Result<Vec<Path>, NoPath> {
            self.paths(PathKind::Forward, spec, &mut StdRng::seed_from_u64(SEED))
        }
    }

    fn shown(path: &Path) -> String {
        let leg =
            |leg: &[Arc<Descriptor>]| leg.iter().map(|mix| mix.nickname().to_string()).collect::<Vec<_>>().join(",");
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
        let refused =
            select(&asked.mixes, &PathRequest { spec: &spec, ..request }, late, &mut StdRng::seed_from_u64(SEED));
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
}
