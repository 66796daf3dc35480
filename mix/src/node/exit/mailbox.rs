//! MBOX: mail for users of this node (E2E-spec 3.2).
//!
//! Those of the gateway in this process come first. Others are in the operator's table: their mail goes to an address, by
//! the way of all e-mail and with its retries, refusals and limits, or into a folder of this machine. Where a name goes is
//! looked up when its mail is delivered, so that a table that has changed holds for all that waits.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::task::spawn_blocking;
use tracing::{error, warn};

use super::{ExitService, RetrySchedule, SmtpWay, Verdict, arrival, delivery_key, durable, failed, queue, write_mail};
use crate::deliver::maildir::dressed;
use crate::deliver::mbox::{AddressTable, Destination, Folder, LocalMailboxes, NotDelivered};
use crate::packet::RoutingType;
use crate::path::Mailbox;
use crate::store::inbox::Arrival;
use crate::store::queue::ExitItem;

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

    /// Clears away what an earlier run has left in the folders.
    pub(super) fn begin(&self, now: SystemTime) {
        for folder in self.elsewhere.iter().flat_map(|elsewhere| elsewhere.table.folders()) {
            // Of no consequence but for its room; should the folder be wrong, the first mail says so.
            let _ = folder.remove_leftovers(now);
        }
    }

    fn goal(&self, name: &str) -> Option<Goal> {
        let elsewhere = self.elsewhere.as_ref().and_then(|it| {
            Some(match it.table.find(name)?.clone() {
                Destination::Mail(to) => Goal::Mail(to, Arc::clone(&it.mail)),
                Destination::Folder(folder) => Goal::Folder(folder, Arc::clone(&it.kept)),
            })
        });
        match (&self.mailboxes, elsewhere) {
            (Some(mailboxes), None) => Some(Goal::Gateway(Arc::clone(mailboxes))),
            (Some(mailboxes), Some(_)) if mailboxes.has(name) => Some(Goal::Gateway(Arc::clone(mailboxes))),
            (_, elsewhere) => elsewhere,
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
            Some(Goal::Gateway(mailboxes)) => into_the_gateway(mailboxes, name, item, way.max_size).await,
            Some(Goal::Mail(to, mail)) if item.by_mail => {
                let (apart, retry) = (mail.out.goes_apart(), mail.retry.clone());
                match self.mail_by(mail, to, item).await {
                    // Its own address is a name, so it was not put off with the rest for the domain.
                    Verdict::Untried if apart && !self.stop.is_cancelled() => Verdict::Later(retry),
                    verdict => verdict,
                }
            }
            Some(Goal::Mail(..)) => {
                // It goes to the places of e-mail: a mail server that hangs is to hold up no mail that stays here.
                let id = item.id;
                durable::note(&self.db, &self.stop, move |tx| queue::leaves_by_mail(tx, id)).await;
                self.bell.send_replace(());
                Verdict::Untried
            }
            Some(Goal::Folder(folder, mail)) => {
                let told = way.elsewhere.as_ref().map(|elsewhere| &elsewhere.told);
                self.keep_in_a_folder(folder, mail, item, told).await
            }
        }
    }

    async fn keep_in_a_folder(
        &self,
        Folder { maildir, to, line }: Folder,
        mail: Arc<SmtpWay>,
        item: ExitItem,
        told: Option<&Mutex<HashSet<usize>>>,
    ) -> Verdict {
        let (now, writer) = (self.world.now(), Arc::clone(&mail));
        let kept = spawn_blocking(move || {
            let key = delivery_key(&item);
            let mut dice = writer.message_ids.dice(&key);
            let text = write_mail(&writer, &to, item.content, now, &mut dice)?;
            let text = dressed(writer.writer.return_address(), &to, &text);
            Some(maildir.keep(&writer.message_ids.file_name(&key), &text))
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
