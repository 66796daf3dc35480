//! Which mixes may stand where on a path, and which legs fit a header (path-spec 2).
//!
//! Rules alone: the dice are `select`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::address::ExitAddress;
use crate::directory::{Descriptor, Directory, Nickname};
use crate::packet::{HANDLE_LEN, HEADER_LEN, HostRoute, NextHop, RoutingType};

/// Octets that a mix takes in a header beside its routing info: what RSA-OAEP adds (42), and the fixed part of its
/// subheader (42) (minion-spec 3.2.1).
pub const HOP_OVERHEAD: usize = 42 + 42;
/// Octets of an RSA block. The last subheader of a header must have as much behind its start (minion-spec 3.2.2).
const RSA_BLOCK_LEN: usize = 256;
/// Octets of the largest message that a single packet can become for the exit: of more, it sees a part alone.
const SINGLE_PACKET_MESSAGE: u64 = 32 * 1024;

/// The mixes that paths are made of, and whom not to trust.
#[derive(Clone, Debug, Default)]
pub struct Mixes {
    listed: ByNickname,
    /// Known to the user alone: reached by name, never chosen, and never in the place of a listed mix.
    imported: ByNickname,
    recommended: BTreeSet<Nickname>,
    blocked: BlockLists,
}

type ByNickname = BTreeMap<Nickname, Vec<Arc<Descriptor>>>;

/// Mixes that the user will not have unless a path specification names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockLists {
    /// Nowhere.
    pub servers: BTreeSet<Nickname>,
    /// Not where packets enter the network.
    pub entries: BTreeSet<Nickname>,
    /// Not where they leave it.
    pub exits: BTreeSet<Nickname>,
}

/// What is asked of an exit.
#[derive(Clone, Copy, Debug)]
pub struct Exit<'a> {
    /// Where the message goes.
    pub address: &'a ExitAddress,
    /// Octets of the message, not compressed.
    pub message_size: u64,
    /// Whether the sender chose the address in `From`.
    pub from: bool,
    /// Whether the exit puts the fragments together. If not, every packet is delivered by itself.
    pub reassembled: bool,
    /// Whether the message has attachments (`payload::entity`).
    pub attachments: bool,
}

/// What is behind the last mix of a path.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// The world outside: of forward and SURB paths.
    Exit(Exit<'a>),
    /// The first mix of a SURB: of reply paths.
    Surb(&'a NextHop),
}

/// Why a mix cannot deliver a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum CannotDeliver {
    /// It takes no connections, so that no packet ever gets there.
    #[error("takes no packets")]
    Unreachable,
    /// No section Delivery/SMTP.
    #[error("does not deliver e-mail")]
    Smtp,
    /// No section Delivery/MBOX.
    #[error("has no users of its own")]
    Mbox,
    /// Allow-From is no.
    #[error("does not let senders choose the From address")]
    From,
    /// No MIME-Maximum-Size, or no e-mail.
    #[error("does not deliver attachments")]
    Attachments,
    /// Beyond Maximum-Size, or beyond MIME-Maximum-Size.
    #[error("delivers messages up to {max} octets")]
    Size {
        /// Octets of the largest message.
        max: u64,
    },
    /// No section Delivery/Fragmented.
    #[error("does not put fragments together")]
    NoReassembly,
    /// Beyond Maximum-Fragments.
    #[error("puts no more than {max} fragments together")]
    Fragments {
        /// The most that it takes.
        max: u64,
    },
}

/// The routing info of a leg does not fit its header.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("{hops} mixes and their routing info do not fit a header of {HEADER_LEN} octets")]
pub struct LegTooLong {
    /// The mixes of the leg.
    pub hops: usize,
}

impl Mixes {
    /// The mixes of a directory, less those who are blocked.
    pub fn of(directory: &Directory, blocked: BlockLists) -> Self {
        Self::new(directory.descriptors().iter().cloned(), directory.recommended().clone(), blocked)
    }

    /// The mixes that a directory lists, those of them that it recommends, and who is blocked.
    pub fn new(
        listed: impl IntoIterator<Item = Arc<Descriptor>>,
        recommended: BTreeSet<Nickname>,
        blocked: BlockLists,
    ) -> Self {
        Self { listed: by_nickname(listed), imported: ByNickname::new(), recommended, blocked }
    }

    /// Adds mixes that the user imported, to be called by name.
    #[must_use]
    pub fn with_imported(mut self, imported: impl IntoIterator<Item = Arc<Descriptor>>) -> Self {
        self.imported = by_nickname(imported);
        self
    }

    /// Whether any descriptor of that nickname is known, in force or not.
    pub fn knows(&self, nickname: &Nickname) -> bool {
        self.listed.contains_key(nickname) || self.imported.contains_key(nickname)
    }

    /// Whether the directory recommends the mix. Whoever names one that is not should be warned.
    pub fn is_recommended(&self, nickname: &Nickname) -> bool {
        self.recommended.contains(nickname)
    }

    /// The latest descriptor of that nickname that holds all the time between the two. What the directory lists comes
    /// before what was imported.
    pub fn named(&self, nickname: &Nickname, from: SystemTime, until: SystemTime) -> Option<&Arc<Descriptor>> {
        latest(&self.listed, nickname, from, until).or_else(|| latest(&self.imported, nickname, from, until))
    }

    /// The mixes that may be chosen without being named: recommended, blocked nowhere, understanding our packets, and in
    /// force all the time between the two.
    pub fn choosable(&self, from: SystemTime, until: SystemTime) -> Vec<&Arc<Descriptor>> {
        let recommended = self.recommended.iter().filter(|nickname| !self.blocked.servers.contains(*nickname));
        recommended
            .filter_map(|nickname| latest(&self.listed, nickname, from, until))
            .filter(|mix| mix.supports_packets())
            .collect()
    }

    /// Whether packets may enter the network at that mix without its being named.
    pub fn may_enter(&self, mix: &Descriptor) -> bool {
        !self.blocked.entries.contains(mix.nickname())
    }

    /// Whether packets may leave the network at that mix without its being named.
    pub fn may_exit(&self, mix: &Descriptor) -> bool {
        !self.blocked.exits.contains(mix.nickname())
    }
}

fn by_nickname(mixes: impl IntoIterator<Item = Arc<Descriptor>>) -> ByNickname {
    let mut by_nickname = ByNickname::new();
    for mix in mixes {
        by_nickname.entry(mix.nickname().clone()).or_default().push(mix);
    }
    by_nickname
}

fn latest<'a>(
    mixes: &'a ByNickname,
    nickname: &Nickname,
    from: SystemTime,
    until: SystemTime,
) -> Option<&'a Arc<Descriptor>> {
    let in_force = mixes.get(nickname)?.iter().filter(|mix| mix.is_valid_during(from, until));
    in_force.max_by_key(|mix| mix.published())
}

/// Whether a packet goes from one mix to the other: different mixes that have a protocol in common (path-spec 2.3).
pub fn may_follow(mix: &Descriptor, next: &Descriptor) -> bool {
    !is_same(mix, next) && mix.can_relay_to(next)
}

/// Whether the two descriptors are of one mix. A nickname that is used twice is one mix too many, so either is enough.
pub fn is_same(one: &Descriptor, other: &Descriptor) -> bool {
    one.nickname() == other.nickname() || one.key_id() == other.key_id()
}

impl Exit<'_> {
    /// Whether the mix can deliver a message that went into so many packets (path-spec 2.4). Of exit types that are not
    /// known here nobody can tell, and any mix will do.
    ///
    /// # Errors
    /// [`CannotDeliver`].
    pub fn check(&self, mix: &Descriptor, packets: usize) -> Result<(), CannotDeliver> {
        if mix.incoming().is_none() {
            return Err(CannotDeliver::Unreachable);
        }
        if self.reassembled {
            let max = mix.fragmented().ok_or(CannotDeliver::NoReassembly)?;
            if u64::try_from(packets).unwrap_or(u64::MAX) > max {
                return Err(CannotDeliver::Fragments { max });
            }
        }
        let delivery = match self.address.routing().0 {
            RoutingType::SMTP => mix.smtp().ok_or(CannotDeliver::Smtp)?,
            _ if self.attachments => return Err(CannotDeliver::Attachments),
            RoutingType::MBOX => mix.mbox().ok_or(CannotDeliver::Mbox)?,
            _ => return Ok(()),
        };
        let max = if self.attachments { delivery.mime.ok_or(CannotDeliver::Attachments)? } else { delivery.max_size };
        if self.from && !delivery.allow_from {
            return Err(CannotDeliver::From);
        }
        let size = if self.reassembled { self.message_size } else { self.message_size.min(SINGLE_PACKET_MESSAGE) };
        if size > max { Err(CannotDeliver::Size { max }) } else { Ok(()) }
    }

    /// Octets of routing info in the last subheader. An exit that reassembles finds the address in the message.
    fn routing_info_len(&self) -> usize {
        let (routing_type, info) = self.address.routing();
        match (self.reassembled, routing_type.has_handle()) {
            (true, _) => 0,
            (false, true) => HANDLE_LEN + info.len(),
            (false, false) => info.len(),
        }
    }
}

impl Target<'_> {
    /// Octets of the routing info that the last mix of a path needs to get there.
    pub fn routing_info_len(&self) -> usize {
        match self {
            Self::Exit(exit) => exit.routing_info_len(),
            Self::Surb(first_hop) => first_hop.to_routing().1.len(),
        }
    }
}

/// Checks that the routing info of a leg, given by its lengths from first to last mix, fits a header: all subheaders
/// with their RSA overhead, the last of them padded to a whole RSA block.
///
/// # Errors
/// [`LegTooLong`].
pub fn check_leg(routing_info_lens: &[usize]) -> Result<(), LegTooLong> {
    let too_long = LegTooLong { hops: routing_info_lens.len() };
    let total = routing_info_lens.iter().map(|len| HOP_OVERHEAD + len).sum::<usize>();
    let padding = HEADER_LEN.checked_sub(total).ok_or(too_long)?;
    let last = HOP_OVERHEAD + routing_info_lens.last().copied().unwrap_or_default();
    if padding + last < RSA_BLOCK_LEN { Err(too_long) } else { Ok(()) }
}

/// Octets of the routing info that leads to a mix.
pub fn route_len(mix: &Descriptor) -> usize {
    mix.route().as_ref().map(HostRoute::to_bytes).map_or(0, |info| info.len())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{DAY, mix, mix_with, names, now};
    use super::*;

    fn exit(address: &ExitAddress) -> Exit<'_> {
        Exit { address, message_size: 1000, from: false, reassembled: false, attachments: false }
    }

    fn address(text: &str) -> ExitAddress {
        ExitAddress::parse(text).unwrap()
    }

    /// The longest leg of mixes with host names of that length.
    fn capacity(host_len: usize, last_len: usize) -> usize {
        let fits = |hops: &usize| {
            let mut lens = vec![2 + 20 + host_len; hops - 1];
            lens.push(last_len);
            check_leg(&lens).is_ok()
        };
        (1..100).take_while(fits).count()
    }

    #[test]
    fn legs_are_as_long_as_the_reference_makes_them() {
        assert_eq!(capacity(1, 20), 17);
        assert_eq!(capacity(1, 220), 17);
        assert_eq!(capacity(4, 100), 17);
        assert_eq!(capacity(4, 220), 16);
        assert_eq!(capacity(9, 20), 16);
        assert_eq!(capacity(16, 31), 15);
    }

    #[test]
    fn leg_that_does_not_fit_is_refused() {
        assert_eq!(check_leg(&[HEADER_LEN - HOP_OVERHEAD]), Ok(()));
        assert_eq!(check_leg(&[HEADER_LEN - HOP_OVERHEAD + 1]), Err(LegTooLong { hops: 1 }));
        assert_eq!(check_leg(&[30; 20]), Err(LegTooLong { hops: 20 }));
    }

    #[test]
    fn routing_info_of_an_exit_counts_its_handle_where_there_is_one() {
        let smtp = address("a@b.c");
        assert_eq!(Target::Exit(exit(&smtp)).routing_info_len(), 25);
        assert_eq!(Target::Exit(Exit { reassembled: true, ..exit(&smtp) }).routing_info_len(), 0);
        assert_eq!(Target::Exit(exit(&ExitAddress::Drop)).routing_info_len(), 0);
    }

    #[test]
    fn message_that_an_exit_cannot_deliver_is_refused_by_name() {
        let (smtp, mbox) = (address("a@b.c"), address("mbox:frida@A"));
        let deaf = mix_with("A", |fields| fields.listens_at = None);
        assert_eq!(exit(&ExitAddress::Drop).check(&deaf, 1), Err(CannotDeliver::Unreachable));
        let relay = mix_with("A", |fields| (fields.smtp, fields.mbox, fields.fragmented) = (None, None, None));
        assert_eq!(exit(&smtp).check(&relay, 1), Err(CannotDeliver::Smtp));
        assert_eq!(exit(&mbox).check(&relay, 1), Err(CannotDeliver::Mbox));
        assert_eq!(exit(&ExitAddress::Drop).check(&relay, 1), Ok(()));
        assert_eq!(exit(&address("0x1234:x")).check(&relay, 1), Ok(()));
        let reassembled = Exit { reassembled: true, ..exit(&smtp) };
        assert_eq!(reassembled.check(&relay, 2), Err(CannotDeliver::NoReassembly));
        let exit_mix = mix_with("A", |fields| fields.fragmented = Some(11));
        assert_eq!(reassembled.check(&exit_mix, 11), Ok(()));
        assert_eq!(reassembled.check(&exit_mix, 12), Err(CannotDeliver::Fragments { max: 11 }));
    }

    #[test]
    fn from_address_needs_an_exit_that_allows_it() {
        let smtp = address("a@b.c");
        let strict = mix_with("A", |fields| fields.smtp.as_mut().unwrap().allow_from = false);
        let from = Exit { from: true, ..exit(&smtp) };
        assert_eq!(from.check(&strict, 1), Err(CannotDeliver::From));
        assert_eq!(from.check(&mix("A"), 1), Ok(()));
    }

    #[test]
    fn attachments_need_an_exit_that_says_so_and_its_own_limit_counts_for_them() {
        let (smtp, mbox, other) = (address("a@b.c"), address("mbox:frida@A"), address("0x1234:x"));
        let attached = |address| Exit { attachments: true, ..exit(address) };
        assert_eq!(attached(&smtp).check(&mix("A"), 1), Err(CannotDeliver::Attachments));
        let with_mime = mix_with("A", |fields| {
            fields.smtp.as_mut().unwrap().mime = Some(256 * 1024);
            fields.mbox.as_mut().unwrap().mime = Some(256 * 1024);
        });
        assert_eq!(attached(&smtp).check(&with_mime, 1), Ok(()));
        assert_eq!(attached(&mbox).check(&with_mime, 1), Err(CannotDeliver::Attachments));
        assert_eq!(attached(&other).check(&with_mime, 1), Err(CannotDeliver::Attachments));
        let of_size = |message_size| Exit { message_size, reassembled: true, ..attached(&smtp) };
        assert_eq!(of_size(256 * 1024).check(&with_mime, 9), Ok(()), "beyond what it takes of text");
        assert_eq!(of_size(256 * 1024 + 1).check(&with_mime, 9), Err(CannotDeliver::Size { max: 256 * 1024 }));
        let of_little = mix_with("A", |fields| fields.smtp.as_mut().unwrap().mime = Some(0));
        assert_eq!(attached(&smtp).check(&of_little, 1), Err(CannotDeliver::Size { max: 0 }));
        let relay = mix_with("A", |fields| fields.smtp = None);
        assert_eq!(attached(&smtp).check(&relay, 1), Err(CannotDeliver::Smtp));
    }

    #[test]
    fn size_counts_up_to_a_packet_unless_the_exit_reassembles() {
        let smtp = address("a@b.c");
        let of_32_kb = mix_with("A", |fields| fields.smtp.as_mut().unwrap().max_size = 32 * 1024);
        let large = Exit { message_size: 1 << 20, ..exit(&smtp) };
        assert_eq!(large.check(&of_32_kb, 60), Ok(()));
        let reassembled = Exit { reassembled: true, ..large };
        assert_eq!(reassembled.check(&of_32_kb, 60), Err(CannotDeliver::Size { max: 32 * 1024 }));
        let exact = Exit { message_size: 32 * 1024, ..reassembled };
        assert_eq!(exact.check(&of_32_kb, 2), Ok(()));
    }

    #[test]
    fn imported_mix_is_found_by_name_but_never_chosen_and_never_in_place_of_a_listed_one() {
        let impostor = mix_with("A", |fields| fields.published += DAY / 24);
        let mixes = Mixes::new([mix("A")], names(&["A", "B"]), BlockLists::default());
        let mixes = mixes.with_imported([impostor, mix("B")]);
        let until = now() + DAY;
        assert_eq!(mixes.named(&"a".parse().unwrap(), now(), until), Some(&mix("A")));
        assert_eq!(mixes.named(&"B".parse().unwrap(), now(), until), Some(&mix("B")));
        assert_eq!(mixes.choosable(now(), until), [&mix("A")]);
    }

    #[test]
    fn latest_descriptor_in_force_all_the_time_counts() {
        let next = mix_with("A", |fields| {
            fields.published += DAY;
            fields.valid_until += DAY * 9;
        });
        let later = mix_with("A", |fields| {
            fields.published += DAY * 2;
            fields.valid_after += DAY * 5;
            fields.valid_until += DAY * 9;
        });
        let mixes = Mixes::new([mix("A"), Arc::clone(&next), later], names(&["A"]), BlockLists::default());
        assert_eq!(mixes.choosable(now(), now() + DAY), [&next]);
    }
}
