//! From host names to addresses: a cache, and few lookups at a time (REFERENCE I04).
//!
//! The system's resolver answers on a thread that cannot be interrupted, so lookups in flight are counted until they
//! have really ended. Names are chosen by whoever builds packets: names of one domain share few of the places, so that
//! a slow name server holds up its own names and no others. And half of all places are kept for the mixes that the caller
//! vouches for: however many domains strangers have, they hold up each other.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

/// Octets of the longest name that DNS can hold. Routing info has room for longer ones.
const MAX_NAME_LEN: usize = 253;
/// Addresses kept of one host: twice as many as are tried.
const MAX_ADDRESSES: usize = 8;
/// Names remembered: with their addresses half a megabyte. Beyond it the one that would be forgotten first goes.
const MAX_ENTRIES: usize = 1024;
/// Names whose lookup is under way or waits for a place: half a megabyte. More are told to come again.
const MAX_WAITING: usize = 1024;
/// One place of so many, of lookups and of names that wait, is for strangers: half, as of the connections.
const STRANGERS: usize = 2;
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
    /// Lookups in flight, at least 2. 8 by default, as in the reference: each holds a thread.
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

/// Who asks for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// Somebody who goes to a mix in good standing.
    Known,
    /// Somebody who goes where a packet says: its author may have any number of names.
    Stranger,
}

/// Finds the addresses of hosts. Clones share what is known.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    config: ResolveConfig,
    service: NameService,
    places: Semaphore,
    /// Those of them that strangers may have.
    for_strangers: Semaphore,
    state: Mutex<State>,
}

/// A name that is looked up, for strangers or not: who is known does not wait behind strangers who ask for the same name,
/// or for one of the same domain.
type Wanted = (String, Asker);

#[derive(Default)]
struct State {
    known: HashMap<String, Known>,
    under_way: HashMap<Wanted, watch::Receiver<Option<Answer>>>,
    /// Places of a domain, as long as one of its names is under way.
    domains: HashMap<Wanted, Arc<Semaphore>>,
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
        let lookups = config.lookups.max(STRANGERS);
        let (places, for_strangers) = (Semaphore::new(lookups), Semaphore::new(lookups / STRANGERS));
        let state = Mutex::default();
        Self(Arc::new(Shared { config, service: Box::new(service), places, for_strangers, state }))
    }

    /// The addresses of a host, those of IPv4 and IPv6 in turns, in the order in which the system would try them. Waits
    /// as long as the lookup takes: the caller limits it, and the lookup goes on for the next who asks.
    ///
    /// # Errors
    /// [`NotResolved`].
    pub async fn addresses(&self, host: &str, asker: Asker) -> Result<Vec<IpAddr>, NotResolved> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if host.len() > MAX_NAME_LEN {
            return Err(NotResolved::NoAddress);
        }
        let mut told = match self.ask(host, asker) {
            Asked::Known(answer) => return answer,
            Asked::UnderWay(told) => told,
        };
        // The lookup's task was stopped with the process: nobody will answer.
        let answer = told.wait_for(Option::is_some).await.map_err(|_| NotResolved::Busy)?;
        answer.clone().unwrap_or(Err(NotResolved::Busy))
    }

    fn ask(&self, host: &str, asker: Asker) -> Asked {
        let mut state = self.0.state();
        if let Some(known) = state.known.get(host)
            && Instant::now() < known.until
        {
            return Asked::Known(known.answer.clone());
        }
        let wanted = (host.to_owned(), asker);
        if let Some(told) = state.under_way.get(&wanted) {
            return Asked::UnderWay(told.clone());
        }
        if state.waiting(asker) >= MAX_WAITING / STRANGERS {
            return Asked::Known(Err(NotResolved::Busy));
        }
        let (tell, told) = watch::channel(None);
        state.under_way.insert(wanted.clone(), told.clone());
        let domain = (domain(host).to_owned(), asker);
        let places = state.domains.entry(domain.clone()).or_insert_with(|| Arc::new(Semaphore::new(PER_DOMAIN)));
        let look = Arc::clone(&self.0).look_up(wanted, domain, Arc::clone(places), tell);
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

    /// A place, behind those who came before. None is ever closed.
    async fn place(&self, asker: Asker) -> Result<(Option<SemaphorePermit<'_>>, SemaphorePermit<'_>), AcquireError> {
        let stranger = match asker {
            Asker::Known => None,
            Asker::Stranger => Some(self.for_strangers.acquire().await?),
        };
        Ok((stranger, self.places.acquire().await?))
    }

    async fn look_up(
        self: Arc<Self>,
        wanted: Wanted,
        domain: Wanted,
        of_domain: Arc<Semaphore>,
        tell: watch::Sender<Option<Answer>>,
    ) {
        let (host, asker) = &wanted;
        // The domain's place first: who waits for it holds no place of others. Then the strangers' own.
        let answer = match (of_domain.acquire().await, self.place(*asker).await) {
            (Ok(_of_domain), Ok(_place)) => match (self.service)(host).await {
                Ok(addresses) if addresses.is_empty() => Err(NotResolved::NoAddress),
                Ok(addresses) => Ok(in_turns(addresses)),
                Err(source) => Err(NotResolved::Failed { source: Arc::new(source) }),
            },
            _ => Err(NotResolved::Busy),
        };
        let mut state = self.state();
        state.under_way.remove(&wanted);
        // Two handles, the map's and this one: no other name of the domain is under way.
        if Arc::strong_count(&of_domain) == 2 {
            state.domains.remove(&domain);
        }
        let lifetime = if answer.is_ok() { self.config.lifetime } else { NEGATIVE_LIFETIME };
        state.remember(wanted.0, Known { answer: answer.clone(), until: Instant::now() + lifetime });
        drop(state);
        tell.send_replace(Some(answer));
    }
}

impl State {
    /// How many names are looked up for these.
    fn waiting(&self, asker: Asker) -> usize {
        self.under_way.keys().filter(|(_, other)| *other == asker).count()
    }

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
        assert_eq!(resolver.addresses(good, Asker::Stranger).await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        assert!(matches!(resolver.addresses(none, Asker::Stranger).await, Err(NotResolved::Failed { .. })));
        sleep(MINUTE / 2).await;
        assert!(resolver.addresses(none, Asker::Stranger).await.is_err());
        sleep(28 * MINUTE).await;
        assert!(resolver.addresses(good, Asker::Stranger).await.is_ok());
        assert_eq!(service.asked(), 2, "both were known");
        assert!(resolver.addresses(none, Asker::Stranger).await.is_err());
        assert_eq!(service.asked(), 3, "the failure was forgotten");
        sleep(2 * MINUTE).await;
        assert!(resolver.addresses(good, Asker::Stranger).await.is_ok());
        assert_eq!(service.asked(), 4, "the address was forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_for_one_name_share_one_lookup() {
        let service = Service::default();
        let (resolver, name) = (service.resolver(), "a.example");
        let (one, two) =
            tokio::join!(resolver.addresses(name, Asker::Stranger), resolver.addresses(name, Asker::Stranger));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(service.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_name_server_holds_up_its_own_names_and_no_others() {
        let service = Service::default();
        let resolver = service.resolver();
        let slow: Vec<_> = (0..100).map(|number| format!("mix{number}.slow.example")).collect();
        for name in &slow {
            assert!(
                timeout(Duration::from_millis(1), resolver.addresses(name, Asker::Stranger)).await.is_err(),
                "it is slow"
            );
        }
        assert_eq!(service.in_flight.load(Ordering::Relaxed), PER_DOMAIN);
        let other = timeout(Duration::from_secs(2), resolver.addresses("a.example.org", Asker::Stranger)).await;
        assert!(other.expect("in its own time").is_ok());
        // Nobody waits any more, and the lookups end one after the other all the same.
        sleep(51 * 60 * MINUTE).await;
        let state = resolver.0.state();
        assert!(state.under_way.is_empty() && state.domains.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_with_many_domains_hold_up_each_other_and_no_known_mix() {
        let service = Service::default();
        let resolver = service.resolver();
        // Each name of a domain of its own, and all of them take an hour.
        let slow: Vec<_> = (0..2000).map(|number| format!("d{number}-slow.example")).collect();
        for name in &slow {
            let asked = timeout(Duration::from_millis(1), resolver.addresses(name, Asker::Stranger)).await;
            assert!(asked.is_err() || matches!(asked, Ok(Err(NotResolved::Busy))), "{asked:?}");
        }
        let lookups = ResolveConfig::default().lookups;
        assert_eq!(service.in_flight.load(Ordering::Relaxed), lookups / STRANGERS, "half of the places, and no more");
        let in_time = |name: &'static str, asker| timeout(Duration::from_secs(2), resolver.addresses(name, asker));
        assert!(in_time("stranger.example.org", Asker::Stranger).await.is_ok_and(|answer| answer.is_err()), "busy");
        assert!(in_time("mix.example.org", Asker::Known).await.expect("in its own time").is_ok());
        // What is known is known to all.
        assert!(in_time("mix.example.org", Asker::Stranger).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn known_mix_waits_neither_for_strangers_who_ask_for_its_name_nor_for_those_of_its_domain() {
        let service = Service::default();
        let resolver = service.resolver();
        let ask = |name: &'static str, asker| timeout(Duration::from_millis(1), resolver.addresses(name, asker));
        for name in ["a.slow.example", "b.slow.example", "mix.slow.example"] {
            assert!(ask(name, Asker::Stranger).await.is_err());
        }
        assert_eq!(service.asked(), PER_DOMAIN, "the third waits");
        assert!(ask("mix.slow.example", Asker::Known).await.is_err(), "it is slow");
        assert_eq!(service.asked(), PER_DOMAIN + 1, "and was asked for at once");
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_in_flight_and_names_that_wait_are_bounded() {
        let service = Service::default();
        let resolver = service.resolver();
        let ask = |number: usize| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.addresses(&format!("mix.d{number}.example"), Asker::Stranger).await })
        };
        // Each a domain of its own: the registry sells below `example` here.
        let _waiting: Vec<_> = (0..MAX_WAITING / STRANGERS).map(ask).collect();
        sleep(Duration::from_millis(1)).await;
        assert!(matches!(resolver.addresses("late.example.org", Asker::Stranger).await, Err(NotResolved::Busy)));
        sleep(60 * MINUTE).await;
        assert!(service.most_in_flight.load(Ordering::Relaxed) <= ResolveConfig::default().lookups);
        assert!(resolver.addresses("late.example.org", Asker::Stranger).await.is_ok());
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
        assert!(matches!(resolver.addresses(name, Asker::Stranger).await, Err(NotResolved::Failed { .. })));
        service.down.store(0, Ordering::Relaxed);
        sleep(5 * MINUTE).await;
        assert!(resolver.addresses(name, Asker::Stranger).await.is_ok(), "by the first step of the schedule");
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_names_without_address_and_endless_names_need_no_lookup_or_say_why() {
        let service = Service::default();
        let resolver = service.resolver();
        assert_eq!(resolver.addresses("192.0.2.9", Asker::Stranger).await.unwrap(), [IpAddr::from([192, 0, 2, 9])]);
        let endless = "a.".repeat(127);
        assert!(matches!(resolver.addresses(&endless, Asker::Stranger).await, Err(NotResolved::NoAddress)));
        assert_eq!(service.asked(), 0);
        assert!(matches!(resolver.addresses("void.example", Asker::Stranger).await, Err(NotResolved::NoAddress)));
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
