//! What the gateway provides to its two doors: which exits there are, where mail is kept, who has a mailbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use mix::crypto::Digest;
use mix::deliver::mbox::{LocalMailboxes, NotDelivered};
use mix::directory::Directory;
use mix::node::network::Network;
use mix::node::sender::{self, NoWay, Style, Wish};
use mix::node::{NodeControl, World};
use mix::path::ExitAddress;
use mix::path::select::NoPath;
use mix::path::valid::CannotDeliver;
use mix::store::inbox::{self, Arrival};
use mix::store::outbox::{self, Mail};
use mix::store::{Db, StoreError};
use smtp_in::policy::{Asked, Exits, NoExit, Outbox};
use tokio::sync::{Notify, watch};

use crate::accounts::Accounts;

/// The exits of the directory in force.
pub(crate) struct KnownExits {
    pub(crate) network: Network,
    pub(crate) world: World,
    /// The node in this process, which may keep mail for these accounts, if there is one.
    pub(crate) own: Option<(NodeControl, Accounts)>,
    /// How mail is packed.
    pub(crate) style: Style,
    /// Where answers to each identity arrive, if reply blocks go with its mail.
    pub(crate) reply_to: Option<watch::Receiver<BTreeMap<String, ExitAddress>>>,
}

impl KnownExits {
    fn largest_for(
        &self,
        directory: &Directory,
        to: &ExitAddress,
        attachments: bool,
        now: SystemTime,
    ) -> Result<u64, NoExit> {
        if let (ExitAddress::Mbox { name, server: Some(server) }, Some((own, accounts))) = (to, &self.own) {
            let said = own.descriptor();
            let is_known = || accounts.contains(name) || own.has_user(name);
            if server == said.nickname() && said.mbox().is_some() && !is_known() {
                return Err(NoExit::Unsupported);
            }
        }
        let largest = match to {
            ExitAddress::Smtp(_) | ExitAddress::Mbox { server: Some(_), .. } => {
                sender::largest_message(directory, to, attachments, now)
            }
            ExitAddress::Mbox { server: None, .. } | ExitAddress::Drop | ExitAddress::Raw { .. } => None,
        };
        largest.ok_or(if attachments { NoExit::Attachments } else { NoExit::Unsupported })
    }
}

impl Exits for KnownExits {
    fn accepts(&self, identity: &str, to: &ExitAddress, message: Asked) -> Result<(), NoExit> {
        let directory = self.network.directory().ok_or(NoExit::NoNetwork)?;
        let now = self.world.now();
        let Asked { len, attachments } = message;
        let limit = self.largest_for(&directory, to, attachments, now)?;
        let too_large = if attachments { NoExit::AttachmentsTooLarge { limit } } else { NoExit::TooLarge { limit } };
        let message_len = u32::try_from(len).ok().filter(|len| u64::from(*len) <= limit).ok_or(too_large)?;
        let reply_to = self.reply_to.as_ref().and_then(|reply_to| reply_to.borrow().get(identity).cloned());
        let wish = Wish { to, message_len, attachments, reply_to: reply_to.as_ref() };
        self.style.check(&directory, &wish, now, &mut self.world.dice()).map_err(|why| match why {
            // The settings name an exit that delivers none.
            NoWay::Forward(NoPath::CannotDeliver { why: CannotDeliver::Attachments, .. }) => NoExit::Attachments,
            other => other.into(),
        })
    }

    fn largest(&self) -> u64 {
        let directory = self.network.directory();
        directory.and_then(|directory| sender::largest_of_all(&directory, self.world.now())).unwrap_or(u64::MAX)
    }
}

/// The outbox, and the bell that wakes the sender.
pub(crate) struct WatchedOutbox {
    pub(crate) db: Db,
    pub(crate) bell: Arc<Notify>,
}

impl Outbox for WatchedOutbox {
    fn keep(&self, mails: Vec<Mail>) -> Result<(), StoreError> {
        self.db.write(move |tx| outbox::push(tx, &mails))?;
        self.bell.notify_one();
        Ok(())
    }

    fn is_own(&self, message_id: &str) -> Result<bool, StoreError> {
        self.db.is_own(message_id)
    }
}

/// The inbox of the identities, for the exit in the same process.
pub(crate) struct Inbox {
    pub(crate) db: Db,
    pub(crate) accounts: Accounts,
    pub(crate) bell: Arc<Notify>,
    pub(crate) world: World,
}

impl LocalMailboxes<Arrival> for Inbox {
    fn has(&self, name: &str) -> bool {
        self.accounts.contains(name)
    }

    fn deliver(&self, name: &str, delivery_key: &Digest, arrival: &Arrival) -> Result<(), NotDelivered> {
        if !self.accounts.contains(name) {
            return Err(NotDelivered::UnknownName);
        }
        let (name, key, arrival, now) = (name.to_owned(), *delivery_key, arrival.clone(), self.world.now());
        self.db
            .write(move |tx| inbox::put(tx, &key, &name, &arrival, now))
            .map_err(|e| NotDelivered::Unavailable(Box::new(e)))?;
        self.bell.notify_one();
        Ok(())
    }
}
