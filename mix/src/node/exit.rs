//! Delivers what leaves the network here, and tries again when it cannot (E2E-spec 3).
//!
//! What is delivered is decided by the exit type: e-mail, a mailbox in this process, or a fragment that waits for the
//! others of its message. E-mail has places of its own, so that a mail server that hangs holds up nothing else, and each
//! mail has one of them (`under_way`), so that a recipient whose mail takes long holds up no other.
//!
//! The mail server, or what stands in its place (`way`), is a destination: when it is away, all mail for it is put off by
//! the schedule, from the first failure on that it is away for, and not each mail by its own. What it says of one mail or
//! its recipient is that mail's own. Each mail has as many tries as the schedule, and which it has had is on disk.
//!
//! Where mail leaves to the servers of each recipient's domain, each domain is a destination, and one that hangs has few of
//! the places. A message for several recipients becomes a delivery for each, in one step and before any is tried: whoever has
//! his mail gets it no second time, and none learns of the others.
//!
//! What comes while its delivery is switched off waits as for a server that is away: when it was taken nobody knows, for it
//! has been through the pool, and a message through its fragments. So a node that never delivered keeps for a while what
//! strangers send it, as an exit does whose server is away; the reserve of the disk bounds both.
//!
//! The clock may be set at any time. What is put off waits by a clock of its own, and an incomplete message is given up by
//! one that was steady for a day, or two days later: what a wrong clock throws away is missed when it is right again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rand::CryptoRng;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::by_hand::{Dropping, ExitQueue, Running};
use super::clock::{Even, Steadiness, World};
use super::config::FragmentsConfig;
use super::counters::Counters;
use super::durable;
use super::retry::RetrySchedule;
use crate::crypto::pk::PrivateKey;
use crate::crypto::{CounterRng, DIGEST_LEN, Digest, Keyset, sha1};
use crate::deliver::dkim::Signer;
use crate::deliver::limits::{Limits, LimitsConfig, OverLimit, Place};
use crate::deliver::mail::{Content, Heading, MailWriter, as_text};
use crate::deliver::maildir::Tried;
use crate::deliver::opt_out::normalised;
use crate::deliver::refusals::Refusals;
use crate::packet::RoutingType;
use crate::path::Mailbox;
use crate::payload::armor::{self, ArmoredMessage};
use crate::payload::compress::{InvalidCompression, decompress, expansion_limit};
use crate::payload::entity::{Entity, InvalidEntity};
use crate::payload::exit::ExitContent;
use crate::payload::{MessageHeaders, headers};
use crate::secret::Secret;
use crate::store::inbox::Arrival;
use crate::store::opt_outs;
use crate::store::queue::exit::Which;
use crate::store::queue::{ExitContent as Queued, ExitId, ExitItem};
use crate::store::queue::{apart, exit as queue, hand, left};
use crate::store::{Db, Tx};

mod destinations;
mod mailbox;
mod over_limit;
mod proof;
mod reassembly;
mod under_way;
mod way;
mod word;

pub(super) use destinations::{Domains, MailServer};
pub(super) use mailbox::{Elsewhere, MboxWay};
pub(super) use over_limit::OverLimits;
pub use proof::MailDelivery;
pub(super) use proof::{Prover, Standing};
use under_way::UnderWay;
pub(super) use way::WayOut;
use way::{Fault, Letter, NotTaken};
pub(super) use word::Word;

/// Deliveries at a time, of e-mail and again of all else.
const DELIVERIES: usize = 8;
/// Deliveries at a time where each domain is a destination of its own: most of their time servers of others take.
const DELIVERIES_APART: usize = 32;
/// How many of them one owner of domains may have: his servers may hang, and he may send himself any number of mails.
const DELIVERIES_OF_OWNER: usize = 2;
/// Mails that are written at a time, in the whole process: each may take many times the octets of its message.
static PENS: Semaphore = Semaphore::const_new(4);
/// Messages read from the queue at once: each may have the size of a whole message.
const LOAD: usize = 16;
/// The longest time between two looks at the queue.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often incomplete messages are looked through for old ones.
const EXPIRY: Duration = Duration::from_secs(3600);
/// Octets of the headers before a body, at most: five of 900 octets with their names (E2E-spec 3.1.2).
const MESSAGE_HEADERS_LEN: usize = 8192;
/// How long a mail server that has been asked to take a mail may go on after the stop: less than a process has, so that
/// the database is closed in time. A mail that it has taken by the end and not said so is handed over again.
const GRACE: Duration = Duration::from_secs(30);
/// Deliveries of one type that wait while there is no way for them: 320 megabytes of packets. More are dropped, since
/// strangers can write any number to a node that delivers nothing.
const WAITING: u64 = if cfg!(test) { 20 } else { 10_000 };
/// Said at the start of a node that has mail and no way to deliver it.
const SWITCHED_OFF: &str = "mail of an earlier run waits for this delivery, which is off: it is dropped when its time is over, unless it is on by then";
/// Delivery as e-mail.
pub(super) struct SmtpWay {
    pub(super) writer: MailWriter,
    pub(super) out: WayOut,
    /// The operator's own mailbox, which a mail server must take mail for to be proven.
    pub(super) proof_address: Mailbox,
    pub(super) max_size: u64,
    /// Octets of the largest message with attachments, where they are delivered.
    pub(super) mime: Option<u64>,
    /// Overcompressed messages are delivered as text up to this many octets.
    pub(super) inflate_max: u64,
    pub(super) retry: RetrySchedule,
    pub(super) message_ids: MessageIds,
    /// Who gets none.
    pub(super) refusals: Refusals,
    pub(super) limits: LimitsConfig,
    /// Who signs it.
    pub(super) dkim: Option<Signer>,
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
        let most = octets(self.max_size.max(self.mime.unwrap_or(0))).saturating_add(MESSAGE_HEADERS_LEN);
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

    /// The message as one with attachments. `None` when it does not say that it is one, or is none that this exit delivers.
    fn attachments(&self, headers: &MessageHeaders, body: &[u8]) -> Option<Result<Entity, InvalidEntity>> {
        let content_type = headers.content_type.as_deref()?;
        (body.len() as u64 <= self.mime?).then(|| Entity::parse(content_type, body))
    }
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

    /// By which e-mail leaves: that for anybody, and that for users of this node.
    fn of_mail(&self) -> [Option<Arc<SmtpWay>>; 2] {
        let elsewhere = self.mbox.as_ref().and_then(|mbox| mbox.elsewhere.as_ref());
        [self.smtp.clone(), elsewhere.map(|elsewhere| Arc::clone(&elsewhere.mail))]
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
    /// The domains that are away, where each is a destination of its own.
    pub(super) domains: Arc<Mutex<Domains>>,
    /// Who has had how many mails. A reload forgets none of it.
    pub(super) limits: Arc<Mutex<Limits>>,
    /// What waits for them.
    pub(super) over_limits: OverLimits,
    /// Whoever drops by hand has this to the end of it, and so has who makes a delivery several: of what is dropped no copies
    /// stay.
    pub(super) dropping: Arc<Dropping>,
    /// What is under way, in either lane.
    pub(super) under_way: Arc<Mutex<BTreeSet<ExitId>>>,
    /// The last delivery that waited at the start, once that is known.
    pub(super) earlier: Arc<OnceLock<ExitId>>,
    /// What a destination has been asked to take, and nobody knows yet whether it did.
    pub(super) being_tried: Arc<Mutex<BTreeSet<ExitId>>>,
    /// What it tells proofs of ways out, and hears of them.
    pub(super) word: Word,
    /// Whether there may be messages of which enough fragments are here; true at the start.
    pub(super) some_ready: Arc<AtomicBool>,
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
            Self::Mail => Which::Mail,
            Self::House => Which::House,
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
    /// Its destination is away until then, by this schedule: that was a try.
    Away(RetrySchedule, SystemTime),
    /// Nothing was tried, and nothing is to be until then: its domain is away.
    NotBefore(SystemTime),
    /// Nothing was tried: the process ends, or the mail server was found to be away. It stays as it is.
    Untried,
}

impl ExitService {
    /// The queue for the operator's hand.
    pub(super) fn by_hand(&self) -> ExitQueue {
        let Self { db, bell, counters, world, even, server, domains, dropping, .. } = self.clone();
        ExitQueue::of(db, world, even, Running { bell, server, domains, dropping, counters })
    }

    /// Serves the queue until stopped.
    pub(super) async fn run(self) {
        self.begin().await;
        tokio::join!(self.serve(Lane::Mail), self.serve(Lane::House));
    }

    async fn serve(&self, lane: Lane) {
        let (mut rung, mut ways) = (self.bell.subscribe(), self.ways.clone());
        let mut expiry = tokio::time::interval(EXPIRY);
        let mut clock = Steadiness::new(self.world.now());
        let (mut known, mut users) = (self.ways.borrow().of_mail(), None);
        let mut limits = self.ways.borrow().limits();
        let mut heard = self.word.listen();
        let mut under_way = UnderWay::default();
        while !self.stop.is_cancelled() {
            if lane == Lane::House && self.some_ready.swap(false, Ordering::Relaxed) {
                self.reassemble_ready().await;
            }
            if lane == Lane::Mail {
                self.look_at_the_server(&mut known).await;
                self.look_at_the_users(&mut users).await;
                self.look_at_the_limits(&mut limits).await;
                self.hear(&mut heard).await;
            }
            if under_way.begin(self, lane).await {
                continue;
            }
            let pause = self.until_next_due(lane, &under_way).await;
            tokio::select! {
                Ok(()) = rung.changed() => {}
                // It may be another server now.
                Ok(()) = ways.changed(), if lane == Lane::Mail => self.clear_away(),
                Ok(()) = heard.changed(), if lane == Lane::Mail => {}
                _ = expiry.tick(), if lane == Lane::House => {
                    let steady = clock.look(self.world.now());
                    self.expire(steady).await;
                }
                Some(()) = under_way.one_ends() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
        under_way.end().await;
        if lane == Lane::Mail {
            self.leave_servers().await;
        }
    }

    /// Whether each domain is a destination of its own there.
    fn goes_apart(&self, lane: Lane) -> bool {
        lane == Lane::Mail && self.ways.borrow().of_mail().iter().flatten().any(|way| way.out.goes_apart())
    }

    /// Another mail server than the one that was known, or another way, has all mail tried at once: it waits for the one
    /// before it.
    async fn look_at_the_server(&self, known: &mut [Option<Arc<SmtpWay>>; 2]) {
        let ways = self.ways.borrow().of_mail();
        let is_another = leave_otherwise(&ways, known);
        *known = ways;
        if is_another {
            self.server().is_there();
            self.domains().forget();
            let now = self.even.now();
            durable::note(&self.db, &self.stop, move |tx| queue::try_now(tx, Which::Mail, now)).await;
        }
    }

    fn server(&self) -> MutexGuard<'_, MailServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn domains(&self) -> MutexGuard<'_, Domains> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a destination: the one there is, or a domain.
    fn at<T>(&self, domain: Option<&str>, look: impl FnOnce(&mut MailServer) -> T) -> T {
        match domain {
            None => look(&mut self.server()),
            Some(domain) => self.domains().at(domain, look),
        }
    }

    /// How long nothing is tried there, though it may be due.
    fn holds(&self, lane: Lane) -> Option<Duration> {
        let until = self.server().until.filter(|_| lane == Lane::Mail)?;
        until.duration_since(self.even.now()).ok().filter(|left| !left.is_zero())
    }

    /// Looks at what an earlier run has left.
    async fn begin(&self) {
        self.clear_away();
        let ways = self.ways.borrow().clone();
        let latest = self.even.now() + ways.longest_wait();
        let earlier = Arc::clone(&self.earlier);
        let look = move |tx: &Tx<'_>| {
            left::bring_forward(tx, latest)?;
            // What comes from now on has been tried by no process that died.
            let _ = earlier.set(hand::last(tx)?.unwrap_or(ExitId(0)));
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
        let put_off = durable::note(&self.db, &self.stop, move |tx| {
            queue::postpone_all(tx, Which::Of(exit_type), &[], now, next, tries)
        });
        self.counters.undeliverable(put_off.await.unwrap_or_default());
        Verdict::Untried
    }

    async fn is_crowded(&self, exit_type: RoutingType) -> bool {
        let count = durable::read(&self.db, move |view| queue::count_of(view, exit_type, WAITING + 1)).await;
        count.is_ok_and(|count| count > WAITING)
    }

    /// How long nothing begins, unless somebody rings or another delivery ends.
    async fn until_next_due(&self, lane: Lane, under_way: &UnderWay) -> Duration {
        // Where each domain is a destination of its own, what is due may have no place before one of its own ends.
        if !self.has_places(lane, under_way) || (self.goes_apart(lane) && !under_way.is_empty()) {
            return LOOK_AGAIN;
        }
        let (which, under_way) = (lane.which(), under_way.ids());
        let next = durable::read(&self.db, move |view| queue::next_due_of(view, which, &under_way)).await;
        let wait = next.ok().flatten().map(|next| next.duration_since(self.even.now()).unwrap_or_default());
        wait.max(self.holds(lane)).map_or(LOOK_AGAIN, |wait| wait.clamp(Duration::from_millis(50), LOOK_AGAIN))
    }

    async fn deliver(&self, item: ExitItem) {
        let id = item.id;
        let failures = item.attempts.saturating_add(1);
        self.over_limits.remove(id);
        let began_by = self.ways.borrow().of_mail();
        let user = item.by_mail.then(|| (self.ways.borrow().mbox.clone(), item.address.clone()));
        let verdict = match item.exit_type {
            // Where it goes is within its message; the reference drops it too.
            RoutingType::FRAGMENT if !item.address.is_empty() => Verdict::Undeliverable,
            RoutingType::FRAGMENT if self.ways.borrow().fragments.enabled => {
                self.fragment(item).await;
                return self.has_ended(id, None).await;
            }
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
                if wait.is_some() {
                    self.over_limits.insert(id);
                }
                self.put_off(id, wait.map(|wait| wait.max(least))).await;
            }
            Verdict::Away(schedule, until) => {
                let wait = until.duration_since(self.even.now()).unwrap_or_default();
                self.put_off(id, schedule.wait_after(failures).map(|_| wait)).await;
                // Else it would wait for a server that is none of ours any more: all that waited by then was brought forward.
                if leave_otherwise(&self.ways.borrow().of_mail(), &began_by) {
                    let now = self.even.now();
                    durable::note(&self.db, &self.stop, move |tx| queue::bring_to(tx, &[id], now)).await;
                    self.bell.send_replace(());
                }
            }
            Verdict::NotBefore(next) => {
                durable::note(&self.db, &self.stop, move |tx| apart::leave_until(tx, id, next)).await;
            }
            Verdict::Untried => {}
        }
        self.being_tried().remove(&id);
        self.has_ended(id, user).await;
    }

    /// Leaves it for so long, or gives it up when its time is over.
    async fn put_off(&self, id: ExitId, wait: Option<Duration>) {
        let Some(wait) = wait else { return self.give_up(id).await };
        let next = self.even.now() + wait;
        durable::note(&self.db, &self.stop, move |tx| queue::postpone(tx, id, next)).await;
    }

    async fn give_up(&self, id: ExitId) {
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
        let Ok(recipients) = Mailbox::parse_list(&item.address) else { return Verdict::Undeliverable };
        let [to] = &recipients[..] else { return self.split(item.id, recipients).await };
        let to = to.clone();
        self.mail_by(way, to, item).await
    }

    /// What becomes of mail for somebody who is to have none, by his own wish or the operator's.
    async fn is_refused(&self, way: &Arc<SmtpWay>, to: &Mailbox) -> Option<Verdict> {
        let mailbox = normalised(to);
        match durable::read(&self.db, move |view| opt_outs::contains(view, &mailbox)).await {
            Ok(false) => {}
            Ok(true) => {
                self.counters.opted_out(1);
                return Some(Verdict::Undeliverable);
            }
            Err(e) => {
                error!(error = %e, "who has opted out cannot be read");
                return Some(Verdict::Later(RetrySchedule::every_minute_for_a_day()));
            }
        }
        // A list may have a thousand patterns, and a stranger has chosen what they are tried on.
        let (list, address) = (Arc::clone(way), to.clone());
        match spawn_blocking(move || list.refusals.refuse(&address)).await {
            Ok(false) => None,
            Ok(true) => {
                self.counters.refused(1);
                Some(Verdict::Undeliverable)
            }
            Err(e) => Some(failed(&e)),
        }
    }

    /// A place within the limits, or how long the mail waits for one.
    fn place(&self, limits: &LimitsConfig, to: &Mailbox) -> Result<Place, Verdict> {
        self.limits().take(limits, to, self.even.now()).map_err(|OverLimit(wait)| {
            self.counters.limited(1);
            Verdict::NotYet(wait)
        })
    }

    /// As [`ExitService::mail`], by this way and to this recipient.
    async fn mail_by(&self, way: Arc<SmtpWay>, to: Mailbox, item: ExitItem) -> Verdict {
        if let Some(refused) = self.is_refused(&way, &to).await {
            return refused;
        }
        // Else its place would be missing to others, and it would lose a try.
        let domain = way.out.domain(&to);
        if let Some(waits) = self.waits(domain.as_deref()) {
            return waits;
        }
        let place = match self.place(&way.limits, &to) {
            Ok(place) => place,
            Err(waits) => return waits,
        };
        let (verdict, may_have_it) = self.mail_to(way, (to, domain.as_deref()), item).await;
        if !may_have_it {
            self.limits().give_back(&place);
        }
        verdict
    }

    /// What becomes of mail while its destination is away.
    fn waits(&self, domain: Option<&str>) -> Option<Verdict> {
        self.at(domain, |server| server.waits(self.even.now())).map(|until| not_called(domain, until))
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeSet<ExitId>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether whoever takes mail may have this one. Its tries are counted when they have ended, and not in a process that
    /// died.
    fn was_tried(&self, item: &ExitItem) -> Tried {
        let is_of_an_earlier_run = self.earlier.get().is_none_or(|last| item.id <= *last);
        if item.attempts > 0 || is_of_an_earlier_run { Tried::Perhaps } else { Tried::Never }
    }

    fn being_tried(&self) -> MutexGuard<'_, BTreeSet<ExitId>> {
        self.being_tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// And whether the recipient may have it now. A try without an answer counts: it takes the time of others, too.
    async fn mail_to(
        &self,
        way: Arc<SmtpWay>,
        (to, domain): (Mailbox, Option<&str>),
        item: ExitItem,
    ) -> (Verdict, bool) {
        let (writer, recipient, now, id) = (Arc::clone(&way), to.clone(), self.world.now(), item.id);
        let tried = self.was_tried(&item);
        // A message is inflated, parsed and signed in memory.
        let pen = PENS.acquire().await;
        let written = spawn_blocking(move || {
            let key = delivery_key(&item);
            let mut dice = writer.message_ids.dice(&key);
            let mail = write_mail(&writer, &recipient, item.content, now, &mut dice)?;
            let mail = match &writer.dkim {
                Some(signer) => signer.sign(mail, &mut dice),
                None => mail,
            };
            Some((mail, writer.message_ids.file_name(&key)))
        });
        let written = written.await;
        drop(pen);
        let (mail, name) = match written {
            Ok(Some(mail)) => mail,
            Ok(None) => return (Verdict::Undeliverable, false),
            Err(e) => return (failed(&e), false),
        };
        // Others may have found out while this one waited for its place. In one step: whoever finds out from now on counts
        // no try of this one, which has its own.
        let looks = self.at(domain, |server| match server.waits(self.even.now()) {
            Some(until) => Err(until),
            None => {
                self.being_tried().insert(id);
                Ok(server.looks)
            }
        });
        let looks = match looks {
            Ok(looks) => looks,
            Err(until) => return (not_called(domain, until), false),
        };
        let letter = Letter { from: way.writer.return_address(), to: &to, mail: &mail, name, tried };
        let outcome = way.out.hand_over(&letter, self.world.dice(), &self.stop).await;
        let schedule = way.retry.clone();
        match outcome {
            None => return (Verdict::Untried, false),
            Some(Err(NotTaken::Away(fault))) => return (self.away(domain, looks, schedule, fault).await, false),
            Some(Err(NotTaken::Unanswered)) => return (Verdict::Later(schedule), true),
            _ => self.at(domain, MailServer::is_there),
        }
        match outcome {
            Some(Ok(())) => (Verdict::Delivered, true),
            Some(Err(NotTaken::Refused)) => (Verdict::Undeliverable, false),
            _ => (Verdict::Later(schedule), false),
        }
    }

    /// A destination is away, as a try found that began after so many looks: puts off all mail for it, once, but for what is
    /// being tried: that has a try of its own, and says so itself. The operator hears once of what is for him to mend.
    async fn away(&self, domain: Option<&str>, looks: u64, schedule: RetrySchedule, fault: Option<Fault>) -> Verdict {
        let now = self.even.now();
        let next = self.at(domain, |server| {
            if server.looks != looks {
                // Others have found out since: that it is away, or that it is there and has trouble with this one.
                return Err(server.until.filter(|_| server.failures > 0));
            }
            if let Some(fault) = fault.filter(|fault| server.tells(&fault.to_string())) {
                warn!(error = %fault, "no mail can be delivered: all of it waits until this is mended");
            }
            let until = server.is_away(&schedule, now);
            Ok((until, self.being_tried().iter().copied().collect::<Vec<_>>()))
        });
        let (until, being_tried) = match next {
            Ok(next) => next,
            Err(Some(until)) => return Verdict::Away(schedule, until),
            Err(None) => return Verdict::Later(schedule),
        };
        debug!("the mail server is away: all mail for it waits");
        let (tries, is_apart, domain) = (schedule.tries(), domain.is_some(), domain.map(str::to_owned));
        let put_off = durable::note(&self.db, &self.stop, move |tx| match &domain {
            None => queue::postpone_all(tx, Which::Mail, &being_tried, now, until, tries),
            Some(domain) => apart::postpone_domain(tx, domain, &being_tried, now, until, tries),
        });
        self.counters.undeliverable(put_off.await.unwrap_or_default());
        if !is_apart {
            // Not before: what a proof has tried at once is what was put off.
            self.word.mail_is_away.send_replace(());
        }
        Verdict::Away(schedule, until)
    }
}

/// Whether there is another mail server, or way, than the one that was known.
fn leave_otherwise(ways: &[Option<Arc<SmtpWay>>; 2], known: &[Option<Arc<SmtpWay>>; 2]) -> bool {
    ways.iter().zip(known).any(|(way, known)| match (way, known) {
        (Some(way), Some(known)) => !way.out.is(&known.out),
        (way, known) => way.is_some() && known.is_none(),
    })
}

/// What becomes of mail that is not tried, since its destination is away until then. Mail for the one server there is waits
/// together, and is not even looked at.
fn not_called(domain: Option<&str>, until: SystemTime) -> Verdict {
    if domain.is_some() { Verdict::NotBefore(until) } else { Verdict::Untried }
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
    let attachments = match &content {
        ExitContent::Plain { headers, body } => way.attachments(headers, body),
        _ => None,
    };
    let max_size = if matches!(attachments, Some(Ok(_))) { u64::MAX } else { way.max_size };
    let armour = || String::from_utf8(armour_of(&content)).expect("ASCII: base64 and headers of our own");
    let (heading, text, armour) = match &content {
        ExitContent::Plain { body, .. } if body.len() as u64 > max_size => return None,
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
        (_, Some(text)) => match &attachments {
            None => Content::Text(text),
            Some(Ok(entity)) => Content::Attachments(entity),
            Some(Err(_)) => Content::Malformed(text),
        },
        (ExitContent::Overcompressed { .. }, None) => Content::Overcompressed { armour },
        (ExitContent::Encrypted { .. }, None) => Content::Encrypted { armour },
        (ExitContent::Fragment { .. }, None) => Content::Fragment { armour },
        (ExitContent::Plain { .. }, None) => Content::Binary { armour },
    };
    Some(way.writer.write(to, heading, content, now, dice))
}

#[cfg(test)]
mod tests;
