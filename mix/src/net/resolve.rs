//! From host names to addresses: a cache, and few lookups at a time (REFERENCE I04).
//!
//! The system's resolver answers on a thread that cannot be interrupted, so lookups in flight are counted until they
//! have really ended. Names are chosen by whoever builds packets: names of one domain share few of the places, so that
//! a slow name server holds up its own names and no others.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Octets of the longest name that DNS can hold. Routing info has room for longer ones.
const MAX_NAME_LEN: usize = 253;
/// Addresses kept of one host: twice as many as are tried.
const MAX_ADDRESSES: usize = 8;
/// Names remembered: with their addresses half a megabyte. Beyond it the one that would be forgotten first goes.
const MAX_ENTRIES: usize = 1024;
/// Names whose lookup is under way or waits for a place: half a megabyte. More are told to come again.
const MAX_WAITING: usize = 1024;
/// Lookups in flight for names of one domain: its slow name server holds no more of the places.
const PER_DOMAIN: usize = 2;
/// How long it is remembered that a name was not found: long enough to ask once for all that goes to a host in one
/// interval, and shorter than the first step of the schedule by which a mix is tried again.
const NEGATIVE_LIFETIME: Duration = Duration::from_secs(60);

/// How names are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolveConfig {
    /// How long addresses are remembered. 30 minutes by default, as in the reference: the system does not say how long
    /// they hold.
    pub lifetime: Duration,
    /// Lookups in flight. 8 by default, as in the reference: each holds a thread.
    pub lookups: usize,
}

impl Default for ResolveConfig {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(30 * 60), lookups: 8 }
    }
}

/// Why a name has no address for us. Nobody is to blame: it is tried again.
#[derive(Debug, thiserror::Error, Clone)]
pub enum NotResolved {
    /// The name service says so, or cannot be asked.
    #[error("the name service has no address")]
    Failed {
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// There is such a name, without an address; or it is longer than names can be.
    #[error("the name has no address")]
    NoAddress,
    /// Too many other names are being looked up.
    #[error("too many names are being looked up")]
    Busy,
}

type Answer = Result<Vec<IpAddr>, NotResolved>;

/// A lookup under way.
pub(crate) type Looking = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Who is asked.
type NameService = Box<dyn Fn(&str) -> Looking + Send + Sync>;

/// Finds the addresses of hosts. Clones share what is known.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    config: ResolveConfig,
    service: NameService,
    places: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Known>,
    under_way: HashMap<String, watch::Receiver<Option<Answer>>>,
    /// Places of a domain, as long as one of its names is under way.
    domains: HashMap<String, Arc<Semaphore>>,
}

struct Known {
    answer: Answer,
    until: Instant,
}

impl Resolver {
    /// Asks the system, as its operator has set it up.
    pub fn system(config: ResolveConfig) -> Self {
        Self::asking(config, |name| {
            let name = name.to_owned();
            Box::pin(async move { Ok(lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
        })
    }

    /// Asks `service`.
    pub(crate) fn asking(config: ResolveConfig, service: impl Fn(&str) -> Looking + Send + Sync + 'static) -> Self {
        let places = Semaphore::new(config.lookups.max(1));
        Self(Arc::new(Shared { config, service: Box::new(service), places, state: Mutex::default() }))
    }

    /// The addresses of a host, those of IPv4 and IPv6 in turns, in the order in which the system would try them. Waits
    /// as long as the lookup takes: the caller limits it, and the lookup goes on for the next who asks.
    ///
    /// # Errors
    /// [`NotResolved`].
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, NotResolved> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if host.len() > MAX_NAME_LEN {
            return Err(NotResolved::NoAddress);
        }
        let mut told = match self.ask(host) {
            Asked::Known(answer) => return answer,
            Asked::UnderWay(told) => told,
        };
        // The lookup's task was stopped with the process: nobody will answer.
        let answer = told.wait_for(Option::is_some).await.map_err(|_| NotResolved::Busy)?;
        answer.clone().unwrap_or(Err(NotResolved::Busy))
    }

    fn ask(&self, host: &str) -> Asked {
        let mut state = self.0.state();
        if let Some(known) = state.known.get(host)
            && Instant::now() < known.until
        {
            return Asked::Known(known.answer.clone());
        }
        if let Some(told) = state.under_way.get(host) {
            return Asked::UnderWay(told.clone());
        }
        if state.under_way.len() >= MAX_WAITING {
            return Asked::Known(Err(NotResolved::Busy));
        }
        let (tell, told) = watch::channel(None);
        state.under_way.insert(host.to_owned(), told.clone());
        let domain = domain(host).to_owned();
        let places = state.domains.entry(domain.clone()).or_insert_with(|| Arc::new(Semaphore::new(PER_DOMAIN)));
        let look = Arc::clone(&self.0).look_up(host.to_owned(), domain, Arc::clone(places), tell);
        tokio::spawn(look);
        Asked::UnderWay(told)
    }
}

enum Asked {
    Known(Answer),
    UnderWay(watch::Receiver<Option<Answer>>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(
        self: Arc<Self>,
        host: String,
        domain: String,
        of_domain: Arc<Semaphore>,
        tell: watch::Sender<Option<Answer>>,
    ) {
        // The domain's place first: who waits for it holds no place of others. Neither is ever closed.
        let answer = match (of_domain.acquire().await, self.places.acquire().await) {
            (Ok(_of_domain), Ok(_place)) => match (self.service)(&host).await {
                Ok(addresses) if addresses.is_empty() => Err(NotResolved::NoAddress),
                Ok(addresses) => Ok(in_turns(addresses)),
                Err(source) => Err(NotResolved::Failed { source: Arc::new(source) }),
            },
            _ => Err(NotResolved::Busy),
        };
        let mut state = self.state();
        state.under_way.remove(&host);
        // Two handles, the map's and this one: no other name of the domain is under way.
        if Arc::strong_count(&of_domain) == 2 {
            state.domains.remove(&domain);
        }
        let lifetime = if answer.is_ok() { self.config.lifetime } else { NEGATIVE_LIFETIME };
        state.remember(host, Known { answer: answer.clone(), until: Instant::now() + lifetime });
        drop(state);
        tell.send_replace(Some(answer));
    }
}

impl State {
    fn remember(&mut self, host: String, known: Known) {
        if self.known.len() >= MAX_ENTRIES && !self.known.contains_key(&host) {
            let first = self.known.iter().min_by_key(|(_, known)| known.until).map(|(host, _)| host.clone());
            first.and_then(|host| self.known.remove(&host));
        }
        self.known.insert(host, known);
    }
}

/// What a name server of one owner most likely serves: the last two labels. Where registries sell names a level below,
/// names of many owners share the places of one; they still get theirs.
fn domain(name: &str) -> &str {
    let name = name.trim_end_matches('.');
    let mut dots = name.rmatch_indices('.').map(|(place, _)| place + 1);
    dots.nth(1).and_then(|place| name.get(place..)).unwrap_or(name)
}

/// The two kinds of address one after the other, each in its order, beginning with the kind that came first: a host is
/// tried by both, however many addresses of one kind lead nowhere from here.
fn in_turns(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let kind = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == kind);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    while turns.len() < MAX_ADDRESSES {
        let before = turns.len();
        turns.extend(first.next());
        turns.extend(second.next());
        if turns.len() == before {
            break;
        }
    }
    turns
}

/// Addresses with the port that is meant.
pub(super) fn at_port(addresses: Vec<IpAddr>, port: u16) -> impl Iterator<Item = SocketAddr> {
    addresses.into_iter().map(move |address| SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{sleep, timeout};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A name service that counts what it is asked, at all and at a time. Names of `slow.example` take an hour, those of
    /// `none.example` are not there, `void.example` has no address, and while `down` nothing is there.
    #[derive(Clone, Default)]
    struct Service {
        asked: Arc<AtomicUsize>,
        in_flight: Arc<AtomicUsize>,
        most_in_flight: Arc<AtomicUsize>,
        down: Arc<AtomicUsize>,
    }

    impl Service {
        fn resolver(&self) -> Resolver {
            let this = self.clone();
            Resolver::asking(ResolveConfig::default(), move |name| {
                let (this, name) = (this.clone(), name.to_owned());
                Box::pin(async move { this.answer(&name).await })
            })
        }

        async fn answer(&self, name: &str) -> io::Result<Vec<IpAddr>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_in_flight.fetch_max(in_flight, Ordering::Relaxed);
            sleep(if name.ends_with("slow.example") { 60 * MINUTE } else { Duration::from_secs(1) }).await;
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            match name {
                _ if self.down.load(Ordering::Relaxed) > 0 => Err(io::Error::other("name service down")),
                "none.example" => Err(io::Error::other("no such name")),
                "void.example" => Ok(Vec::new()),
                _ => Ok(vec![IpAddr::from([192, 0, 2, 1])]),
            }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_remembered_for_half_an_hour_and_failures_for_a_minute() {
        let service = Service::default();
        let resolver = service.resolver();
        let (good, none) = ("a.example", "none.example");
        assert_eq!(resolver.addresses(good).await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        assert!(matches!(resolver.addresses(none).await, Err(NotResolved::Failed { .. })));
        sleep(MINUTE / 2).await;
        assert!(resolver.addresses(none).await.is_err());
        sleep(28 * MINUTE).await;
        assert!(resolver.addresses(good).await.is_ok());
        assert_eq!(service.asked(), 2, "both were known");
        assert!(resolver.addresses(none).await.is_err());
        assert_eq!(service.asked(), 3, "the failure was forgotten");
        sleep(2 * MINUTE).await;
        assert!(resolver.addresses(good).await.is_ok());
        assert_eq!(service.asked(), 4, "the address was forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_for_one_name_share_one_lookup() {
        let service = Service::default();
        let (resolver, name) = (service.resolver(), "a.example");
        let (one, two) = tokio::join!(resolver.addresses(name), resolver.addresses(name));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(service.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_name_server_holds_up_its_own_names_and_no_others() {
        let service = Service::default();
        let resolver = service.resolver();
        let slow: Vec<_> = (0..100).map(|number| format!("mix{number}.slow.example")).collect();
        for name in &slow {
            assert!(timeout(Duration::from_millis(1), resolver.addresses(name)).await.is_err(), "it is slow");
        }
        assert_eq!(service.in_flight.load(Ordering::Relaxed), PER_DOMAIN);
        let other = timeout(Duration::from_secs(2), resolver.addresses("a.example.org")).await;
        assert!(other.expect("in its own time").is_ok());
        // Nobody waits any more, and the lookups end one after the other all the same.
        sleep(51 * 60 * MINUTE).await;
        let state = resolver.0.state();
        assert!(state.under_way.is_empty() && state.domains.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_in_flight_and_names_that_wait_are_bounded() {
        let service = Service::default();
        let resolver = service.resolver();
        let ask = |number: usize| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.addresses(&format!("mix.d{number}.example")).await })
        };
        // Each a domain of its own: the registry sells below `example` here.
        let _waiting: Vec<_> = (0..MAX_WAITING).map(ask).collect();
        sleep(Duration::from_millis(1)).await;
        assert!(matches!(resolver.addresses("late.example.org").await, Err(NotResolved::Busy)));
        sleep(60 * MINUTE).await;
        assert!(service.most_in_flight.load(Ordering::Relaxed) <= ResolveConfig::default().lookups);
        assert!(resolver.addresses("late.example.org").await.is_ok());
        let state = resolver.0.state();
        assert!(state.known.len() <= MAX_ENTRIES && state.under_way.is_empty() && state.domains.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn name_that_would_be_forgotten_first_makes_room() {
        let mut state = State::default();
        let known = |seconds| Known { answer: Err(NotResolved::NoAddress), until: Instant::now() + MINUTE * seconds };
        for number in 0..MAX_ENTRIES {
            state.remember(format!("n{number}"), known(if number == 7 { 1 } else { 2 }));
        }
        state.remember("new".to_owned(), known(3));
        assert_eq!(state.known.len(), MAX_ENTRIES);
        assert!(state.known.contains_key("new") && !state.known.contains_key("n7"));
    }

    #[tokio::test(start_paused = true)]
    async fn name_service_that_comes_back_is_asked_again() {
        let service = Service::default();
        let (resolver, name) = (service.resolver(), "a.example");
        service.down.store(1, Ordering::Relaxed);
        assert!(matches!(resolver.addresses(name).await, Err(NotResolved::Failed { .. })));
        service.down.store(0, Ordering::Relaxed);
        sleep(5 * MINUTE).await;
        assert!(resolver.addresses(name).await.is_ok(), "by the first step of the schedule");
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_names_without_address_and_endless_names_need_no_lookup_or_say_why() {
        let service = Service::default();
        let resolver = service.resolver();
        assert_eq!(resolver.addresses("192.0.2.9").await.unwrap(), [IpAddr::from([192, 0, 2, 9])]);
        let endless = "a.".repeat(127);
        assert!(matches!(resolver.addresses(&endless).await, Err(NotResolved::NoAddress)));
        assert_eq!(service.asked(), 0);
        assert!(matches!(resolver.addresses("void.example").await, Err(NotResolved::NoAddress)));
    }

    #[test]
    fn both_kinds_of_address_are_tried_in_turns() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = in_turns(["::1", "::2", "::3", "192.0.2.1", "::4"].map(address).to_vec());
        assert_eq!(found, ["::1", "192.0.2.1", "::2", "::3", "::4"].map(address));
        let many = (1..=99).map(|octet| IpAddr::from([192, 0, 2, octet])).collect();
        assert_eq!(in_turns(many).len(), MAX_ADDRESSES);
    }

    #[test]
    fn domain_is_the_last_two_labels() {
        for (name, expected) in [("a.b.example.org", "example.org"), ("example.org.", "example.org"), ("host", "host")]
        {
            assert_eq!(domain(name), expected);
        }
    }
}
