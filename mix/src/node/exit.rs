//! Delivers what leaves the network here, and tries again when it cannot (E2E-spec 3).
//!
//! What is delivered is decided by the exit type: e-mail, a mailbox in this process, or a fragment that waits for the
//! others of its message. E-mail has places of its own, so that a mail server that hangs holds up nothing else, and each
//! mail has one of them (`places`), so that a recipient whose mail takes long holds up no other.
//!
//! The mail server, or what stands in its place (`way`), is a destination: when it is away, all mail for it is put off by
//! the schedule, from the first failure on that it is away for, and not each mail by its own. What it says of one mail or
//! its recipient is that mail's own. Each mail has as many tries as the schedule, and which it has had is on disk.
//!
//! What comes while its delivery is switched off waits as for a server that is away: when it was taken nobody knows, for it
//! has been through the pool, and a message through its fragments. So a node that never delivered keeps for a while what
//! strangers send it, as an exit does whose server is away; the reserve of the disk bounds both.
//!
//! The clock may be set at any time. What is put off waits by a clock of its own, and an incomplete message is given up by
//! one that was steady for a day, or two days later: what a wrong clock throws away is missed when it is right again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rand::CryptoRng;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::clock::{CLOCK_MARGIN, Even, Steadiness, World};
use super::config::FragmentsConfig;
use super::counters::Counters;
use super::durable;
use super::retry::RetrySchedule;
use crate::crypto::pk::PrivateKey;
use crate::crypto::{CounterRng, DIGEST_LEN, Digest, Keyset, sha1};
use crate::deliver::limits::{Limits, LimitsConfig, OverLimit};
use crate::deliver::mail::{Content, Heading, MailWriter, as_text};
use crate::deliver::mbox::{LocalMailboxes, NotDelivered};
use crate::deliver::refusals::Refusals;
use crate::packet::RoutingType;
use crate::path::Mailbox;
use crate::payload::armor::{self, ArmoredMessage};
use crate::payload::compress::{InvalidCompression, decompress, expansion_limit};
use crate::payload::exit::ExitContent;
use crate::payload::{Content as Decoded, headers};
use crate::secret::Secret;
use crate::store::fragments::{self, Addition, FragmentedId};
use crate::store::inbox::Arrival;
use crate::store::queue::exit::Which;
use crate::store::queue::{ExitContent as Queued, ExitItem};
use crate::store::queue::{exit as queue, left};
use crate::store::{Db, StoreError, Tx};

mod places;
mod way;

use places::Places;
pub(super) use way::WayOut;
use way::{Fault, Letter, NotTaken};

/// Messages read from the queue at once: each may have the size of a whole message.
const LOAD: usize = 16;
/// The longest time between two looks at the queue.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often incomplete messages are looked through for old ones.
const EXPIRY: Duration = Duration::from_secs(3600);
/// How long the ids of completed and rejected messages are remembered, so that late fragments find no new message.
const REMEMBER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Octets of the headers before a body, at most: four of 900 octets with their names (E2E-spec 3.1.2).
const MESSAGE_HEADERS_LEN: usize = 4096;
/// How long a mail server that has been asked to take a mail may go on after the stop: less than a process has, so that
/// the database is closed in time. A mail that it has taken by the end and not said so is handed over again.
const GRACE: Duration = Duration::from_secs(30);
/// Deliveries of one type that wait while there is no way for them: 320 megabytes of packets. More are dropped, since
/// strangers can write any number to a node that delivers nothing.
const WAITING: u64 = if cfg!(test) { 20 } else { 10_000 };
/// Said at the start of a node that has mail and no way to deliver it.
const SWITCHED_OFF: &str = "mail of an earlier run waits for this delivery, which is off: it is dropped when its time is over, unless it is on by then";
/// Whose fragments: those that the exit puts together itself.
const SCOPE: &str = "exit";

/// Delivery as e-mail.
pub(super) struct SmtpWay {
    pub(super) writer: MailWriter,
    pub(super) out: WayOut,
    pub(super) max_size: u64,
    /// Overcompressed messages are delivered as text up to this many octets.
    pub(super) inflate_max: u64,
    pub(super) retry: RetrySchedule,
    pub(super) message_ids: MessageIds,
    /// Who gets none.
    pub(super) refusals: Refusals,
    pub(super) limits: LimitsConfig,
}

/// Gives each mail its Message-ID: the same for each attempt at one delivery, and no other. Should a crash make the outside
/// server take a mail twice, readers and their programs can tell that it is one.
#[derive(Clone)]
pub(super) struct MessageIds(Arc<Secret<[u8; DIGEST_LEN]>>);

impl MessageIds {
    /// Those of the node with this identity key, from which nobody else can derive them: to see how many deliveries lie
    /// between two mails is nobody's business.
    pub(super) fn of(identity: &PrivateKey) -> Self {
        Self(Arc::new(Secret::new(Keyset::new(&identity.to_pkcs8_der()).purpose(b"MESSAGE IDS").0)))
    }

    /// What the Message-ID of a delivery is drawn from.
    fn dice(&self, delivery_key: &Digest) -> CounterRng {
        CounterRng::new(&Keyset::new(self.0.expose()).stream_key(&delivery_key.0))
    }

    /// What the file of a delivery is called, where it becomes one: told from others by nobody, as its Message-ID.
    fn file_name(&self, delivery_key: &Digest) -> Digest {
        Keyset::new(self.0.expose()).purpose(&[b"FILE NAME", &delivery_key.0[..]].concat())
    }
}

impl SmtpWay {
    /// What to deliver; `None` when it is undecodable or larger than this exit takes. Never inflates beyond that size.
    fn content(&self, content: Queued) -> Option<ExitContent> {
        let compressed = match content {
            Queued::Message(compressed) => compressed,
            Queued::Payload { handle, payload } => match ExitContent::from_payload(handle, payload).ok()? {
                ExitContent::Overcompressed { compressed } => compressed,
                other => return Some(other),
            },
        };
        let octets = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        let most = octets(self.max_size).saturating_add(MESSAGE_HEADERS_LEN);
        let natural = expansion_limit(compressed.len()).max(octets(self.inflate_max));
        match decompress(&compressed, natural.min(most)) {
            Ok(mut message) => {
                let (headers, body) = headers::parse(&message);
                let body_start = message.len() - body.len();
                message.drain(..body_start);
                Some(ExitContent::Plain { headers, body: message })
            }
            // It ends beyond what is natural, but not beyond what this exit takes.
            Err(InvalidCompression::Overcompressed { .. }) if natural <= most => {
                Some(ExitContent::Overcompressed { compressed })
            }
            Err(_) => None,
        }
    }
}

/// Delivery to users of a gateway in the same process.
pub(super) struct MboxWay {
    pub(super) mailboxes: Arc<dyn LocalMailboxes<Arrival>>,
    pub(super) max_size: u64,
}

/// How messages are delivered; may change while the service runs.
#[derive(Clone)]
pub(super) struct Ways {
    pub(super) smtp: Option<Arc<SmtpWay>>,
    /// How often e-mail is tried again, be there a way or not.
    pub(super) smtp_retry: RetrySchedule,
    pub(super) mbox: Option<Arc<MboxWay>>,
    pub(super) fragments: FragmentsConfig,
}

impl Ways {
    /// The longest time that anything is put off for.
    fn longest_wait(&self) -> Duration {
        let steps = self.smtp_retry.steps().iter();
        steps.map(|step| step.every).max().unwrap_or_default().max(LOOK_AGAIN)
    }
}

/// The service that delivers.
#[derive(Clone)]
pub(super) struct ExitService {
    pub(super) db: Db,
    /// Rung when there are messages to deliver.
    pub(super) bell: watch::Sender<()>,
    pub(super) counters: Counters,
    pub(super) world: World,
    /// Tells what is due.
    pub(super) even: Even,
    pub(super) stop: CancellationToken,
    /// Each delivery goes by what holds when it begins.
    pub(super) ways: watch::Receiver<Ways>,
    pub(super) server: Arc<Mutex<MailServer>>,
    /// Who has had how many mails. A reload forgets none of it.
    pub(super) limits: Arc<Mutex<Limits>>,
    /// Whether there may be messages of which enough fragments are here; true at the start.
    pub(super) some_ready: Arc<AtomicBool>,
}

/// What is known of the mail server.
#[derive(Debug, Default)]
pub(super) struct MailServer {
    /// How often it was found to be there or away.
    looks: u64,
    /// How often it was away since it was there.
    failures: u32,
    /// Until when it is not called.
    until: Option<SystemTime>,
    /// What the operator was told to mend, of a setting, a program or a folder.
    told: Option<String>,
}

impl MailServer {
    fn is_there(&mut self) {
        *self = Self { looks: self.looks + 1, ..Self::default() };
    }

    /// Whether to tell the operator that something is for him to mend: once, until it works again. A line for each try would
    /// tell when there was mail.
    fn tells(&mut self, fault: &str) -> bool {
        self.told.replace(fault.to_owned()).as_deref() != Some(fault)
    }
}

/// What may be delivered beside each other: neither waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// E-mail.
    Mail,
    /// What stays in the house: mail for its users, and fragments. And what nobody delivers.
    House,
}

impl Lane {
    fn which(self) -> Which {
        match self {
            Self::Mail => Which::Of(RoutingType::SMTP),
            Self::House => Which::NotOf(RoutingType::SMTP),
        }
    }
}

/// How an attempt ended.
enum Verdict {
    /// It is out of our hands.
    Delivered,
    /// It can never be delivered.
    Undeliverable,
    /// Try again by this schedule.
    Later(RetrySchedule),
    /// A limit does not let it through yet. Try again by the schedule of e-mail, and no sooner than after this time.
    NotYet(Duration),
    /// Nothing was tried: the process ends, or the mail server was found to be away. It stays as it is.
    Untried,
}

impl ExitService {
    /// Serves the queue until stopped.
    pub(super) async fn run(self) {
        self.begin().await;
        tokio::join!(self.serve(Lane::Mail), self.serve(Lane::House));
    }

    async fn serve(&self, lane: Lane) {
        let (mut rung, mut ways) = (self.bell.subscribe(), self.ways.clone());
        let mut expiry = tokio::time::interval(EXPIRY);
        let mut clock = Steadiness::new(self.world.now());
        let mut known = self.ways.borrow().smtp.clone();
        let mut places = Places::default();
        while !self.stop.is_cancelled() {
            if lane == Lane::House && self.some_ready.swap(false, Ordering::Relaxed) {
                self.reassemble_ready().await;
            }
            if lane == Lane::Mail {
                self.look_at_the_server(&mut known).await;
            }
            self.begin_what_is_due(lane, &mut places).await;
            let wait = self.until_next_due(lane, &places).await;
            tokio::select! {
                () = places.one_ended() => {}
                Ok(()) = rung.changed() => {}
                // It may be another server now.
                Ok(()) = ways.changed(), if lane == Lane::Mail => {}
                _ = expiry.tick(), if lane == Lane::House => {
                    let steady = clock.look(self.world.now());
                    self.expire(steady).await;
                }
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
        places.all_ended().await;
    }

    /// Begins deliveries while something is due and there are places.
    async fn begin_what_is_due(&self, lane: Lane, places: &mut Places) {
        while self.holds(lane).is_none() {
            let this = self.clone();
            places.begin(move |item| {
                let this = this.clone();
                async move {
                    if !this.stop.is_cancelled() {
                        this.deliver(item).await;
                    }
                }
            });
            if !places.has_room() {
                return;
            }
            let (now, which, under_way) = (self.even.now(), lane.which(), places.under_way());
            match durable::read(&self.db, move |view| queue::due_of(view, which, &under_way, now, LOAD)).await {
                Ok(due) if !due.is_empty() => places.keep(due),
                Ok(_) => return,
                Err(e) => return error!(error = %e, "the exit queue cannot be read"),
            }
        }
        // It may wait longer than what was read says.
        places.forget();
    }

    /// Another mail server than the one that was known, or another way, has all mail tried at once: it waits for the one
    /// before it.
    async fn look_at_the_server(&self, known: &mut Option<Arc<SmtpWay>>) {
        let way = self.ways.borrow().smtp.clone();
        let same = match (&way, &*known) {
            (Some(way), Some(known)) => way.out.is(&known.out),
            (way, known) => way.is_none() && known.is_none(),
        };
        let is_another = !same && way.is_some();
        *known = way;
        if is_another {
            self.server().is_there();
            let now = self.even.now();
            durable::note(&self.db, &self.stop, move |tx| queue::try_now(tx, RoutingType::SMTP, now)).await;
        }
    }

    fn server(&self) -> MutexGuard<'_, MailServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long nothing is tried there, though it may be due.
    fn holds(&self, lane: Lane) -> Option<Duration> {
        let until = self.server().until.filter(|_| lane == Lane::Mail)?;
        until.duration_since(self.even.now()).ok().filter(|left| !left.is_zero())
    }

    /// Looks at what an earlier run has left.
    async fn begin(&self) {
        let ways = self.ways.borrow().clone();
        if let Some(smtp) = ways.smtp.clone() {
            let now = self.world.now();
            let _ = spawn_blocking(move || smtp.out.begin(now)).await;
        }
        let latest = self.even.now() + ways.longest_wait();
        let look = move |tx: &Tx<'_>| {
            left::bring_forward(tx, latest)?;
            Ok((left::waits(tx, RoutingType::SMTP)?, left::waits(tx, RoutingType::MBOX)?))
        };
        match durable::write(&self.db, look).await {
            Ok((smtp, mbox)) => {
                for (key, waits, is_on) in
                    [("node.smtp.enabled", smtp, ways.smtp.is_some()), ("node.mbox.enabled", mbox, ways.mbox.is_some())]
                {
                    if waits && !is_on {
                        warn!(key, "{SWITCHED_OFF}");
                    }
                }
            }
            Err(e) => error!(error = %e, "the exit queue cannot be read"),
        }
    }

    /// All that is due of a type waits for its delivery in this house, which is off. In one step: strangers may send much of
    /// it, and each of it has many tries.
    async fn without_a_way(&self, exit_type: RoutingType) -> Verdict {
        if self.is_crowded(exit_type).await {
            return Verdict::Undeliverable;
        }
        let (now, schedule) = (self.even.now(), RetrySchedule::every_minute_for_a_day());
        let (next, tries) = (now + schedule.wait_after(1).unwrap_or_default(), schedule.tries());
        let put_off =
            durable::note(&self.db, &self.stop, move |tx| queue::postpone_all(tx, exit_type, now, next, tries));
        self.counters.undeliverable(put_off.await.unwrap_or_default());
        Verdict::Untried
    }

    async fn is_crowded(&self, exit_type: RoutingType) -> bool {
        let count = durable::read(&self.db, move |view| queue::count_of(view, exit_type, WAITING + 1)).await;
        count.is_ok_and(|count| count > WAITING)
    }

    /// How long nothing begins, unless somebody rings or another delivery ends.
    async fn until_next_due(&self, lane: Lane, places: &Places) -> Duration {
        if !places.has_room() {
            return LOOK_AGAIN;
        }
        let (which, under_way) = (lane.which(), places.under_way());
        let next = durable::read(&self.db, move |view| queue::next_due_of(view, which, &under_way)).await;
        let wait = next.ok().flatten().map(|next| next.duration_since(self.even.now()).unwrap_or_default());
        wait.max(self.holds(lane)).map_or(LOOK_AGAIN, |wait| wait.clamp(Duration::from_millis(50), LOOK_AGAIN))
    }

    async fn deliver(&self, item: ExitItem) {
        let id = item.id;
        let failures = item.attempts.saturating_add(1);
        let verdict = match item.exit_type {
            RoutingType::FRAGMENT if self.ways.borrow().fragments.enabled => return self.fragment(item).await,
            RoutingType::FRAGMENT => self.without_a_way(RoutingType::FRAGMENT).await,
            RoutingType::SMTP => self.mail(item).await,
            RoutingType::MBOX => self.mailbox(item).await,
            _ => Verdict::Undeliverable,
        };
        match verdict {
            Verdict::Delivered => {
                self.counters.delivered(1);
                durable::note(&self.db, &self.stop, move |tx| queue::delivered(tx, id)).await;
            }
            Verdict::Undeliverable => self.give_up(id).await,
            Verdict::Later(schedule) => self.put_off(id, schedule.wait_after(failures)).await,
            // By the schedule too: else all that waits for one place would spend a try on it.
            Verdict::NotYet(least) => {
                let wait = self.ways.borrow().smtp_retry.wait_after(failures);
                self.put_off(id, wait.map(|wait| wait.max(least))).await;
            }
            Verdict::Untried => {}
        }
    }

    /// Leaves it for so long, or gives it up when its time is over.
    async fn put_off(&self, id: crate::store::queue::ExitId, wait: Option<Duration>) {
        let Some(wait) = wait else { return self.give_up(id).await };
        let next = self.even.now() + wait;
        durable::note(&self.db, &self.stop, move |tx| queue::postpone(tx, id, next)).await;
    }

    async fn give_up(&self, id: crate::store::queue::ExitId) {
        debug!("a message could not be delivered and was dropped");
        self.counters.undeliverable(1);
        durable::note(&self.db, &self.stop, move |tx| queue::give_up(tx, id)).await;
    }

    /// Hands a message to the mail server, or to what stands in its place, if its recipient is to have it and has not had
    /// enough.
    async fn mail(&self, item: ExitItem) -> Verdict {
        let Ways { smtp, smtp_retry, .. } = self.ways.borrow().clone();
        let Some(way) = smtp else {
            let crowded = self.is_crowded(RoutingType::SMTP).await;
            return if crowded { Verdict::Undeliverable } else { Verdict::Later(smtp_retry) };
        };
        let to = std::str::from_utf8(&item.address).ok().and_then(|address| Mailbox::parse(address).ok());
        let Some(to) = to else { return Verdict::Undeliverable };
        // A list may have a thousand patterns, and a stranger has chosen what they are tried on.
        let (list, address) = (Arc::clone(&way), to.clone());
        match spawn_blocking(move || list.refusals.refuse(&address)).await {
            Ok(false) => {}
            Ok(true) => {
                self.counters.refused(1);
                return Verdict::Undeliverable;
            }
            Err(e) => return failed(&e),
        }
        // Else its place would be missing to others, and it would lose a try.
        if self.holds(Lane::Mail).is_some() {
            return Verdict::Untried;
        }
        let place = match self.limits().take(&way.limits, &to, self.even.now()) {
            Ok(place) => place,
            Err(OverLimit(wait)) => {
                self.counters.limited(1);
                return Verdict::NotYet(wait);
            }
        };
        let (verdict, may_have_it) = self.mail_to(way, to, item).await;
        if !may_have_it {
            self.limits().give_back(&place);
        }
        verdict
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// And whether the recipient may have it now. A try without an answer counts: it takes the time of others, too.
    async fn mail_to(&self, way: Arc<SmtpWay>, to: Mailbox, item: ExitItem) -> (Verdict, bool) {
        let (writer, recipient, now) = (Arc::clone(&way), to.clone(), self.world.now());
        let written = spawn_blocking(move || {
            let key = delivery_key(&item);
            let mut dice = writer.message_ids.dice(&key);
            let mail = write_mail(&writer, &recipient, item.content, now, &mut dice)?;
            Some((mail, writer.message_ids.file_name(&key)))
        });
        let (mail, name) = match written.await {
            Ok(Some(mail)) => mail,
            Ok(None) => return (Verdict::Undeliverable, false),
            Err(e) => return (failed(&e), false),
        };
        let looks = {
            let server = self.server();
            // Others may have found out while this one waited for its place.
            if server.until.is_some_and(|until| self.even.now() < until) {
                return (Verdict::Untried, false);
            }
            server.looks
        };
        let letter = Letter { from: way.writer.return_address(), to: &to, mail: &mail, name };
        let outcome = way.out.hand_over(&letter, &self.stop).await;
        let schedule = way.retry.clone();
        match outcome {
            None => return (Verdict::Untried, false),
            Some(Err(NotTaken::Away(fault))) => return (self.away(looks, schedule, fault).await, false),
            Some(Err(NotTaken::Unanswered)) => return (Verdict::Later(schedule), true),
            _ => self.server().is_there(),
        }
        match outcome {
            Some(Ok(())) => (Verdict::Delivered, true),
            Some(Err(NotTaken::Refused)) => (Verdict::Undeliverable, false),
            _ => (Verdict::Later(schedule), false),
        }
    }

    /// The server is away, as a try found that began after so many looks: puts off all mail for it, once. The operator
    /// hears once of what is for him to mend.
    async fn away(&self, looks: u64, schedule: RetrySchedule, fault: Option<Fault>) -> Verdict {
        let now = self.even.now();
        let next = {
            let mut server = self.server();
            if server.looks != looks {
                // Others have found out since: that it is away, or that it is there and has trouble with this one.
                return if server.failures > 0 { Verdict::Untried } else { Verdict::Later(schedule) };
            }
            server.looks += 1;
            if let Some(fault) = fault.filter(|fault| server.tells(&fault.to_string())) {
                warn!(error = %fault, "no mail can be delivered: all of it waits until this is mended");
            }
            server.failures = server.failures.saturating_add(1).min(schedule.tries());
            let next = now + schedule.wait_after(server.failures).unwrap_or_default();
            server.until = Some(next);
            next
        };
        debug!("the mail server is away: all mail waits");
        let put_off = durable::note(&self.db, &self.stop, move |tx| {
            queue::postpone_all(tx, RoutingType::SMTP, now, next, schedule.tries())
        });
        self.counters.undeliverable(put_off.await.unwrap_or_default());
        Verdict::Untried
    }

    /// Hands a message to a user of the gateway in this process.
    async fn mailbox(&self, item: ExitItem) -> Verdict {
        let way = self.ways.borrow().mbox.clone();
        let Some(way) = way else { return self.without_a_way(RoutingType::MBOX).await };
        let Ok(name) = String::from_utf8(item.address.clone()) else { return Verdict::Undeliverable };
        let key = delivery_key(&item);
        let delivered = spawn_blocking(move || {
            let Some(arrival) = arrival(item.content, way.max_size) else { return Verdict::Undeliverable };
            match way.mailboxes.deliver(&name, &key, &arrival) {
                Ok(()) => Verdict::Delivered,
                Err(NotDelivered::UnknownName) => Verdict::Undeliverable,
                Err(NotDelivered::Unavailable(e)) => {
                    error!(error = %e, "the gateway's mailboxes are not available");
                    Verdict::Later(RetrySchedule::every_minute_for_a_day())
                }
            }
        });
        delivered.await.unwrap_or_else(|e| failed(&e))
    }

    /// Keeps a fragment, and puts its message together if it was the last that was needed.
    async fn fragment(&self, item: ExitItem) {
        let id = item.id;
        let config = self.ways.borrow().fragments.clone();
        let (facts, data) = match fragment_of(&item, &config) {
            Some(fragment) => fragment,
            None => return self.give_up(id).await,
        };
        let (now, limit) = (self.world.now(), config.max_stored);
        let addition = durable::note(&self.db, &self.stop, move |tx| {
            let addition = fragments::add(tx, SCOPE, &facts, &data, now, limit)?;
            queue::delivered(tx, id)?;
            Ok(addition)
        });
        match addition.await {
            Some(Addition::Added { ready, displaced, .. }) => {
                self.some_ready.fetch_or(ready, Ordering::Relaxed);
                self.counters.undeliverable(displaced.into());
            }
            Some(Addition::Mismatch | Addition::OverLimit) => self.counters.undeliverable(1),
            Some(Addition::Duplicate | Addition::Unneeded | Addition::AlreadyDone) | None => {}
        }
    }

    async fn reassemble_ready(&self) {
        let ready = durable::read(&self.db, |view| fragments::ready(view, SCOPE, None, LOAD)).await;
        let ready = ready.unwrap_or_else(|e| {
            error!(error = %e, "the fragments cannot be read");
            Vec::new()
        });
        // There may be more than were read.
        self.some_ready.fetch_or(ready.len() == LOAD, Ordering::Relaxed);
        for message in ready {
            if let Err(e) = self.reassemble(message).await {
                error!(error = %e, "a message cannot be put together");
                // Not at once: the loop comes by again in a minute at the latest.
                self.some_ready.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Puts a message together and queues it for delivery, in the step that forgets its fragments.
    async fn reassemble(&self, id: FragmentedId) -> Result<(), StoreError> {
        let loaded = durable::read(&self.db, move |view| fragments::load(view, id)).await?;
        let Some(ready) = loaded else { return Ok(()) };
        let decoded = spawn_blocking(move || {
            let message = ready.reassemble().ok()?;
            let (exit, compressed) = ExitContent::split_reassembled(&message).ok()?;
            Some((exit, compressed.to_vec()))
        })
        .await;
        let now = self.world.now();
        let decoded = decoded.map_err(|_| StoreError::Corrupt { what: "fragments that could not be worked on" })?;
        let Some((exit, compressed)) = decoded else {
            self.counters.undeliverable(1);
            return durable::write(&self.db, move |tx| fragments::complete(tx, id, now)).await.map(|_| ());
        };
        durable::write(&self.db, move |tx| {
            // False when another task was faster: then the message is queued already.
            if fragments::complete(tx, id, now)? {
                queue::insert_message(tx, exit.exit_type, &exit.address, &compressed)?;
            }
            Ok(())
        })
        .await?;
        self.bell.send_replace(());
        Ok(())
    }

    async fn expire(&self, steady: bool) {
        let now = self.world.now();
        let margin = if steady { Duration::ZERO } else { CLOCK_MARGIN };
        let before = |age: Duration| now.checked_sub(age.saturating_add(margin)).unwrap_or(SystemTime::UNIX_EPOCH);
        let (old, forgotten) = (before(self.ways.borrow().fragments.keep), before(REMEMBER));
        let expired = durable::write(&self.db, move |tx| {
            fragments::prune(tx, forgotten)?;
            fragments::expire(tx, old, now)
        });
        match expired.await {
            Ok(count) => self.counters.undeliverable(count as u64),
            Err(e) => error!(error = %e, "old fragments cannot be removed"),
        }
    }
}

/// A delivery that came to grief on our side is tried again; it is nobody's fault outside.
fn failed(e: &tokio::task::JoinError) -> Verdict {
    error!(panicked = e.is_panic(), "a delivery failed");
    Verdict::Later(RetrySchedule::every_minute_for_a_day())
}

/// What makes two attempts at one delivery known as such, however the process ended in between: its place in the queue,
/// which no other delivery ever gets, and the content. The content alone would not do: people do send the same text
/// twice.
fn delivery_key(item: &ExitItem) -> Digest {
    let place = item.id.0.to_be_bytes();
    match &item.content {
        Queued::Payload { payload, .. } => sha1(&[&place, &[0], &payload.as_bytes()[..]]),
        Queued::Message(compressed) => sha1(&[&place, &[1], compressed]),
    }
}

/// The fragment in a payload, unless its message has more of them than the descriptor allows.
fn fragment_of(item: &ExitItem, config: &FragmentsConfig) -> Option<(fragments::FragmentFacts, Vec<u8>)> {
    let Queued::Payload { payload, .. } = &item.content else { return None };
    let Ok(Decoded::Fragment(fragment)) = Decoded::read(payload.as_bytes()) else { return None };
    let wanted = u64::from(fragment.fragmentation().fragments()) <= config.most_fragments();
    wanted.then(|| (fragments::FragmentFacts::of(&fragment), fragment.octets().to_vec()))
}

/// What the gateway gets of a delivery; `None` when it is too large or undecodable.
fn arrival(content: Queued, max_size: u64) -> Option<Arrival> {
    match content {
        Queued::Payload { handle, payload } => Some(Arrival::Payload { handle, payload }),
        // However much it was compressed: the limit is what this user's mailbox takes.
        Queued::Message(compressed) => {
            decompress(&compressed, usize::try_from(max_size).unwrap_or(usize::MAX)).ok().map(Arrival::Message)
        }
    }
}

/// What is no text for a mail, in base64: the armour's own notion of text includes a CR alone and other character sets,
/// which another server would take for the end of a line, and readers for something else.
fn armour_of(content: &ExitContent) -> Vec<u8> {
    match content {
        ExitContent::Plain { body, .. } => ArmoredMessage::Binary(body.clone()).to_text(),
        other => armor::message_to_text(other),
    }
}

/// The mail to hand over; `None` when it is too large or undecodable.
fn write_mail(
    way: &SmtpWay,
    to: &Mailbox,
    content: Queued,
    now: SystemTime,
    dice: &mut impl CryptoRng,
) -> Option<Vec<u8>> {
    let content = way.content(content)?;
    let armour = || String::from_utf8(armour_of(&content)).expect("ASCII: base64 and headers of our own");
    let (heading, text, armour) = match &content {
        ExitContent::Plain { body, .. } if body.len() as u64 > way.max_size => return None,
        ExitContent::Plain { headers, body } => {
            let heading = Heading {
                subject: headers.subject.as_deref(),
                from: headers.from.as_deref(),
                in_reply_to: headers.in_reply_to.as_deref(),
                references: headers.references.as_deref(),
            };
            (heading, as_text(body), as_text(body).is_none().then(armour))
        }
        _ => (Heading::default(), None, Some(armour())),
    };
    let armour = armour.as_deref().unwrap_or_default();
    let content = match (&content, text) {
        (_, Some(text)) => Content::Text(text),
        (ExitContent::Overcompressed { .. }, None) => Content::Overcompressed { armour },
        (ExitContent::Encrypted { .. }, None) => Content::Encrypted { armour },
        (ExitContent::Plain { .. } | ExitContent::Fragment { .. }, None) => Content::Binary { armour },
    };
    Some(way.writer.write(to, heading, content, now, dice))
}

#[cfg(test)]
mod tests;
