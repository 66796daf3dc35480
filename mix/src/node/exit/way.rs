//! Where the mail of an exit goes: each way out has one try at one mail, and says what the failure is about, the way or the
//! mail. What follows from it is `super`'s.

use std::error::Error;
use std::time::SystemTime;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::{ExitService, GRACE};
use crate::crypto::Digest;
use crate::deliver::maildir::{Maildir, Tried, dressed};
use crate::deliver::mx::{MxExit, NotOffered};
use crate::deliver::sendmail::{NotSent, Sendmail};
use crate::deliver::smtp::{Conversation, DeliverError, NotAsked, SmtpExit, Trouble};
use crate::node::clock::Dice;
use crate::path::Mailbox;

/// What is for the operator to mend; names no mail and no recipient.
pub(super) type Fault = Box<dyn Error + Send + Sync>;

/// A setting that the mail server does not go by. Waiting does not help.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {why}")]
struct Misset {
    key: String,
    why: DeliverError,
}

/// Why a way is not proven to be one.
pub(super) struct Unproven {
    /// Under the key of the setting that it is about.
    pub(super) fault: Fault,
    /// Whether it may pass by itself.
    pub(super) passes: bool,
}

/// What a proof has met, and which setting it is about.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {why}")]
struct Met {
    key: &'static str,
    why: Fault,
}

impl Unproven {
    /// Whoever would take the mail said nothing for as long as a proof lasts.
    pub(super) fn too_slow() -> Self {
        Self::passing("node.smtp.way", "whoever takes the mail is too slow")
    }

    fn passing(key: &'static str, why: impl Into<Fault>) -> Self {
        Self { fault: Met { key, why: why.into() }.into(), passes: true }
    }

    pub(super) fn lasting(key: &'static str, why: impl Into<Fault>) -> Self {
        Self { fault: Met { key, why: why.into() }.into(), passes: false }
    }

    /// The server has heard of no recipient yet.
    fn before_the_recipient(why: DeliverError) -> Self {
        match NotTaken::before_the_mail(why) {
            NotTaken::Away(Some(fault)) => Self { fault, passes: false },
            _ => Self::passing("node.smtp.server", why),
        }
    }

    /// The servers of the operator's own domain were asked.
    fn by_the_domain(why: NotOffered) -> Self {
        match why {
            NotOffered::NoMail | NotOffered::Refused { .. } => Self::lasting("node.smtp.proof_address", why),
            NotOffered::NotFromHere => Self::lasting("node.smtp.mx.bind", why),
            NotOffered::Away | NotOffered::Unanswered | NotOffered::NotNow { .. } => Self::passing("node.smtp.mx", why),
        }
    }

    /// The server has heard of the operator's own mailbox.
    fn of_the_recipient(why: DeliverError) -> Self {
        match why {
            DeliverError::Permanent { .. } => Self::lasting("node.smtp.proof_address", why),
            DeliverError::Transient { .. } | DeliverError::Unavailable(_) => Self::passing("node.smtp.server", why),
        }
    }
}

/// The way that mail leaves by.
pub(in crate::node) enum WayOut {
    /// A mail server.
    SmartHost(Box<SmtpExit>),
    /// The mail servers of each recipient's domain.
    Mx(Box<MxExit>),
    /// A program.
    Sendmail(Sendmail),
    /// A folder.
    Maildir(Maildir),
}

/// A mail, and what it is handed over with.
pub(super) struct Letter<'a> {
    /// The return address.
    pub(super) from: &'a Mailbox,
    pub(super) to: &'a Mailbox,
    /// With CRLF at the end of each line.
    pub(super) mail: &'a [u8],
    /// The same at each try at one delivery, and at no other.
    pub(super) name: Digest,
    /// Whether there may have been one, of this process or another.
    pub(super) tried: Tried,
}

/// Why a mail was not taken.
pub(super) enum NotTaken {
    /// No mail is taken at present, of those for this destination; with what the operator must mend, if it is for him.
    Away(Option<Fault>),
    /// It came to no answer about this one, which says nothing of others.
    Unanswered,
    /// This one is not taken for now.
    NotNow,
    /// This one is never taken.
    Refused,
}

impl NotTaken {
    /// The server has heard of no mail yet.
    fn before_the_mail(why: DeliverError) -> Self {
        match why {
            DeliverError::Unavailable(trouble) => {
                Self::Away(trouble.key().map(|key| Misset { key: format!("node.smtp.server.{key}"), why }.into()))
            }
            // It does not want mail of ours, whoever is to have it.
            DeliverError::Permanent { .. } => {
                Self::Away(Some(Misset { key: "node.smtp.mail.return_address".into(), why }.into()))
            }
            DeliverError::Transient { .. } => Self::of_the_mail(why),
        }
    }

    /// The server has heard of a recipient, whom a stranger has chosen: what it is slow with, or falls over, need not
    /// happen again.
    fn of_the_mail(why: DeliverError) -> Self {
        match why {
            DeliverError::Unavailable(Trouble::TurnedAway { .. }) => Self::Away(None),
            DeliverError::Unavailable(_) => Self::Unanswered,
            DeliverError::Transient { .. } => Self::NotNow,
            DeliverError::Permanent { .. } => Self::Refused,
        }
    }

    fn by_the_domain(why: NotOffered) -> Self {
        match why {
            // The operator hears of a wrong address by a proof, which no mail of a stranger causes.
            NotOffered::Away | NotOffered::NotFromHere => Self::Away(None),
            NotOffered::Unanswered => Self::Unanswered,
            NotOffered::NotNow { .. } => Self::NotNow,
            NotOffered::NoMail | NotOffered::Refused { .. } => Self::Refused,
        }
    }

    fn by_the_program(why: NotSent) -> Self {
        match why {
            NotSent::NotStarted { .. } => Self::Away(Some(why.into())),
            NotSent::TimedOut => Self::Unanswered,
            NotSent::NotNow { .. } => Self::NotNow,
            NotSent::Refused { .. } => Self::Refused,
        }
    }
}

impl WayOut {
    /// Whether this is the same way to the same place.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::SmartHost(it), Self::SmartHost(other)) => it.is(other),
            (Self::Mx(it), Self::Mx(other)) => it.is(other),
            (Self::Sendmail(it), Self::Sendmail(other)) => it == other,
            (Self::Maildir(it), Self::Maildir(other)) => it == other,
            (Self::SmartHost(_) | Self::Mx(_) | Self::Sendmail(_) | Self::Maildir(_), _) => false,
        }
    }

    /// Whether each domain is a destination of its own.
    pub(super) fn goes_apart(&self) -> bool {
        matches!(self, Self::Mx(_))
    }

    /// The destination of mail for `to`, where there is more than one: its domain, in lower case.
    pub(super) fn domain(&self, to: &Mailbox) -> Option<String> {
        self.goes_apart().then(|| to.domain().to_ascii_lowercase())
    }

    /// Clears away what processes that were killed have left.
    fn clear_away(&self, now: SystemTime) {
        if let Self::Maildir(maildir) = self
            && let Err(e) = maildir.remove_leftovers(now)
        {
            // Of no consequence but for its room; should the folder be wrong, the first mail says so.
            debug!(error = %e, "old unfinished files stay");
        }
    }

    /// No more mail is to come: connections that were kept for it end.
    pub(super) async fn close(&self) {
        // The servers of each domain are found anew for each mail, and so is what the domain promises of them.
        if let Self::SmartHost(server) = self {
            server.close().await;
        }
    }

    /// Goes as far as a mail would, but for the mail: a server is asked whether it would take one of `from` for `to`, a
    /// program is looked for, and into a folder a file is put that nobody reads.
    pub(super) async fn prove(&self, from: &Mailbox, to: &Mailbox, mut dice: Dice) -> Result<(), Unproven> {
        match self {
            Self::SmartHost(server) => {
                let conversation = server.call(from).await.map_err(Unproven::before_the_recipient)?;
                conversation.would_take(to).await.map_err(Unproven::of_the_recipient)
            }
            Self::Mx(servers) => servers.would_take(from, to, &mut dice).await.map_err(Unproven::by_the_domain),
            Self::Sendmail(program) => {
                let program = program.clone();
                let key = "node.smtp.sendmail.command";
                on_disk(key, move || program.prove().map_err(|why| Unproven::lasting(key, why))).await
            }
            Self::Maildir(maildir) => {
                let maildir = maildir.clone();
                let key = "node.smtp.maildir.path";
                on_disk(key, move || maildir.prove().map_err(|why| Unproven::lasting(key, why))).await
            }
        }
    }

    /// One try, where `dice` choose between servers. `None` when the process ends first, and then whoever took the mail is not
    /// known to have it.
    pub(super) async fn hand_over(
        &self,
        letter: &Letter<'_>,
        mut dice: Dice,
        stop: &CancellationToken,
    ) -> Option<Result<(), NotTaken>> {
        if stop.is_cancelled() {
            return None;
        }
        match self {
            Self::SmartHost(server) => {
                let talk = async {
                    server.offer(letter.from, letter.to).await.map_err(|why| match why {
                        NotAsked::Before(why) => NotTaken::before_the_mail(why),
                        NotAsked::Recipient(why) => NotTaken::of_the_mail(why),
                    })
                };
                to_a_server(talk, letter, stop).await
            }
            Self::Mx(servers) => {
                let talk =
                    async { servers.offer(letter.from, letter.to, &mut dice).await.map_err(NotTaken::by_the_domain) };
                to_a_server(talk, letter, stop).await
            }
            Self::Sendmail(program) => {
                let handed = within_grace(stop, program.hand_over(letter.from, letter.to, letter.mail)).await?;
                Some(handed.map_err(NotTaken::by_the_program))
            }
            Self::Maildir(maildir) => {
                let mail = dressed(letter.from, letter.to, letter.mail);
                let (maildir, name, tried) = (maildir.clone(), letter.name, letter.tried);
                let kept = within_grace(stop, spawn_blocking(move || maildir.keep(&name, &mail, tried))).await?;
                Some(match kept {
                    Ok(kept) => kept.map_err(|why| NotTaken::Away(Some(why.into()))),
                    Err(e) => {
                        error!(panicked = e.is_panic(), "a delivery failed");
                        Err(NotTaken::Unanswered)
                    }
                })
            }
        }
    }
}

impl ExitService {
    /// Clears away what processes that were killed have left where mail goes. Beside all else: a folder may lie on a disk
    /// that hangs, and nobody waits for the room.
    pub(super) fn clear_away(&self) {
        let (now, ways) = (self.world.now(), self.ways.borrow().clone());
        drop(spawn_blocking(move || {
            ways.of_mail().iter().flatten().for_each(|way| way.out.clear_away(now));
            ways.mbox.iter().for_each(|mbox| mbox.clear_away(now));
        }));
    }
}

/// A proof where it may wait for the disk.
pub(super) async fn on_disk(
    key: &'static str,
    proof: impl FnOnce() -> Result<(), Unproven> + Send + 'static,
) -> Result<(), Unproven> {
    spawn_blocking(proof).await.unwrap_or_else(|e| {
        error!(panicked = e.is_panic(), "a proof failed");
        Err(Unproven::passing(key, "the proof came to no end"))
    })
}

/// Hands the mail over to the server that `talk` ends with.
async fn to_a_server(
    talk: impl Future<Output = Result<Conversation, NotTaken>>,
    letter: &Letter<'_>,
    stop: &CancellationToken,
) -> Option<Result<(), NotTaken>> {
    // The server has nothing by then.
    let conversation = match stop.run_until_cancelled(talk).await? {
        Ok(conversation) => conversation,
        Err(why) => return Some(Err(why)),
    };
    let handed = within_grace(stop, conversation.hand_over(letter.mail)).await?;
    Some(handed.map_err(NotTaken::of_the_mail))
}

/// What has been given a mail may go on for a while after the stop.
async fn within_grace<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let ends = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        done = work => Some(done),
        () = ends => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_that_cannot_be_called_from_the_address_that_is_set_waits_and_a_proof_says_why() {
        assert!(matches!(NotTaken::by_the_domain(NotOffered::NotFromHere), NotTaken::Away(None)));
        let unproven = Unproven::by_the_domain(NotOffered::NotFromHere);
        assert!(!unproven.passes && unproven.fault.to_string().starts_with("node.smtp.mx.bind: "));
    }

    #[test]
    fn operator_is_told_which_setting_the_server_does_not_go_by() {
        let said = |why| match NotTaken::before_the_mail(why) {
            NotTaken::Away(fault) => fault.map(|fault| fault.to_string()),
            _ => panic!("all mail waits"),
        };
        let fault = |trouble| said(DeliverError::Unavailable(trouble));
        let login = fault(Trouble::LoginRefused { code: 535 }).unwrap();
        assert!(login.starts_with("node.smtp.server.password: ") && login.contains("535"), "{login}");
        assert!(fault(Trouble::LocalAddress).unwrap().starts_with("node.smtp.server.bind: "));
        assert!(fault(Trouble::Tls).unwrap().starts_with("node.smtp.server.tls: "));
        let sender = said(DeliverError::Permanent { code: 553 }).unwrap();
        assert!(sender.starts_with("node.smtp.mail.return_address: ") && sender.contains("553"), "{sender}");
        assert_eq!(fault(Trouble::TurnedAway { code: 421 }), None, "nothing of ours to mend");
    }
}
