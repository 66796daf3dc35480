//! What a domain promises of the servers that take its mail (MTA-STS, RFC 8461).
//!
//! A record in the name service says that there is a policy, and the policy lies at a web server of the domain. What is
//! known of one is kept for as long as it says, on disk too (`shelf`): who can keep a record or a web server from us cannot
//! make us forget, and neither does a restart. One that is in use is fetched again long before it ends, beside the mail.

mod policy;
mod shelf;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(super) use self::policy::Policy;
use self::policy::{LEAST_AGE, policy_id};
use self::shelf::Kept;
pub use self::shelf::Shelf;
use crate::packet::HostName;

/// Policies in memory, each of 16 kilobytes at most. Beyond it the one that was not asked for longest goes, to be found on disk.
const MAX_KNOWN: usize = if cfg!(test) { 8 } else { 1024 };
/// How long a policy that was not to be had is not asked for again (RFC 8461 3.3).
const ASK_AGAIN: Duration = Duration::from_secs(LEAST_AGE);
/// How old a policy is that is fetched again when mail goes by it; one for less than two days, half its time.
const REFRESH: Duration = Duration::from_secs(24 * 3600);
/// How often it is noted on disk that mail goes by a policy.
const NOTE_USE: Duration = Duration::from_secs(24 * 3600);
/// Fetches at a time. Who owns domains can have a web server of each hang.
const FETCHES: usize = 32;

/// A fetch under way: the text of the policy, if it is to be had.
pub type Fetching = Pin<Box<dyn Future<Output = Option<String>> + Send>>;
/// Fetches the policy at a host, from one of its addresses.
pub type Fetch = Box<dyn Fn(HostName, Vec<IpAddr>) -> Fetching + Send + Sync>;

/// The policies that are known, and how to learn of more.
pub struct Policies {
    desk: Arc<Desk>,
    /// Those who fetch. They end with it, and not with the mail that needs the policy.
    fetching: Mutex<JoinSet<()>>,
}

struct Desk {
    fetch: Fetch,
    shelf: Option<Shelf>,
    known: Mutex<HashMap<String, Known>>,
    places: Arc<Semaphore>,
}

/// What is known of a domain.
struct Known {
    policy: Option<InForce>,
    /// Not asked for before.
    ask_again: Instant,
    /// Closed when the fetch under way has ended.
    fetching: Option<watch::Receiver<()>>,
    used: Instant,
    /// When it was noted on disk that it is used.
    noted: Instant,
}

/// A policy that was promised.
struct InForce {
    /// Its version.
    id: String,
    policy: Arc<Policy>,
    /// The moment from which on it no longer holds.
    until: Instant,
    /// When it is old enough to be fetched again.
    refresh: Instant,
}

/// What is to be done for a mail.
enum Turn {
    /// It goes by what is known.
    Known(Option<Arc<Policy>>),
    /// Somebody fetches what it needs.
    Wait(watch::Receiver<()>),
    /// It must have one fetched, and wait.
    Fetch(watch::Sender<()>),
    /// One is to be fetched for later mail.
    Refresh(watch::Sender<()>, Arc<Policy>),
}

impl Known {
    /// Nothing is known.
    fn nothing(now: Instant) -> Self {
        Self { policy: None, ask_again: now, fetching: None, used: now, noted: now }
    }

    fn in_force(&self, now: Instant) -> Option<&InForce> {
        self.policy.as_ref().filter(|policy| now < policy.until)
    }

    fn policy(&self, now: Instant) -> Option<Arc<Policy>> {
        self.in_force(now).map(|known| Arc::clone(&known.policy))
    }

    /// The fetch under way, if one is.
    fn under_way(&self) -> Option<watch::Receiver<()>> {
        self.fetching.clone().filter(|fetching| fetching.has_changed().is_ok())
    }

    /// Whose turn it is where the record speaks of the version `id`.
    fn turn(&mut self, id: &str, now: Instant) -> Turn {
        let in_force = self.in_force(now);
        let is_newest = in_force.is_some_and(|known| known.id == id);
        let is_fresh = in_force.is_some_and(|known| now < known.refresh);
        let policy = self.policy(now);
        match self.under_way() {
            Some(fetching) if !is_newest => return Turn::Wait(fetching),
            Some(_) => return Turn::Known(policy),
            None => {}
        }
        if now < self.ask_again || (is_newest && is_fresh) {
            return Turn::Known(policy);
        }
        let (ends, fetching) = watch::channel(());
        self.fetching = Some(fetching);
        match policy {
            Some(policy) if is_newest => Turn::Refresh(ends, policy),
            _ => Turn::Fetch(ends),
        }
    }
}

impl InForce {
    fn new(id: String, policy: Policy, age: Duration, now: Instant) -> Self {
        let (until, refresh) = (policy.max_age, REFRESH.min(policy.max_age / 2));
        Self {
            id,
            policy: Arc::new(policy),
            until: now + (until - age.min(until)),
            refresh: now + refresh.saturating_sub(age),
        }
    }
}

impl Policies {
    /// Those on the shelf are known. Without one, what is learnt goes with the process.
    pub fn new(fetch: Fetch, shelf: Option<Shelf>) -> Self {
        let places = Arc::new(Semaphore::new(FETCHES));
        let desk = Desk { fetch, shelf, known: Mutex::default(), places };
        Self { desk: Arc::new(desk), fetching: Mutex::default() }
    }

    /// The policy of a domain beside which these texts lie; `addresses` finds its web server.
    pub(super) async fn of<F: Future<Output = Vec<IpAddr>> + Send + 'static>(
        &self,
        domain: &HostName,
        texts: &[String],
        addresses: impl FnOnce(HostName) -> F + Send + 'static,
    ) -> Option<Arc<Policy>> {
        self.desk.recall(domain).await;
        // Without a record there is nothing new: what was promised holds.
        let Some(id) = policy_id(texts) else { return self.desk.policy(domain) };
        let mut fetched = match self.desk.turn(domain, id) {
            Turn::Known(policy) => return policy,
            Turn::Wait(fetched) => fetched,
            Turn::Fetch(ends) => {
                let fetched = ends.subscribe();
                self.fetch(domain, id, addresses, ends);
                fetched
            }
            Turn::Refresh(ends, policy) => {
                // Where all are taken, the next mail to the domain will do as well.
                if self.desk.places.available_permits() > 0 {
                    self.fetch(domain, id, addresses, ends);
                }
                return Some(policy);
            }
        };
        // Nothing is ever sent: it is closed when the fetch has ended.
        let _ = fetched.changed().await;
        self.desk.policy(domain)
    }

    /// Has a policy fetched by a task of its own: a mail that gives up does not undo it. `ends` goes when it is done.
    fn fetch<F: Future<Output = Vec<IpAddr>> + Send + 'static>(
        &self,
        domain: &HostName,
        id: &str,
        addresses: impl FnOnce(HostName) -> F + Send + 'static,
        ends: watch::Sender<()>,
    ) {
        let (desk, domain, id) = (Arc::clone(&self.desk), domain.clone(), id.to_owned());
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        while fetching.try_join_next().is_some() {}
        fetching.spawn(async move {
            let _ends = ends;
            let _place = desk.places.acquire().await;
            let text = desk.text(&domain, addresses).await;
            desk.learn(&domain, id, text.and_then(|text| Policy::parse(&text).ok()));
        });
    }
}

impl Desk {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what is on the shelf to memory, where it is not there.
    async fn recall(&self, domain: &HostName) {
        let Some(shelf) = &self.shelf else { return };
        if self.known().contains_key(domain.as_str()) {
            return;
        }
        let Some(Kept { id, policy, age }) = shelf.find(domain).await else { return };
        shelf.used(domain);
        let now = Instant::now();
        let mut known = self.known();
        // Another mail may have learnt more in the meantime.
        entry(&mut known, domain, now).policy.get_or_insert_with(|| InForce::new(id, policy, age, now));
    }

    /// The policy that holds, whatever there may be elsewhere.
    fn policy(&self, domain: &HostName) -> Option<Arc<Policy>> {
        let now = Instant::now();
        let mut known = self.known();
        let known = known.get_mut(domain.as_str())?;
        self.note_use(domain, known, now);
        known.policy(now)
    }

    fn turn(&self, domain: &HostName, id: &str) -> Turn {
        let now = Instant::now();
        let mut known = self.known();
        let known = entry(&mut known, domain, now);
        self.note_use(domain, known, now);
        known.turn(id, now)
    }

    fn note_use(&self, domain: &HostName, known: &mut Known, now: Instant) {
        known.used = now;
        if let Some(shelf) = &self.shelf
            && known.in_force(now).is_some()
            && now >= known.noted + NOTE_USE
        {
            known.noted = now;
            shelf.used(domain);
        }
    }

    /// What the web server of a domain has to say.
    async fn text<F: Future<Output = Vec<IpAddr>>>(
        &self,
        domain: &HostName,
        addresses: impl FnOnce(HostName) -> F,
    ) -> Option<String> {
        let host = HostName::parse(&format!("mta-sts.{domain}")).ok()?;
        match addresses(host.clone()).await {
            addresses if addresses.is_empty() => None,
            addresses => (self.fetch)(host, addresses).await,
        }
    }

    fn learn(&self, domain: &HostName, id: String, fetched: Option<Policy>) {
        let now = Instant::now();
        let mut known = self.known();
        let known = entry(&mut known, domain, now);
        match fetched {
            Some(policy) => {
                if let Some(shelf) = &self.shelf {
                    shelf.keep(domain, &id, &policy);
                    known.noted = now;
                }
                known.policy = Some(InForce::new(id, policy, Duration::ZERO, now));
            }
            // The old one, and its version, hold as long as it said.
            None => known.ask_again = now + ASK_AGAIN,
        }
    }
}

/// What is known of a domain, for which there is room now.
fn entry<'k>(known: &'k mut HashMap<String, Known>, domain: &HostName, now: Instant) -> &'k mut Known {
    if known.len() >= MAX_KNOWN && !known.contains_key(domain.as_str()) {
        let oldest = known.iter().min_by_key(|(_, known)| known.used).map(|(domain, _)| domain.clone());
        oldest.and_then(|domain| known.remove(&domain));
    }
    known.entry(domain.as_str().to_owned()).or_insert_with(|| Known::nothing(now))
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policies({})", self.desk.known().len())
    }
}

#[cfg(test)]
mod tests;
