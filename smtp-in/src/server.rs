//! The socket loop: drives a `session` per client, and does what a session asks for away from the sockets.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mix::net::sockets::{Inherited, NotOpened};
use mix::net::trouble::Trouble;
use mix::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::config::SmtpConfig;
use crate::error::{NotServing, Refused};
use crate::intake;
use crate::policy::{House, Policy};
use crate::session::{Credentials, Goodbye, Session, Step, Submission, Verdict};

/// Octets per read. Also bounds what a session holds of a client that sends many commands at once.
const READ_LEN: usize = 16 * 1024;
/// When the system is out of sockets, asking again at once would only keep it busy.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long and how much is still read from a client that we are done with: closing with octets unread would take the
/// last reply away from it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_LEN: usize = 256 * 1024;

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    policy: Policy,
    house: House,
}

impl Server {
    /// Listens where the settings say.
    ///
    /// # Errors
    /// [`NotServing`].
    pub async fn bind(config: &SmtpConfig, house: House) -> Result<Self, NotServing> {
        Self::bind_in(&Inherited::default(), config, house).await
    }

    /// As [`Server::bind`], on the socket that was handed over for this door, if there is one.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub async fn bind_in(sockets: &Inherited, config: &SmtpConfig, house: House) -> Result<Self, NotServing> {
        let policy = config.policy()?;
        let address = config.listen.into();
        let listen = |source| NotServing::Listen { address, source };
        let listener = sockets.bind_loopback(config.listen).await.map_err(|why| match why {
            NotOpened::Exposed(why) => NotServing::Exposed(why),
            NotOpened::System(source) => listen(source),
        })?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address, policy, house })
    }

    /// Where it listens; tells the port when the settings left it to the system.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled, and returns when the last client has its answer.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, address, policy, house } = self;
        let free = Arc::new(Semaphore::new(policy.max_connections));
        let clients = TaskTracker::new();
        info!(%address, "taking mail from mail clients");
        let mut trouble = Trouble::default();
        loop {
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        if trouble.is_news() {
                            warn!(%error, "accepting a mail client");
                        }
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            match Arc::clone(&free).try_acquire_owned() {
                Ok(place) => {
                    let began = Instant::now();
                    let client = Client { stream, policy, house: house.clone(), stop: stop.clone(), began };
                    clients.spawn(client.serve(place));
                }
                Err(_) => turn_away(stream),
            }
        }
        drop(listener);
        clients.close();
        clients.wait().await;
    }
}

/// A line fits into an empty socket buffer; a client for whom it does not is not waited for.
fn turn_away(stream: TcpStream) {
    debug!("a mail client too many");
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(Goodbye::Busy.line().as_bytes());
    }
}

struct Client {
    stream: TcpStream,
    policy: Policy,
    house: House,
    stop: CancellationToken,
    began: Instant,
}

/// Why a session ends that the protocol did not end.
enum Cut {
    /// The client is gone: nobody to say goodbye to.
    Gone,
    /// Ours.
    Ours(Goodbye),
}

impl Client {
    async fn serve(mut self, _place: OwnedSemaphorePermit) {
        let last_words = match self.session().await {
            Ok(()) => None,
            Err(Cut::Gone) => return,
            Err(Cut::Ours(goodbye)) => Some(goodbye),
        };
        let ending = async {
            if let Some(goodbye) = last_words {
                self.stream.write_all(goodbye.line().as_bytes()).await?;
            }
            self.stream.shutdown().await?;
            let mut unread = (&mut self.stream).take(LINGER_LEN as u64);
            tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
        };
        // Whatever comes of it, the connection ends here.
        let _ = timeout(LINGER, ending).await;
    }

    async fn session(&mut self) -> Result<(), Cut> {
        let mut session = Session::new(self.policy, Arc::clone(&self.house.exits));
        let mut buffer = Secret::new(vec![0; READ_LEN]);
        loop {
            let step = session.step();
            let deadline = self.deadline(session.is_authenticated());
            match step {
                Step::Send(octets) => self.send(&octets, deadline).await?,
                Step::Receive => {
                    let len = self.receive(buffer.expose_mut(), deadline).await?;
                    session.receive(buffer.expose().get(..len).unwrap_or_default());
                }
                Step::Check(credentials) => session.checked(self.check(credentials).await),
                Step::Take(submission) => session.taken(&self.take(submission).await),
                Step::Close => return Ok(()),
            }
        }
    }

    /// Until when the next move of the client is waited for.
    fn deadline(&self, is_authenticated: bool) -> Instant {
        let stay = if is_authenticated {
            self.policy.session_timeout
        } else {
            self.policy.login_timeout.min(self.policy.session_timeout)
        };
        (self.began + stay).min(Instant::now() + self.policy.idle_timeout)
    }

    /// A client that does not read its replies is waited for no longer than one that does not speak; and when the server
    /// stops, only as long as one that reads needs to hear what became of its mail.
    async fn send(&mut self, octets: &[u8], deadline: Instant) -> Result<(), Cut> {
        let stopped = async {
            self.stop.cancelled().await;
            sleep(LINGER).await;
        };
        tokio::select! {
            sent = timeout_at(deadline, self.stream.write_all(octets)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(Cut::Gone),
            },
            () = stopped => Err(Cut::Gone),
        }
    }

    async fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize, Cut> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Cut::Ours(Goodbye::Shutdown)),
            read = timeout_at(deadline, self.stream.read(buffer)) => match read {
                Ok(Ok(0) | Err(_)) => Err(Cut::Gone),
                Ok(Ok(len)) => Ok(len),
                Err(_) => Err(Cut::Ours(Goodbye::Timeout)),
            },
        }
    }

    async fn check(&self, Credentials { user, password }: Credentials) -> Verdict {
        let accounts = Arc::clone(&self.house.accounts);
        match spawn_blocking(move || accounts.check(&user, password.expose())).await {
            Ok(true) => Verdict::Right,
            Ok(false) => Verdict::Wrong,
            Err(_) => {
                error!("looking up an account panicked");
                Verdict::Unknown
            }
        }
    }

    /// Returns when the mail is durable, or refused. Not cut short by `stop`: the client shall hear what became of it.
    async fn take(&self, submission: Submission) -> Result<(), Refused> {
        let House { exits, outbox, .. } = self.house.clone();
        let policy = self.policy;
        let known = Arc::clone(&outbox);
        let read = move || intake::mails(submission, exits.as_ref(), known.as_ref(), &policy, SystemTime::now());
        let result = match spawn_blocking(read).await.unwrap_or(Err(Refused::Crashed)) {
            Ok(mails) => {
                let kept = spawn_blocking(move || outbox.keep(mails).map_err(Refused::Store)).await;
                kept.unwrap_or(Err(Refused::StoreCrashed))
            }
            Err(why) => Err(why),
        };
        match &result {
            // Not a word: beside the line that says when packets were mixed it would tell which are whose.
            Ok(()) => {}
            Err(Refused::Store(why)) => error!(error = %why, "a mail could not be stored"),
            Err(Refused::Crashed) => error!("reading a mail panicked"),
            Err(Refused::StoreCrashed) => error!("storing a mail panicked"),
            Err(_) => debug!("a mail refused"),
        }
        result
    }
}
