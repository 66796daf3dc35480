//! What is known of those who take the mail: the one server, or what stands in its place; and, where mail leaves to the
//! servers of each domain, the domains that are away.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use crate::crypto::{DIGEST_LEN, Digest, sha1};
use crate::node::retry::RetrySchedule;
use crate::secret::Secret;
use crate::store::db::{instant, seconds};

/// Domains that are remembered to be away: some 500 kilobytes. Strangers choose them; beyond it the one that would be tried
/// first is forgotten, and mail for it finds out by itself.
const MAX_DOMAINS: usize = if cfg!(test) { 10 } else { 4096 };

/// Proofs in a row that one is there, and mail that finds it away all the same, until mail waits for its own time again: else
/// all of its tries could be spent on a server that takes proofs and nothing else.
const BELIEVED: u32 = 3;

/// What is known of a destination.
#[derive(Debug, Default)]
pub(in crate::node) struct MailServer {
    /// How often it was found to be there or away.
    pub(super) looks: u64,
    /// How often it was away since it was there.
    pub(super) failures: u32,
    /// Until when it is not called.
    pub(super) until: Option<SystemTime>,
    /// How often a proof has had mail tried since it was there.
    proofs: u32,
    /// What the operator was told to mend, of a setting, a program or a folder.
    pub(super) told: Option<String>,
}

impl MailServer {
    pub(in crate::node) fn is_there(&mut self) {
        *self = Self { looks: self.looks + 1, ..Self::default() };
    }

    /// It is away, and so until the time that is returned.
    pub(super) fn is_away(&mut self, schedule: &RetrySchedule, now: SystemTime) -> SystemTime {
        self.looks += 1;
        self.failures = self.failures.saturating_add(1).min(schedule.tries());
        // In whole seconds, as the queue has it: else what waits for it would be due before it is called again.
        let next = instant(seconds(now + schedule.wait_after(self.failures).unwrap_or_default()));
        self.until = Some(next);
        next
    }

    /// A proof shows that it is there. Until when mail was to wait for it that is to be tried now.
    pub(super) fn wakes(&mut self) -> Option<SystemTime> {
        let until = self.until.take_if(|_| self.proofs < BELIEVED)?;
        self.looks += 1;
        self.proofs += 1;
        Some(until)
    }

    /// Until when it is not called, if it is not called now.
    pub(super) fn waits(&self, now: SystemTime) -> Option<SystemTime> {
        self.until.filter(|until| now < *until)
    }

    /// Whether to tell the operator that something is for him to mend: once, until it works again. A line for each try would
    /// tell when there was mail.
    pub(super) fn tells(&mut self, fault: &str) -> bool {
        self.told.replace(fault.to_owned()).as_deref() != Some(fault)
    }
}

/// The domains that are away. What is kept of one is a digest under a key of this process, in memory alone: whoever reads it
/// learns no domain that he cannot guess.
pub(in crate::node) struct Domains {
    key: Secret<[u8; DIGEST_LEN]>,
    away: BTreeMap<Digest, MailServer>,
}

impl Domains {
    /// None is away. The key is drawn once for a process.
    pub(in crate::node) fn new(rng: &mut impl rand::CryptoRng) -> Self {
        let mut key = Secret::new([0; DIGEST_LEN]);
        rng.fill_bytes(key.expose_mut());
        Self { key, away: BTreeMap::new() }
    }

    /// Lets `look` see what is known of a domain, and change it.
    pub(super) fn at<T>(&mut self, domain: &str, look: impl FnOnce(&mut MailServer) -> T) -> T {
        let digest = sha1(&[self.key.expose(), domain.as_bytes()]);
        let mut server = self.away.remove(&digest).unwrap_or_default();
        let seen = look(&mut server);
        // Of one that is there nothing need be known.
        if server.failures > 0 {
            if self.away.len() >= MAX_DOMAINS {
                let first = self.away.iter().min_by_key(|(_, server)| server.until).map(|(digest, _)| *digest);
                first.and_then(|digest| self.away.remove(&digest));
            }
            self.away.insert(digest, server);
        }
        seen
    }

    /// They may be there, as [`MailServer::wakes`].
    pub(super) fn wake(&mut self) -> Vec<SystemTime> {
        self.away.values_mut().filter_map(MailServer::wakes).collect()
    }

    /// All are there, as far as is known.
    pub(in crate::node) fn forget(&mut self) {
        self.away.clear();
    }
}

impl fmt::Debug for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domains({} away)", self.away.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::node::retry::RetryStep;

    #[test]
    fn destination_that_is_away_waits_until_a_second_that_the_queue_knows() {
        let schedule = RetrySchedule::new(vec![RetryStep { every: HOUR, during: HOUR }]);
        let until = MailServer::default().is_away(&schedule, NOON + Duration::from_millis(900));
        assert_eq!(until, NOON + HOUR);
    }

    const NOON: SystemTime = SystemTime::UNIX_EPOCH;
    const HOUR: Duration = Duration::from_secs(3600);

    fn domains() -> Domains {
        Domains::new(&mut StdRng::seed_from_u64(3))
    }

    fn schedule(every: Duration) -> RetrySchedule {
        RetrySchedule::new(vec![RetryStep { every, during: 10 * every }])
    }

    #[test]
    fn proof_is_believed_a_few_times_in_a_row_until_mail_finds_the_server_there() {
        let (mut server, schedule) = (MailServer::default(), schedule(HOUR));
        assert_eq!(server.wakes(), None, "nothing waits");
        for _ in 0..2 {
            for tries in 1..=BELIEVED {
                let until = server.is_away(&schedule, NOON);
                assert_eq!((server.wakes(), server.waits(NOON)), (Some(until), None), "{tries}");
            }
            server.is_away(&schedule, NOON);
            assert_eq!(server.wakes(), None);
            assert!(server.waits(NOON).is_some());
            server.is_there();
        }
    }

    #[test]
    fn domain_that_is_away_is_so_by_itself_until_it_is_there() {
        let mut domains = domains();
        let next = domains.at("away.example", |server| server.is_away(&schedule(HOUR), NOON));
        assert_eq!(next, NOON + HOUR);
        assert_eq!(domains.at("away.example", |server| server.waits(NOON)), Some(NOON + HOUR));
        assert_eq!(domains.at("away.example", |server| server.waits(NOON + HOUR)), None);
        assert_eq!(domains.at("other.example", |server| server.waits(NOON)), None);
        domains.at("away.example", MailServer::is_there);
        assert_eq!(format!("{domains:?}"), "Domains(0 away)");
    }

    #[test]
    fn strangers_fill_no_memory_with_domains() {
        let mut domains = domains();
        domains.at("last.example", |server| server.is_away(&schedule(10 * HOUR), NOON));
        for i in 0..5 * MAX_DOMAINS {
            domains.at(&format!("{i}.example"), |server| server.is_away(&schedule(HOUR), NOON));
        }
        assert_eq!(format!("{domains:?}"), format!("Domains({MAX_DOMAINS} away)"));
        assert!(domains.at("last.example", |server| server.waits(NOON)).is_some());
    }

    #[test]
    fn no_domain_is_kept_as_it_is_called() {
        let kept = |seed| {
            let mut domains = Domains::new(&mut StdRng::seed_from_u64(seed));
            domains.at("away.example", |server| server.is_away(&schedule(HOUR), NOON));
            domains.away.into_keys().next().unwrap()
        };
        assert_ne!(kept(1), kept(2));
    }
}
