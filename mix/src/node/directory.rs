//! The directory server: takes descriptors, publishes a signed directory of version 0.3 (dir-spec 5).
//!
//! `GET /` says who this is, `GET /current.gz` gives the directory, `POST /upload` takes one descriptor. What is taken is
//! `shelf`'s to decide and to keep. The directory is signed when its content changes and when its day is over, not for
//! each who asks.

mod shelf;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use shelf::ShelfError;

use self::shelf::{Policy, Refusal, Shelf, Verdict};
use crate::crypto::KeyId;
use crate::crypto::pk::PrivateKey;
use crate::directory::descriptor::DESCRIPTOR_LIMITS;
use crate::directory::nickname::{InvalidNickname, Nickname};
use crate::directory::vote::DIRECTORY_LIFETIME;
use crate::directory::{DirectoryFields, Status, Unsignable, Voter, date};
use crate::net::fetch;
use crate::net::guard::{Bounds, Guard};

/// Section `[directory]`: a directory server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectoryConfig {
    /// Whether this process is one.
    pub enabled: bool,
    /// Where it keeps its key and descriptors. Nobody else may read this folder.
    pub home: PathBuf,
    /// Where it listens for HTTP.
    pub listen: SocketAddr,
    /// The address that others know it by, with a slash at the end; published in the directory.
    #[serde(deserialize_with = "crate::settings::base_url")]
    pub url: String,
    /// Whether mixes that nobody approved are listed at once. Good for a test network only: whoever runs many mixes can
    /// fill the paths of others with them.
    pub accept_unknown: bool,
    /// Fingerprints of identity keys that are listed without asking. Others wait in the folder `pending`.
    #[serde(deserialize_with = "crate::settings::fingerprints")]
    pub approved: Vec<String>,
    /// Nicknames of mixes that are listed but not recommended to clients.
    #[serde(deserialize_with = "crate::settings::nicknames")]
    pub not_recommended: Vec<String>,
    /// The most mixes that are listed.
    pub max_mixes: usize,
    /// Versions of the reference's client that are up to date.
    pub client_versions: Vec<String>,
    /// Versions of the reference's server that are up to date.
    pub server_versions: Vec<String>,
}

impl Default for DirectoryConfig {
    fn default() -> Self {
        let reference = vec!["0.0.8alpha3".to_owned()];
        Self {
            enabled: false,
            home: "directory".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 48080)),
            url: "http://localhost:48080/".into(),
            accept_unknown: false,
            approved: Vec::new(),
            not_recommended: Vec::new(),
            max_mixes: 1000,
            client_versions: reference.clone(),
            server_versions: reference,
        }
    }
}

/// Why a directory server could not start, or could not sign. The operator must mend it.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// An entry of `approved` that is no fingerprint.
    #[error("approved: {fingerprint} is not a fingerprint of 40 hexadecimal digits")]
    Fingerprint {
        /// What was found.
        fingerprint: String,
    },
    /// An entry of `not_recommended` that is no nickname.
    #[error("not_recommended: {nickname} is not a nickname")]
    Nickname {
        /// What was found.
        nickname: String,
        /// Why it is none.
        source: InvalidNickname,
    },
    /// The URL would not be one.
    #[error("url: {url} must begin with http:// or https:// and end with a slash")]
    Url {
        /// What was found.
        url: String,
    },
    /// The folder cannot be used.
    #[error("the files of the directory server")]
    Files(#[from] ShelfError),
    /// The directory cannot be signed.
    #[error("signing the directory")]
    Signing(#[from] Unsignable),
    /// The listener is broken.
    #[error("listening")]
    Listener(#[source] io::Error),
}

/// What strangers may take. The lifetime is enough for a directory of 8 MB over a slow line.
const BOUNDS: Bounds =
    Bounds { connections: 256, per_host: 64, lifetime: Duration::from_secs(300), silence: Duration::from_secs(30) };
/// How long answers that are under way may take when the process stops.
const GRACE: Duration = Duration::from_secs(10);

/// The role. See [`DirectoryServer::start`].
#[derive(Clone, Copy, Debug)]
pub struct DirectoryServer;

/// Reads the settings as the types they mean.
fn read(config: &DirectoryConfig) -> Result<(Policy, BTreeSet<Nickname>), DirectoryError> {
    let approved = config.approved.iter().map(|fingerprint| {
        KeyId::from_fingerprint(fingerprint)
            .ok_or_else(|| DirectoryError::Fingerprint { fingerprint: fingerprint.clone() })
    });
    let not_recommended = config.not_recommended.iter().map(|nickname| {
        nickname.parse().map_err(|source| DirectoryError::Nickname { nickname: nickname.clone(), source })
    });
    let web = config.url.starts_with("http://") || config.url.starts_with("https://");
    if !web || !config.url.ends_with('/') || config.url.contains(char::is_whitespace) {
        return Err(DirectoryError::Url { url: config.url.clone() });
    }
    let policy = Policy {
        accept_unknown: config.accept_unknown,
        approved: approved.collect::<Result<_, _>>()?,
        max_mixes: config.max_mixes,
    };
    Ok((policy, not_recommended.collect::<Result<_, _>>()?))
}

impl DirectoryServer {
    /// Looks at the settings as a start does, without a disk, a port or a key.
    ///
    /// # Errors
    /// [`DirectoryError::Fingerprint`], [`DirectoryError::Nickname`], [`DirectoryError::Url`].
    pub fn check(config: &DirectoryConfig) -> Result<(), DirectoryError> {
        read(config).map(|_| ())
    }

    /// Opens the files, signs a directory and serves it on `listener` until `shutdown`.
    ///
    /// # Errors
    /// [`DirectoryError`] for settings, files or a key that cannot be used.
    pub fn start(
        config: &DirectoryConfig,
        listener: TcpListener,
        key: PrivateKey,
        now: impl Fn() -> SystemTime + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> Result<Running, DirectoryError> {
        let address = listener.local_addr().map_err(DirectoryError::Listener)?;
        let office = Arc::new(Mutex::new(Office::open(config, key, now())?));
        let key_id = held(&office).voter.key_id;
        let service = Service { office, now: Arc::new(now) };
        let router = Router::new()
            .route("/", get(greet))
            .route("/current.gz", get(current))
            .route("/upload", post(upload))
            .with_state(service);
        let listener = Guard::new(listener, BOUNDS);
        let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let task = tokio::spawn(async move {
            let impatience = async {
                shutdown.cancelled().await;
                sleep(GRACE).await;
            };
            tokio::select! {
                outcome = server.into_future() => outcome,
                () = impatience => Ok(()),
            }
        });
        Ok(Running { address, key_id, task })
    }
}

/// A directory server at work.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    key_id: KeyId,
    task: JoinHandle<io::Result<()>>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The digest of its identity key: what clients are told to trust.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// Waits until it has stopped: all answers given, or given up.
    ///
    /// # Errors
    /// [`DirectoryError::Listener`] when it stopped because the listener broke or a task panicked.
    pub async fn stopped(self) -> Result<(), DirectoryError> {
        let outcome = self.task.await.unwrap_or_else(|e| Err(failed(&e)));
        outcome.map_err(DirectoryError::Listener)
    }
}

/// Says that a service failed; never with what words, which may be a client's.
fn failed(e: &JoinError) -> io::Error {
    io::Error::other(if e.is_panic() { "the service panicked" } else { "the service was cancelled" })
}

#[derive(Clone)]
struct Service {
    office: Arc<Mutex<Office>>,
    now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Service {
    /// Does `work` where it may wait for the disk and for RSA.
    async fn with_office<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Office, SystemTime) -> T + Send + 'static,
    ) -> Option<T> {
        let service = self.clone();
        let task = spawn_blocking(move || work(&mut held(&service.office), (service.now)()));
        task.await.ok()
    }
}

/// A lock whose last holder panicked is as good as any: what is half changed is also on disk, and read at the next start.
fn held(office: &Mutex<Office>) -> MutexGuard<'_, Office> {
    office.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the server has and knows.
struct Office {
    shelf: Shelf,
    key: PrivateKey,
    voter: Voter,
    not_recommended: BTreeSet<Nickname>,
    client_versions: Vec<String>,
    server_versions: Vec<String>,
    published: Published,
}

/// The directory as it is sent.
#[derive(Clone)]
struct Published {
    gzip: Bytes,
    valid_after: SystemTime,
    mixes: usize,
}

impl Office {
    fn open(config: &DirectoryConfig, key: PrivateKey, now: SystemTime) -> Result<Self, DirectoryError> {
        let (policy, not_recommended) = read(config)?;
        let mut office = Self {
            not_recommended,
            shelf: Shelf::open(&config.home, policy, now)?,
            voter: Voter { key_id: key.public_key().key_id(), url: config.url.clone() },
            key,
            client_versions: config.client_versions.clone(),
            server_versions: config.server_versions.clone(),
            published: Published { gzip: Bytes::new(), valid_after: SystemTime::UNIX_EPOCH, mixes: 0 },
        };
        office.publish(now)?;
        Ok(office)
    }

    /// Signs the directory of the day.
    fn publish(&mut self, now: SystemTime) -> Result<(), DirectoryError> {
        self.shelf.prune(now)?;
        let valid_after = date::midnight(now).ok_or(Unsignable::Date)?;
        let descriptors = self.shelf.listed();
        let nicknames: BTreeSet<_> = descriptors.iter().map(|descriptor| descriptor.nickname().clone()).collect();
        let mixes = nicknames.len();
        let fields = DirectoryFields {
            status: Status::Consensus,
            valid_after,
            valid_until: valid_after + DIRECTORY_LIFETIME,
            recommended: nicknames.difference(&self.not_recommended).cloned().collect(),
            voters: vec![self.voter.clone()],
            client_versions: self.client_versions.clone(),
            server_versions: self.server_versions.clone(),
            descriptors,
        };
        let text = fields.sign(&self.key, &mut rand::rng())?;
        self.published = Published { gzip: gzip(text.as_bytes()), valid_after, mixes };
        info!(mixes, "directory signed");
        Ok(())
    }

    /// The directory of the day. When it cannot be signed, yesterday's: better than none.
    fn current(&mut self, now: SystemTime) -> Published {
        if date::midnight(now) != Some(self.published.valid_after)
            && let Err(why) = self.publish(now)
        {
            error!(error = &why as &dyn std::error::Error, "the directory of the day could not be signed");
        }
        self.published.clone()
    }

    fn take(&mut self, text: &str, now: SystemTime) -> Reply {
        match self.shelf.take(text, now) {
            Ok(Verdict::Known) => Reply::accepted(),
            Ok(Verdict::Accepted) => match self.publish(now) {
                Ok(()) => Reply::accepted(),
                Err(why) => {
                    error!(error = &why as &dyn std::error::Error, "the directory could not be signed");
                    Reply { good: true, message: "Accepted, but not published yet.".to_owned() }
                }
            },
            Ok(Verdict::Waiting) => {
                Reply { good: true, message: "The descriptor waits for the operator's approval.".to_owned() }
            }
            Err(refusal) => {
                if let Refusal::Storage(why) = &refusal {
                    error!(error = why as &dyn std::error::Error, "a descriptor could not be stored");
                }
                Reply { good: false, message: refusal.to_string() }
            }
        }
    }
}

fn gzip(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("a Vec takes all").into()
}

/// The answer to an upload (dir-spec 5.2).
struct Reply {
    good: bool,
    message: String,
}

impl Reply {
    /// The words that the specification demands.
    fn accepted() -> Self {
        Self { good: true, message: "Accepted.".to_owned() }
    }
}

async fn greet(State(service): State<Service>) -> Response {
    let text = service.with_office(|office, now| {
        let mixes = office.current(now).mixes;
        let fingerprint = office.voter.key_id.to_string();
        format!(
            "A directory server of the Type III (Mixminion) remailer network.\n\n\
             Fingerprint: {fingerprint}\n\
             Mixes listed: {mixes}\n\
             Directory: current.gz\n\
             Descriptors are uploaded by POST to: upload\n"
        )
    });
    plain(text.await)
}

async fn current(State(service): State<Service>) -> Response {
    match service.with_office(Office::current).await {
        Some(published) => ([(CONTENT_TYPE, "application/gzip")], published.gzip).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Octets of the longest upload: a descriptor with each octet percent-encoded.
const MAX_UPLOAD: usize = 3 * DESCRIPTOR_LIMITS.len + 1024;
/// How long an upload may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30);

async fn upload(State(service): State<Service>, request: Request) -> Response {
    let body = match tokio::time::timeout(UPLOAD_TIMEOUT, to_bytes(request.into_body(), MAX_UPLOAD)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return plain(Some(reply(false, "The upload broke off or is too long."))),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    match descriptor_in(&body) {
        Some(text) => {
            let outcome = service.with_office(move |office, now| office.take(&text, now)).await;
            plain(outcome.map(|Reply { good, message }| reply(good, &message)))
        }
        None => plain(Some(reply(false, "No descriptor found: send it as the field desc of a form."))),
    }
}

/// The descriptor in an upload: the field `desc` of a form, or the whole body. The type that the client claims is not
/// looked at: common tools claim a form whatever they send.
fn descriptor_in(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    if text.trim_start().starts_with('[') { Some(text.to_owned()) } else { fetch::form_value(text, "desc") }
}

fn reply(good: bool, message: &str) -> String {
    format!("Status: {}\nMessage: {message}\n", u8::from(good))
}

/// Without a character set: the reference takes an answer of exactly this type and no other.
fn plain(text: Option<String>) -> Response {
    match text {
        Some(text) => ([(CONTENT_TYPE, "text/plain")], Body::from(text)).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
