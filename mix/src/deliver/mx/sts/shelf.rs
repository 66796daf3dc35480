//! Policies on disk, so that a restart forgets none.
//!
//! Whom an exit has written to must not be read from its database. So a policy stands under a code of its domain, and is sealed
//! under another, for its names of servers are the domain's; both codes follow from the identity key of the node. Who has
//! that key can ask whether a domain of his choice is there, and can list none. A policy is as long as a power of two.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::CryptoRng;
use tokio::task::spawn_blocking;
use tracing::debug;

use super::policy::Policy;
use crate::crypto::mac::mac;
use crate::crypto::pk::PrivateKey;
use crate::crypto::sealed::{open_with, seal_with};
use crate::crypto::{DIGEST_LEN, Keyset};
use crate::packet::HostName;
use crate::secret::Secret;
use crate::store::db::seconds;
use crate::store::{Db, StoreError, policies};

/// Octets of a policy, at least: most are shorter and cannot be told from each other.
const LEAST_LEN: usize = 1024;

/// Where policies are kept over a restart.
pub struct Shelf {
    db: Db,
    key: Secret<[u8; DIGEST_LEN]>,
    now: Box<dyn Fn() -> SystemTime + Send + Sync>,
    dice: Mutex<Box<dyn CryptoRng + Send>>,
}

/// What is kept of a domain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The version of the policy.
    pub(super) id: String,
    pub(super) policy: Policy,
    /// How long ago it was fetched, in whole seconds.
    pub(super) age: Duration,
}

impl Shelf {
    /// That of the node with this identity key, in its database.
    pub fn of(
        identity: &PrivateKey,
        db: Db,
        now: impl Fn() -> SystemTime + Send + Sync + 'static,
        dice: Box<dyn CryptoRng + Send>,
    ) -> Self {
        let key = Secret::new(Keyset::new(&identity.to_pkcs8_der()).purpose(b"MAIL DOMAINS").0);
        Self { db, key, now: Box::new(now), dice: Mutex::new(dice) }
    }

    /// What is kept of a domain and still holds.
    pub(super) async fn find(&self, domain: &HostName) -> Option<Kept> {
        let (code, db) = (self.code(b"<", domain), self.db.clone());
        let found = spawn_blocking(move || db.read(|view| policies::find(view, &code))).await.ok()?;
        let sealed = found.map_err(|why| not_done(&why)).ok()??;
        let text = open_with(&self.code(b">", domain), &sealed)?;
        let text = std::str::from_utf8(&text).ok()?;
        let value = |key| text.lines().find_map(|line: &str| line.strip_prefix(key)?.strip_prefix(": "));
        let policy = Policy::parse(text).ok()?;
        let fetched = UNIX_EPOCH.checked_add(Duration::from_secs(value("fetched")?.parse().ok()?))?;
        // Where the clock was ahead then, it is as if it were fetched now: it holds no longer than it promised.
        let age = (self.now)().duration_since(fetched).unwrap_or_default();
        (age < policy.max_age).then_some(Kept { id: value("id")?.to_owned(), policy, age })
    }

    /// Keeps the policy of a domain, which was fetched just now. Nobody waits for it: what the disk does not take is known
    /// until the process ends.
    pub(super) fn keep(&self, domain: &HostName, id: &str, policy: &Policy) {
        let now = (self.now)();
        let more = [("id", id.to_owned()), ("fetched", seconds(now).to_string())];
        let mut text = policy.text(&more);
        let len = text.len().next_power_of_two().max(LEAST_LEN);
        text.extend(std::iter::repeat_n('\n', len - text.len()));
        let sealed = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            seal_with(&self.code(b">", domain), text.as_bytes(), &mut *dice)
        };
        let Ok(sealed) = sealed else { return };
        let (code, until) = (self.code(b"<", domain), now + policy.max_age);
        self.db.submit(
            move |tx| policies::keep(tx, &code, &sealed, until, now),
            |done| {
                let _ = done.map_err(|why| not_done(&why));
            },
        );
    }

    /// Notes that mail went by the policy of a domain.
    pub(super) fn used(&self, domain: &HostName) {
        let (code, now) = (self.code(b"<", domain), (self.now)());
        self.db.submit(
            move |tx| policies::used(tx, &code, now),
            |done| {
                let _ = done.map_err(|why| not_done(&why));
            },
        );
    }

    /// The sign keeps the code that a domain stands under from the one that seals.
    fn code(&self, sign: &[u8], domain: &HostName) -> [u8; policies::CODE_LEN] {
        mac(self.key.expose(), &[sign, domain.as_str().as_bytes()].concat())
    }
}

/// Other mail is to be delivered, with what is known.
fn not_done(why: &StoreError) {
    debug!(error = %why, "policies of mail domains are not kept");
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shelf(..)")
    }
}
