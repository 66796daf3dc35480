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
mod tests;
