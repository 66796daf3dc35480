//! From the outbox to the pool: mails become packets, each on a path of its own (E2E-spec 2, path-spec).
//!
//! Two durable steps. A mail becomes packets in one transaction, so it is packed once whatever happens. The packets
//! then enter the pool; if a crash makes one enter twice, it is the same packet twice, and the first mix that sees it
//! drops the second as a replay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::seq::SliceRandom;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::clock::{Dice, World};
use super::counters::Counters;
use super::durable;
use super::network::Network;
use crate::crypto::SurbKey;
use crate::directory::{Descriptor, Directory};
use crate::packet::build::{self, Exit, Hop, Unbuildable};
use crate::packet::{NextHop, Packet, Payload, RoutingType, Surb};
use crate::path::address::{ExitAddress, InvalidAddress};
use crate::path::select::{NoPath, Path, PathRequest, select};
use crate::path::spec::{InvalidPathSpec, PathKind, PathSpec};
use crate::path::valid::{self, BlockLists, Mixes, Target};
use crate::payload::armor;
use crate::payload::entity::{Entity, InvalidEntity};
use crate::payload::fragment::Fragmentation;
use crate::payload::headers::{self, InvalidHeader, MessageHeaders};
use crate::payload::{Capacity, encode};
use crate::store::outbox::{self, Mail, Waiting};
use crate::store::queue::pool::{self, PoolItem};
use crate::store::{Db, StoreError, keyring};

mod giving_up;

/// How long a packet may take, so how long the mixes on its path must keep their keys (path-spec 3.4).
pub(super) const TRANSIT: Duration = Duration::from_secs(24 * 3600);
/// Octets of a message that fits one packet even if it does not compress. Nearly 28,650, less what deflate adds.
const SURELY_ONE_PACKET: u32 = 28_000;
/// Packets moved to the pool in one step: two megabytes.
const INJECT: usize = 64;
/// The longest time between two looks at the outbox.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// First and longest pause before a mail that found no path is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));

/// Why a mail did not become packets. It stays in the outbox.
#[derive(Debug, thiserror::Error)]
pub enum NotPacked {
    /// No directory is in force.
    #[error("no directory is in force")]
    NoDirectory,
    /// Nothing in the directory leads where it should.
    #[error("no path")]
    NoPath(#[from] NoPath),
    /// The exit address was stored by another version of the program.
    #[error("the exit address")]
    Address(#[from] InvalidAddress),
    /// A mix on the path has no way to be reached. Selection does not choose such.
    #[error("a mix on the path takes no connections")]
    Unreachable,
    /// Path and address do not fit a packet.
    #[error("building a packet")]
    Unbuildable(#[from] Unbuildable),
    /// The message cannot be encoded.
    #[error("encoding the message")]
    Encode(#[from] encode::Unencodable),
    /// The message has attachments in another way than they are written here: another version of the program stored it.
    #[error("the attachments")]
    Entity(#[from] InvalidEntity),
    /// The message has headers that cannot travel: another version of the program stored it.
    #[error("the headers")]
    Header(#[from] InvalidHeader),
    /// The identity is not in the keyring.
    #[error("the identity has no key")]
    NoIdentity,
    /// The store failed.
    #[error("the store")]
    Store(#[from] StoreError),
}

/// How the sender packs, read from the settings once.
#[derive(Clone, Debug)]
pub struct Style {
    path: PathSpec,
    reply_path: PathSpec,
    reply_block_lifetime: Duration,
}

/// The descriptors that a path specification names by file: a gateway's settings name none.
static NO_FILES: BTreeMap<String, Arc<Descriptor>> = BTreeMap::new();

impl Style {
    /// Reads the path specifications.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(path: &str, reply_path: &str, reply_block_lifetime: Duration) -> Result<Self, InvalidPathSpec> {
        Ok(Self {
            path: PathSpec::parse(path, PathKind::Forward)?,
            reply_path: PathSpec::parse(reply_path, PathKind::Surb)?,
            reply_block_lifetime,
        })
    }

    /// Whether a mail would find its paths now. It is drawn some, by the rules by which it is packed, and as for
    /// [`largest_message`] the worst is assumed. Whoever says yes to a mail without asking may keep it for ever.
    ///
    /// # Errors
    /// [`NoWay`].
    pub fn check(&self, directory: &Directory, wish: &Wish<'_>, now: SystemTime, dice: &mut Dice) -> Result<(), NoWay> {
        let mixes = Mixes::of(directory, BlockLists::default());
        let may_be_fragmented = wish.message_len > SURELY_ONE_PACKET;
        let packets = if may_be_fragmented { most_packets(wish.message_len, wish.to) } else { 1 };
        let exit = valid::Exit {
            address: wish.to,
            message_size: wish.message_len.into(),
            from: true,
            reassembled: may_be_fragmented,
            attachments: wish.attachments,
        };
        select(&mixes, &self.forward(exit, packets, now), now, dice).map_err(NoWay::Forward)?;
        if let Some(reply_to) = wish.reply_to {
            select(&mixes, &self.reply(reply_to, now), now, dice).map_err(NoWay::Reply)?;
        }
        Ok(())
    }

    /// The paths of a message that goes to `exit` in so many packets.
    fn forward<'a>(&'a self, exit: valid::Exit<'a>, packets: usize, now: SystemTime) -> PathRequest<'a> {
        let target = Target::Exit(exit);
        PathRequest { spec: &self.path, target, packets, valid_until: now + TRANSIT, files: &NO_FILES }
    }

    /// The path of a reply block to `reply_to`.
    fn reply<'a>(&'a self, reply_to: &'a ExitAddress, now: SystemTime) -> PathRequest<'a> {
        let exit =
            valid::Exit { address: reply_to, message_size: 0, from: false, reassembled: false, attachments: false };
        let target = Target::Exit(exit);
        let valid_until = now + self.reply_block_lifetime;
        PathRequest { spec: &self.reply_path, target, packets: 1, valid_until, files: &NO_FILES }
    }
}

/// A mail that somebody wants to send.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    /// Where it goes.
    pub to: &'a ExitAddress,
    /// Octets of the message, reply blocks included.
    pub message_len: u32,
    /// Whether it has attachments.
    pub attachments: bool,
    /// Where the answers to it arrive, if reply blocks go with it.
    pub reply_to: Option<&'a ExitAddress>,
}

/// Prints no address.
impl std::fmt::Debug for Wish<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wish(..)")
    }
}

/// Why a mail would not find its way now. The settings of the sender, or too few mixes.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum NoWay {
    /// No path leads to the recipient.
    #[error("no path leads to this address: {0}")]
    Forward(#[source] NoPath),
    /// No path for a reply block leads back.
    #[error("no path leads back for the reply block: {0}")]
    Reply(#[source] NoPath),
}

/// The service that packs mails.
pub struct Sender {
    /// Outbox, keyring and packed packets.
    pub db: Db,
    /// Whose pool the packets enter: the mix's in the same process, or the gateway's own.
    pub pool: Db,
    /// Who the mixes are.
    pub network: Network,
    /// How to pack.
    pub style: Style,
    /// Where answers to each identity arrive. May change at any time.
    pub reply_to: watch::Receiver<BTreeMap<String, ExitAddress>>,
    /// How long a mail may wait for a path.
    pub give_up: Duration,
    /// Rung when there is new mail.
    pub bell: Arc<Notify>,
    /// What is counted.
    pub counters: Counters,
    /// Time and chance.
    pub world: World,
    /// Cancelled to stop the sender.
    pub stop: CancellationToken,
}

impl Sender {
    /// Packs until stopped.
    pub async fn run(self) {
        let stop = self.stop.clone();
        let this = Arc::new(self);
        let mut news = this.network.news();
        while !stop.is_cancelled() {
            if let Err(e) = this.inject_all().await {
                error!(error = %e, "packed mail waits: the store does not take it");
            }
            match Self::pack_next(&this).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(e) => error!(error = %e, "the outbox cannot be read"),
            }
            tokio::select! {
                () = this.bell.notified() => {}
                _ = news.changed() => this.retry_now().await,
                () = tokio::time::sleep(this.until_next().await) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Packs the next mail that is due; false when there is none.
    async fn pack_next(this: &Arc<Self>) -> Result<bool, StoreError> {
        let now = this.world.now();
        let due = durable::read(&this.db, move |view| outbox::next(view, now, 1)).await?;
        let Some(Waiting { id, attempts, mail }) = due.into_iter().next() else { return Ok(false) };
        let packer = Arc::clone(this);
        let packed = tokio::task::spawn_blocking(move || {
            let packets = packer.pack(&mail, now, packer.world.dice());
            (packets, mail)
        });
        match packed.await {
            Ok((Ok(packets), _)) => {
                durable::write(&this.db, move |tx| outbox::packed(tx, id, &packets)).await?;
                this.counters.packed(1);
                this.inject_all().await?;
            }
            Ok((Err(why), mail)) => {
                this.counters.unsendable(1);
                this.not_packed(Waiting { id, attempts, mail }, &why, now).await?;
            }
            Err(e) => {
                error!(panicked = e.is_panic(), "packing failed");
                let pause = PAUSE.1;
                durable::write(&this.db, move |tx| outbox::postpone(tx, id, now + pause, "packing failed")).await?;
            }
        }
        Ok(true)
    }

    /// A new directory may open a path: whatever was postponed is tried again.
    async fn retry_now(&self) {
        if let Err(e) = durable::write(&self.db, outbox::hasten).await {
            error!(error = %e, "the outbox cannot be written");
        }
    }

    async fn until_next(&self) -> Duration {
        let next = durable::read(&self.db, outbox::next_due).await.ok().flatten();
        let wait = next.map(|next| next.duration_since(self.world.now()).unwrap_or_default());
        wait.map_or(LOOK_AGAIN, |wait| wait.clamp(Duration::from_millis(50), LOOK_AGAIN))
    }

    /// Moves what is packed into the pool.
    async fn inject_all(&self) -> Result<(), StoreError> {
        loop {
            let batch = durable::read(&self.db, |view| outbox::injection_batch(view, INJECT)).await?;
            if batch.is_empty() {
                return Ok(());
            }
            let ids: Vec<_> = batch.iter().map(|injection| injection.id).collect();
            durable::write(&self.pool, move |tx| {
                batch.into_iter().try_for_each(|injection| {
                    let outbox::Injection { next, packet, .. } = injection;
                    pool::insert(tx, &PoolItem::Relay { next, packet }).map(|_| ())
                })
            })
            .await?;
            if durable::note(&self.db, &self.stop, move |tx| outbox::injected(tx, &ids)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Makes the packets of a mail, in random order.
    fn pack(&self, mail: &Mail, now: SystemTime, mut dice: Dice) -> Result<Vec<(NextHop, Packet)>, NotPacked> {
        let directory = self.network.directory().ok_or(NotPacked::NoDirectory)?;
        let mixes = Mixes::of(&directory, BlockLists::default());
        let address = exit_address(mail)?;
        let message = self.with_reply_blocks(mail, &mixes, now, &mut dice)?;
        let (exit_type, info) = address.routing();
        let exit = Exit { exit_type, address: info };
        let payloads = encode::encode(&message, Capacity::Plain, Some(&exit), &mut dice)?;
        let fragmented = payloads.len() > 1;
        let target = exit_for(&address, &message, fragmented);
        let paths = select(&mixes, &self.style.forward(target, payloads.len(), now), now, &mut dice)?;
        let exit = if fragmented { Exit { exit_type: RoutingType::FRAGMENT, address: Vec::new() } } else { exit };
        let mut packets = Vec::with_capacity(payloads.len());
        for (payload, path) in payloads.into_iter().zip(&paths) {
            let payload = payload.into_payload().expect("28672 octets: of capacity Plain");
            packets.push(forward(&payload, &exit, path, &mut dice)?);
        }
        packets.shuffle(&mut dice);
        Ok(packets)
    }

    /// The message with its reply blocks, in text armour at the end of the text.
    fn with_reply_blocks(
        &self,
        mail: &Mail,
        mixes: &Mixes,
        now: SystemTime,
        dice: &mut Dice,
    ) -> Result<Vec<u8>, NotPacked> {
        let reply_to = self.reply_to.borrow().get(&mail.identity).filter(|_| mail.reply_blocks > 0).cloned();
        let Some(reply_to) = reply_to else { return Ok(mail.message.to_vec()) };
        let name = mail.identity.clone();
        let identity = self.db.read(|view| keyring::find(view, &name))?.ok_or(NotPacked::NoIdentity)?;
        let mut blocks = "\n".to_owned();
        for _ in 0..mail.reply_blocks {
            let surb = self.reply_block(&reply_to, &identity.surb_key, mixes, now, dice)?;
            blocks.push_str(&armor::surb_to_text(&surb));
        }
        with_more_text(&mail.message, &blocks)
    }

    fn reply_block(
        &self,
        reply_to: &ExitAddress,
        key: &SurbKey,
        mixes: &Mixes,
        now: SystemTime,
        dice: &mut Dice,
    ) -> Result<Surb, NotPacked> {
        let request = self.style.reply(reply_to, now);
        let expires = request.valid_until;
        let path = select(mixes, &request, now, dice)?.pop().ok_or(NoPath::NoExit)?;
        let (exit_type, address) = reply_to.routing();
        Ok(build::reply_block(&hops(&path.leg2)?, &Exit { exit_type, address }, key, expires, dice)?)
    }
}

/// What the exit of a message must do. The message itself says it, so that it holds whatever exits there were when the mail
/// was taken: without one that does it, the mail waits.
fn exit_for<'a>(address: &'a ExitAddress, message: &[u8], fragmented: bool) -> valid::Exit<'a> {
    let (headers, _) = headers::parse(message);
    valid::Exit {
        address,
        message_size: message.len() as u64,
        from: headers.from.is_some(),
        reassembled: fragmented,
        attachments: headers.content_type.is_some(),
    }
}

/// The message with `more` behind its text. Behind the body it would be behind the last attachment, if there are any.
fn with_more_text(message: &[u8], more: &str) -> Result<Vec<u8>, NotPacked> {
    let (headers, body) = headers::parse(message);
    let Some(content_type) = &headers.content_type else { return Ok([message, more.as_bytes()].concat()) };
    let entity = Entity::parse(content_type, body)?.with_more_text(more)?;
    Ok(entity.message(MessageHeaders { content_type: None, ..headers })?)
}

/// The exit address of a stored mail.
fn exit_address(mail: &Mail) -> Result<ExitAddress, InvalidAddress> {
    let exit = &mail.exit;
    let text = String::from_utf8_lossy(&exit.info);
    match (exit.routing_type, exit.via.as_deref()) {
        (RoutingType::SMTP, _) => ExitAddress::parse(&format!("smtp:{text}")),
        (RoutingType::MBOX, Some(via)) => ExitAddress::parse(&format!("mbox:{text}@{via}")),
        (RoutingType::MBOX, None) => ExitAddress::parse(&format!("mbox:{text}")),
        (routing_type, _) => Ok(ExitAddress::Raw { routing_type, info: exit.info.clone() }),
    }
}

/// The hops of a leg, as packets are built for them.
///
/// # Errors
/// [`NotPacked::Unreachable`].
pub fn hops(leg: &[Arc<Descriptor>]) -> Result<Vec<Hop>, NotPacked> {
    leg.iter()
        .map(|mix| {
            let route = mix.route().ok_or(NotPacked::Unreachable)?;
            Ok(Hop { packet_key: mix.packet_key().clone(), route })
        })
        .collect()
}

fn forward(payload: &Payload, exit: &Exit, path: &Path, dice: &mut Dice) -> Result<(NextHop, Packet), NotPacked> {
    let (leg1, leg2) = (hops(&path.leg1)?, hops(&path.leg2)?);
    let first = leg1.first().ok_or(NotPacked::Unreachable)?.route.clone();
    Ok((NextHop::Host(first), build::forward(payload, exit, &leg1, &leg2, dice)?))
}

/// Octets of the longest message, reply blocks included, that some exit surely delivers to an address. `None` if there is
/// no exit for it. Selection chooses exits by the same rules, but when the message is packed: so this asks for the worst
/// that may come. The message does not compress, and its sender chose the address in `From`. With `attachments`, it is a
/// message that has some.
pub fn largest_message(directory: &Directory, to: &ExitAddress, attachments: bool, now: SystemTime) -> Option<u64> {
    let mixes = Mixes::of(directory, BlockLists::default());
    let until = now + TRANSIT;
    match to.server() {
        Some(server) => {
            let mix = mixes.named(server, now, until).filter(|mix| mix.supports_packets())?;
            largest_at(mix, to, attachments)
        }
        None => mixes.choosable(now, until).into_iter().filter_map(|mix| largest_at(mix, to, attachments)).max(),
    }
}

/// As [`largest_message`], to whatever address takes the longest text.
pub fn largest_of_all(directory: &Directory, now: SystemTime) -> Option<u64> {
    let to_any = |routing_type| ExitAddress::Raw { routing_type, info: Vec::new() };
    let mail = largest_message(directory, &to_any(RoutingType::SMTP), false, now);
    let hosts = directory.live_during(now, now + TRANSIT);
    let to_users = to_any(RoutingType::MBOX);
    let users = hosts.iter().filter(|mix| mix.supports_packets()).filter_map(|mix| largest_at(mix, &to_users, false));
    users.chain(mail).max()
}

/// Octets of the longest message that the mix surely delivers. What is shorter, it delivers too.
fn largest_at(mix: &Descriptor, to: &ExitAddress, attachments: bool) -> Option<u64> {
    if !surely_delivers(mix, to, attachments, 0) {
        return None;
    }
    // Halved until the two are neighbours: the first it delivers, the second it may not.
    let (mut yes, mut no) = (0, u32::MAX);
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if surely_delivers(mix, to, attachments, middle) { yes = middle } else { no = middle }
    }
    Some(yes.into())
}

fn surely_delivers(mix: &Descriptor, to: &ExitAddress, attachments: bool, message_len: u32) -> bool {
    let may_be_fragmented = message_len > SURELY_ONE_PACKET;
    let message_size = message_len.into();
    let exit = valid::Exit { address: to, message_size, from: true, reassembled: may_be_fragmented, attachments };
    let packets = if may_be_fragmented { most_packets(message_len, to) } else { 1 };
    exit.check(mix, packets).is_ok()
}

/// Packets of a message that compression does not make shorter.
fn most_packets(message_len: u32, to: &ExitAddress) -> usize {
    // What deflate adds to noise is far below a thousandth; type and length of the address go before it.
    let added = u64::from(message_len) / 1000 + 64 + 4 + to.routing().1.len() as u64;
    let len = u32::try_from(u64::from(message_len) + added).unwrap_or(u32::MAX);
    let fragments = Fragmentation::new(len, Capacity::Plain).map_or(1, |cut| cut.fragments());
    usize::try_from(fragments).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::crypto::pk::PrivateKey;
    use crate::crypto::stream::{StreamKey, prng};
    use crate::directory::{Delivery, DescriptorFields, DirectoryFields, Policy, Status, Trust, Voter};
    use crate::node::config::NetworkConfig;
    use crate::packet::HostName;
    use crate::path::valid::CannotDeliver;
    use crate::payload::entity::{File, FileType};
    use crate::store::{GATEWAY_SCHEMAS, NODE_SCHEMAS};

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const KB: u64 = 1024;
    /// Of the directory server and of two mixes.
    static KEYS: LazyLock<[PrivateKey; 3]> =
        LazyLock::new(|| [1, 2, 5].map(|seed| PrivateKey::generate(2048, &mut StdRng::seed_from_u64(seed)).unwrap()));

    /// Noon of some day.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 19_631 * DAY + DAY / 2
    }

    /// A mix that does everything up to 128 KB, but for the changes.
    fn mix(nickname: &str, key: &PrivateKey, change: impl FnOnce(&mut DescriptorFields)) -> Arc<Descriptor> {
        let midnight = now() - DAY / 2;
        let delivery = Delivery { max_size: 128 * KB, allow_from: true, mime: None };
        let mut fields = DescriptorFields {
            nickname: nickname.parse().unwrap(),
            published: midnight - DAY,
            valid_after: midnight - DAY,
            valid_until: midnight + 4 * DAY,
            contact: "nobody".to_owned(),
            contact_fingerprint: None,
            comments: None,
            packet_key: key.public_key(),
            software: "mixgate".to_owned(),
            why_insecure: None,
            listens_at: Some((HostName::parse("mix.example").unwrap(), 48099)),
            takes_from: Policy::default(),
            connects: true,
            connects_to: Policy::default(),
            smtp: Some(delivery),
            mbox: Some(delivery),
            fragmented: Some(100),
        };
        change(&mut fields);
        Arc::new(fields.sign(key, &mut StdRng::seed_from_u64(3)).unwrap())
    }

    fn directory_of(descriptors: Vec<Arc<Descriptor>>, recommended: bool) -> Directory {
        let [server, ..] = &*KEYS;
        let midnight = now() - DAY / 2;
        let key_id = server.public_key().key_id();
        let names = descriptors.iter().map(|mix| mix.nickname().clone());
        let fields = DirectoryFields {
            status: Status::Consensus,
            valid_after: midnight,
            valid_until: midnight + DAY,
            recommended: names.filter(|_| recommended).collect(),
            voters: vec![Voter { key_id, url: "http://dir.example/".to_owned() }],
            client_versions: Vec::new(),
            server_versions: Vec::new(),
            descriptors,
        };
        let text = fields.sign(server, &mut StdRng::seed_from_u64(4)).unwrap();
        Directory::parse(&text, &Trust::new([key_id], 1).unwrap(), now()).unwrap()
    }

    /// A directory of one exit, `gamma`.
    fn directory(recommended: bool, change: impl FnOnce(&mut DescriptorFields)) -> Directory {
        directory_of(vec![mix("gamma", &KEYS[1], change)], recommended)
    }

    /// The same with a second mix, `delta`, both of which keep their keys for so many days.
    fn two_mixes(days: u32) -> Directory {
        let until = |fields: &mut DescriptorFields| fields.valid_until = now() - DAY / 2 + days * DAY;
        directory_of(vec![mix("gamma", &KEYS[1], until), mix("delta", &KEYS[2], until)], true)
    }

    /// What the exit of that directory is held to take: by e-mail, and for its own users.
    fn largest(directory: &Directory) -> [Option<u64>; 2] {
        ["smtp:bob@example.org", "mbox:frida@gamma"]
            .map(|to| largest_message(directory, &ExitAddress::parse(to).unwrap(), false, now()))
    }

    /// What keeps a mail to that address from its way, when sent by that path and answered by another.
    fn no_way(directory: &Directory, path: &str, to: &str, reply_to: Option<&str>) -> Option<NoWay> {
        let style = Style::new(path, "gamma", 7 * DAY).unwrap();
        let parse = |text: &str| ExitAddress::parse(text).unwrap();
        let (to, reply_to) = (parse(to), reply_to.map(parse));
        let wish = Wish { to: &to, message_len: 50_000, attachments: false, reply_to: reply_to.as_ref() };
        style.check(directory, &wish, now(), &mut World::real().dice()).err()
    }

    #[test]
    fn mail_that_would_find_no_path_is_known_before_it_is_taken() {
        let refusal = |path| no_way(&two_mixes(9), path, "bob@example.org", None);
        assert_eq!(refusal("delta,gamma"), None);
        assert!(matches!(refusal("gamma,gamma"), Some(NoWay::Forward(NoPath::Twice { .. }))));
        assert!(matches!(refusal("?,epsilon"), Some(NoWay::Forward(NoPath::Unknown { .. }))));
        let relays = directory_of(
            vec![mix("gamma", &KEYS[1], |_| {}), mix("delta", &KEYS[2], |fields| fields.smtp = None)],
            true,
        );
        let named_last = no_way(&relays, "gamma,delta", "bob@example.org", None);
        assert!(matches!(named_last, Some(NoWay::Forward(NoPath::CannotDeliver { .. }))), "{named_last:?}");
    }

    #[test]
    fn mail_whose_reply_block_would_find_no_path_is_known_before_it_is_taken() {
        let refusal = |days| no_way(&two_mixes(days), "delta,gamma", "bob@example.org", Some("mbox:alice@gamma"));
        // The reply block lives for a week.
        assert!(matches!(refusal(4), Some(NoWay::Reply(NoPath::NotInForce { .. }))), "{:?}", refusal(4));
        assert_eq!(refusal(9), None);
    }

    #[test]
    fn exit_that_reassembles_takes_what_it_says() {
        assert_eq!(largest(&directory(true, |_| {})), [Some(128 * KB); 2]);
        let unequal = directory(true, |fields| fields.mbox.as_mut().unwrap().max_size = 40 * KB);
        assert_eq!(largest(&unequal), [Some(128 * KB), Some(40 * KB)]);
    }

    #[test]
    fn attachments_have_a_limit_of_their_own_and_go_by_e_mail_alone() {
        let attached = |directory: &Directory| {
            ["smtp:bob@example.org", "mbox:frida@gamma"]
                .map(|to| largest_message(directory, &ExitAddress::parse(to).unwrap(), true, now()))
        };
        assert_eq!(attached(&directory(true, |_| {})), [None; 2]);
        let with_mime = directory(true, |fields| fields.smtp.as_mut().unwrap().mime = Some(512 * KB));
        assert_eq!(attached(&with_mime), [Some(512 * KB), None]);
        assert_eq!(largest(&with_mime), [Some(128 * KB); 2], "what it says of attachments is not of text");
        assert_eq!(largest_of_all(&with_mime, now()), Some(128 * KB));
    }

    #[test]
    fn mail_with_attachments_finds_the_exit_that_delivers_them_or_no_way() {
        let wish = |path: &str, with_mime: bool| {
            let with = |fields: &mut DescriptorFields| fields.smtp.as_mut().unwrap().mime = Some(128 * KB);
            let without = |_: &mut DescriptorFields| {};
            let delta = if with_mime { mix("delta", &KEYS[2], with) } else { mix("delta", &KEYS[2], without) };
            let directory = directory_of(vec![mix("gamma", &KEYS[1], without), delta], true);
            let to = ExitAddress::parse("bob@example.org").unwrap();
            let wish = Wish { to: &to, message_len: 50_000, attachments: true, reply_to: None };
            Style::new(path, "gamma", DAY).unwrap().check(&directory, &wish, now(), &mut World::real().dice())
        };
        assert_eq!(wish("gamma,?", true), Ok(()));
        assert_eq!(wish("gamma,?", false), Err(NoWay::Forward(NoPath::NoExit)));
        let why = CannotDeliver::Attachments;
        let named = NoPath::CannotDeliver { nickname: "gamma".parse().unwrap(), why };
        assert_eq!(wish("delta,gamma", true), Err(NoWay::Forward(named)));
    }

    #[test]
    fn mail_with_attachments_that_was_taken_goes_to_no_exit_without_them() {
        let to = ExitAddress::parse("bob@example.org").unwrap();
        let file = File::new(FileType::OCTETS, b"octets".to_vec());
        let entity = Entity::new("text\n".to_owned(), vec![file]).unwrap();
        let message = entity.message(MessageHeaders::default()).unwrap();
        let gamma = mix("gamma", &KEYS[1], |_| {});
        assert_eq!(exit_for(&to, &message, false).check(&gamma, 1), Err(CannotDeliver::Attachments));
        let with_mime = mix("gamma", &KEYS[1], |fields| fields.smtp.as_mut().unwrap().mime = Some(KB));
        assert_eq!(exit_for(&to, &message, false).check(&with_mime, 1), Ok(()));
        assert_eq!(exit_for(&to, b"SUBJECT:s\n\ntext\n", false).check(&gamma, 1), Ok(()));
    }

    /// A sender whose mixes are those of this directory.
    fn sender(home: &std::path::Path, [db, pool]: [&Db; 2], directory: &Directory) -> Arc<Sender> {
        let file = home.join("directory");
        std::fs::write(&file, directory.text()).unwrap();
        let directory_key = KEYS[0].public_key().key_id().to_string();
        let config = NetworkConfig { directory_key, ..NetworkConfig::default() };
        let world = World::new(now, || World::real().dice());
        Arc::new(Sender {
            db: db.clone(),
            pool: pool.clone(),
            network: Network::new(config, file, world.clone()).unwrap(),
            style: Style::new("gamma,?", "gamma", DAY).unwrap(),
            reply_to: watch::channel(BTreeMap::new()).1,
            give_up: DAY,
            bell: Arc::default(),
            counters: Counters::default(),
            world,
            stop: CancellationToken::new(),
        })
    }

    #[tokio::test]
    async fn mail_with_attachments_whose_last_exit_for_them_has_vanished_waits_until_there_is_one_again() {
        let home = tempfile::tempdir().unwrap();
        let db = Db::open(&home.path().join("gateway/gateway.db"), &GATEWAY_SCHEMAS).unwrap();
        let node = Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap();
        let stores = [&db, &node];
        let (routing_type, info) = ExitAddress::parse("bob@example.org").unwrap().routing();
        let file = vec![File::new(FileType::OCTETS, b"octets".to_vec())];
        let message = Entity::new("text\n".to_owned(), file).unwrap().message(MessageHeaders::default()).unwrap();
        let mail = Mail {
            identity: "me".to_owned(),
            exit: outbox::OutboxExit { routing_type, info, via: None },
            message: message.into(),
            reply_blocks: 0,
            message_id: None,
            accepted: now(),
        };
        db.write(move |tx| outbox::push(tx, &[mail])).unwrap();
        let with_mime = |fields: &mut DescriptorFields| fields.smtp.as_mut().unwrap().mime = Some(128 * KB);
        let gamma = || mix("gamma", &KEYS[1], |_| {});
        let waiting = || db.read(|view| Ok((outbox::counts(view)?.mails, outbox::next_due(view)?))).unwrap();

        let without = sender(home.path(), stores, &directory_of(vec![gamma(), mix("delta", &KEYS[2], |_| {})], true));
        assert!(Sender::pack_next(&without).await.unwrap());
        assert!(!Sender::pack_next(&without).await.unwrap(), "not again at once");
        assert_eq!(waiting(), (1, Some(now() + PAUSE.0)), "it is neither sent without them nor dropped");
        let counts = without.counters.snapshot();
        assert_eq!((counts.packed, counts.unsendable), (0, 1));
        let told = "SELECT 1 FROM outbox WHERE why LIKE '%can deliver the message%'";
        assert!(db.read(|view| view.exists(told, &[])).unwrap(), "the user is told why");

        let again = sender(home.path(), stores, &directory_of(vec![gamma(), mix("delta", &KEYS[2], with_mime)], true));
        again.retry_now().await;
        assert!(Sender::pack_next(&again).await.unwrap());
        assert_eq!((waiting().0, again.counters.snapshot().packed), (0, 1));
    }

    #[test]
    fn reply_blocks_stand_at_the_end_of_the_text_and_not_behind_the_attachments() {
        let headers = || MessageHeaders { subject: Some("s".to_owned()), ..MessageHeaders::default() };
        let text = [headers::encode(&headers()).unwrap(), b"text\n".to_vec()].concat();
        assert_eq!(with_more_text(&text, "\nblock\n").unwrap(), b"SUBJECT:s\n\ntext\n\nblock\n");
        let file = || vec![File::new(FileType::OCTETS, b"octets".to_vec())];
        let entity = |text: &str| Entity::new(text.to_owned(), file()).unwrap().message(headers()).unwrap();
        assert_eq!(with_more_text(&entity("text\n"), "\nblock\n").unwrap(), entity("text\n\nblock\n"));
        let other = with_more_text(b"CONTENT-TYPE:text/html\n\n<p>", "block\n").unwrap_err();
        assert!(matches!(other, NotPacked::Entity(InvalidEntity::Type)), "{other}");
    }

    #[test]
    fn exit_that_does_not_reassemble_takes_what_surely_fits_one_packet() {
        assert_eq!(largest(&directory(true, |fields| fields.fragmented = None)), [Some(28_000); 2]);
        let small = directory(true, |fields| {
            fields.fragmented = None;
            fields.smtp.as_mut().unwrap().max_size = 20 * KB;
        });
        assert_eq!(largest(&small), [Some(20 * KB), Some(28_000)]);
    }

    #[test]
    fn exit_takes_no_more_fragments_than_it_says() {
        let directory = directory(true, |fields| fields.fragmented = Some(3));
        let [Some(mail), Some(_)] = largest(&directory) else { panic!("takes some") };
        let noise = |len: u64| prng(&StreamKey::new([9; 16]), usize::try_from(len).unwrap());
        let prefix = Exit { exit_type: RoutingType::SMTP, address: b"bob@example.org".to_vec() };
        assert_eq!(encode::count(&noise(mail), Capacity::Plain, Some(&prefix)), Ok(3));
        assert!(encode::count(&noise(mail + KB), Capacity::Plain, Some(&prefix)).unwrap() > 3, "{mail}");
    }

    #[test]
    fn exit_that_forbids_the_from_address_takes_nothing() {
        let strict = directory(true, |fields| {
            fields.smtp.as_mut().unwrap().allow_from = false;
            fields.mbox.as_mut().unwrap().allow_from = false;
        });
        assert_eq!(largest(&strict), [None; 2]);
    }

    #[test]
    fn exit_that_is_not_recommended_takes_mail_for_its_own_users_alone() {
        assert_eq!(largest(&directory(false, |_| {})), [None, Some(128 * KB)]);
    }

    #[test]
    fn exit_whose_descriptor_ends_while_packets_travel_takes_nothing() {
        let ending = directory(true, |fields| fields.valid_until = now() + DAY / 2);
        assert_eq!(largest(&ending), [None; 2]);
    }

    #[test]
    fn largest_of_all_is_what_the_best_address_takes() {
        let unequal = directory(true, |fields| fields.smtp.as_mut().unwrap().max_size = 40 * KB);
        assert_eq!(largest_of_all(&unequal, now()), Some(128 * KB));
        assert_eq!(largest_of_all(&directory(true, |fields| fields.fragmented = None), now()), Some(28_000));
    }

    #[test]
    fn exit_that_takes_no_connections_takes_nothing() {
        assert_eq!(largest(&directory(true, |fields| fields.listens_at = None)), [None; 2]);
    }
}
