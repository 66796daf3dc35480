//! MBOX: mail for users of this node (E2E-spec 3.2).
//!
//! Those of the gateway in this process come first. Others are in the operator's table: their mail goes to an address, by
//! the way of all e-mail and with its retries, refusals and limits, or into a folder of this machine, with refusals and the
//! limit for a recipient. Mail for the gateway knows neither: it is answers that its users have asked for, and pieces of
//! them. Where a name goes is looked up when its mail is delivered, so that a table that has changed holds for all that waits.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::task::spawn_blocking;
use tracing::{error, warn};

use super::{ExitService, RetrySchedule, SmtpWay, Verdict, arrival, delivery_key, durable, failed, write_mail};
use crate::deliver::maildir::dressed;
use crate::deliver::mbox::{AddressTable, Destination, Folder, LocalMailboxes, NotDelivered};
use crate::packet::RoutingType;
use crate::path::Mailbox;
use crate::store::Tx;
use crate::store::inbox::Arrival;
use crate::store::queue::users::{self, Awaiting};
use crate::store::queue::{ExitId, ExitItem};

/// Delivery to users of this node.
pub(in crate::node) struct MboxWay {
    /// Those of a gateway in the same process.
    pub(in crate::node) mailboxes: Option<Arc<dyn LocalMailboxes<Arrival>>>,
    pub(in crate::node) max_size: u64,
    /// Those whose mail goes elsewhere.
    pub(in crate::node) elsewhere: Option<Elsewhere>,
}

/// Users whose mail goes elsewhere, and how.
pub(in crate::node) struct Elsewhere {
    pub(in crate::node) table: AddressTable,
    /// How it looks and leaves where it goes to an address.
    pub(in crate::node) mail: Arc<SmtpWay>,
    /// How it looks in a folder: without an offer to opt out, since whose folder it is was the operator's own choice.
    pub(in crate::node) kept: Arc<SmtpWay>,
    /// The lines of folders of which the operator was told that they take no mail: once, until that one does. A line for each
    /// try would tell when there was mail.
    pub(in crate::node) told: Mutex<HashSet<usize>>,
}

/// Where a message goes.
enum Goal {
    Gateway(Arc<dyn LocalMailboxes<Arrival>>),
    Mail(Mailbox, Arc<SmtpWay>),
    Folder(Folder, Arc<SmtpWay>),
}

impl MboxWay {
    /// Whether somebody whose mail goes elsewhere is called so.
    pub(in crate::node) fn knows(&self, name: &str) -> bool {
        self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.table.find(name).is_some())
    }

    /// Clears away what processes that were killed have left in the folders.
    pub(super) fn clear_away(&self, now: SystemTime) {
        for folder in self.elsewhere.iter().flat_map(|elsewhere| elsewhere.table.folders()) {
            // Of no consequence but for its room; should the folder be wrong, the first mail says so.
            let _ = folder.remove_leftovers(now);
        }
    }

    /// Where the mail of a user of the table goes, unless the gateway has one who is called so.
    fn find(&self, name: &str) -> Option<(&Elsewhere, &Destination)> {
        let elsewhere = self.elsewhere.as_ref()?;
        let destination = elsewhere.table.find(name)?;
        let is_at_the_gateway = self.mailboxes.as_ref().is_some_and(|mailboxes| mailboxes.has(name));
        (!is_at_the_gateway).then_some((elsewhere, destination))
    }

    fn goal(&self, name: &str) -> Option<Goal> {
        match self.find(name) {
            Some((it, Destination::Mail(to))) => Some(Goal::Mail(to.clone(), Arc::clone(&it.mail))),
            Some((it, Destination::Folder(folder))) => Some(Goal::Folder(folder.clone(), Arc::clone(&it.kept))),
            None => self.mailboxes.clone().map(Goal::Gateway),
        }
    }

    /// Whether a user has his mail elsewhere than by `before`; without that, than where some of it was found to leave
    /// `by_mail`.
    fn has_moved(&self, before: Option<&Self>, name: &[u8], by_mail: bool) -> bool {
        // Whoever is called otherwise is nobody.
        let Ok(name) = std::str::from_utf8(name) else { return false };
        let there = |way: &Self| way.find(name).map(|(_, destination)| destination.clone());
        match (there(self), before.map(there)) {
            (Some(Destination::Mail(to)), Some(Some(Destination::Mail(before)))) => to != before,
            (Some(Destination::Folder(to)), Some(Some(Destination::Folder(before)))) => to.maildir != before.maildir,
            (None, Some(None)) | (Some(Destination::Mail(_)), None) => false,
            (_, None) => by_mail,
            (_, Some(_)) => true,
        }
    }
}

impl ExitService {
    /// Hands a message to a user of this node. Whoever is unknown gets none.
    pub(super) async fn mailbox(&self, item: ExitItem) -> Verdict {
        let way = self.ways.borrow().mbox.clone();
        let Some(way) = way else { return self.without_a_way(RoutingType::MBOX).await };
        let Ok(name) = String::from_utf8(item.address.clone()) else { return Verdict::Undeliverable };
        match way.goal(&name) {
            None => Verdict::Undeliverable,
            Some(Goal::Mail(to, mail)) if item.by_mail => self.mail_by(mail, to, item).await,
            // He had his mail at an address when this was found to leave for it.
            Some(Goal::Gateway(_) | Goal::Folder(..)) if item.by_mail => self.goes_to_the_places(item.id, false).await,
            Some(Goal::Gateway(mailboxes)) => into_the_gateway(mailboxes, name, item, way.max_size).await,
            Some(Goal::Mail(..)) => {
                // A mail server that hangs is to hold up no mail that stays here.
                self.goes_to_the_places(item.id, true).await
            }
            Some(Goal::Folder(folder, mail)) => {
                let told = way.elsewhere.as_ref().map(|elsewhere| &elsewhere.told);
                self.keep_in_a_folder(folder, mail, item, told).await
            }
        }
    }

    /// It is delivered by the places of e-mail, or of what stays here.
    async fn goes_to_the_places(&self, id: ExitId, by_mail: bool) -> Verdict {
        durable::note(&self.db, &self.stop, move |tx| users::leaves_by_mail(tx, id, by_mail)).await;
        self.bell.send_replace(());
        Verdict::Untried
    }

    /// Users who have their mail elsewhere than by the way that was `known` get there what waits for them, and at once: it
    /// waits for what they had before. What is under way looks for itself at its end.
    pub(super) async fn look_at_the_users(&self, known: &mut Option<Arc<MboxWay>>) {
        let Some(way) = self.ways.borrow().mbox.clone() else { return };
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &way)) {
            return;
        }
        let before = known.replace(Arc::clone(&way));
        let awaiting = match durable::read(&self.db, users::awaiting).await {
            Ok(awaiting) => awaiting,
            Err(e) => return error!(error = %e, "the exit queue cannot be read"),
        };
        let has_moved = |it: &Awaiting| way.has_moved(before.as_deref(), &it.name, it.by_mail);
        self.find_anew(awaiting.into_iter().filter(has_moved).map(|it| it.name).collect()).await;
    }

    /// A delivery is no longer under way. One that left as e-mail, for a `user` by the way of then, waits for what he had by
    /// that if he has moved meanwhile.
    pub(super) async fn has_ended(&self, id: ExitId, user: Option<(Option<Arc<MboxWay>>, Vec<u8>)>) {
        let way = {
            let mut under_way = self.under_way();
            under_way.remove(&id);
            // In one step: whoever looks at all users by a way that comes later finds this one among those that wait.
            self.ways.borrow().mbox.clone()
        };
        if let (Some(way), Some((before, name))) = (way, user)
            && !before.as_ref().is_some_and(|before| Arc::ptr_eq(before, &way))
            && way.has_moved(before.as_deref(), &name, true)
        {
            self.find_anew(vec![name]).await;
        }
    }

    async fn find_anew(&self, moved: Vec<Vec<u8>>) {
        if moved.is_empty() {
            return;
        }
        let under_way: Vec<_> = self.under_way().iter().copied().collect();
        let now = self.even.now();
        let find_anew =
            move |tx: &Tx<'_>| moved.iter().try_for_each(|name| users::find_anew(tx, name, &under_way, now));
        durable::note(&self.db, &self.stop, find_anew).await;
        self.bell.send_replace(());
    }

    /// Whoever is to have no mail has none in a folder either, and the limit for a recipient holds there. Those for a domain
    /// and in all do not: they are for the servers of others, and for what these think of this one.
    async fn keep_in_a_folder(
        &self,
        folder: Folder,
        mail: Arc<SmtpWay>,
        item: ExitItem,
        told: Option<&Mutex<HashSet<usize>>>,
    ) -> Verdict {
        if let Some(refused) = self.is_refused(&mail, &folder.to).await {
            return refused;
        }
        let place = match self.place(&mail.limits.of_a_recipient(), &folder.to) {
            Ok(place) => place,
            Err(waits) => return waits,
        };
        let verdict = self.put_into_a_folder(folder, mail, item, told).await;
        if !matches!(verdict, Verdict::Delivered) {
            self.limits().give_back(&place);
        }
        verdict
    }

    async fn put_into_a_folder(
        &self,
        Folder { maildir, to, line }: Folder,
        mail: Arc<SmtpWay>,
        item: ExitItem,
        told: Option<&Mutex<HashSet<usize>>>,
    ) -> Verdict {
        let (now, writer, tried) = (self.world.now(), Arc::clone(&mail), self.was_tried(&item));
        let kept = spawn_blocking(move || {
            let key = delivery_key(&item);
            let mut dice = writer.message_ids.dice(&key);
            let text = write_mail(&writer, &to, item.content, now, &mut dice)?;
            let text = dressed(writer.writer.return_address(), &to, &text);
            Some(maildir.keep(&writer.message_ids.file_name(&key), &text, tried))
        });
        let told = || told.map(|told| told.lock().unwrap_or_else(PoisonError::into_inner));
        match kept.await {
            Ok(None) => Verdict::Undeliverable,
            Ok(Some(Ok(()))) => {
                told().map(|mut told| told.remove(&line));
                Verdict::Delivered
            }
            Ok(Some(Err(_))) => {
                // What the system says names the folder, and so the user.
                if told().is_some_and(|mut told| told.insert(line)) {
                    self.word.folder_is_away.send_replace(());
                    warn!(
                        "a folder of node.mbox.address_file takes no mail: what is for it waits until this is mended"
                    );
                }
                Verdict::Later(mail.retry.clone())
            }
            Err(e) => failed(&e),
        }
    }
}

/// Hands a message to a user of the gateway in this process.
async fn into_the_gateway(
    mailboxes: Arc<dyn LocalMailboxes<Arrival>>,
    name: String,
    item: ExitItem,
    max_size: u64,
) -> Verdict {
    let key = delivery_key(&item);
    let delivered = spawn_blocking(move || {
        let Some(arrival) = arrival(item.content, max_size) else { return Verdict::Undeliverable };
        match mailboxes.deliver(&name, &key, &arrival) {
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
