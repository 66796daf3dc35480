//! How many mails one recipient gets of an exit, one domain, and all together.
//!
//! Each limit is a bucket: so many mails pass at once, and it fills up again evenly in its time. Whoever is over one waits.
//! How long at most is `crate::node`'s to say, and so is the time.
//!
//! Strangers choose the recipients. What is kept of one is a digest under a key of this process, in memory alone, and of so
//! many: whoever reads the memory learns no address that he cannot guess. Lists of whom to refuse are `refusals`'.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::opt_out::normalised;
use crate::crypto::{DIGEST_LEN, Digest, sha1};
use crate::path::Mailbox;
use crate::secret::Secret;

/// Buckets kept: some 5 megabytes. Beyond it the one that is nearest to being full again makes room, so that an address
/// that has had all it may get is not forgotten for the sake of many that had one mail.
const MAX_BUCKETS: usize = if cfg!(test) { 100 } else { 65_536 };

/// So many mails in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailLimit {
    /// How many. 0: any number.
    pub mails: u32,
    /// In what time.
    #[serde(with = "crate::settings::time")]
    pub per: Duration,
}

/// Section `[node.smtp.limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// To one mailbox, with its sub-addresses.
    pub per_recipient: MailLimit,
    /// To all mailboxes behind one `@`.
    pub per_domain: MailLimit,
    /// To all.
    pub in_all: MailLimit,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let a_day = |mails| MailLimit { mails, per: Duration::from_secs(24 * 3600) };
        Self {
            // A correspondent's mails come by many exits; this is enough for a conversation with somebody by one of them,
            // and too little to bury a mailbox.
            per_recipient: a_day(50),
            // The large providers have most mailboxes. They turn servers away that bring thousands of mails and are unknown.
            per_domain: a_day(1000),
            // Seven a minute: a flood does not use up the good name of the mail server before its operator sees it.
            in_all: a_day(10_000),
        }
    }
}

impl LimitsConfig {
    /// Whether one of them lets more through than before, or sooner.
    pub fn are_wider_than(&self, before: &Self) -> bool {
        let all = |it: &Self| [it.per_recipient, it.per_domain, it.in_all];
        all(self).into_iter().zip(all(before)).any(|(now, before)| {
            before.mails > 0 && (now.mails == 0 || now.mails > before.mails || now.per < before.per)
        })
    }

    /// That for one mailbox, alone.
    pub fn of_a_recipient(&self) -> Self {
        Self { per_recipient: self.per_recipient, ..Self::none() }
    }

    /// The same, without any limit.
    pub fn none() -> Self {
        let any = MailLimit { mails: 0, per: Duration::from_secs(24 * 3600) };
        Self { per_recipient: any, per_domain: any, in_all: any }
    }
}

/// What has been let through of late. `Debug` shows a number alone.
pub struct Limits {
    key: Secret<[u8; DIGEST_LEN]>,
    buckets: BTreeMap<Digest, Bucket>,
}

/// What one has had.
#[derive(Clone, Copy)]
struct Bucket {
    /// When it will be full again.
    full_at: SystemTime,
    /// What one mail takes to fill up.
    share: Duration,
}

impl Bucket {
    /// How long it takes to be full again where a mail takes `share`, after a change of the settings too.
    fn left(&self, share: Duration, now: SystemTime) -> Duration {
        let left = self.full_at.duration_since(now).unwrap_or_default();
        if share == self.share || self.share.is_zero() {
            return left;
        }
        let mails = left.as_secs_f64() / self.share.as_secs_f64();
        Duration::try_from_secs_f64(mails * share.as_secs_f64()).unwrap_or(left)
    }
}

/// A mail that was let through.
#[derive(Clone)]
pub struct Place([Option<Digest>; 3]);

/// Over a limit: the mail must wait for so long at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit(pub Duration);

impl Limits {
    /// Nothing has been let through. The key is drawn once for a process.
    pub fn new(rng: &mut impl rand::CryptoRng) -> Self {
        let mut key = Secret::new([0; DIGEST_LEN]);
        rng.fill_bytes(key.expose_mut());
        Self { key, buckets: BTreeMap::new() }
    }

    /// Lets a mail to this mailbox through, and counts it.
    ///
    /// # Errors
    /// [`OverLimit`], by the limit that takes longest. Nothing is counted then.
    pub fn take(&mut self, limits: &LimitsConfig, to: &Mailbox, now: SystemTime) -> Result<Place, OverLimit> {
        let (whole, host) = (normalised(to), to.domain().to_ascii_lowercase());
        // The sign before each keeps them apart.
        let buckets = [
            (limits.per_recipient, self.digest(b"<", &whole)),
            (limits.per_domain, self.digest(b"@", &host)),
            (limits.in_all, self.digest(b",", "")),
        ];
        let (mut after, mut wait) = ([None; 3], Duration::ZERO);
        for (slot, (limit, bucket)) in after.iter_mut().zip(buckets) {
            if limit.mails == 0 {
                continue;
            }
            let share = limit.per / limit.mails;
            // What was counted by another limit, before the settings changed, is no more than this one is all over.
            let left = self.buckets.get(&bucket).map_or(Duration::ZERO, |it| it.left(share, now)).min(limit.per);
            let full_at = now + left + share;
            wait = wait.max(full_at.duration_since(now + limit.per).unwrap_or_default());
            *slot = Some((bucket, share, full_at));
        }
        if !wait.is_zero() {
            return Err(OverLimit(wait));
        }
        for (bucket, share, full_at) in after.into_iter().flatten() {
            self.set(bucket, Bucket { full_at, share }, now);
        }
        Ok(Place(after.map(|bucket| bucket.map(|(bucket, ..)| bucket))))
    }

    /// The mail was not delivered after all: others have its place.
    pub fn give_back(&mut self, place: &Place) {
        for bucket in place.0.iter().flatten() {
            if let Some(it) = self.buckets.get_mut(bucket) {
                it.full_at = it.full_at.checked_sub(it.share).unwrap_or(SystemTime::UNIX_EPOCH);
            }
        }
    }

    fn digest(&self, kind: &[u8], text: &str) -> Digest {
        sha1(&[self.key.expose(), kind, text.as_bytes()])
    }

    fn set(&mut self, digest: Digest, bucket: Bucket, now: SystemTime) {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&digest) {
            self.buckets.retain(|_, it| it.full_at > now);
            if self.buckets.len() >= MAX_BUCKETS
                && let Some(nearest) = self.buckets.iter().min_by_key(|(_, it)| it.full_at).map(|(key, _)| *key)
            {
                self.buckets.remove(&nearest);
            }
        }
        self.buckets.insert(digest, bucket);
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limits({} buckets)", self.buckets.len())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place(..)")
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const NOON: SystemTime = SystemTime::UNIX_EPOCH;

    fn limits() -> Limits {
        Limits::new(&mut StdRng::seed_from_u64(1))
    }

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap()
    }

    /// Whether one more mail passes.
    fn passes(limits: &mut Limits, config: &LimitsConfig, to: &str, now: SystemTime) -> Result<(), OverLimit> {
        limits.take(config, &mailbox(to), now).map(drop)
    }

    fn an_hour(mails: u32) -> MailLimit {
        MailLimit { mails, per: HOUR }
    }

    #[test]
    fn recipient_gets_as_many_at_once_and_then_one_by_one() {
        let config = LimitsConfig { per_recipient: an_hour(4), ..LimitsConfig::none() };
        let mut limits = limits();
        for _ in 0..4 {
            assert_eq!(passes(&mut limits, &config, "bob@x.y", NOON), Ok(()));
        }
        assert_eq!(passes(&mut limits, &config, "BOB@X.y", NOON), Err(OverLimit(HOUR / 4)), "it is the same");
        assert_eq!(passes(&mut limits, &config, "bob+more@x.y", NOON), Err(OverLimit(HOUR / 4)), "so is this");
        assert_eq!(passes(&mut limits, &config, "eve@x.y", NOON), Ok(()), "it is another");
        let ten = NOON + HOUR / 6;
        assert_eq!(passes(&mut limits, &config, "bob@x.y", ten), Err(OverLimit(HOUR / 12)));
        assert_eq!(passes(&mut limits, &config, "bob@x.y", ten + HOUR / 12), Ok(()));
        assert_eq!(passes(&mut limits, &config, "bob@x.y", ten + HOUR / 12), Err(OverLimit(HOUR / 4)));
        let later = NOON + 3 * HOUR;
        let passed = (0..10).filter(|_| passes(&mut limits, &config, "bob@x.y", later).is_ok()).count();
        assert_eq!(passed, 4, "a quiet time saves up no more");
    }

    #[test]
    fn domain_has_a_limit_and_so_have_all_together() {
        let config = LimitsConfig { per_domain: an_hour(2), in_all: an_hour(3), ..LimitsConfig::none() };
        let mut limits = limits();
        assert_eq!(passes(&mut limits, &config, "a@x.y", NOON), Ok(()));
        assert_eq!(passes(&mut limits, &config, "b@X.Y", NOON), Ok(()));
        assert_eq!(passes(&mut limits, &config, "c@x.y", NOON), Err(OverLimit(HOUR / 2)));
        assert_eq!(passes(&mut limits, &config, "c@mail.x.y", NOON), Ok(()), "the one over the limit is not counted");
        assert_eq!(passes(&mut limits, &config, "d@z.y", NOON), Err(OverLimit(HOUR / 3)));
        assert_eq!(passes(&mut limits, &config, "c@x.y", NOON), Err(OverLimit(HOUR / 2)), "the longer of the two");
    }

    #[test]
    fn mail_that_was_not_delivered_gives_its_place_back() {
        let config = LimitsConfig { per_recipient: an_hour(1), in_all: an_hour(2), ..LimitsConfig::none() };
        let mut limits = limits();
        let place = limits.take(&config, &mailbox("bob@x.y"), NOON).unwrap();
        assert!(passes(&mut limits, &config, "bob@x.y", NOON).is_err());
        limits.give_back(&place);
        assert_eq!(passes(&mut limits, &config, "bob@x.y", NOON), Ok(()));
        assert_eq!(passes(&mut limits, &config, "eve@x.y", NOON), Ok(()));
        assert!(passes(&mut limits, &config, "ann@x.y", NOON).is_err());
    }

    #[test]
    fn place_given_back_twice_or_late_saves_nothing_up() {
        let config = LimitsConfig { per_recipient: an_hour(2), ..LimitsConfig::none() };
        let mut limits = limits();
        let place = limits.take(&config, &mailbox("bob@x.y"), NOON).unwrap();
        (0..5).for_each(|_| limits.give_back(&place));
        let passed = (0..10).filter(|_| passes(&mut limits, &config, "bob@x.y", NOON + HOUR).is_ok()).count();
        assert_eq!(passed, 2);
    }

    #[test]
    fn without_limits_everything_passes_and_nothing_is_kept() {
        let mut limits = limits();
        for _ in 0..1000 {
            assert_eq!(passes(&mut limits, &LimitsConfig::none(), "bob@x.y", NOON), Ok(()));
        }
        assert_eq!(format!("{limits:?}"), "Limits(0 buckets)");
    }

    #[test]
    fn strangers_fill_no_memory_and_make_nobody_forgotten_who_has_had_enough() {
        let config = LimitsConfig { per_recipient: an_hour(5), ..LimitsConfig::none() };
        let mut limits = limits();
        for _ in 0..5 {
            passes(&mut limits, &config, "bob@x.y", NOON).unwrap();
        }
        for i in 0..10 * MAX_BUCKETS {
            passes(&mut limits, &config, &format!("{i}@x.y"), NOON).unwrap();
        }
        assert_eq!(format!("{limits:?}"), format!("Limits({MAX_BUCKETS} buckets)"));
        assert!(passes(&mut limits, &config, "bob@x.y", NOON).is_err());
        passes(&mut limits, &config, "ann@x.y", NOON + 2 * HOUR).unwrap();
        assert_eq!(format!("{limits:?}"), "Limits(1 buckets)", "those that are full again are forgotten first");
    }

    #[test]
    fn limit_that_is_lowered_holds_up_nobody_longer_than_its_own_time() {
        let day = LimitsConfig { per_recipient: MailLimit { mails: 1, per: 24 * HOUR }, ..LimitsConfig::none() };
        let mut limits = limits();
        passes(&mut limits, &day, "bob@x.y", NOON).unwrap();
        let hour = LimitsConfig { per_recipient: an_hour(1), ..LimitsConfig::none() };
        assert_eq!(passes(&mut limits, &hour, "bob@x.y", NOON), Err(OverLimit(HOUR)));
    }

    #[test]
    fn limit_that_is_raised_lets_through_what_it_would_have_let_through_all_along() {
        let config = |mails| LimitsConfig { per_recipient: an_hour(mails), ..LimitsConfig::none() };
        let mut limits = limits();
        passes(&mut limits, &config(2), "bob@x.y", NOON).unwrap();
        let place = limits.take(&config(2), &mailbox("bob@x.y"), NOON).unwrap();
        assert!(passes(&mut limits, &config(2), "bob@x.y", NOON).is_err());
        let passed = (0..10).filter(|_| passes(&mut limits, &config(5), "bob@x.y", NOON).is_ok()).count();
        assert_eq!(passed, 3, "two of five had gone");
        limits.give_back(&place);
        let passed = (0..10).filter(|_| passes(&mut limits, &config(5), "bob@x.y", NOON).is_ok()).count();
        assert_eq!(passed, 1, "a place is one of five now");
    }

    #[test]
    fn limits_are_wider_when_one_of_them_lets_more_through_or_sooner() {
        let of = |mails, hours: u32| LimitsConfig {
            per_domain: MailLimit { mails, per: hours * HOUR },
            ..LimitsConfig::none()
        };
        for (now, before, wider) in [
            (of(3, 1), of(2, 1), true),
            (of(2, 1), of(2, 2), true),
            (of(0, 1), of(2, 1), true),
            (of(2, 1), of(2, 1), false),
            (of(1, 1), of(2, 1), false),
            (of(2, 2), of(2, 1), false),
            (of(5, 1), of(0, 1), false),
        ] {
            assert_eq!(now.are_wider_than(&before), wider, "{now:?} {before:?}");
        }
    }

    #[test]
    fn two_processes_keep_different_digests_and_none_keeps_an_address() {
        let digests = |seed| {
            let mut limits = Limits::new(&mut StdRng::seed_from_u64(seed));
            passes(&mut limits, &LimitsConfig::default(), "bob@x.y", NOON).unwrap();
            limits.buckets.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(digests(1).len(), 3);
        assert!(digests(1).iter().all(|digest| !digests(2).contains(digest)));
    }
}
