//! An exit proves to itself that it can hand mail over, before its descriptor says so, and each day from then on.
//!
//! A proof goes as far as a mail would, up to the mail itself (`way`). While none has succeeded, or after one that failed,
//! the descriptor leaves the delivery out: `rotation` signs another with the same keys. What is in the network by then comes
//! all the same, and is tried as long as any other mail.
//!
//! There are two things to prove: the way that e-mail leaves by, for anybody and for users at an address alike, and the folders
//! of users. Users of a gateway in this process need none: what keeps their mail is what keeps the node.
//!
//! Proofs and deliveries tell each other (`Word`). A delivery that finds the way to be away has it proven at once, and a proof
//! that succeeds after such doubt has the mail tried at once that waits for it.
//!
//! A reload that names another way has it proven at once; until that proof ends, what was known of the one before is stated.
//! What passes by itself, such as a server that restarts, has another try or two before an exit that was proven takes its
//! word back: clients learn of each change a day later. What the operator must mend is believed at once.

use std::future::pending;
use std::marker::PhantomData;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use rand::seq::SliceRandom as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::way::{Unproven, on_disk};
use super::word::Word;
use super::{Elsewhere, MboxWay, SmtpWay, Ways};
use crate::deliver::mbox::{AddressTable, Folder};
use crate::node::clock::{Dice, World};
use crate::node::config::NodeConfig;

/// How long what was proven is believed.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// How soon a proof that failed is followed by another, at first, and one that was asked for by another.
const SOON: Duration = Duration::from_secs(5 * 60);
/// Proofs in a row that fail until the next one waits for longer, and until what passes by itself is no longer expected to.
const PATIENCE: u32 = 3;
/// How long it waits then.
const LATER: Duration = Duration::from_secs(3600);
/// A proof that takes longer has failed, whatever the settings grant to a mail.
const LONGEST: Duration = Duration::from_secs(600);
/// How long a start waits for the first proof: else each restart would sign a descriptor without the delivery, and a moment
/// later one with it. A mix behind a mail server that hangs starts all the same.
const AT_THE_START: Duration = Duration::from_secs(10);
/// Folders of users that one proof looks at, any of them: a table may have fifty thousand.
const FOLDERS: usize = 100;
/// The setting that they are named by.
const TABLE: &str = "node.mbox.address_file";

/// Whether a delivery can be made, as far as this node has proven it to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MailDelivery {
    /// It is switched off, or there is nothing to prove.
    #[default]
    Off,
    /// The first proof is not done yet.
    Unproven,
    /// It can.
    Proven {
        /// Since when each proof has succeeded.
        since: SystemTime,
    },
    /// It cannot.
    Failing {
        /// Since when.
        since: SystemTime,
        /// What keeps it from that: `key: why`. Names no mail and nobody.
        why: String,
    },
}

/// What is proven.
pub(super) trait Subject: Sized + Send + Sync + 'static {
    /// Said when it is no more.
    const LOST: &str;
    /// Said when it is again.
    const BACK: &str;

    /// Whether what proves the one proves the other.
    fn is_proven_as(&self, other: &Self) -> bool;

    /// What is known of it.
    fn known(standing: &Standing) -> &Known<Self>;

    /// As [`Subject::known`], to change it.
    fn known_mut(standing: &mut Standing) -> &mut Known<Self>;

    /// Rung when it is in doubt.
    fn doubts(word: &Word) -> &watch::Sender<()>;

    /// Tells that it is there, which was in doubt; or that it is at last, in a process that has not known it so.
    fn tell(word: &Word, at_last: bool);

    fn prove(&self, dice: Dice) -> impl Future<Output = Result<(), Unproven>> + Send;
}

impl Subject for SmtpWay {
    const LOST: &str =
        "no mail can be handed over, as a proof shows: until it can, the descriptor does not offer what needs it";
    const BACK: &str = "mail can be handed over again, as a proof shows: the descriptor offers it";

    fn is_proven_as(&self, other: &Self) -> bool {
        let addresses = |way: &Self| (way.writer.return_address().clone(), way.proof_address.clone());
        self.out.is(&other.out) && addresses(self) == addresses(other)
    }

    fn known(standing: &Standing) -> &Known<Self> {
        &standing.mail
    }

    fn known_mut(standing: &mut Standing) -> &mut Known<Self> {
        &mut standing.mail
    }

    fn doubts(word: &Word) -> &watch::Sender<()> {
        &word.mail_is_away
    }

    fn tell(word: &Word, at_last: bool) {
        word.mail_is_there(at_last);
    }

    fn prove(&self, dice: Dice) -> impl Future<Output = Result<(), Unproven>> + Send {
        self.out.prove(self.writer.return_address(), &self.proof_address, dice)
    }
}

/// The folders of its users.
impl Subject for MboxWay {
    const LOST: &str =
        "no folder of a user takes mail, as a proof shows: until one does, the descriptor does not offer what needs it";
    const BACK: &str = "folders of users take mail again, as a proof shows: the descriptor offers it";

    fn is_proven_as(&self, other: &Self) -> bool {
        self.maildrops().eq(other.maildrops())
    }

    fn known(standing: &Standing) -> &Known<Self> {
        &standing.folders
    }

    fn known_mut(standing: &mut Standing) -> &mut Known<Self> {
        &mut standing.folders
    }

    fn doubts(word: &Word) -> &watch::Sender<()> {
        &word.folder_is_away
    }

    /// Mail for a folder waits by itself, each for its own next try.
    fn tell(_: &Word, _: bool) {}

    /// That one takes mail is enough: each is its user's, who may do with it what he likes. Of the others the log says which.
    async fn prove(&self, mut dice: Dice) -> Result<(), Unproven> {
        let mut folders: Vec<_> = self.maildrops().cloned().collect();
        folders.shuffle(&mut dice);
        folders.truncate(FOLDERS);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for Folder { maildir, line, .. } in folders {
            // The way of e-mail may lead into the same one. What the system says names the folder, and so the user.
            let proof =
                move || maildir.prove_as("proof-of-user").map_err(|_| Unproven::lasting(TABLE, "no folder takes mail"));
            if on_disk(TABLE, proof).await.is_ok() { good.push(line) } else { bad.push(line) }
        }
        let Some(Elsewhere { told, .. }) = &self.elsewhere else { return Ok(()) };
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|line| !good.contains(line));
        let news: Vec<_> = bad.iter().filter(|line| told.insert(**line)).collect();
        match (good.as_slice(), bad.as_slice()) {
            ([], [line]) => Err(Unproven::lasting(TABLE, format!("the folder in line {line} takes no mail"))),
            ([], _) => Err(Unproven::lasting(TABLE, "no folder takes mail")),
            _ => {
                for line in news {
                    warn!(key = TABLE, line, "the folder takes no mail, as a proof shows: what is for it waits");
                }
                Ok(())
            }
        }
    }
}

/// What is known of a subject.
pub(super) struct Known<S> {
    /// The one that the last proof was about; `None` where there is nothing to prove.
    about: Option<Arc<S>>,
    /// Since when it is proven, or is not, and then why.
    found: Option<(SystemTime, Result<(), String>)>,
}

impl<S> Default for Known<S> {
    fn default() -> Self {
        Self { about: None, found: None }
    }
}

impl<S> Clone for Known<S> {
    fn clone(&self) -> Self {
        Self { about: self.about.clone(), found: self.found.clone() }
    }
}

impl<S: Subject> Known<S> {
    fn is_about(&self, subject: Option<&S>) -> bool {
        match (subject, self.about.as_deref()) {
            (Some(subject), Some(about)) => subject.is_proven_as(about),
            (None, None) => true,
            _ => false,
        }
    }

    fn is_proven(&self) -> bool {
        matches!(self.found, Some((_, Ok(()))))
    }

    fn note(&mut self, subject: &Arc<S>, found: Result<(), String>, now: SystemTime) {
        let since = match &self.found {
            Some((since, before)) if before.is_ok() == found.is_ok() && self.is_about(Some(subject)) => *since,
            _ => now,
        };
        *self = Self { about: Some(Arc::clone(subject)), found: Some((since, found)) };
    }

    fn report(&self) -> MailDelivery {
        match &self.found {
            None => MailDelivery::Unproven,
            Some((since, Ok(()))) => MailDelivery::Proven { since: *since },
            Some((since, Err(why))) => MailDelivery::Failing { since: *since, why: why.clone() },
        }
    }
}

/// Who is a user of the node, by the settings in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Users {
    /// Some have mail in this process.
    here: bool,
    at_addresses: bool,
    in_folders: bool,
}

impl Users {
    fn of(ways: &Ways) -> Self {
        let table = ways.mbox.as_ref().and_then(|mbox| mbox.elsewhere.as_ref()).map(|elsewhere| &elsewhere.table);
        Self {
            here: ways.mbox.as_ref().is_some_and(|mbox| mbox.mailboxes.is_some()),
            at_addresses: table.is_some_and(AddressTable::has_addresses),
            in_folders: table.is_some_and(|table| table.maildrops().next().is_some()),
        }
    }
}

impl MboxWay {
    /// The folders of those users who have one.
    fn maildrops(&self) -> impl Iterator<Item = &Folder> {
        self.elsewhere.iter().flat_map(|elsewhere| elsewhere.table.maildrops())
    }
}

impl Ways {
    /// The way that e-mail leaves by, be it for anybody or for users at an address: by the settings it is the same.
    fn of_proofs(&self) -> Option<Arc<SmtpWay>> {
        let users = || self.mbox.as_ref()?.elsewhere.as_ref().filter(|users| users.table.has_addresses());
        self.smtp.clone().or_else(|| users().map(|users| Arc::clone(&users.mail)))
    }

    /// The users who have folders, if there are any.
    fn with_folders(&self) -> Option<Arc<MboxWay>> {
        self.mbox.clone().filter(|mbox| mbox.maildrops().next().is_some())
    }
}

/// What came of the proofs so far.
#[derive(Clone, Default)]
pub(in crate::node) struct Standing {
    mail: Known<SmtpWay>,
    folders: Known<MboxWay>,
    users: Users,
}

impl Standing {
    /// Whether what is known is known of these ways.
    pub(in crate::node) fn is_about(&self, ways: &Ways) -> bool {
        let Self { mail, folders, users } = self;
        mail.is_about(ways.of_proofs().as_deref())
            && folders.is_about(ways.with_folders().as_deref())
            && *users == Users::of(ways)
    }

    /// What is known of e-mail to anybody, for the operator; `is_on` as the settings have it.
    pub(in crate::node) fn report(&self, is_on: bool) -> MailDelivery {
        if is_on { self.mail.report() } else { MailDelivery::Off }
    }

    /// What is known of users whose mail goes elsewhere, for the operator: the worst of it.
    pub(in crate::node) fn report_users(&self, is_on: bool) -> MailDelivery {
        let Users { at_addresses, in_folders, .. } = self.users;
        let [mail, folders] = [(at_addresses, self.mail.report()), (in_folders, self.folders.report())]
            .map(|(is_so, report)| if is_on && is_so { report } else { MailDelivery::Off });
        match (mail, folders) {
            (MailDelivery::Off, only) | (only, MailDelivery::Off) => only,
            (failing @ MailDelivery::Failing { .. }, _) | (_, failing @ MailDelivery::Failing { .. }) => failing,
            (MailDelivery::Unproven, _) | (_, MailDelivery::Unproven) => MailDelivery::Unproven,
            (MailDelivery::Proven { since }, MailDelivery::Proven { since: other }) => {
                MailDelivery::Proven { since: since.max(other) }
            }
        }
    }

    /// Whether the descriptor may offer delivery to users.
    fn offers_users(&self) -> bool {
        let Users { here, at_addresses, in_folders } = self.users;
        let elsewhere = (at_addresses || in_folders)
            && (!at_addresses || self.mail.is_proven())
            && (!in_folders || self.folders.is_proven());
        here || elsewhere
    }

    /// The settings as the descriptor is to state them: without a delivery that is not proven. Fragments are put together
    /// here and handed to nobody, so they are stated by their setting alone, as the reference does: whoever sends some looks
    /// for the type of their message, too.
    pub(in crate::node) fn states(&self, config: Arc<NodeConfig>) -> Arc<NodeConfig> {
        let smtp = config.smtp.enabled && self.mail.is_proven();
        let mbox = config.mbox.enabled && self.offers_users();
        if (smtp, mbox) == (config.smtp.enabled, config.mbox.enabled) {
            return config;
        }
        let mut config = NodeConfig::clone(&config);
        (config.smtp.enabled, config.mbox.enabled) = (smtp, mbox);
        Arc::new(config)
    }
}

/// The service that proves it.
pub(in crate::node) struct Prover {
    pub(super) ways: watch::Receiver<Ways>,
    standing: watch::Sender<Standing>,
    word: Word,
    pub(super) stop: CancellationToken,
    pub(super) mail: Track<SmtpWay>,
    folders: Track<MboxWay>,
}

impl Prover {
    /// Has proven nothing yet.
    pub(in crate::node) fn new(ways: watch::Receiver<Ways>, world: World, stop: CancellationToken) -> Self {
        let (standing, word) = (watch::Sender::default(), Word::default());
        let (mail, folders) = (Track::new(&standing, &word, &world), Track::new(&standing, &word, &world));
        Self { ways, standing, word, stop, mail, folders }
    }

    /// What came of the proofs, now and later.
    pub(in crate::node) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// For the service that delivers.
    pub(in crate::node) fn word(&self) -> Word {
        self.word.clone()
    }

    /// The first proofs of a start, if they end in time. Else they begin anew with the service.
    pub(in crate::node) async fn begin(&mut self) {
        let ways = self.look();
        let first = async { tokio::join!(self.mail.begin(ways.of_proofs()), self.folders.begin(ways.with_folders())) };
        let _ = timeout(AT_THE_START, first).await;
    }

    /// Proves what is due until stopped.
    pub(in crate::node) async fn run(mut self) {
        let (mut changed, stop) = (self.ways.clone(), self.stop.clone());
        loop {
            let ways = self.look();
            tokio::select! {
                _ = async { tokio::join!(self.mail.attend(ways.of_proofs()), self.folders.attend(ways.with_folders())) } => {}
                changed = changed.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks who is to be delivered to, and how.
    fn look(&self) -> Ways {
        let ways = self.ways.borrow().clone();
        let users = Users::of(&ways);
        self.standing.send_if_modified(|standing| mem::replace(&mut standing.users, users) != users);
        ways
    }
}

/// The proofs of one subject.
pub(super) struct Track<S> {
    standing: watch::Sender<Standing>,
    world: World,
    word: Word,
    /// Rung when a delivery fails.
    doubts: watch::Receiver<()>,
    /// Proofs of this subject in a row that have failed.
    failures: u32,
    /// When the next one is due.
    pub(super) due: Instant,
    /// When a delivery has had one made.
    asked: Option<Instant>,
    /// Whether a proof or a delivery has failed since a proof has succeeded.
    is_in_doubt: bool,
    /// Whether one has succeeded in this process.
    was_there: bool,
    /// What the operator was told.
    told: Option<String>,
    subject: PhantomData<S>,
}

impl<S: Subject> Track<S> {
    fn new(standing: &watch::Sender<Standing>, word: &Word, world: &World) -> Self {
        Self {
            standing: standing.clone(),
            world: world.clone(),
            doubts: S::doubts(word).subscribe(),
            word: word.clone(),
            failures: 0,
            due: Instant::now(),
            asked: None,
            is_in_doubt: false,
            was_there: false,
            told: None,
            subject: PhantomData,
        }
    }

    async fn begin(&mut self, subject: Option<Arc<S>>) {
        if let Some(subject) = subject {
            self.prove(&subject).await;
        }
    }

    /// Proves this subject whenever that is due; never returns, and may be dropped at any moment.
    async fn attend(&mut self, subject: Option<Arc<S>>) {
        let Some(subject) = subject else {
            self.told = None;
            self.standing.send_if_modified(|standing| mem::take(S::known_mut(standing)).about.is_some());
            return pending().await;
        };
        // A reload may be what was missing, though it is outside of the settings.
        if !self.is_proven(&subject) || self.failures > 0 {
            self.failures = 0;
            self.due = Instant::now();
        }
        loop {
            tokio::select! {
                () = sleep_until(self.due) => self.prove(&subject).await,
                Ok(()) = self.doubts.changed() => self.doubt(),
            }
        }
    }

    /// Whether this subject is proven, and not another.
    fn is_proven(&self, subject: &S) -> bool {
        let standing = self.standing.borrow();
        S::known(&standing).is_proven() && S::known(&standing).is_about(Some(subject))
    }

    /// A delivery has failed: a proof is due, unless those that fail have their own rhythm by now.
    fn doubt(&mut self) {
        self.is_in_doubt = true;
        let now = Instant::now();
        // What proves well and takes no mail is not to be called all the time.
        let soon = self.asked.map_or(now, |asked| now.max(asked + SOON));
        if self.failures == 0 && soon < self.due {
            (self.due, self.asked) = (soon, Some(soon));
        }
    }

    async fn prove(&mut self, subject: &Arc<S>) {
        let proof = timeout(LONGEST, subject.prove(self.world.dice())).await;
        match proof.unwrap_or_else(|_| Err(Unproven::too_slow())) {
            Ok(()) => self.succeeded(subject),
            Err(why) => self.failed(subject, why),
        }
    }

    pub(super) fn succeeded(&mut self, subject: &Arc<S>) {
        self.failures = 0;
        self.due = Instant::now() + AGAIN;
        if self.told.take().is_some() {
            info!("{}", S::BACK);
        }
        let now = self.world.now();
        self.standing.send_modify(|standing| S::known_mut(standing).note(subject, Ok(()), now));
        let is_first = !mem::replace(&mut self.was_there, true);
        if mem::take(&mut self.is_in_doubt) {
            S::tell(&self.word, is_first);
        }
    }

    pub(super) fn failed(&mut self, subject: &Arc<S>, why: Unproven) {
        self.is_in_doubt = true;
        self.failures = self.failures.saturating_add(1);
        self.due = Instant::now() + if self.failures < PATIENCE { SOON } else { LATER };
        if self.is_proven(subject) && why.passes && self.failures < PATIENCE {
            debug!("a proof that mail can be handed over has failed, and may pass");
            return;
        }
        let (why, now) = (why.fault.to_string(), self.world.now());
        if self.told.as_ref() != Some(&why) {
            warn!(error = why, "{}", S::LOST);
            self.told = Some(why.clone());
        }
        self.standing.send_modify(|standing| S::known_mut(standing).note(subject, Err(why), now));
    }
}
