//! How much passes over all links together: an average, and how far it may be exceeded after a quiet time (REFERENCE
//! S055, S056).
//!
//! A bucket of tokens, kept as the time up to which everything that passed is paid for. Whoever transfers pays
//! afterwards, and goes on when it is paid: each has one slice under way and waits behind the slices that others had
//! before, so that the links take turns. Nobody is woken for nothing, and there is no queue to keep.
//!
//! Packets wait; handshakes and answers are paid for and do not: they are small, and the peer would give up. In any time
//! t no more passes than `average · t + spike`, a slice for each link, and answers to what passed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::mmtp::frame::UNIT_LEN;

/// Octets that one link transfers in its turn: one full TLS record.
const SLICE: usize = 16 * 1024;

/// Octets of a packet on the wire: its unit, what TLS adds to its records, and its answer.
const PACKET_ON_WIRE: u64 = 33 * 1024;
const _: () = assert!(UNIT_LEN + 512 <= PACKET_ON_WIRE as usize);

/// How long the spike lasts at the average rate where the settings leave it open, as in the reference.
const DEFAULT_SPIKE_SECONDS: u64 = 5;

/// Section `[node.bandwidth]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BandwidthConfig {
    /// Octets a second over all links, in and out together. 0: as many as the network gives.
    pub average: u64,
    /// Octets that may pass at once after a quiet time. 0: five seconds of the average.
    pub spike: u64,
}

/// Why a limit would not work.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidBandwidth {
    /// There is nothing to exceed.
    #[error("spike is set without average")]
    SpikeAlone,
    /// The bucket must hold what a second brings.
    #[error("spike is {spike}: less than a second of the average, {average}")]
    SpikeBelowAverage {
        /// What was set.
        spike: u64,
        /// What was set.
        average: u64,
    },
    /// With so many links each would wait until its peer gives up, and none would bring a packet to its end.
    #[error(
        "average is {average}: {links} connections need at least {needed}, for one packet each within the idle timeout"
    )]
    TooLittle {
        /// What was set.
        average: u64,
        /// Links at a time.
        links: usize,
        /// The least that works.
        needed: u64,
    },
}

impl BandwidthConfig {
    /// The limit for `links` connections at a time, of which each gets a packet through within `patience`. `None`: no
    /// limit is set.
    ///
    /// # Errors
    /// [`InvalidBandwidth`].
    pub fn limit(&self, links: usize, patience: Duration) -> Result<Option<Bandwidth>, InvalidBandwidth> {
        let Self { average, spike } = *self;
        if average == 0 {
            return if spike == 0 { Ok(None) } else { Err(InvalidBandwidth::SpikeAlone) };
        }
        let needed = PACKET_ON_WIRE.saturating_mul(links as u64).div_ceil(patience.as_secs().max(1));
        if average < needed {
            return Err(InvalidBandwidth::TooLittle { average, links, needed });
        }
        match spike {
            0 => Ok(Some(Bandwidth::new(average, average.saturating_mul(DEFAULT_SPIKE_SECONDS)))),
            _ if spike < average => Err(InvalidBandwidth::SpikeBelowAverage { spike, average }),
            _ => Ok(Some(Bandwidth::new(average, spike))),
        }
    }
}

/// What all links share. Clones are the same limit.
#[derive(Clone, Debug)]
pub struct Bandwidth(Arc<Mutex<Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// What passed up to now is paid for at this time.
    paid_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    /// `None`: as many octets as the network gives.
    average: Option<u64>,
    /// How long the spike takes at the average rate.
    ahead: Duration,
}

impl Bandwidth {
    /// `average` octets a second, and `spike` octets at once. Neither may be zero; a zero counts as one.
    pub fn new(average: u64, spike: u64) -> Self {
        let average = average.max(1);
        let rate = Rate { average: Some(average), ahead: time_for(spike, average) };
        Self(Arc::new(Mutex::new(Bucket { rate, paid_at: Instant::now() })))
    }

    /// The limit of links to come where `old` was in force and `new` is wanted. Links that are there go by it too; where
    /// they had no limit they go on without one, for as long as they last.
    pub fn changed(old: Option<Self>, new: Option<Self>) -> Option<Self> {
        let Some(old) = old else { return new };
        let rate = new.as_ref().map_or(Rate { average: None, ahead: Duration::ZERO }, |new| new.bucket().rate);
        old.bucket().rate = rate;
        new.and(Some(old))
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it takes to pay for what has passed.
    #[cfg(test)]
    pub(super) fn owed(&self) -> Duration {
        self.bucket().paid_at.saturating_duration_since(Instant::now())
    }

    /// Notes what has passed; says when whoever caused it may go on.
    fn pay(&self, octets: usize) -> Instant {
        let now = Instant::now();
        let mut bucket = self.bucket();
        let Rate { average: Some(average), ahead } = bucket.rate else { return now };
        bucket.paid_at = bucket.paid_at.max(now) + time_for(octets as u64, average);
        bucket.paid_at.checked_sub(ahead).unwrap_or(now)
    }
}

fn time_for(octets: u64, average: u64) -> Duration {
    let nanos = u128::from(octets) * 1_000_000_000 / u128::from(average);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The way that packets go over a link, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketsGo {
    /// They come in.
    In,
    /// They go out.
    Out,
}

/// A connection whose octets are paid for. Without a limit it is the connection itself.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    meter: Option<Meter>,
}

#[derive(Debug)]
struct Meter {
    bandwidth: Bandwidth,
    /// Whose turn has to be waited for; `None` during the handshake.
    waits: Option<PacketsGo>,
    turn: Pin<Box<Sleep>>,
}

impl<S> Metered<S> {
    /// Everything that passes over `stream` is paid for, and nothing waits yet.
    pub fn new(stream: S, bandwidth: Option<&Bandwidth>) -> Self {
        let meter = |bandwidth: &Bandwidth| Meter {
            bandwidth: bandwidth.clone(),
            waits: None,
            turn: Box::pin(sleep_until(Instant::now())),
        };
        Self { stream, meter: bandwidth.map(meter) }
    }

    /// From now on packets wait for their turn.
    pub fn take_turns(&mut self, way: PacketsGo) {
        if let Some(meter) = &mut self.meter {
            meter.waits = Some(way);
        }
    }

    /// The connection.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl Meter {
    /// Ready when a transfer this way may go on.
    fn poll_turn(&mut self, way: PacketsGo, cx: &mut Context<'_>) -> Poll<()> {
        if self.waits == Some(way) { self.turn.as_mut().poll(cx) } else { Poll::Ready(()) }
    }

    fn pay(&mut self, way: PacketsGo, octets: usize) {
        let turn = self.bandwidth.pay(octets);
        if self.waits == Some(way) {
            self.turn.as_mut().reset(turn);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = Pin::new(&mut this.stream);
        let Some(meter) = &mut this.meter else { return stream.poll_read(cx, buffer) };
        ready!(meter.poll_turn(PacketsGo::In, cx));
        let mut slice = ReadBuf::new(buffer.initialize_unfilled_to(buffer.remaining().min(SLICE)));
        ready!(stream.poll_read(cx, &mut slice))?;
        let count = slice.filled().len();
        buffer.advance(count);
        meter.pay(PacketsGo::In, count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let stream = Pin::new(&mut this.stream);
        let Some(meter) = &mut this.meter else { return stream.poll_write(cx, octets) };
        ready!(meter.poll_turn(PacketsGo::Out, cx));
        let slice = octets.get(..SLICE).unwrap_or(octets);
        let count = ready!(stream.poll_write(cx, slice))?;
        meter.pay(PacketsGo::Out, count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.meter.is_none() {
            return Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.meter.is_none() && self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;
    use tokio::time::{sleep, timeout};

    use super::*;

    const KB: u64 = 1024;

    /// A peer that has as much to say, and hears as much, as it is let.
    #[derive(Clone, Default)]
    struct Endless(Arc<AtomicUsize>);

    impl AsyncRead for Endless {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let count = buffer.remaining();
            buffer.initialize_unfilled().fill(7);
            buffer.advance(count);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Ok(octets.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn link(bandwidth: &Bandwidth, way: PacketsGo) -> (Metered<Endless>, Endless) {
        let peer = Endless::default();
        let mut link = Metered::new(peer.clone(), Some(bandwidth));
        link.take_turns(way);
        (link, peer)
    }

    /// Transfers for ever, and counts the octets.
    async fn transfer(mut link: Metered<Endless>, way: PacketsGo, passed: Arc<AtomicU64>) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match way {
                PacketsGo::In => link.read(&mut buffer).await.unwrap(),
                PacketsGo::Out => link.write(&buffer).await.unwrap(),
            };
            passed.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn links_in_both_directions_share_the_average_alike_and_nobody_is_woken_for_nothing() {
        let bandwidth = Bandwidth::new(100 * KB, 500 * KB);
        let mut links = JoinSet::new();
        let mut counts = Vec::new();
        for number in 0..10 {
            let way = if number % 2 == 0 { PacketsGo::In } else { PacketsGo::Out };
            let (link, peer) = link(&bandwidth, way);
            let passed = Arc::new(AtomicU64::new(0));
            links.spawn(transfer(link, way, Arc::clone(&passed)));
            counts.push((passed, peer));
        }
        let look = || -> Vec<u64> { counts.iter().map(|(passed, _)| passed.load(Ordering::Relaxed)).collect() };
        // Whoever came first had the spike.
        sleep(Duration::from_secs(60)).await;
        let first = look();
        sleep(Duration::from_secs(540)).await;
        let passed = look();
        let all: u64 = passed.iter().sum();
        let slices = 10 * SLICE as u64;
        assert!(all <= 600 * 100 * KB + 500 * KB + slices, "{all}");
        assert!(all >= 600 * 100 * KB, "what is there is used: {all}");
        let since: Vec<u64> = passed.iter().zip(first).map(|(now, first)| now - first).collect();
        let (least, most) = (since.iter().min().unwrap(), since.iter().max().unwrap());
        assert!(most - least <= SLICE as u64, "each has its turn: {since:?}");
        let polls: usize = counts.iter().map(|(_, peer)| peer.0.load(Ordering::Relaxed)).sum();
        assert_eq!(polls as u64, all / SLICE as u64, "one transfer a turn");
        links.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_quiet_time_the_spike_passes_at_once_and_then_the_average() {
        let bandwidth = Bandwidth::new(64 * KB, 256 * KB);
        let (mut link, _) = link(&bandwidth, PacketsGo::In);
        sleep(Duration::from_secs(3600)).await;
        let began = Instant::now();
        let mut buffer = vec![0; SLICE];
        // The spike, and the slice that is paid for afterwards.
        for _ in 0..=16 {
            link.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..8 {
            link.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(began.elapsed().as_millis().div_ceil(10), 200, "two seconds of the average: {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_and_handshakes_never_wait_and_are_paid_for() {
        let bandwidth = Bandwidth::new(64 * KB, 64 * KB);
        let (packets, _) = link(&bandwidth, PacketsGo::In);
        let busy = tokio::spawn(transfer(packets, PacketsGo::In, Arc::default()));
        sleep(Duration::from_secs(10)).await;
        let began = Instant::now();
        let (mut answers, _) = link(&bandwidth, PacketsGo::In);
        answers.write_all(&[0; 480]).await.unwrap();
        let mut handshake = Metered::new(Endless::default(), Some(&bandwidth));
        handshake.read_exact(&mut [0; 4096]).await.unwrap();
        handshake.write_all(&[0; 4096]).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        let paid = bandwidth.bucket().paid_at - began;
        assert!(paid >= time_for(480 + 8192, 64 * KB), "{paid:?}");
        busy.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let (link, passed) = (Metered::new(Endless::default(), None), Arc::<AtomicU64>::default());
        let all = timeout(Duration::from_secs(1), async {
            let mut link = link;
            let mut buffer = vec![0; 64 * 1024];
            for _ in 0..1000 {
                link.read_exact(&mut buffer).await.unwrap();
                passed.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            }
        });
        all.await.expect("no turn to wait for");
        assert_eq!(passed.load(Ordering::Relaxed), 1000 * 64 * KB);
    }

    #[tokio::test(start_paused = true)]
    async fn limit_that_changes_holds_for_links_that_are_there() {
        let bandwidth = Bandwidth::new(16 * KB, 16 * KB);
        let (mut link, _) = link(&bandwidth, PacketsGo::In);
        let mut buffer = vec![0; SLICE];
        // A tenfold rate, then none at all: each slice waits for the one before.
        for (rate, millis) in [(16, 1000), (160, 100), (0, 0)] {
            let new = (rate > 0).then(|| Bandwidth::new(rate * KB, rate * KB));
            let wanted = new.is_some();
            assert_eq!(Bandwidth::changed(Some(bandwidth.clone()), new).is_some(), wanted);
            sleep(Duration::from_secs(60)).await;
            let began = Instant::now();
            // What the spike lets through and the one that is paid for afterwards do not wait.
            for _ in 0..rate / 16 + 1 {
                link.read_exact(&mut buffer).await.unwrap();
            }
            assert_eq!(began.elapsed(), Duration::ZERO, "{rate}");
            for _ in 0..10 {
                link.read_exact(&mut buffer).await.unwrap();
            }
            let took = began.elapsed().as_millis();
            assert!(took.abs_diff(10 * millis) <= 20, "{rate}: {took}");
        }
    }

    #[tokio::test]
    async fn limits_that_would_not_work_are_refused_by_name() {
        let limit = |average, spike| BandwidthConfig { average, spike }.limit(272, Duration::from_secs(300));
        assert!(limit(0, 0).unwrap().is_none());
        assert_eq!(limit(0, 1).unwrap_err(), InvalidBandwidth::SpikeAlone);
        let needed = 33 * KB * 272 / 300 + 1;
        let refused = InvalidBandwidth::TooLittle { average: 10_000, links: 272, needed };
        assert_eq!(limit(10_000, 0).unwrap_err(), refused);
        let refused = InvalidBandwidth::SpikeBelowAverage { spike: 50_000, average: 100_000 };
        assert_eq!(limit(100_000, 50_000).unwrap_err(), refused);
        let set = limit(100_000, 0).unwrap().unwrap();
        assert_eq!(set.bucket().rate, Rate { average: Some(100_000), ahead: Duration::from_secs(5) });
    }
}
