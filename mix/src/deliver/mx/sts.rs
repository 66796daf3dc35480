//! What a domain promises of the servers that take its mail (MTA-STS, RFC 8461).
//!
//! A record in the name service says that there is a policy, and the policy lies at a web server of the domain. What is
//! known of one is kept in memory for as long as it says: who can keep a record or a web server from us cannot make us
//! forget. A restart does.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::packet::HostName;

/// What a policy may promise at the most, in seconds: a year (RFC 8461 3.2).
const MAX_AGE: u64 = 31_557_600;
/// Patterns of one policy that are looked at. Large providers have a dozen.
const MAX_PATTERNS: usize = 64;
/// Policies kept, each of some kilobytes at most. Beyond it the one that ends first goes.
const MAX_KNOWN: usize = if cfg!(test) { 8 } else { 1024 };
/// How long a policy that was not to be had is not asked for again (RFC 8461 3.3).
const ASK_AGAIN: Duration = Duration::from_secs(5 * 60);
/// Characters of the name of a policy's version.
const MAX_ID_LEN: usize = 32;

/// A fetch under way: the text of the policy, if it is to be had.
pub type Fetching = Pin<Box<dyn Future<Output = Option<String>> + Send>>;
/// Fetches the policy at a host, from one of its addresses.
pub type Fetch = Box<dyn Fn(HostName, Vec<IpAddr>) -> Fetching + Send + Sync>;

/// How serious the promise is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Mail goes to no server that breaks it.
    Enforce,
    /// It is tried out: mail goes anywhere.
    Testing,
    /// There is none any more.
    None,
}

/// What a domain promises.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Policy {
    mode: Mode,
    /// The names of its servers, in lower case. A star stands for one label.
    patterns: Vec<String>,
    max_age: Duration,
}

/// Why a text is no policy. Blames the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPolicy {
    /// Of another kind, or none.
    #[error("it does not begin with `version: STSv1`")]
    Version,
    /// None of the three.
    #[error("its mode is missing or unknown")]
    Mode,
    /// No number of seconds.
    #[error("its max_age is missing or no number of seconds")]
    MaxAge,
    /// Nobody could take the mail.
    #[error("it names no server")]
    NoServer,
}

impl Policy {
    /// Reads a policy (RFC 8461 3.2). Of a key that stands there twice the first counts, but for `mx`.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            (key.trim(), value.trim())
        });
        if lines.next() != Some(("version", "STSv1")) {
            return Err(InvalidPolicy::Version);
        }
        let lines: Vec<_> = lines.collect();
        let value = |wanted| lines.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        let mode = match value("mode") {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            _ => return Err(InvalidPolicy::Mode),
        };
        let seconds = value("max_age").filter(|age| !age.is_empty() && age.bytes().all(|digit| digit.is_ascii_digit()));
        // More digits than a number has are more than a year.
        let seconds = seconds.ok_or(InvalidPolicy::MaxAge)?.parse().unwrap_or(MAX_AGE).min(MAX_AGE);
        let servers = lines.iter().filter(|(key, value)| *key == "mx" && !value.is_empty());
        let patterns: Vec<_> = servers.take(MAX_PATTERNS).map(|(_, value)| value.to_ascii_lowercase()).collect();
        if patterns.is_empty() && mode != Mode::None {
            return Err(InvalidPolicy::NoServer);
        }
        Ok(Self { mode, patterns, max_age: Duration::from_secs(seconds) })
    }

    /// Whether mail may go to no other server than it names, and to those by TLS with a good certificate alone.
    pub(super) fn is_enforced(&self) -> bool {
        self.mode == Mode::Enforce
    }

    /// Whether it names this server (RFC 8461 4.1).
    pub(super) fn names(&self, server: &HostName) -> bool {
        let name = server.as_str().trim_end_matches('.');
        self.patterns.iter().map(|pattern| pattern.trim_end_matches('.')).any(|pattern| {
            match (pattern.strip_prefix("*."), name.split_once('.')) {
                (Some(parent), Some((label, rest))) => !label.is_empty() && parent == rest,
                (Some(_), None) => false,
                (None, _) => pattern == name,
            }
        })
    }
}

/// The version of a policy that the texts beside a domain speak of. `None` where there is not one record of the kind (RFC
/// 8461 3.1).
pub(super) fn policy_id(texts: &[String]) -> Option<&str> {
    let mut records = texts.iter().filter_map(|text| {
        let rest = text.strip_prefix("v=STSv1")?.trim_start();
        rest.strip_prefix(';')
    });
    let (Some(record), None) = (records.next(), records.next()) else { return None };
    let id = record.split(';').find_map(|field| field.trim().strip_prefix("id="))?.trim();
    let is_id = (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric());
    is_id.then_some(id)
}

/// The policies that are known, and how to learn of more.
pub struct Policies {
    fetch: Fetch,
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    /// The version that was fetched last, or in vain.
    id: String,
    /// With the moment from which on it no longer holds.
    policy: Option<(Arc<Policy>, Instant)>,
    /// Not asked for before.
    ask_again: Instant,
}

impl Known {
    fn policy(&self, now: Instant) -> Option<Arc<Policy>> {
        self.policy.as_ref().filter(|(_, until)| now < *until).map(|(policy, _)| Arc::clone(policy))
    }

    /// From when on nothing is lost with it.
    fn ends(&self) -> Instant {
        self.policy.as_ref().map_or(self.ask_again, |(_, until)| *until)
    }
}

impl Policies {
    /// None is known.
    pub fn new(fetch: Fetch) -> Self {
        Self { fetch, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The policy of a domain beside which these texts lie; `addresses` finds its web server.
    pub(super) async fn of<F: Future<Output = Vec<IpAddr>>>(
        &self,
        domain: &HostName,
        texts: &[String],
        addresses: impl FnOnce(HostName) -> F,
    ) -> Option<Arc<Policy>> {
        let now = Instant::now();
        let id = {
            let known = self.known();
            let known = known.get(domain.as_str());
            let in_force = known.and_then(|known| known.policy(now));
            // Without a record there is nothing new: what was promised holds.
            let Some(id) = policy_id(texts) else { return in_force };
            if known.is_some_and(|known| now < known.ask_again || (known.id == id && in_force.is_some())) {
                return in_force;
            }
            id.to_owned()
        };
        let host = HostName::parse(&format!("mta-sts.{domain}")).ok()?;
        let fetched = match addresses(host.clone()).await {
            addresses if addresses.is_empty() => None,
            addresses => (self.fetch)(host, addresses).await,
        };
        self.learn(domain, id, fetched.and_then(|text| Policy::parse(&text).ok()))
    }

    fn learn(&self, domain: &HostName, id: String, fetched: Option<Policy>) -> Option<Arc<Policy>> {
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= MAX_KNOWN && !known.contains_key(domain.as_str()) {
            let first = known.iter().min_by_key(|(_, known)| known.ends()).map(|(domain, _)| domain.clone());
            first.and_then(|domain| known.remove(&domain));
        }
        let old = known.remove(domain.as_str());
        let new = match fetched {
            Some(policy) => {
                let until = now + policy.max_age;
                Known { id, policy: Some((Arc::new(policy), until)), ask_again: now }
            }
            // The old one holds as long as it said.
            None => Known { id, policy: old.and_then(|old| old.policy), ask_again: now + ASK_AGAIN },
        };
        let policy = new.policy(now);
        known.insert(domain.as_str().to_owned(), new);
        policy
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policies({})", self.known().len())
    }
}

#[cfg(test)]
mod tests;
