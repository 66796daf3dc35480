//! The POP3 server: connections, their limits, and who has which maildrop.
//!
//! What is said on a connection is `pop3::session`'s. Disk and password checks run off the async threads.

use std::collections::HashSet;
use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mix::net::trouble::Trouble;
use mix::secret::Secret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::config::PopConfig;
use crate::pop3::session::{Fetch, Login, Refusal, Session, Step, Update};
use crate::pop3::{Accounts, Listed, Mailbox, MailboxError, Maildrops};

/// What one read takes off the socket. A command has 255 octets at most; more is pipelining.
const READ_LEN: usize = 4096;
/// How long a client may stay before it is logged in. Mail programs know at once who they are; the ten minutes of RFC 1939
/// are for those who think over a mail, and whoever says a word every nine could keep all places taken.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a wrong password waits for its answer: with three for each connection, guessing is slow.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_secs(1);
/// How long the server waits when the system has no socket to give.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);
/// What they hear who come when all places are taken (RFC 3206).
const TURNED_AWAY: &[u8] = b"-ERR [SYS/TEMP] too many connections\r\n";

/// How much a server bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a client may be silent, or take nothing of what it is sent.
    pub idle_timeout: Duration,
    /// How long a client may stay before it is logged in.
    pub login_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// How long a wrong password waits for its answer.
    pub wrong_password_delay: Duration,
}

impl From<&PopConfig> for Limits {
    fn from(config: &PopConfig) -> Self {
        Self {
            idle_timeout: config.idle_timeout,
            login_timeout: LOGIN_TIMEOUT,
            max_connections: config.max_connections.get().into(),
            wrong_password_delay: WRONG_PASSWORD_DELAY,
        }
    }
}

/// A POP3 server over some maildrops.
pub struct Server<A, M> {
    shared: Arc<Shared<A, M>>,
}

struct Shared<A, M> {
    accounts: A,
    maildrops: M,
    limits: Limits,
    /// The users who are in a session.
    present: Mutex<HashSet<String>>,
}

impl<A: Accounts, M: Maildrops> Server<A, M> {
    /// One that lets these in to those.
    pub fn new(accounts: A, maildrops: M, limits: Limits) -> Self {
        let present = Mutex::default();
        Self { shared: Arc::new(Shared { accounts, maildrops, limits, present }) }
    }

    /// Serves until `stop`, then closes the connections and returns; a removal under way is finished first.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(self.shared.limits.max_connections));
        let mut trouble = Trouble::default();
        while let Some(stream) = accept(&listener, &mut trouble, &stop).await {
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
                    connections.spawn(async move {
                        let began = Instant::now();
                        let connection = Connection { stream, shared, stop, open: None, began };
                        if let Err(ended) = connection.converse().await {
                            debug!(why = %ended, "POP3 connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(_) => turn_away(stream),
            }
        }
        connections.close();
        connections.wait().await;
    }
}

impl<A, M> std::fmt::Debug for Server<A, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

/// The next connection, or none at `stop`.
async fn accept(listener: &TcpListener, trouble: &mut Trouble, stop: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) => {
                if trouble.is_news() {
                    warn!(error = &error as &dyn Error, "accepting a POP3 connection");
                }
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = sleep(ACCEPT_RETRY_DELAY) => {}
                }
            }
        }
    }
}

/// Without waiting: a fresh connection has room for one line, and one that has none hears nothing.
fn turn_away(stream: TcpStream) {
    debug!("POP3 connection turned away: all places taken");
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(TURNED_AWAY);
    }
}

/// Why a connection ended before its session did. Nothing is removed then.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the client left")]
    Left,
    #[error("the client was silent for too long")]
    Idle,
    #[error("the server stops")]
    Stopped,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// A client, from accept to close. Whatever ends it frees the maildrop.
struct Connection<S, A, M: Maildrops> {
    stream: S,
    shared: Arc<Shared<A, M>>,
    stop: CancellationToken,
    open: Option<Arc<Open<A, M>>>,
    began: Instant,
}

/// A maildrop while its user is in a session.
struct Open<A, M: Maildrops> {
    mailbox: M::Mailbox,
    _claim: Claim<A, M>,
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Accounts, M: Maildrops> Connection<S, A, M> {
    async fn converse(mut self) -> Result<(), Ended> {
        let mut session = Session::new();
        loop {
            session = match session.step() {
                Step::Send(octets, session) => {
                    self.send(&octets).await?;
                    session
                }
                Step::Receive(session) => self.receive(session).await?,
                Step::Login(login) => self.log_in(login).await?,
                Step::Fetch(fetch) => self.fetch(fetch).await,
                Step::Update(update) => self.update(update).await,
                Step::Close => {
                    self.stream.shutdown().await?;
                    return Ok(());
                }
            };
        }
    }

    /// Until when the next move of the client is waited for.
    fn deadline(&self) -> Instant {
        let idle = Instant::now() + self.shared.limits.idle_timeout;
        match self.open {
            Some(_) => idle,
            None => idle.min(self.began + self.shared.limits.login_timeout),
        }
    }

    async fn send(&mut self, octets: &[u8]) -> Result<(), Ended> {
        let mut rest = octets;
        while !rest.is_empty() {
            let deadline = self.deadline();
            let written = within(&self.stop, deadline, self.stream.write_buf(&mut rest)).await??;
            if written == 0 {
                return Err(Ended::Left);
            }
        }
        Ok(())
    }

    async fn receive(&mut self, mut session: Session) -> Result<Session, Ended> {
        let mut octets = Secret::new(vec![0; READ_LEN]);
        let deadline = self.deadline();
        let read = within(&self.stop, deadline, self.stream.read(octets.expose_mut())).await??;
        match octets.expose().get(..read) {
            None | Some([]) => Err(Ended::Left),
            Some(received) => {
                session.receive(received);
                Ok(session)
            }
        }
    }

    async fn log_in(&mut self, login: Login) -> Result<Session, Ended> {
        let shared = Arc::clone(&self.shared);
        let (user, password) = (login.user().to_owned(), login.password().clone());
        let outcome = off_thread(move || shared.let_in(&user, password.expose())).await;
        match outcome.unwrap_or(Err(Refusal::Unavailable)) {
            Ok((open, listed)) => {
                self.open = Some(Arc::new(open));
                Ok(login.done(Ok(listed)))
            }
            Err(refusal) => {
                if refusal == Refusal::WrongPassword {
                    tokio::select! {
                        () = self.stop.cancelled() => return Err(Ended::Stopped),
                        () = sleep(self.shared.limits.wrong_password_delay) => {}
                    }
                }
                Ok(login.done(Err(refusal)))
            }
        }
    }

    async fn fetch(&mut self, fetch: Fetch) -> Session {
        let Some(open) = self.open.clone() else { return fetch.done(Err(Refusal::Unavailable)) };
        let uidl = fetch.uidl().clone();
        match off_thread(move || open.mailbox.fetch(&uidl)).await {
            Some(Ok(letter)) => fetch.done(Ok(letter)),
            Some(Err(error)) => {
                complain(&error, "reading a mail");
                fetch.done(Err(Refusal::Unavailable))
            }
            None => fetch.done(Err(Refusal::Unavailable)),
        }
    }

    /// Frees the maildrop before the client hears of it, so that it may come back at once.
    async fn update(&mut self, update: Update) -> Session {
        let Some(open) = self.open.take() else { return update.done(false) };
        let deleted = update.deleted().to_vec();
        let removed = off_thread(move || if deleted.is_empty() { Ok(()) } else { open.mailbox.delete(&deleted) }).await;
        if let Some(Err(error)) = &removed {
            complain(error, "removing mail");
        }
        update.done(matches!(removed, Some(Ok(()))))
    }
}

fn complain(error: &MailboxError, doing: &str) {
    warn!(error = error as &dyn Error, doing, "a maildrop failed");
}

async fn within<T>(
    stop: &CancellationToken,
    deadline: Instant,
    work: impl Future<Output = io::Result<T>>,
) -> Result<io::Result<T>, Ended> {
    tokio::select! {
        () = stop.cancelled() => Err(Ended::Stopped),
        done = timeout_at(deadline, work) => done.map_err(|_| Ended::Idle),
    }
}

/// Runs what may wait for a disk. Nothing comes back of what panicked, and nothing is said of its words, which may be a
/// mail's.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    spawn_blocking(work).await.inspect_err(|e| warn!(panicked = e.is_panic(), "a maildrop failed")).ok()
}

impl<A: Accounts, M: Maildrops> Shared<A, M> {
    /// The password first: who has none does not learn whether the maildrop is in use.
    fn let_in(self: &Arc<Self>, user: &str, password: &str) -> Result<(Open<A, M>, Vec<Listed>), Refusal> {
        if !self.accounts.check(user, password) {
            return Err(Refusal::WrongPassword);
        }
        let claim = Claim::on(self, user).ok_or(Refusal::InUse)?;
        let open = || {
            let mailbox = self.maildrops.open(user)?;
            let listed = mailbox.list()?;
            Ok((mailbox, listed))
        };
        let (mailbox, listed) = open().map_err(|error| {
            complain(&error, "opening it");
            Refusal::Unavailable
        })?;
        Ok((Open { mailbox, _claim: claim }, listed))
    }
}

/// The right to be alone in a maildrop; dropped, it lets others in.
struct Claim<A, M> {
    shared: Arc<Shared<A, M>>,
    user: String,
}

impl<A, M> Claim<A, M> {
    fn on(shared: &Arc<Shared<A, M>>, user: &str) -> Option<Self> {
        let fresh = held(&shared.present).insert(user.to_owned());
        fresh.then(|| Self { shared: Arc::clone(shared), user: user.to_owned() })
    }
}

impl<A, M> Drop for Claim<A, M> {
    fn drop(&mut self) {
        held(&self.shared.present).remove(&self.user);
    }
}

/// A set of names is whole whoever panicked beside it.
fn held(present: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    present.lock().unwrap_or_else(PoisonError::into_inner)
}
