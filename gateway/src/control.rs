//! How other commands talk to the process that runs: a socket in the home of the node.
//!
//! The socket is `control` in `node.home`. One connection carries one line of JSON each way, `\n` at the end:
//!
//! | | |
//! |---|---|
//! | request | `{"mixgate":1,"command":"status"}`; other commands: `stop`, `reload`, `stats`, `republish`, `discard`, `optout`, `optedout`, `undooptout`, `{"queue":…}` (`queue`) |
//! | answer | `{"mixgate":1,"done":…}`; what was done depends on the command |
//! | refusal | `{"mixgate":1,"refused":{"why":"configuration","message":"…"}}`; why: `configuration`, `request`, `version`, `failed` |
//!
//! The number is the version of this protocol; a side that reads another one says so and does no more. The folder is
//! the owner's alone and so is the socket; peers of another user are not answered besides. A request is at most 1 KiB
//! and comes within five seconds. Whoever ends the connection has five more seconds for the answer, and no place after that.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mix::net::trouble::Trouble;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::queue::AskQueue;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The longest request, its end included.
const REQUEST_LEN: u64 = 1024;
/// The longest answer: the statistics have some twenty lines.
const ANSWER_LEN: u64 = 1024 * 1024;
/// How long a request may take to come.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long an answer may take to be read, and to come for a client that has ended its side: most are gone then.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Connections at a time; others wait.
const CONNECTIONS: usize = 8;
/// When the system gives no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long the process may take to answer what it knows already.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// Octets of the path of a Unix socket, at most (unix(7): sun_path).
const PATH_LEN: usize = 107;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// End the process.
    Stop,
    /// Read the configuration again.
    Reload,
    /// What the node says of itself.
    Status,
    /// What was counted, rounded.
    Stats,
    /// Upload the descriptor now.
    Republish,
    /// Discard the packet keys that have not begun.
    Discard,
    /// Deliver no more mail to a mailbox, by the token of it.
    OptOut {
        /// The token.
        token: String,
        /// The mailbox.
        address: String,
    },
    /// Who has opted out: those behind this mailbox, up to a thousand.
    OptedOut {
        /// Empty for the first.
        after: String,
    },
    /// Deliver mail to a mailbox again.
    UndoOptOut {
        /// The mailbox.
        address: String,
    },
    /// What waits for delivery, and what becomes of it.
    Queue(AskQueue),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    mixgate: u32,
    command: Ask,
}

/// What of a line can be read whatever its version.
#[derive(Deserialize)]
struct Versioned {
    mixgate: u32,
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// The configuration must be mended.
    Configuration,
    /// The request is none.
    Request,
    /// The process speaks another version.
    Version,
    /// It went wrong.
    Failed,
}

/// What the process refuses to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose fault it is.
    pub why: Why,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into() }
    }
}

#[derive(Serialize, Deserialize)]
struct Answer {
    mixgate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refusal>,
}

/// Something that was asked, and who waits for the answer.
pub struct Asked {
    /// What.
    pub ask: Ask,
    /// Where to.
    pub answer: oneshot::Sender<Result<Value, Refusal>>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum NoSocket {
    /// The system takes no such path for a socket.
    #[error("{} is too long for a socket: {PATH_LEN} octets at most", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{} is in the way: it is no socket", path.display())]
    InTheWay {
        /// Which.
        path: PathBuf,
    },
    /// The system does not give it.
    #[error("{}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// The socket of the process whose node has this home.
pub fn path(home: &Path) -> PathBuf {
    home.join("control")
}

/// A socket that takes requests. Removed from the folder when it goes.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Opens the socket in `home`, which must be private and locked: a socket that is there was left by a process that
    /// was killed, and is replaced.
    ///
    /// # Errors
    /// [`NoSocket`].
    pub fn open(home: &Path) -> Result<Self, NoSocket> {
        let path = path(home);
        if path.as_os_str().len() > PATH_LEN {
            return Err(NoSocket::TooLong { path });
        }
        let failed = |source| NoSocket::System { path: path.clone(), source };
        match fs::symlink_metadata(&path) {
            Ok(left) if left.file_type().is_socket() => fs::remove_file(&path).map_err(failed)?,
            Ok(_) => return Err(NoSocket::InTheWay { path }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // Between the two steps the folder keeps others out.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Takes requests until stopped, and hands them on.
    pub async fn run(self, asked: mpsc::Sender<Asked>, stop: CancellationToken) {
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        let owner = fs::metadata(&self.path).map(|socket| socket.uid()).ok();
        let mut trouble = Trouble::default();
        loop {
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
            let stream = match stop.run_until_cancelled(self.listener.accept()).await {
                None => return,
                Some(Ok((stream, _))) => stream,
                Some(Err(e)) => {
                    if trouble.is_news() {
                        warn!(error = %e, "the control socket gives no connections");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer = stream.peer_cred().map(|peer| peer.uid()).ok();
            if peer.is_none() || (peer != owner && peer != Some(0)) {
                debug!("a stranger at the control socket");
                continue;
            }
            let asked = asked.clone();
            tokio::spawn(async move {
                let _seat = seat;
                serve(stream, &asked).await;
            });
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may have been removed by hand.
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve(mut stream: UnixStream, asked: &mpsc::Sender<Asked>) {
    let outcome = match tokio::time::timeout(REQUEST_TIME, line(&mut stream, REQUEST_LEN)).await {
        Ok(Ok(request)) => match read_request(&request) {
            Ok(ask) => {
                let done = hand_on(ask, asked);
                tokio::select! {
                    done = done => done,
                    () = gone(&mut stream) => return,
                }
            }
            Err(refusal) => Err(refusal),
        },
        Ok(Err(_)) => Err(Refusal::new(Why::Request, "a request is one line of JSON of at most 1 KiB")),
        Err(_) => Err(Refusal::new(Why::Request, "the request did not come within five seconds")),
    };
    let (done, refused) = match outcome {
        Ok(done) => (Some(done), None),
        Err(refused) => (None, Some(refused)),
    };
    let Ok(mut answer) = serde_json::to_vec(&Answer { mixgate: VERSION, done, refused }) else { return };
    answer.push(b'\n');
    // Whoever asked may be gone.
    let _ = tokio::time::timeout(ANSWER_TIME, stream.write_all(&answer)).await;
}

/// Returns when nobody waits for an answer any more.
async fn gone(stream: &mut UnixStream) {
    // A request is one line; what comes after it is nobody's.
    let mut more = [0; 64];
    while matches!(stream.read(&mut more).await, Ok(1..)) {}
    tokio::time::sleep(ANSWER_TIME).await;
}

async fn hand_on(ask: Ask, asked: &mpsc::Sender<Asked>) -> Result<Value, Refusal> {
    let stopping = || Refusal::new(Why::Failed, "the process is stopping");
    let (answer, answered) = oneshot::channel();
    asked.send(Asked { ask, answer }).await.map_err(|_| stopping())?;
    answered.await.unwrap_or_else(|_| Err(stopping()))
}

fn read_request(line: &[u8]) -> Result<Ask, Refusal> {
    match serde_json::from_slice::<Versioned>(line) {
        Ok(Versioned { mixgate: VERSION }) => {}
        Ok(Versioned { mixgate }) => {
            let message = format!("this process speaks version {VERSION} of the control protocol, not {mixgate}");
            return Err(Refusal::new(Why::Version, message));
        }
        Err(_) => return Err(Refusal::new(Why::Request, "a request is one line of JSON with the key `mixgate`")),
    }
    let request: Request =
        serde_json::from_slice(line).map_err(|e| Refusal::new(Why::Request, format!("no such request: {e}")))?;
    Ok(request.command)
}

/// One line without its end. Ends early at `limit`, and where the other side ends.
async fn line(stream: impl AsyncRead + Unpin, limit: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(limit)).read_until(b'\n', &mut line).await?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Why a process could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NotAsked {
    /// There is none.
    #[error("no process runs in {}", home.display())]
    NotRunning {
        /// Where it would.
        home: PathBuf,
    },
    /// Whoever would answer is another user's, or could be.
    #[error("the process in {} is not ours: {why}", home.display())]
    NotOurs {
        /// Where.
        home: PathBuf,
        /// What shows it.
        why: &'static str,
    },
    /// It runs, and does not answer: it starts or stops, or hangs.
    #[error("the process in {} did not answer", home.display())]
    NoAnswer {
        /// Where.
        home: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is another release of the program.
    #[error("the process in {} speaks version {found} of the control protocol, this program {VERSION}: restart it", home.display())]
    Version {
        /// Where.
        home: PathBuf,
        /// What it speaks.
        found: u32,
    },
    /// It said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Asks the process whose node has this home, and waits up to `patience` for its answer.
///
/// # Errors
/// [`NotAsked`].
pub async fn ask(home: &Path, ask: Ask, patience: Duration) -> Result<Value, NotAsked> {
    let talk = async {
        let stream = connect(home).await?;
        exchange(home, stream, ask).await
    };
    let late = |_| NotAsked::NoAnswer { home: home.to_owned(), source: io::ErrorKind::TimedOut.into() };
    tokio::time::timeout(patience, talk).await.map_err(late)?
}

async fn connect(home: &Path) -> Result<UnixStream, NotAsked> {
    let not_ours = |why| NotAsked::NotOurs { home: home.to_owned(), why };
    let folder = match fs::metadata(home) {
        Ok(folder) => folder,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(not_ours("its folder lets nobody in")),
        Err(_) => return Err(NotAsked::NotRunning { home: home.to_owned() }),
    };
    if folder.mode() & 0o077 != 0 {
        return Err(not_ours("others than its owner may enter its folder, and lay a socket there"));
    }
    let stream = match UnixStream::connect(path(home)).await {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(not_ours("it does not let us talk to it")),
        Err(source) => {
            // No socket, or nobody at it. While it starts and stops, the home is locked all the same.
            let home = home.to_owned();
            let runs = crate::lock::is_taken(&home).unwrap_or(false);
            return Err(if runs { NotAsked::NoAnswer { home, source } } else { NotAsked::NotRunning { home } });
        }
    };
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == folder.uid() => Ok(stream),
        _ => Err(not_ours("it runs as another user than the owner of its folder")),
    }
}

async fn exchange(home: &Path, mut stream: UnixStream, ask: Ask) -> Result<Value, NotAsked> {
    let no_answer = |source| NotAsked::NoAnswer { home: home.to_owned(), source };
    let garbled = |e: serde_json::Error| no_answer(e.into());
    let mut request = serde_json::to_vec(&Request { mixgate: VERSION, command: ask }).map_err(garbled)?;
    request.push(b'\n');
    stream.write_all(&request).await.map_err(no_answer)?;
    let line = line(&mut stream, ANSWER_LEN).await.map_err(no_answer)?;
    let Versioned { mixgate: found } = serde_json::from_slice(&line).map_err(garbled)?;
    if found != VERSION {
        return Err(NotAsked::Version { home: home.to_owned(), found });
    }
    let Answer { done, refused, .. } = serde_json::from_slice(&line).map_err(garbled)?;
    match (done, refused) {
        (_, Some(refusal)) => Err(refusal.into()),
        (Some(done), None) => Ok(done),
        (None, None) => Err(no_answer(io::ErrorKind::InvalidData.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home with a socket at which `stats` is answered with 7, and nothing else at all.
    struct House {
        home: tempfile::TempDir,
        stop: CancellationToken,
    }

    fn private_home() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    fn house() -> House {
        let home = private_home();
        let (asked, mut asks) = mpsc::channel(1);
        let stop = CancellationToken::new();
        tokio::spawn(ControlSocket::open(home.path()).unwrap().run(asked, stop.clone()));
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            while let Some(Asked { ask, answer }) = asks.recv().await {
                match ask {
                    Ask::Stats => answer.send(Ok(7.into())).unwrap(),
                    _ => unanswered.push(answer),
                }
            }
        });
        House { home, stop }
    }

    async fn raw(house: &House, request: &[u8]) -> Value {
        let mut stream = UnixStream::connect(path(house.home.path())).await.unwrap();
        // It may be answered, and closed, before all is sent.
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        serde_json::from_slice(&line(&mut stream, ANSWER_LEN).await.unwrap()).unwrap()
    }

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_is_asked_is_answered_and_the_socket_is_the_owners_alone() {
        let house = house();
        assert_eq!(ask(house.home.path(), Ask::Stats, SOON).await.unwrap(), 7);
        let socket = fs::metadata(path(house.home.path())).unwrap();
        assert_eq!(socket.mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn noise_is_refused_by_name_and_harms_nobody() {
        let house = house();
        let long = vec![b' '; 5000];
        let noise: [&[u8]; 10] = [
            b"",
            b"\n",
            b"\0\xff\n",
            b"{}\n",
            b"{\"mixgate\":1}\n",
            b"{\"mixgate\":1,\"command\":\"fly\"}\n",
            b"{\"mixgate\":1,\"command\":\"stats\",\"more\":1}\n",
            b"{\"mixgate\":-1}\n",
            b"[[[[[[[[",
            &long,
        ];
        for request in noise {
            let answer = raw(&house, request).await;
            assert_eq!(answer["refused"]["why"], "request", "{request:?}: {answer}");
        }
        assert_eq!(ask(house.home.path(), Ask::Stats, SOON).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn other_version_is_refused_on_either_side() {
        let house = house();
        assert_eq!(raw(&house, b"{\"mixgate\":2,\"command\":\"stats\"}\n").await["refused"]["why"], "version");
        let home = private_home();
        let newer = UnixListener::bind(path(home.path())).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = newer.accept().await.unwrap();
            line(&mut stream, 1024).await.unwrap();
            stream.write_all(b"{\"mixgate\":2,\"ok\":[]}\n").await.unwrap();
        });
        let refused = ask(home.path(), Ask::Stats, SOON).await.unwrap_err();
        assert!(matches!(refused, NotAsked::Version { found: 2, .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn nobody_there_and_nobody_who_answers_are_told_apart() {
        let home = private_home();
        let refused = ask(home.path(), Ask::Stats, SOON).await.unwrap_err();
        assert!(matches!(refused, NotAsked::NotRunning { .. }), "{refused:?}");
        // A socket that a killed process left.
        drop(std::os::unix::net::UnixListener::bind(path(home.path())).unwrap());
        let refused = ask(home.path(), Ask::Stats, SOON).await.unwrap_err();
        assert!(matches!(refused, NotAsked::NotRunning { .. }), "{refused:?}");
        let house = house();
        let refused = ask(house.home.path(), Ask::Status, Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(refused, NotAsked::NoAnswer { .. }), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_did_not_wait_for_their_answer_keep_nobody_out() {
        let house = house();
        let mut waiting = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = UnixStream::connect(path(house.home.path())).await.unwrap();
            stream.write_all(b"{\"mixgate\":1,\"command\":\"republish\"}\n").await.unwrap();
            waiting.push(stream);
        }
        let refused = ask(house.home.path(), Ask::Stats, SOON).await.unwrap_err();
        assert!(matches!(refused, NotAsked::NoAnswer { .. }), "all places are taken: {refused:?}");
        drop(waiting);
        assert_eq!(ask(house.home.path(), Ask::Stats, SOON).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn whoever_ends_only_the_own_side_has_an_answer() {
        let house = house();
        assert_eq!(raw(&house, b"{\"mixgate\":1,\"command\":\"stats\"}\n").await["done"], 7);
    }

    #[tokio::test]
    async fn folder_that_others_may_enter_is_not_trusted() {
        let house = house();
        fs::set_permissions(house.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = ask(house.home.path(), Ask::Stats, SOON).await.unwrap_err();
        assert!(matches!(refused, NotAsked::NotOurs { .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn socket_left_by_a_killed_process_is_replaced_and_a_file_is_not() {
        let home = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(path(home.path())).unwrap());
        let socket = ControlSocket::open(home.path()).unwrap();
        drop(socket);
        assert!(!path(home.path()).exists(), "removed at the end");
        fs::write(path(home.path()), "mail").unwrap();
        let refused = ControlSocket::open(home.path()).unwrap_err();
        assert!(matches!(refused, NoSocket::InTheWay { .. }), "{refused:?}");
        let long = home.path().join("x".repeat(120));
        assert!(matches!(ControlSocket::open(&long), Err(NoSocket::TooLong { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_nothing_is_hung_up_on() {
        let house = house();
        let mut stream = UnixStream::connect(path(house.home.path())).await.unwrap();
        let answer = line(&mut stream, ANSWER_LEN).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["refused"]["why"], "request");
        house.stop.cancel();
    }
}
