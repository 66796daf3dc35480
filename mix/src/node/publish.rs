//! Tells the directory server about this node: all its descriptors, those to come too, each until the server has it.
//!
//! What became of a descriptor is noted beside its key, in `packet-….published`: one line of its digest, `accepted` or
//! `waiting`, and the server's URL. It is a note for people and commands, and nothing rests on it: all descriptors are
//! uploaded at each start, every twelve hours, and when the operator asks for it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::config::NetworkConfig;
use super::describe::{Descriptors, Stated};
use super::keys::replace;
use super::network::describe;
use crate::crypto::Digest;
use crate::directory::Descriptor;
use crate::directory::date::format_date;
use crate::net::fetch::{self, FetchError, Uploaded};

/// How often a descriptor is uploaded again once it was taken: a directory server may have lost it.
const AGAIN: Duration = Duration::from_secs(12 * 3600);

/// What became of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// No server has it, as far as this node knows.
    No,
    /// A server has it, and lists it once its operator agrees.
    Waiting {
        /// Base URL of the server.
        url: String,
    },
    /// A server lists it.
    Yes {
        /// Base URL of the server.
        url: String,
    },
}

impl Published {
    /// Reads the note `file`; what it says of another descriptor than this one does not count.
    pub(super) fn read(file: &Path, descriptor: &Descriptor) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut words = text.split_whitespace();
        if words.next() != Some(&descriptor.digest().to_string()) {
            return Self::No;
        }
        match (words.next(), words.next()) {
            (Some("accepted"), Some(url)) => Self::Yes { url: url.to_owned() },
            (Some("waiting"), Some(url)) => Self::Waiting { url: url.to_owned() },
            _ => Self::No,
        }
    }
}

/// What the directory server last said of the descriptor in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Publication {
    /// No directory server is asked.
    #[default]
    Nowhere,
    /// It has not answered yet.
    Pending,
    /// It lists this node.
    Listed,
    /// It has the descriptor, which waits for its operator.
    Waiting,
    /// It could not be reached, or refused.
    Failing,
}

impl Publication {
    /// What is to be said before the server at this URL has answered.
    pub(super) fn before(url: &str) -> Self {
        if url.is_empty() { Self::Nowhere } else { Self::Pending }
    }
}

/// What is known of the publication, and the bell that asks for another.
#[derive(Debug)]
pub(super) struct Desk {
    /// With the number of answers so far.
    said: watch::Sender<(u64, Publication)>,
    /// Rung when all descriptors are to be uploaded once more.
    again: Notify,
}

impl Desk {
    pub(super) fn new(begins: Publication) -> Self {
        Self { said: watch::channel((0, begins)).0, again: Notify::new() }
    }

    /// What was said last.
    pub(super) fn publication(&self) -> Publication {
        self.said.borrow().1
    }

    /// Asks for an upload of all descriptors.
    pub(super) fn again(&self) {
        self.again.notify_one();
    }

    /// Asks for an upload of all descriptors, and returns what came of it.
    pub(super) async fn publish_again(&self) -> Publication {
        if self.publication() == Publication::Nowhere {
            return Publication::Nowhere;
        }
        let mut news = self.said.subscribe();
        self.again();
        // The sender is our own: it is there as long as we are.
        let _ = news.changed().await;
        self.publication()
    }

    fn say(&self, what: Publication) {
        self.said.send_modify(|(answers, said)| {
            *answers += 1;
            *said = what;
        });
    }
}

/// The service that uploads.
pub(super) struct Publisher {
    /// What is to be known.
    pub(super) descriptors: watch::Receiver<Arc<Descriptors>>,
    /// Where what came of it is said, and where more is asked for.
    pub(super) desk: Arc<Desk>,
    /// Which directory server, and how soon a failure is tried again; may change at any time.
    pub(super) network: watch::Receiver<NetworkConfig>,
    /// Cancelled to stop the service.
    pub(super) stop: CancellationToken,
}

impl Publisher {
    /// Uploads until stopped.
    pub(super) async fn run(mut self) {
        let mut done: HashMap<Digest, Instant> = HashMap::new();
        let mut failing = false;
        let mut asked = self.network.borrow().directory.clone();
        loop {
            let NetworkConfig { directory: url, retry, .. } = self.network.borrow_and_update().clone();
            if std::mem::replace(&mut asked, url.clone()) != url {
                // Another server knows nothing of what the one before has.
                done.clear();
                self.desk.say(Publication::before(&url));
            }
            if url.is_empty() {
                tokio::select! {
                    Ok(()) = self.network.changed() => continue,
                    () = self.stop.cancelled() => return,
                }
            }
            let all = Arc::clone(&self.descriptors.borrow_and_update());
            done.retain(|digest, _| all.all.iter().any(|stated| stated.descriptor.digest() == *digest));
            let (mut failed, mut said) = (None, None);
            for stated in &all.all {
                let digest = stated.descriptor.digest();
                if done.get(&digest).is_some_and(|at| at.elapsed() < AGAIN) {
                    continue;
                }
                let upload = upload(&url, stated);
                match self.stop.run_until_cancelled(upload).await {
                    None => return,
                    Some(Ok(uploaded)) => {
                        if stated.descriptor == all.current {
                            said = Some(match uploaded {
                                Uploaded::Accepted => Publication::Listed,
                                Uploaded::Waiting { .. } => Publication::Waiting,
                            });
                        }
                        let first = done.insert(digest, Instant::now()).is_none();
                        note(&url, stated, &uploaded).await;
                        if first {
                            tell(&stated.descriptor, &uploaded);
                        }
                    }
                    Some(Err(e)) => {
                        if stated.descriptor == all.current {
                            said = Some(Publication::Failing);
                        }
                        failed = Some(e);
                    }
                }
            }
            if let Some(said) = said {
                self.desk.say(said);
            }
            let wait = if failed.is_some() { retry } else { AGAIN };
            if let Some(e) = &failed
                && !failing
            {
                warn!(error = %describe(e), "the directory server did not take a descriptor");
            }
            failing = failed.is_some();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.descriptors.changed() => if changed.is_err() { return },
                Ok(()) = self.network.changed() => {}
                () = self.desk.again.notified() => done.clear(),
                () = self.stop.cancelled() => return,
            }
        }
    }
}

async fn upload(url: &str, stated: &Stated) -> Result<Uploaded, FetchError> {
    fetch::upload_descriptor(&format!("{url}upload"), stated.descriptor.text()).await
}

/// Notes what became of it. The note goes with its key; one that outlives it is removed at the next start.
async fn note(url: &str, stated: &Stated, uploaded: &Uploaded) {
    let word = match uploaded {
        Uploaded::Accepted => "accepted",
        Uploaded::Waiting { .. } => "waiting",
    };
    let line = format!("{} {word} {url}\n", stated.descriptor.digest());
    let file = stated.note.clone();
    if fs::read_to_string(&file).is_ok_and(|noted| noted == line) {
        return;
    }
    match spawn_blocking(move || replace(&file, line.as_bytes())).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => error!(error = %describe(&e), "what became of a descriptor cannot be noted"),
        Err(e) => error!(panicked = e.is_panic(), "what became of a descriptor cannot be noted"),
    }
}

fn tell(descriptor: &Descriptor, uploaded: &Uploaded) {
    let valid_after = format_date(descriptor.valid_after()).unwrap_or_default();
    match uploaded {
        Uploaded::Accepted => info!(valid_after, "the directory server lists this node"),
        // Its words are not ours, and look like it.
        Uploaded::Waiting { message } => {
            info!(valid_after, answer = ?message, "the directory server has the descriptor")
        }
    }
}
