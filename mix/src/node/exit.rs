//! Delivers what leaves the network here, and tries again when it cannot (E2E-spec 3).
//!
//! What is delivered is decided by the exit type: e-mail, a mailbox in this process, or a fragment that waits for the
//! others of its message.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::clock::World;
use super::config::FragmentsConfig;
use super::counters::Counters;
use super::durable;
use super::retry::RetrySchedule;
use crate::crypto::{Digest, sha1};
use crate::deliver::mail::{Content, Heading, MailWriter, as_text};
use crate::deliver::mbox::{LocalMailboxes, NotDelivered};
use crate::deliver::smtp::{DeliverError, SmtpExit};
use crate::packet::RoutingType;
use crate::path::Mailbox;
use crate::payload::compress::decompress;
use crate::payload::exit::ExitContent;
use crate::payload::{Content as Decoded, armor};
use crate::store::fragments::{self, Addition, FragmentedId};
use crate::store::inbox::Arrival;
use crate::store::queue::exit as queue;
use crate::store::queue::{ExitContent as Queued, ExitItem};
use crate::store::{Db, StoreError};

/// Deliveries at a time.
const DELIVERIES: usize = 8;
/// Messages read from the queue at once: each may have the size of a whole message.
const LOAD: usize = 16;
/// The longest time between two looks at the queue.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often incomplete messages are looked through for old ones.
const EXPIRY: Duration = Duration::from_secs(3600);
/// How long the ids of completed and rejected messages are remembered, so that late fragments find no new message.
const REMEMBER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Whose fragments: those that the exit puts together itself.
const SCOPE: &str = "exit";

/// Delivery as e-mail.
pub(super) struct SmtpWay {
    pub(super) writer: MailWriter,
    pub(super) server: SmtpExit,
    pub(super) max_size: u64,
    pub(super) retry: RetrySchedule,
}

/// Delivery to users of a gateway in the same process.
pub(super) struct MboxWay {
    pub(super) mailboxes: Arc<dyn LocalMailboxes<Arrival>>,
    pub(super) max_size: u64,
}

/// The service that delivers.
#[derive(Clone)]
pub(super) struct ExitService {
    pub(super) db: Db,
    pub(super) bell: Arc<Notify>,
    pub(super) counters: Counters,
    pub(super) world: World,
    pub(super) stop: CancellationToken,
    pub(super) smtp: Option<Arc<SmtpWay>>,
    pub(super) mbox: Option<Arc<MboxWay>>,
    pub(super) fragments: FragmentsConfig,
}

/// How an attempt ended.
enum Verdict {
    /// It is out of our hands.
    Delivered,
    /// It can never be delivered.
    Undeliverable,
    /// Try again by this schedule.
    Later(RetrySchedule),
}

impl ExitService {
    /// Serves the queue until stopped.
    pub(super) async fn run(self) {
        // What was complete when the process ended is put together first.
        self.reassemble_ready().await;
        let mut expiry = tokio::time::interval(EXPIRY);
        while !self.stop.is_cancelled() {
            let now = self.world.now();
            match durable::read(&self.db, move |view| queue::due(view, now, LOAD)).await {
                Ok(due) if !due.is_empty() => {
                    self.deliver_all(due).await;
                    continue;
                }
                Ok(_) => {}
                Err(e) => error!(error = %e, "the exit queue cannot be read"),
            }
            tokio::select! {
                () = self.bell.notified() => {}
                _ = expiry.tick() => self.expire().await,
                () = tokio::time::sleep(self.until_next_due().await) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn until_next_due(&self) -> Duration {
        let next = durable::read(&self.db, queue::next_due).await.ok().flatten();
        let wait = next.map(|next| next.duration_since(self.world.now()).unwrap_or_default());
        wait.map_or(LOOK_AGAIN, |wait| wait.clamp(Duration::from_millis(50), LOOK_AGAIN))
    }

    async fn deliver_all(&self, due: Vec<ExitItem>) {
        let seats = Arc::new(Semaphore::new(DELIVERIES));
        let mut deliveries = JoinSet::new();
        for item in due {
            let (this, seats) = (self.clone(), Arc::clone(&seats));
            deliveries.spawn(async move {
                if let Ok(_seat) = seats.acquire().await
                    && let Err(e) = this.deliver(item).await
                {
                    error!(error = %e, "the exit queue cannot be written");
                }
            });
        }
        while let Some(ended) = deliveries.join_next().await {
            if let Err(e) = ended {
                error!(error = %e, "a delivery failed");
            }
        }
    }

    async fn deliver(&self, item: ExitItem) -> Result<(), StoreError> {
        let id = item.id;
        let first = item.first_attempt;
        let verdict = match item.exit_type {
            RoutingType::FRAGMENT => return self.fragment(item).await,
            RoutingType::SMTP => self.mail(item).await,
            RoutingType::MBOX => self.mailbox(item).await?,
            _ => Verdict::Undeliverable,
        };
        match verdict {
            Verdict::Delivered => {
                self.counters.delivered(1);
                durable::write(&self.db, move |tx| queue::delivered(tx, id)).await?;
            }
            Verdict::Undeliverable => self.give_up(id).await?,
            Verdict::Later(schedule) => {
                let now = self.world.now();
                match schedule.next_attempt(first.unwrap_or(now), now) {
                    Some(next) => durable::write(&self.db, move |tx| queue::postpone(tx, id, now, next)).await?,
                    None => self.give_up(id).await?,
                }
            }
        }
        Ok(())
    }

    async fn give_up(&self, id: crate::store::queue::ExitId) -> Result<(), StoreError> {
        debug!("a message could not be delivered and was dropped");
        self.counters.undeliverable(1);
        durable::write(&self.db, move |tx| queue::give_up(tx, id)).await.map(|_| ())
    }

    /// Hands a message to the mail server.
    async fn mail(&self, item: ExitItem) -> Verdict {
        let Some(way) = self.smtp.clone() else { return Verdict::Undeliverable };
        let to = std::str::from_utf8(&item.address).ok().and_then(|address| Mailbox::parse(address).ok());
        let Some(to) = to else { return Verdict::Undeliverable };
        let (writer, recipient, world) = (Arc::clone(&way), to.clone(), self.world.clone());
        let written = spawn_blocking(move || write_mail(&writer, &recipient, item.content, &world)).await;
        let Ok(Some(mail)) = written else { return Verdict::Undeliverable };
        match way.server.deliver(way.writer.return_address(), &to, &mail).await {
            Ok(()) => Verdict::Delivered,
            Err(DeliverError::Permanent { .. }) => Verdict::Undeliverable,
            Err(DeliverError::Transient { .. } | DeliverError::Unavailable(_)) => Verdict::Later(way.retry.clone()),
        }
    }

    /// Hands a message to a user of the gateway in this process.
    async fn mailbox(&self, item: ExitItem) -> Result<Verdict, StoreError> {
        let Some(way) = self.mbox.clone() else { return Ok(Verdict::Undeliverable) };
        let Ok(name) = String::from_utf8(item.address.clone()) else { return Ok(Verdict::Undeliverable) };
        let key = delivery_key(&item);
        let delivered = spawn_blocking(move || {
            let Some(arrival) = arrival(item.content, way.max_size) else { return Ok(Verdict::Undeliverable) };
            match way.mailboxes.deliver(&name, &key, &arrival) {
                Ok(()) => Ok(Verdict::Delivered),
                Err(NotDelivered::UnknownName) => Ok(Verdict::Undeliverable),
                Err(NotDelivered::Unavailable(e)) => {
                    error!(error = %e, "the gateway's mailboxes are not available");
                    Ok(Verdict::Later(RetrySchedule::every_minute_for_a_day()))
                }
            }
        });
        delivered.await.unwrap_or(Ok(Verdict::Undeliverable))
    }

    /// Keeps a fragment, and puts its message together if it was the last that was needed.
    async fn fragment(&self, item: ExitItem) -> Result<(), StoreError> {
        let id = item.id;
        let (facts, data) = match fragment_of(&item, &self.fragments) {
            Some(fragment) => fragment,
            None => return self.give_up(id).await,
        };
        let (now, limit) = (self.world.now(), self.fragments.max_stored);
        let addition = durable::write(&self.db, move |tx| {
            let addition = fragments::add(tx, SCOPE, &facts, &data, now, limit)?;
            queue::delivered(tx, id)?;
            Ok(addition)
        });
        match addition.await? {
            Addition::Added { ready: true, .. } => self.reassemble_ready().await,
            Addition::Added { .. } | Addition::Duplicate | Addition::Unneeded | Addition::AlreadyDone => {}
            Addition::Mismatch | Addition::OverLimit => self.counters.undeliverable(1),
        }
        Ok(())
    }

    async fn reassemble_ready(&self) {
        let ready = durable::read(&self.db, |view| fragments::ready(view, SCOPE, LOAD)).await;
        let ready = ready.unwrap_or_else(|e| {
            error!(error = %e, "the fragments cannot be read");
            Vec::new()
        });
        for message in ready {
            if let Err(e) = self.reassemble(message).await {
                error!(error = %e, "a message cannot be put together");
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
        let Ok(Some((exit, compressed))) = decoded else {
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
        self.bell.notify_one();
        Ok(())
    }

    async fn expire(&self) {
        let now = self.world.now();
        let before = |age: Duration| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let (old, forgotten) = (before(self.fragments.keep), before(REMEMBER));
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

/// The fragment in a payload, unless it belongs to a message that is too large.
fn fragment_of(item: &ExitItem, config: &FragmentsConfig) -> Option<(fragments::FragmentFacts, Vec<u8>)> {
    let Queued::Payload { payload, .. } = &item.content else { return None };
    let Ok(Decoded::Fragment(fragment)) = Decoded::read(payload.as_bytes()) else { return None };
    let len = u64::from(fragment.fragmentation().message_len());
    let wanted = config.enabled && len <= config.max_size;
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

/// The mail to hand over; `None` when it is too large or undecodable.
fn write_mail(way: &SmtpWay, to: &Mailbox, content: Queued, world: &World) -> Option<Vec<u8>> {
    let content = match content {
        Queued::Payload { handle, payload } => ExitContent::from_payload(handle, payload).ok()?,
        Queued::Message(compressed) => ExitContent::from_compressed(compressed).ok()?,
    };
    let armour = String::from_utf8(armor::message_to_text(&content)).unwrap_or_default();
    let mut dice = world.dice();
    let (heading, content) = match &content {
        ExitContent::Plain { headers, body } => {
            if body.len() as u64 > way.max_size {
                return None;
            }
            let heading = Heading {
                subject: headers.subject.as_deref(),
                from: headers.from.as_deref(),
                in_reply_to: headers.in_reply_to.as_deref(),
                references: headers.references.as_deref(),
            };
            (heading, as_text(body).map_or(Content::Binary { armour: &armour }, Content::Text))
        }
        ExitContent::Overcompressed { .. } => (Heading::default(), Content::Overcompressed { armour: &armour }),
        ExitContent::Encrypted { .. } => (Heading::default(), Content::Encrypted { armour: &armour }),
        ExitContent::Fragment { .. } => (Heading::default(), Content::Binary { armour: &armour }),
    };
    Some(way.writer.write(to, heading, content, world.now(), &mut dice))
}
