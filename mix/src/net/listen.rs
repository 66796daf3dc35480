//! Takes packets from other mixes and from clients: TCP, TLS, then `mmtp::server` (minion-spec 4).
//!
//! Where packets go is the business of a [`PacketSink`]. One task serves one connection, so that a slow peer delays
//! nobody but itself; the limits are in [`ListenConfig`].

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::tls::{self, LinkIdentity};
use super::writing::Writing;
use crate::mmtp::server::Step;
use crate::mmtp::{PeerMisbehaved, ServerSession, Ticket};
use crate::packet::Packet;

/// Octets read at once: one full TLS record.
const READ_LEN: usize = 16 * 1024;

/// How long to wait when the system gives no more connections, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a peer may take to let itself be told goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Limits of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// Connections in all; more are closed at once. 256 by default: with half a megabyte of packets that wait for the
    /// disk in each, 128 megabytes.
    pub max_connections: usize,
    /// Connections from one address (one /64 of IPv6); more are closed at once. 64 by default: nobody takes all seats.
    pub max_connections_per_address: usize,
    /// From accepting a connection to the end of the TLS handshake. 30 seconds by default.
    pub handshake_timeout: Duration,
    /// Without any octet in or out. 5 minutes by default, as in the reference.
    pub idle_timeout: Duration,
    /// A connection takes no new packets after this time; what is under way is still answered. 15 minutes by default:
    /// the specification demands new keys then, the reference never had a way to agree on them, and TLS 1.3 has none.
    pub max_lifetime: Duration,
    /// How long connections may take, once the listener is stopped, to answer what they have taken. 10 seconds by
    /// default.
    pub stop_timeout: Duration,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            max_connections: 256,
            max_connections_per_address: 64,
            handshake_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(5 * 60),
            max_lifetime: Duration::from_secs(15 * 60),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// A packet was not taken: the disk is full or the mix is closing. The peer is told so and tries again later.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("the packet was not taken")]
pub struct Refused;

/// Where packets go.
pub trait PacketSink: Send + Sync + 'static {
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
    #[error("no TLS handshake within the time limit")]
    HandshakeTimeout,
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("nothing came or went within the time limit")]
    Idle,
    #[error("the peer broke the protocol")]
    Misbehaved(#[from] PeerMisbehaved),
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("the store of packets panicked")]
    Sink,
}

/// An open port that takes packets.
pub struct MmtpListener<S> {
    socket: TcpListener,
    address: SocketAddr,
    identity: watch::Receiver<Arc<LinkIdentity>>,
    config: ListenConfig,
    sink: Arc<S>,
}

impl<S: PacketSink> MmtpListener<S> {
    /// Opens the port. Each connection is served under the link identity that `identity` holds when it begins.
    ///
    /// # Errors
    /// [`ListenError`] when the system does not give the port.
    pub async fn bind(
        address: SocketAddr,
        identity: watch::Receiver<Arc<LinkIdentity>>,
        config: ListenConfig,
        sink: Arc<S>,
    ) -> Result<Self, ListenError> {
        let failed = |source| ListenError { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, identity, config, sink })
    }

    /// The address with the port that the system gave.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled; then answers what was taken, and closes.
    pub async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let seats = Arc::new(Seats::default());
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer, &seats, &mut connections, &stop),
                    Err(error) => {
                        debug!(%error, "no connection accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = stop.cancelled() => break,
            }
        }
        let Self { socket, config, .. } = self;
        drop(socket);
        // Those that are not done by then are cut off: their packets have no answer, and come again.
        let all_done = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(config.stop_timeout, all_done).await;
        connections.shutdown().await;
    }

    fn admit(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        seats: &Arc<Seats>,
        connections: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let Some(seat) = Seats::take(seats, peer.ip(), &self.config) else {
            debug!("a connection over the limit was closed");
            return;
        };
        let identity = Arc::clone(&self.identity.borrow());
        let sink = Arc::clone(&self.sink);
        let config = self.config.clone();
        let stop = stop.clone();
        connections.spawn(async move {
            let _seat = seat;
            if let Err(ended) = serve(stream, &identity, sink, &config, &stop).await {
                // Neither address nor time of day of a peer belongs into a log.
                debug!(%ended, "connection closed");
            }
        });
    }
}

/// Who is connected: how often, by address.
#[derive(Default)]
struct Seats(Mutex<HashMap<IpAddr, usize>>);

/// The right to one connection; given back when dropped.
struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    fn take(seats: &Arc<Self>, address: IpAddr, config: &ListenConfig) -> Option<Seat> {
        let address = one_host(address);
        let mut taken = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&address).copied().unwrap_or(0);
        if all >= config.max_connections || own >= config.max_connections_per_address {
            return None;
        }
        taken.insert(address, own + 1);
        Some(Seat { seats: Arc::clone(seats), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// What one host has to itself: an IPv4 address, or a /64 of IPv6.
fn one_host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

async fn serve<S: PacketSink>(
    stream: TcpStream,
    identity: &LinkIdentity,
    sink: Arc<S>,
    config: &ListenConfig,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    // Answers are small and must not wait for one another.
    stream.set_nodelay(true)?;
    let handshake = timeout(config.handshake_timeout, tls::accept(identity, stream));
    let Some(handshake) = stop.run_until_cancelled(handshake).await else { return Ok(()) };
    let link = handshake.map_err(|_| Ended::HandshakeTimeout)?.map_err(Ended::Handshake)?;
    let mut connection = Connection::new(link, sink);
    connection.run(config, stop).await?;
    // Whether the peer hears the goodbye makes no difference to anyone.
    let _ = timeout(GOODBYE, connection.writer.shutdown()).await;
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
}

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
        }
    }

    /// Serves until the peer ends, or `stop` or the lifetime ends it; then finishes what is under way.
    async fn run(&mut self, config: &ListenConfig, stop: &CancellationToken) -> Result<(), Ended> {
        let old = Instant::now() + config.max_lifetime;
        let mut reading = true;
        let mut idle_since = Instant::now();
        loop {
            let wants_input = self.go_on()?;
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
                () = sleep_until(idle_since + config.idle_timeout), if self.stores.is_empty() => return Err(Ended::Idle),
                () = sleep_until(old), if reading => reading = false,
                () = stop.cancelled(), if reading => reading = false,
            }
            idle_since = Instant::now();
        }
    }

    /// Lets the session go on as far as it can; true when it needs more input. While an answer waits to be written
    /// nothing new is taken: a peer that does not read is not listened to.
    fn go_on(&mut self) -> Result<bool, PeerMisbehaved> {
        while self.writing.is_empty() {
            let mut input = self.buffer.get(self.unread.clone()).unwrap_or_default();
            let step = self.session.step(&mut input)?;
            self.unread.start = self.unread.end - input.len();
            match step {
                Step::Send(octets) => self.writing.push(octets),
                Step::Packet(ticket, packet) => {
                    let sink = Arc::clone(&self.sink);
                    self.stores.spawn(async move { (ticket, sink.store(packet).await) });
                }
                Step::Junk(ticket, junk) => {
                    let sink = Arc::clone(&self.sink);
                    self.stores.spawn(async move { (ticket, sink.forget(junk).await) });
                }
                Step::Receive => return Ok(true),
                Step::Wait => return Ok(false),
            }
        }
        Ok(false)
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
    use super::*;
    use crate::mmtp::ClientSession;
    use crate::mmtp::client;
    use crate::mmtp::frame::Command;
    use crate::packet::PACKET_LEN;

    /// A sink that never gets a packet stored.
    struct Stuck;

    impl PacketSink for Stuck {
        async fn store(&self, _: Packet) -> Result<(), Refused> {
            std::future::pending().await
        }

        async fn forget(&self, _: Packet) -> Result<(), Refused> {
            std::future::pending().await
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
        let (near, _far) = tokio::io::duplex(1 << 20);
        let config = ListenConfig::default();
        let began = Instant::now();
        let ended = Connection::new(near, Arc::new(Full)).run(&config, &CancellationToken::new()).await;
        assert!(matches!(ended, Err(Ended::Idle)), "{ended:?}");
        assert_eq!(began.elapsed().as_secs(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn trickling_peer_is_closed_at_the_end_of_the_lifetime() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let trickle = tokio::spawn(async move {
            while far.write_all(b"M").await.is_ok() {
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
        far.write_all(&session.send(Command::Send, &packet()).unwrap()).await.unwrap();
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

    #[test]
    fn seats_are_limited_in_all_and_by_address_and_given_back() {
        let config = ListenConfig { max_connections: 3, max_connections_per_address: 2, ..ListenConfig::default() };
        let seats = Arc::new(Seats::default());
        let [one, same_net, two]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|address| address.parse().unwrap());
        let first = Seats::take(&seats, one, &config).unwrap();
        let second = Seats::take(&seats, same_net, &config).unwrap();
        assert!(Seats::take(&seats, one, &config).is_none(), "one network has two seats");
        let third = Seats::take(&seats, two, &config).unwrap();
        assert!(Seats::take(&seats, two, &config).is_none(), "three seats in all");
        drop(first);
        assert!(Seats::take(&seats, two, &config).is_some());
        drop((second, third));
        assert!(seats.0.lock().unwrap().is_empty());
    }
}
