//! Hands packets to the next mix: TCP, TLS, then `mmtp::client` (minion-spec 4).
//!
//! When to try, and when to try again, is decided above. What has no answer when the connection ends is tried again:
//! should it have arrived all the same, the next mix takes it for a replay and drops it.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use rand::CryptoRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::bandwidth::{Bandwidth, Metered, PacketsGo};
use super::resolve::{Asker, NotResolved, ResolveConfig, Resolver, at_port};
use super::tls::{self, ClientLink, LinkError};
use super::writing::Writing;
use crate::crypto::KeyId;
use crate::directory::Policy;
use crate::mmtp::client::Step;
use crate::mmtp::frame::Command;
use crate::mmtp::{ClientSession, PeerMisbehaved};
use crate::packet::{NextHop, PACKET_LEN, Packet};

/// Octets read at once. Answers have 30.
const READ_LEN: usize = 1024;

/// Units that are written at once, where there are more: as much as TLS takes at a time. The peer is woken less often.
const WRITTEN_AT_ONCE: usize = 2;

/// Addresses of one host that are tried, those of IPv4 and IPv6 in turns. Whoever controls a name must not have us knock
/// at any number of doors.
const MAX_ADDRESSES: usize = 4;

/// How long the peer may take to be told goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Time limits of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectConfig {
    /// To find the addresses of the host, and again for one of them to answer: each has its even part of what is left.
    /// 30 seconds by default.
    pub connect_timeout: Duration,
    /// For the TLS handshake, and again for the version exchange. 30 seconds by default.
    pub handshake_timeout: Duration,
    /// Without any octet in or out while packets wait for their answer. 5 minutes by default, as in the reference: the
    /// peer may have to wait for its disk.
    pub progress_timeout: Duration,
    /// No more units are sent over one connection after this time. 15 minutes by default: the specification demands
    /// new keys then.
    pub max_lifetime: Duration,
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(30),
            progress_timeout: Duration::from_secs(5 * 60),
            max_lifetime: Duration::from_secs(15 * 60),
        }
    }
}

/// Something to send, with the name by which the caller knows it.
#[derive(Debug, Clone)]
pub struct Unit<I> {
    id: I,
    command: Command,
    packet: Packet,
}

impl<I> Unit<I> {
    /// A packet to be delivered.
    pub fn packet(id: I, packet: Packet) -> Self {
        Self { id, command: Command::Send, packet }
    }

    /// Padding of the link: from outside it looks like a packet (minion-spec 4).
    pub fn junk(id: I, rng: &mut impl CryptoRng) -> Self {
        let mut octets = vec![0; PACKET_LEN];
        rng.fill_bytes(&mut octets);
        let packet = Packet::from_bytes(&octets).expect("32768 octets: made above");
        Self { id, command: Command::Junk, packet }
    }
}

impl<I> Unit<I> {
    /// The same, known by another name; and its own.
    fn under<J>(self, name: J) -> (I, Unit<J>) {
        let Self { id, command, packet } = self;
        (id, Unit { id: name, command, packet })
    }
}

/// What became of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The next mix has it on disk: forget it.
    Delivered,
    /// The next mix did not take it: try again later.
    Rejected,
    /// No answer: try again later.
    Unanswered,
}

/// Where the units of a connection come from, and where their outcomes go. Several connections may share one: see
/// [`Connector::hand_over`].
pub trait Cargo: Send {
    /// By what the caller knows a unit.
    type Id: Send;

    /// The mix is reached, and it is the right one.
    fn reached(&mut self) {}

    /// The next unit to send. `None`: there is none left; it is not asked again.
    fn next(&mut self) -> impl Future<Output = Option<Unit<Self::Id>>> + Send;

    /// What became of a unit that was sent. Each is told of once, in the order in which they were given; when the
    /// connection is stopped, those without an answer are not told of.
    fn settled(&mut self, id: Self::Id, outcome: Outcome);
}

/// What became of all units.
#[derive(Debug)]
pub struct Delivery<I> {
    /// Each unit's outcome, in the order in which they were given.
    pub outcomes: Vec<(I, Outcome)>,
    /// Why some have no answer.
    pub failure: Option<Undelivered>,
}

/// Why a connection did not come about or ended too early.
#[derive(Debug, thiserror::Error)]
pub enum Undelivered {
    /// The host name has no address now.
    #[error("finding the address of the next mix")]
    Resolve(#[from] NotResolved),
    /// The name service did not answer in time.
    #[error("the address of the next mix was not found in time")]
    ResolveTimeout,
    /// The rules forbid each address of the host.
    #[error("the rules forbid connections to the next mix")]
    Denied,
    /// No address took the connection.
    #[error("connecting to the next mix")]
    Connect {
        /// What the system says about the last address.
        source: io::Error,
    },
    /// The last address did not answer in time.
    #[error("the next mix does not answer")]
    ConnectTimeout,
    /// The peer could not prove to be the next mix.
    #[error("the peer is not the next mix")]
    Link(#[from] LinkError),
    /// TLS failed for other reasons.
    #[error("the TLS handshake with the next mix")]
    Handshake {
        /// What TLS says.
        source: io::Error,
    },
    /// TLS or the version exchange took too long.
    #[error("no handshake within the time limit")]
    HandshakeTimeout,
    /// The peer broke the protocol.
    #[error("the next mix broke the protocol")]
    Misbehaved(#[from] PeerMisbehaved),
    /// The peer closed the connection before it had answered everything.
    #[error("the next mix closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection to the next mix broke")]
    Broken {
        /// What the system says.
        source: io::Error,
    },
    /// Nothing came or went for too long.
    #[error("the next mix has stalled")]
    Stalled,
    /// The keys of the connection are too old for more; the rest wants a new one.
    #[error("the connection to the next mix has lasted its time")]
    LifetimeOver,
    /// The caller has ended it.
    #[error("ended from this side")]
    Stopped,
}

/// What connections go by; may change at any time. Each goes by what holds when it begins, and ends when the rules do not
/// allow it any more.
#[derive(Clone)]
pub struct Terms {
    /// Time limits.
    pub config: ConnectConfig,
    /// Who finds addresses.
    pub resolver: Resolver,
    /// Whom to connect to. The port of a rule is the port that is connected to.
    pub policy: Policy,
    /// What passes counts against this limit, too.
    pub bandwidth: Option<Bandwidth>,
}

/// What all connections of a process to other mixes share.
#[derive(Clone)]
pub struct Connector(watch::Receiver<Terms>);

impl Connector {
    /// Connects to everybody, as fast as the network lets it.
    pub fn new(config: ConnectConfig, resolver: Resolver) -> Self {
        Self::fixed(Terms { config, resolver, policy: Policy::default(), bandwidth: None })
    }

    /// Connects on these terms.
    pub fn fixed(terms: Terms) -> Self {
        Self(watch::channel(terms).1)
    }

    /// Connects on the terms that hold at the time.
    pub fn on(terms: watch::Receiver<Terms>) -> Self {
        Self(terms)
    }

    /// On the terms that hold now, but for whom to connect to.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self::fixed(Terms { policy, ..self.terms() })
    }

    fn terms(&self) -> Terms {
        self.0.borrow().clone()
    }

    /// Looks up the host ahead of [`Connector::deliver`], which then knows it: a slow name server keeps no connection
    /// from others, nor do the names of strangers from whom `asker` says that they are none.
    ///
    /// # Errors
    /// [`Undelivered::Resolve`], [`Undelivered::ResolveTimeout`].
    pub async fn prepare(&self, next: &NextHop, asker: Asker) -> Result<(), Undelivered> {
        self.terms().find(next, asker).await.map(drop)
    }

    /// Connects to the next mix and hands it all units in order, as many at a time as its answers allow. `now` is what
    /// the peer's certificate is checked against. Ends early, with what is known by then, when `stop` is cancelled.
    pub async fn deliver<I: Send>(
        &self,
        next: &NextHop,
        units: Vec<Unit<I>>,
        now: SystemTime,
        stop: &CancellationToken,
    ) -> Delivery<I> {
        let (ids, unsent): (Vec<_>, Vec<_>) =
            units.into_iter().enumerate().map(|(place, unit)| unit.under(place)).unzip();
        let mut all = All { outcomes: vec![Outcome::Unanswered; ids.len()], unsent: unsent.into_iter() };
        let failure = if ids.is_empty() {
            None
        } else {
            self.hand_over((next, Asker::Stranger), &mut all, now, stop).await.err()
        };
        Delivery { outcomes: ids.into_iter().zip(all.outcomes).collect(), failure }
    }

    /// Connects to the next mix, whose name is looked up for `asker`, and hands it what `cargo` gives, until there is no more.
    ///
    /// # Errors
    /// Why it ended before. What was not asked for then is still there.
    pub async fn hand_over<C: Cargo>(
        &self,
        (next, asker): (&NextHop, Asker),
        cargo: &mut C,
        now: SystemTime,
        stop: &CancellationToken,
    ) -> Result<(), Undelivered> {
        stop.run_until_cancelled(self.attempt(next, asker, cargo, now)).await.unwrap_or(Err(Undelivered::Stopped))
    }

    async fn attempt<C: Cargo>(
        &self,
        next: &NextHop,
        asker: Asker,
        cargo: &mut C,
        now: SystemTime,
    ) -> Result<(), Undelivered> {
        let terms = self.terms();
        let (stream, address) = terms.connect(next, asker).await?;
        let mut under_way = UnderWay::new(cargo);
        let talk = terms.talk(stream, next.key_id(), &mut under_way, now);
        let ended = tokio::select! {
            ended = talk => ended,
            () = denied(self.0.clone(), address) => Err(Undelivered::Denied),
        };
        under_way.end();
        ended
    }
}

/// Returns when the rules do not allow this address any more.
async fn denied(mut terms: watch::Receiver<Terms>, address: SocketAddr) {
    if terms.wait_for(|terms| !terms.policy.allows(address.ip(), address.port())).await.is_err() {
        // They never change again.
        pending().await
    }
}

impl Terms {
    async fn find(&self, next: &NextHop, asker: Asker) -> Result<Vec<IpAddr>, Undelivered> {
        let host = next.host();
        let found = timeout(self.config.connect_timeout, self.resolver.addresses(&host, asker)).await;
        Ok(found.map_err(|_| Undelivered::ResolveTimeout)??)
    }

    async fn talk<C: Cargo>(
        &self,
        stream: TcpStream,
        key_id: KeyId,
        units: &mut UnderWay<'_, C>,
        now: SystemTime,
    ) -> Result<(), Undelivered> {
        let stream = Metered::new(stream, self.bandwidth.as_ref());
        let mut link = timeout(self.config.handshake_timeout, tls::connect(key_id, now, stream))
            .await
            .map_err(|_| Undelivered::HandshakeTimeout)?
            .map_err(|source| match LinkError::find(&source) {
                Some(refused) => Undelivered::Link(refused),
                None => Undelivered::Handshake { source },
            })?;
        link.get_mut().0.take_turns(PacketsGo::Out);
        units.cargo.reached();
        exchange(link, units, &self.config).await
    }

    async fn connect(&self, next: &NextHop, asker: Asker) -> Result<(TcpStream, SocketAddr), Undelivered> {
        let found = self.find(next, asker).await?;
        let allowed = at_port(found, next.port()).filter(|address| self.policy.allows(address.ip(), address.port()));
        let addresses: Vec<_> = allowed.take(MAX_ADDRESSES).collect();
        let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let deadline = Instant::now() + self.config.connect_timeout;
        let mut failure = Undelivered::Denied;
        for address in addresses {
            let part = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left -= 1;
            match timeout(part, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(|source| Undelivered::Connect { source })?;
                    return Ok((stream, address));
                }
                Ok(Err(source)) => failure = Undelivered::Connect { source },
                Err(_) => failure = Undelivered::ConnectTimeout,
            }
        }
        Err(failure)
    }
}

/// As [`Connector::deliver`], for whoever connects once: nothing is remembered, nothing forbidden, nothing counted.
pub async fn deliver<I: Send>(
    next: &NextHop,
    units: Vec<Unit<I>>,
    config: &ConnectConfig,
    now: SystemTime,
    stop: &CancellationToken,
) -> Delivery<I> {
    let connector = Connector::new(config.clone(), Resolver::system(ResolveConfig::default()));
    connector.deliver(next, units, now, stop).await
}

/// Units that are all there from the beginning, known by their place.
struct All {
    unsent: std::vec::IntoIter<Unit<usize>>,
    outcomes: Vec<Outcome>,
}

impl Cargo for All {
    type Id = usize;

    async fn next(&mut self) -> Option<Unit<usize>> {
        self.unsent.next()
    }

    fn settled(&mut self, place: usize, outcome: Outcome) {
        if let Some(slot) = self.outcomes.get_mut(place) {
            *slot = outcome;
        }
    }
}

/// Units that were asked for and have no outcome yet.
struct UnderWay<'c, C: Cargo> {
    cargo: &'c mut C,
    /// Sent, the oldest first.
    ids: VecDeque<C::Id>,
    /// To be sent next. Asked for ahead, to know whether there is anything left.
    next: Option<Unit<C::Id>>,
    /// Whether it is worth asking.
    any_left: bool,
}

impl<'c, C: Cargo> UnderWay<'c, C> {
    fn new(cargo: &'c mut C) -> Self {
        Self { cargo, ids: VecDeque::new(), next: None, any_left: true }
    }

    async fn look_ahead(&mut self) {
        if self.next.is_none() && self.any_left {
            self.next = self.cargo.next().await;
            self.any_left = self.next.is_some();
        }
    }

    /// Puts the next unit behind what is to be written, if there is one and the session lets it go.
    fn send(&mut self, session: &mut ClientSession, writing: &mut Writing) {
        let Some(unit) = self.next.take() else { return };
        if session.send(unit.command, &unit.packet, writing.behind()) {
            self.ids.push_back(unit.id);
        } else {
            self.next = Some(unit);
        }
    }

    /// Answers come in the order of the units.
    fn settle(&mut self, outcome: Outcome) {
        if let Some(id) = self.ids.pop_front() {
            self.cargo.settled(id, outcome);
        }
    }

    /// The connection is over.
    fn end(mut self) {
        self.ids.extend(self.next.take().map(|unit| unit.id));
        while !self.ids.is_empty() {
            self.settle(Outcome::Unanswered);
        }
    }
}

/// Drives the session until every unit has its answer.
async fn exchange<C: Cargo>(
    link: ClientLink,
    units: &mut UnderWay<'_, C>,
    config: &ConnectConfig,
) -> Result<(), Undelivered> {
    let (mut reader, mut writer) = tokio::io::split(link);
    let mut session = ClientSession::new();
    let mut writing = Writing::default();
    let mut buffer = [0; READ_LEN];
    let mut unread = 0..0;
    let mut write_error = None;
    let began = Instant::now();
    let mut last_progress = began;
    loop {
        let input = buffer.get(unread.clone()).unwrap_or_default();
        go_on(&mut session, input, &mut writing, units)?;
        let old = began.elapsed() >= config.max_lifetime;
        let agreed = session.is_agreed();
        if agreed && writing.is_empty() {
            for _ in 0..WRITTEN_AT_ONCE {
                units.look_ahead().await;
                if !old {
                    units.send(&mut session, &mut writing);
                }
            }
        }
        if agreed && session.unanswered() == 0 && (old || units.next.is_none()) {
            break;
        }
        let deadline = if agreed { last_progress + config.progress_timeout } else { began + config.handshake_timeout };
        unread = 0..0;
        tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(count) if count > 0 => unread = 0..count,
                ended => return Err(ended_early(ended, write_error)),
            },
            // A peer that hung up may have answered before: what it said is still read.
            written = writing.progress(&mut writer), if !writing.is_done() && write_error.is_none() => {
                write_error = written.err();
            }
            () = sleep_until(deadline) => {
                return Err(if agreed { Undelivered::Stalled } else { Undelivered::HandshakeTimeout });
            }
        }
        last_progress = Instant::now();
    }
    // Everything is answered: whether the peer hears the goodbye makes no difference.
    let _ = timeout(GOODBYE, writer.shutdown()).await;
    if units.next.is_some() { Err(Undelivered::LifetimeOver) } else { Ok(()) }
}

/// Lets the session go on as far as it can with this input.
fn go_on<C: Cargo>(
    session: &mut ClientSession,
    mut input: &[u8],
    writing: &mut Writing,
    units: &mut UnderWay<'_, C>,
) -> Result<(), PeerMisbehaved> {
    loop {
        match session.step(&mut input)? {
            Step::Send(octets) => writing.push(&octets),
            Step::Agreed => {}
            Step::Delivered(_) => units.settle(Outcome::Delivered),
            Step::Rejected(_) => units.settle(Outcome::Rejected),
            Step::Receive => return Ok(()),
        }
    }
}

fn ended_early(read: io::Result<usize>, write_error: Option<io::Error>) -> Undelivered {
    match (read, write_error) {
        (_, Some(source)) => Undelivered::Broken { source },
        // Old TLS libraries hang up without saying so.
        (Err(source), None) if source.kind() != io::ErrorKind::UnexpectedEof => Undelivered::Broken { source },
        _ => Undelivered::Closed,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::net::TcpListener;

    use super::*;
    use crate::crypto::KeyId;
    use crate::packet::{HostName, HostRoute};

    /// A name service that says that every host has these addresses.
    fn connector(addresses: &[IpAddr]) -> Connector {
        let addresses = addresses.to_vec();
        let resolver = Resolver::asking(ResolveConfig::default(), move |_| {
            let addresses = addresses.clone();
            Box::pin(async move { Ok(addresses) })
        });
        Connector::new(ConnectConfig::default(), resolver)
    }

    fn host(port: u16) -> NextHop {
        let host = HostName::parse("mix.example").unwrap();
        NextHop::Host(HostRoute { host, port, key_id: KeyId([1; 20]) })
    }

    #[tokio::test]
    async fn host_with_an_address_of_ipv6_is_reached_by_it() {
        let socket = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (stream, _) =
            connector(&[address.ip()]).terms().connect(&host(address.port()), Asker::Stranger).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn host_whose_first_addresses_lead_nowhere_is_reached_by_the_next() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        // Nobody listens at any of these.
        let nowhere = [IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let terms = connector(&[&nowhere[..], &[address.ip()]].concat()).terms();
        let (stream, reached) = terms.connect(&host(address.port()), Asker::Stranger).await.unwrap();
        assert_eq!((stream.peer_addr().unwrap(), reached), (address, address));
    }

    #[tokio::test]
    async fn no_more_than_four_addresses_of_a_host_are_tried() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let nowhere: Vec<_> = (2..=5).map(|octet| IpAddr::from([127, 0, 0, octet])).collect();
        let terms = connector(&[&nowhere[..], &[address.ip()]].concat()).terms();
        let failed = terms.connect(&host(address.port()), Asker::Stranger).await;
        assert!(matches!(failed, Err(Undelivered::Connect { .. })), "{failed:?}");
    }

    #[tokio::test]
    async fn addresses_that_the_rules_deny_are_passed_over() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let policy = |rules: &[&str]| Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let connector = connector(&[Ipv6Addr::LOCALHOST.into(), address.ip()]);
        let allowed = connector.clone().with_policy(policy(&["deny ::/0", "allow * 1-65535"]));
        assert_eq!(allowed.terms().connect(&host(address.port()), Asker::Stranger).await.unwrap().1, address);
        let denied = connector.with_policy(policy(&["allow *"])).terms().connect(&host(1), Asker::Stranger).await;
        assert!(matches!(denied, Err(Undelivered::Denied)), "{denied:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn name_service_that_does_not_answer_is_a_failure_of_its_own() {
        let resolver = Resolver::asking(ResolveConfig::default(), |_| Box::pin(pending()));
        let connector = Connector::new(ConnectConfig::default(), resolver);
        let failed = connector.terms().connect(&host(1), Asker::Stranger).await;
        assert!(matches!(failed, Err(Undelivered::ResolveTimeout)), "{failed:?}");
    }
}
