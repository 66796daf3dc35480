//! Takes packets from other mixes and from clients: TCP, TLS, then `mmtp::server` (minion-spec 4).
//!
//! Where packets go is the business of a [`PacketSink`]. One task serves one connection, so that a slow peer delays
//! nobody but itself; the limits are in [`ListenConfig`].

use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_send_buffer_size};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::addresses::{Access, ListenAddresses};
use super::bandwidth::{Bandwidth, Metered, PacketsGo};
use super::seats::{Limits, Seats};
use super::sockets::Inherited;
use super::tls::{self, LinkIdentity};
use super::trouble::Trouble;
use super::writing::Writing;
use crate::mmtp::frame::{ANSWER_LEN, WINDOW};
use crate::mmtp::server::Step;
use crate::mmtp::{PeerMisbehaved, ServerSession, Ticket};
use crate::packet::Packet;

/// Octets read at once: one full TLS record.
const READ_LEN: usize = 64 * 1024;

/// How long to wait when the system gives no more connections, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a peer may take to let itself be told goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Connections that the system may hold ready until they are looked at. More are told to come again, by the system.
const BACKLOG: u32 = 1024;

/// Section `[node.incoming]`: whose connections are taken, and their limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    /// Whose connections are taken. The port of a rule is the port of the listener.
    pub access: Access,
    /// Connections in all. Beyond it a newcomer is closed at once, unless another host has more: that one gives its oldest.
    /// 256 by default: with half a megabyte of packets that wait for the disk in each, 128 megabytes.
    #[serde(deserialize_with = "crate::settings::count")]
    pub max_connections: usize,
    /// Connections from one address (one /64 of IPv6); more are closed at once. 64 by default: nobody takes all seats.
    #[serde(deserialize_with = "crate::settings::count")]
    pub max_connections_per_address: usize,
    /// From accepting a connection to the end of the TLS handshake, and again to the end of the version exchange. 30
    /// seconds by default.
    #[serde(with = "crate::settings::time")]
    pub handshake_timeout: Duration,
    /// Without any octet in or out. 5 minutes by default, as in the reference.
    #[serde(with = "crate::settings::time")]
    pub idle_timeout: Duration,
    /// A connection takes no new packets after this time; what is under way is still answered. 15 minutes by default:
    /// the specification demands new keys then, the reference never had a way to agree on them, and TLS 1.3 has none.
    #[serde(with = "crate::settings::time")]
    pub max_lifetime: Duration,
    /// A connection takes no more packets than this, padding included; then it ends as with its lifetime, and its peer
    /// has to wait for a seat like everybody. 16,384 by default: half a gigabyte, far more than mixes hand over at once.
    #[serde(deserialize_with = "crate::settings::some")]
    pub max_packets: u64,
    /// Octets of answers that the system may hold for a peer that does not read them; beyond it (and the answers to 16
    /// packets) nothing more is taken from that peer. 65,536 by default, which are the answers to a thousand packets; for
    /// all connections 16 megabytes. Systems may round it up.
    pub max_unsent: u32,
    /// How long connections may take, once the listener is stopped, to answer what they have taken. 10 seconds by
    /// default.
    #[serde(with = "crate::settings::time")]
    pub stop_timeout: Duration,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            access: Access::default(),
            max_connections: 256,
            max_connections_per_address: 64,
            handshake_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(5 * 60),
            max_lifetime: Duration::from_secs(15 * 60),
            max_packets: 16_384,
            max_unsent: 64 * 1024,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// What connections go by; may change while the listener runs. Newcomers go by what holds when they come, and who is
/// there goes when the rules do not allow it any more. Where the listener is, and what the system holds for a connection
/// ([`ListenConfig::max_unsent`]), do not change.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who is let in, and the limits.
    pub config: ListenConfig,
    /// What passes counts against this limit, too.
    pub bandwidth: Option<Bandwidth>,
}

impl Terms {
    fn allow(&self, peer: SocketAddr, port: u16) -> bool {
        self.config.access.policy().allows(peer.ip(), port)
    }
}

/// A packet was not taken: the disk is full or the mix is closing. The peer is told so and tries again later.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("the packet was not taken")]
pub struct Refused;

/// Where packets go.
pub trait PacketSink: Send + Sync + 'static {
    /// A connection was let in.
    fn arrived(&self) {}

    /// Stores a packet; returns when it is on disk, no earlier, because the sender then forgets it. Many are under way
    /// at a time, so that one flush may serve them all.
    fn store(&self, packet: Packet) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Forgets padding, after the same work: a third party that can time the answer shall not tell it from a packet
    /// (minion-spec 4).
    fn forget(&self, junk: Packet) -> impl Future<Output = Result<(), Refused>> + Send;
}

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("listening for packets at {address}")]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

/// Why a connection ended other than by its proper end.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no handshake within the time limit")]
    HandshakeTimeout,
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("nothing came or went within the time limit")]
    Idle,
    #[error("the peer did not read its answers within the time limit")]
    Unread,
    #[error("the peer broke the protocol")]
    Misbehaved(#[from] PeerMisbehaved),
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("the store of packets panicked")]
    Sink,
}

/// Open ports that take packets.
pub struct MmtpListener<S> {
    sockets: Sockets,
    identity: watch::Receiver<Arc<LinkIdentity>>,
    terms: watch::Receiver<Terms>,
    sink: Arc<S>,
}

impl<S: PacketSink> MmtpListener<S> {
    /// Opens the ports, which share the limits; these never change. Each connection is served under the link identity that
    /// `identity` holds when it begins.
    ///
    /// # Errors
    /// [`ListenError`] when the system does not give a port.
    pub async fn bind(
        addresses: impl Into<ListenAddresses>,
        identity: watch::Receiver<Arc<LinkIdentity>>,
        config: ListenConfig,
        sink: Arc<S>,
    ) -> Result<Self, ListenError> {
        let terms = watch::channel(Terms { config, bandwidth: None }).1;
        Self::bind_in(&Inherited::default(), addresses, identity, terms, sink).await
    }

    /// As [`MmtpListener::bind`], on the sockets that were handed over for these addresses, where there are some, and on
    /// terms that may change.
    ///
    /// # Errors
    /// As [`MmtpListener::bind`].
    pub async fn bind_in(
        inherited: &Inherited,
        addresses: impl Into<ListenAddresses>,
        identity: watch::Receiver<Arc<LinkIdentity>>,
        terms: watch::Receiver<Terms>,
        sink: Arc<S>,
    ) -> Result<Self, ListenError> {
        let max_unsent = terms.borrow().config.max_unsent;
        let sockets = Sockets::open(&addresses.into(), max_unsent, inherited)?;
        Ok(Self { sockets, identity, terms, sink })
    }

    /// The first address with the port that the system gave.
    pub fn local_addr(&self) -> SocketAddr {
        self.sockets.open.first().expect("never none: ListenAddresses").address
    }

    /// All addresses with the ports that the system gave.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.open.iter().map(|socket| socket.address).collect()
    }

    /// Serves until `stop` is cancelled; then answers what was taken, and closes.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let seats = Seats::default();
        let mut trouble = Trouble::default();
        loop {
            tokio::select! {
                accepted = self.sockets.accept() => match accepted {
                    Ok(arrival) => self.admit(arrival, &seats, &mut connections, &stop),
                    Err(error) => {
                        if is_of_the_system(&error) && trouble.is_news() {
                            warn!(%error, "no connection can be accepted");
                        }
                        debug!(%error, "no connection accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = stop.cancelled() => break,
            }
        }
        let Self { sockets, terms, .. } = self;
        drop(sockets);
        let stop_timeout = terms.borrow().config.stop_timeout;
        // Those that are not done by then are cut off: their packets have no answer, and come again.
        let all_done = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(stop_timeout, all_done).await;
        connections.shutdown().await;
    }

    fn admit(
        &self,
        Arrival { stream, peer, port }: Arrival,
        seats: &Seats,
        connections: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let terms = self.terms.borrow().clone();
        // Before TLS: whoever may not come in costs one look at the rules.
        if !terms.allow(peer, port) {
            debug!("a connection that the rules deny was closed");
            return;
        }
        let Terms { config, bandwidth } = terms;
        let limits = Limits { all: config.max_connections, per_host: config.max_connections_per_address };
        let Some(seat) = seats.take(peer.ip(), limits, stop) else {
            debug!("a connection over the limit was closed");
            return;
        };
        let stream = Metered::new(stream, bandwidth.as_ref());
        let identity = Arc::clone(&self.identity.borrow());
        let sink = Arc::clone(&self.sink);
        sink.arrived();
        let terms = self.terms.clone();
        connections.spawn(async move {
            let end = seat.end();
            let too_late = async {
                tokio::select! {
                    () = end.cancelled() => {}
                    () = denied(terms, peer, port) => end.cancel(),
                }
                sleep(config.stop_timeout).await;
            };
            // Neither address nor time of day of a peer belongs into a log.
            tokio::select! {
                served = serve(stream, &identity, sink, &config, end) => {
                    if let Err(ended) = served {
                        debug!(%ended, "connection closed");
                    }
                }
                () = too_late => debug!("a connection that had to end was cut off"),
            }
        });
    }
}

/// Whether the system has nothing left to give; else it is the fault of one peer, who has hung up.
fn is_of_the_system(error: &io::Error) -> bool {
    let nothing_left = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| nothing_left.contains(&error))
}

/// Returns when the rules do not allow this peer any more.
async fn denied(mut terms: watch::Receiver<Terms>, peer: SocketAddr, port: u16) {
    if terms.wait_for(|terms| !terms.allow(peer, port)).await.is_err() {
        // They never change again.
        pending().await
    }
}

/// All listening sockets of a node.
struct Sockets {
    /// Never empty.
    open: Vec<Socket>,
    /// The one that is asked first, each in its turn: a flood at one address does not close the others.
    next: usize,
}

struct Socket {
    listener: TcpListener,
    address: SocketAddr,
}

/// A connection, and the port that it came to.
struct Arrival {
    stream: TcpStream,
    peer: SocketAddr,
    port: u16,
}

impl Sockets {
    fn open(addresses: &ListenAddresses, max_unsent: u32, inherited: &Inherited) -> Result<Self, ListenError> {
        let addresses = addresses.as_slice();
        let at = |address| move |source| ListenError { address, source };
        let first = *addresses.first().expect("never none: ListenAddresses");
        let handed_over = inherited.take_for(addresses).map_err(at(first))?;
        let open = |(&address, handed_over): (&SocketAddr, Option<TcpListener>)| {
            let listener = handed_over.map_or_else(|| listen(address), Ok).map_err(at(address))?;
            // Connections inherit it.
            set_socket_send_buffer_size(&listener, max_unsent as usize).map_err(|e| at(address)(e.into()))?;
            let address = listener.local_addr().map_err(at(address))?;
            Ok(Socket { listener, address })
        };
        Ok(Self { open: addresses.iter().zip(handed_over).map(open).collect::<Result<_, _>>()?, next: 0 })
    }

    async fn accept(&mut self) -> io::Result<Arrival> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        for _ in 0..self.open.len() {
            let Socket { listener, address } = self.open.get(self.next).expect("below the length");
            self.next = (self.next + 1) % self.open.len();
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                let port = address.port();
                return Poll::Ready(accepted.map(|(stream, peer)| Arrival { stream, peer, port }));
            }
        }
        Poll::Pending
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // Else `[::]` would take the port of IPv4 as well on some systems, and on others not.
        set_ipv6_v6only(&socket, true)?;
        socket
    };
    // So that a node that restarts need not wait for connections of its last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn serve<S: PacketSink>(
    stream: Metered<TcpStream>,
    identity: &LinkIdentity,
    sink: Arc<S>,
    config: &ListenConfig,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    // Answers are small and must not wait for one another.
    stream.get_ref().set_nodelay(true)?;
    let handshake = timeout(config.handshake_timeout, tls::accept(identity, stream));
    let Some(handshake) = stop.run_until_cancelled(handshake).await else { return Ok(()) };
    let mut link = handshake.map_err(|_| Ended::HandshakeTimeout)?.map_err(Ended::Handshake)?;
    link.get_mut().0.take_turns(PacketsGo::In);
    let mut connection = Connection::new(link, sink);
    connection.run(config, stop).await?;
    // Whether the peer hears the goodbye makes no difference to anyone.
    let _ = timeout(GOODBYE, connection.goodbye()).await;
    Ok(())
}

/// One connection after its handshake.
struct Connection<L, S> {
    reader: ReadHalf<L>,
    writer: WriteHalf<L>,
    session: ServerSession,
    sink: Arc<S>,
    /// Packets that the sink is storing.
    stores: JoinSet<(Ticket, Result<(), Refused>)>,
    writing: Writing,
    buffer: Box<[u8]>,
    /// The part of the buffer that the session has not taken yet.
    unread: std::ops::Range<usize>,
    /// Packets and padding that came.
    taken: u64,
}

/// Answers that wait for the system to take them are never more than this, which bounds [`Writing`] here: nothing is
/// taken from a peer while an answer waits.
const MAX_ANSWERS: usize = WINDOW * ANSWER_LEN;
const _: () = assert!(MAX_ANSWERS < 512);

impl<L: AsyncRead + AsyncWrite, S: PacketSink> Connection<L, S> {
    fn new(link: L, sink: Arc<S>) -> Self {
        let (reader, writer) = tokio::io::split(link);
        Self {
            reader,
            writer,
            session: ServerSession::new(),
            sink,
            stores: JoinSet::new(),
            writing: Writing::default(),
            buffer: vec![0; READ_LEN].into_boxed_slice(),
            unread: 0..0,
            taken: 0,
        }
    }

    /// Serves until the peer ends, or `stop` or the lifetime ends it; then finishes what is under way.
    async fn run(&mut self, config: &ListenConfig, stop: &CancellationToken) -> Result<(), Ended> {
        let began = Instant::now();
        let mut reading = true;
        let mut idle_since = began;
        loop {
            let wants_input = self.go_on(config.max_packets)?;
            reading &= self.taken < config.max_packets;
            if !reading && self.session.is_settled() && self.writing.is_done() {
                return Ok(());
            }
            tokio::select! {
                read = self.reader.read(&mut self.buffer), if reading && wants_input => {
                    match end_is_end(read)? {
                        0 => {
                            self.session.end()?;
                            reading = false;
                        }
                        count => self.unread = 0..count,
                    }
                }
                written = self.writing.progress(&mut self.writer), if !self.writing.is_done() => written?,
                Some(stored) = self.stores.join_next() => match stored {
                    Ok((ticket, Ok(()))) => self.session.received(ticket),
                    Ok((ticket, Err(Refused))) => self.session.rejected(ticket),
                    Err(_) => return Err(Ended::Sink),
                },
                // A slow disk is not the peer's fault.
                () = sleep_until(idle_since + config.idle_timeout), if self.stores.is_empty() => {
                    return Err(if self.writing.is_done() { Ended::Idle } else { Ended::Unread });
                }
                () = sleep_until(began + config.handshake_timeout), if !self.session.is_agreed() => {
                    return Err(Ended::HandshakeTimeout);
                }
                () = sleep_until(began + config.max_lifetime), if reading => reading = false,
                () = stop.cancelled(), if reading => reading = false,
            }
            idle_since = Instant::now();
        }
    }

    /// Lets the session go on as far as it can; true when it needs more input. While an answer waits to be written
    /// nothing new is taken: a peer that does not read is not listened to.
    fn go_on(&mut self, max_packets: u64) -> Result<bool, PeerMisbehaved> {
        while self.writing.is_empty() {
            if self.taken >= max_packets {
                self.unread = 0..0;
            }
            let mut input = self.buffer.get(self.unread.clone()).unwrap_or_default();
            let step = self.session.step(&mut input)?;
            self.unread.start = self.unread.end - input.len();
            match step {
                Step::Send(octets) => self.writing.push(&octets),
                Step::Packet(ticket, packet) => {
                    self.taken += 1;
                    let sink = Arc::clone(&self.sink);
                    self.stores.spawn(async move { (ticket, sink.store(packet).await) });
                }
                Step::Junk(ticket, junk) => {
                    self.taken += 1;
                    let sink = Arc::clone(&self.sink);
                    self.stores.spawn(async move { (ticket, sink.forget(junk).await) });
                }
                Step::Receive => return Ok(true),
                Step::Wait => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Says goodbye, and listens until the peer has heard it: a socket that is closed with octets unread would take
    /// back the last answers.
    async fn goodbye(&mut self) {
        if self.writer.shutdown().await.is_ok() {
            while self.reader.read(&mut self.buffer).await.is_ok_and(|count| count > 0) {}
        }
    }
}

/// Old TLS libraries hang up without saying so. Each packet has its own digest, so nothing can be cut off unseen.
fn end_is_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};
    use std::time::SystemTime;

    use super::*;
    use crate::crypto::CounterRng;
    use crate::crypto::pk::PrivateKey;
    use crate::crypto::stream::StreamKey;
    use crate::directory::Policy;
    use crate::mmtp::ClientSession;
    use crate::mmtp::client;
    use crate::mmtp::frame::{Command, UNIT_LEN};
    use crate::net::connect::{self, ConnectConfig, Connector, Unit};
    use crate::net::resolve::{ResolveConfig, Resolver};
    use crate::packet::{Ipv4Route, NextHop, PACKET_LEN};

    /// A sink that never gets a packet stored.
    struct Stuck;

    impl PacketSink for Stuck {
        async fn store(&self, _: Packet) -> Result<(), Refused> {
            pending().await
        }

        async fn forget(&self, _: Packet) -> Result<(), Refused> {
            pending().await
        }
    }

    /// A sink that takes nothing.
    struct Full;

    impl PacketSink for Full {
        async fn store(&self, _: Packet) -> Result<(), Refused> {
            Err(Refused)
        }

        async fn forget(&self, _: Packet) -> Result<(), Refused> {
            Err(Refused)
        }
    }

    fn packet() -> Packet {
        Packet::from_bytes(&[5; PACKET_LEN]).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_peer_is_closed_after_the_idle_timeout() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(b"MMTP 0.3\r\n").await.unwrap();
        let config = ListenConfig::default();
        let began = Instant::now();
        let ended = Connection::new(near, Arc::new(Full)).run(&config, &CancellationToken::new()).await;
        assert!(matches!(ended, Err(Ended::Idle)), "{ended:?}");
        assert_eq!(began.elapsed().as_secs(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn version_exchange_that_does_not_end_is_closed_after_the_handshake_timeout() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let trickle = tokio::spawn(async move {
            while far.write_all(b"M").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let began = Instant::now();
        let ended =
            Connection::new(near, Arc::new(Full)).run(&ListenConfig::default(), &CancellationToken::new()).await;
        assert!(matches!(ended, Err(Ended::HandshakeTimeout)), "{ended:?}");
        assert_eq!(began.elapsed().as_secs(), 30);
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_does_not_read_is_closed_after_the_idle_timeout_and_not_listened_to() {
        // Room for the version line and no answer.
        let (near, mut far) = tokio::io::duplex(16);
        let attack = tokio::spawn(async move {
            let mut said = 0;
            far.write_all(b"MMTP 0.3\r\n").await.unwrap();
            while far.write_all(&Command::Send.unit(&packet())).await.is_ok() {
                said += 1;
            }
            said
        });
        let mut connection = Connection::new(near, Arc::new(Full));
        let ended = connection.run(&ListenConfig::default(), &CancellationToken::new()).await;
        assert!(matches!(ended, Err(Ended::Unread)), "{ended:?}");
        assert!(connection.writing.len() <= MAX_ANSWERS, "{} octets wait", connection.writing.len());
        drop(connection);
        assert!(attack.await.unwrap() <= WINDOW);
    }

    #[tokio::test]
    async fn no_more_than_the_number_of_packets_is_taken_and_all_of_them_are_answered() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(b"MMTP 0.3\r\n").await.unwrap();
        for command in [Command::Send, Command::Junk, Command::Send] {
            far.write_all(&command.unit(&packet())).await.unwrap();
        }
        let config = ListenConfig { max_packets: 2, ..ListenConfig::default() };
        let mut connection = Connection::new(near, Arc::new(Full));
        connection.run(&config, &CancellationToken::new()).await.unwrap();
        drop(connection);
        let mut answers = Vec::new();
        far.read_to_end(&mut answers).await.unwrap();
        assert_eq!(answers.len(), b"MMTP 0.3\r\n".len() + 2 * ANSWER_LEN);
    }

    #[tokio::test]
    async fn both_ends_of_a_link_pay_for_what_passes() {
        let mut rng = CounterRng::new(&StreamKey::new([1; 16]));
        let key = PrivateKey::generate(2048, &mut rng).unwrap();
        let identity = LinkIdentity::new(&key, &"Alice".parse().unwrap(), SystemTime::now(), &mut rng).unwrap();
        let (_identity, receiver) = watch::channel(Arc::new(identity));
        // A second for each octet, and nobody has to wait.
        let [near, far] = [(); 2].map(|()| Bandwidth::new(1, u64::MAX));
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let terms = watch::channel(Terms { config: ListenConfig::default(), bandwidth: Some(near.clone()) }).1;
        let none = Inherited::default();
        let listener = MmtpListener::bind_in(&none, any_port, receiver, terms, Arc::new(Full)).await.unwrap();
        let (port, key_id) = (listener.local_addr().port(), key.public_key().key_id());
        let stop = CancellationToken::new();
        let running = tokio::spawn(listener.run(stop.clone()));
        let next = NextHop::Ipv4(Ipv4Route { address: [127, 0, 0, 1].into(), port, key_id });
        let connector = Connector::fixed(connect::Terms {
            config: ConnectConfig::default(),
            resolver: Resolver::system(ResolveConfig::default()),
            policy: Policy::default(),
            bandwidth: Some(far.clone()),
        });
        let units = (0..5).map(|number| Unit::packet(number, packet())).collect();
        let delivery = connector.deliver(&next, units, SystemTime::now(), &stop).await;
        assert!(delivery.failure.is_none(), "{:?}", delivery.failure);
        stop.cancel();
        running.await.unwrap();
        let octets = Duration::from_secs(5 * (UNIT_LEN + ANSWER_LEN) as u64);
        for owed in [near.owed(), far.owed()] {
            // The handshake is a few kilobytes, and the test takes less than a few thousand seconds.
            assert!(octets < owed && owed < octets + Duration::from_secs(20_000), "{owed:?}");
        }
    }

    #[tokio::test]
    async fn one_port_of_ipv4_and_of_ipv6_are_two_listeners() {
        // One of the other may be taken, then the next will do.
        for _ in 0..100 {
            let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let both = vec![SocketAddr::from(([0, 0, 0, 0], free)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, free))];
            let Ok(mut sockets) = Sockets::open(&both.clone().try_into().unwrap(), 65536, &Inherited::default()) else {
                continue;
            };
            assert_eq!(sockets.open.iter().map(|socket| socket.address).collect::<Vec<_>>(), both);
            for peer in ["127.0.0.1", "::1", "127.0.0.1"] {
                let peer: IpAddr = peer.parse().unwrap();
                let (arrival, _near) = tokio::join!(sockets.accept(), TcpStream::connect((peer, free)));
                let arrival = arrival.unwrap();
                assert_eq!((arrival.peer.ip(), arrival.port), (peer, free));
            }
            return;
        }
        panic!("a machine without IPv6, or without a free port");
    }

    #[tokio::test]
    async fn socket_that_was_handed_over_holds_no_more_unsent_than_an_own_one() {
        let opened = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = opened.local_addr().unwrap();
        let handed_over = Sockets::open(&address.into(), 8192, &Inherited::new(vec![opened])).unwrap();
        let own = Sockets::open(&SocketAddr::from(([127, 0, 0, 1], 0)).into(), 8192, &Inherited::default()).unwrap();
        for mut sockets in [handed_over, own] {
            let at = sockets.open[0].address;
            let (arrival, _near) = tokio::join!(sockets.accept(), TcpStream::connect(at));
            // Linux says, and takes, the double.
            let holds = rustix::net::sockopt::socket_send_buffer_size(&arrival.unwrap().stream).unwrap();
            assert!(holds <= 2 * 8192, "{holds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trickling_peer_is_closed_at_the_end_of_the_lifetime() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let trickle = tokio::spawn(async move {
            far.write_all(b"MMTP 0.3\r\n").await.unwrap();
            for octet in Command::Send.unit(&packet()).chunks(1) {
                if far.write_all(octet).await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(60)).await;
            }
        });
        let began = Instant::now();
        let ended =
            Connection::new(near, Arc::new(Full)).run(&ListenConfig::default(), &CancellationToken::new()).await;
        assert!(ended.is_ok(), "{ended:?}");
        assert_eq!(began.elapsed().as_secs(), 900);
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn slow_disk_is_waited_for() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(b"MMTP 0.3\r\n").await.unwrap();
        far.write_all(&Command::Send.unit(&packet())).await.unwrap();
        let config = ListenConfig { max_lifetime: Duration::from_secs(3600), ..ListenConfig::default() };
        let stop = CancellationToken::new();
        let mut connection = Connection::new(near, Arc::new(Stuck));
        let served = timeout(Duration::from_secs(3000), connection.run(&config, &stop)).await;
        assert!(served.is_err(), "ended early: {served:?}");
    }

    #[tokio::test]
    async fn refused_packet_is_answered_rejected() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let server = tokio::spawn(async move {
            Connection::new(near, Arc::new(Full)).run(&ListenConfig::default(), &CancellationToken::new()).await
        });
        let mut session = ClientSession::new();
        let client::Step::Send(hello) = session.step(&mut &[][..]).unwrap() else { panic!("no hello") };
        far.write_all(&hello).await.unwrap();
        let mut line = [0; 10];
        far.read_exact(&mut line).await.unwrap();
        assert_eq!(session.step(&mut &line[..]), Ok(client::Step::Agreed));
        let mut unit = Vec::new();
        assert!(session.send(Command::Send, &packet(), &mut unit));
        far.write_all(&unit).await.unwrap();
        far.shutdown().await.unwrap();
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        assert_eq!(session.step(&mut &answer[..]), Ok(client::Step::Rejected(0)));
        assert!(server.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn peer_that_ends_within_a_packet_misbehaved() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(b"MMTP 0.3\r\nSEND\r\nabc").await.unwrap();
        far.shutdown().await.unwrap();
        let mut connection = Connection::new(near, Arc::new(Full));
        let ended = connection.run(&ListenConfig::default(), &CancellationToken::new()).await;
        assert!(matches!(ended, Err(Ended::Misbehaved(PeerMisbehaved::Truncated))), "{ended:?}");
    }
}
