//! Who the mixes are, as far as this process knows: the directory is fetched on a schedule of its own, checked, and
//! kept on disk for the next start.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rand::RngExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::clock::World;
use super::config::NetworkConfig;
use super::keys::replace;
use crate::crypto::KeyId;
use crate::directory::Directory;
use crate::directory::signed::{InvalidDirectory, Trust};
use crate::net::fetch::{self, FetchError, FetchLimits};
use crate::packet::NextHop;

/// Within so many milliseconds after the end of a directory all ask for the next: a minute without one is too short for mail
/// clients to mind, and long enough for a server to answer all.
const SPREAD: u64 = 60_000;

/// Why there is no newer directory. The old one stays in force as long as it is valid.
#[derive(Debug, thiserror::Error)]
pub enum NoDirectory {
    /// The server did not give it.
    #[error("fetching the directory")]
    Fetch(#[from] FetchError),
    /// What it gave is no directory that we trust.
    #[error("checking the directory")]
    Invalid(#[from] InvalidDirectory),
    /// What it gave is older than what we have: whoever holds back news may want to keep a bad mix in it.
    #[error("the server gave an older directory than the one in use")]
    Older,
}

/// Settings that make no sense together. The operator must mend them.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidNetwork {
    /// Not 40 hexadecimal digits.
    #[error("network.directory_key must be the 40 hexadecimal digits of the directory server's key id")]
    DirectoryKey,
}

/// The directory in force; clones share it.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    settings: watch::Sender<Settings>,
    file: PathBuf,
    world: World,
    current: RwLock<Option<Arc<Directory>>>,
    news: watch::Sender<u64>,
}

/// Where the directory is, and who must have signed it.
#[derive(Clone, PartialEq)]
struct Settings {
    config: NetworkConfig,
    /// `None`: nobody, so there is no directory.
    trust: Option<Trust>,
}

impl Settings {
    fn new(config: NetworkConfig) -> Result<Self, InvalidNetwork> {
        let trust = match config.directory_key.as_str() {
            "" => None,
            key => {
                let key = KeyId::from_fingerprint(key).ok_or(InvalidNetwork::DirectoryKey)?;
                Some(Trust::majority([key]).map_err(|_| InvalidNetwork::DirectoryKey)?)
            }
        };
        Ok(Self { config, trust })
    }

    /// Whom to ask, and whom to believe; `None` when no directory is wanted.
    fn server(&self) -> Option<(&str, &Trust)> {
        let trust = self.trust.as_ref().filter(|_| !self.config.directory.is_empty())?;
        Some((&self.config.directory, trust))
    }
}

impl Network {
    /// The network as `config` describes it; what was kept in `file` at the last run is in force at once. Without a key
    /// nobody is believed, and there is no directory.
    ///
    /// # Errors
    /// [`InvalidNetwork`].
    pub fn new(config: NetworkConfig, file: PathBuf, world: World) -> Result<Self, InvalidNetwork> {
        let settings = Settings::new(config)?;
        let kept = settings.trust.as_ref().zip(fs::read_to_string(&file).ok());
        let current = kept.and_then(|(trust, text)| Directory::parse(&text, trust, world.now()).ok()).map(Arc::new);
        let (news, settings) = (watch::Sender::new(0), watch::Sender::new(settings));
        Ok(Self(Arc::new(Inner { settings, file, world, current: RwLock::new(current), news })))
    }

    /// Goes by other settings from now on, and fetches at once if they differ. The directory in force stays in force if it
    /// is signed by whom they name.
    ///
    /// # Errors
    /// [`InvalidNetwork`]; nothing has changed then.
    pub fn apply(&self, config: &NetworkConfig) -> Result<(), InvalidNetwork> {
        let wanted = Settings::new(config.clone())?;
        let Inner { settings, world, current, news, .. } = &*self.0;
        let mut current = current.write().unwrap_or_else(PoisonError::into_inner);
        let trust = wanted.trust.clone();
        settings.send_if_modified(|settings| std::mem::replace(settings, wanted.clone()) != wanted);
        let signed = |known: &Arc<Directory>| {
            trust.as_ref().is_some_and(|trust| Directory::parse(known.text(), trust, world.now()).is_ok())
        };
        if current.as_ref().is_some_and(|known| !signed(known)) {
            *current = None;
            news.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Whether the settings say where a directory is to be had.
    pub fn is_set_up(&self) -> bool {
        self.0.settings.borrow().server().is_some()
    }

    /// The directory in force, if there is one.
    pub fn directory(&self) -> Option<Arc<Directory>> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone().filter(|directory| directory.is_valid_at(self.0.world.now()))
    }

    /// How the mixes are reached that the directory in force lists. `None`: none is in force.
    pub fn routes(&self) -> Option<HashSet<NextHop>> {
        let directory = self.directory()?;
        Some(directory.descriptors().iter().filter_map(|mix| mix.route()).map(NextHop::Host).collect())
    }

    /// Until when the directory in force is valid.
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.directory().map(|directory| directory.valid_until())
    }

    /// Looks at the settings as a start does. Without a directory server there is nothing to look at.
    ///
    /// # Errors
    /// [`InvalidNetwork`].
    pub fn check(config: &NetworkConfig) -> Result<(), InvalidNetwork> {
        KeyId::from_fingerprint(&config.directory_key).map(|_| ()).ok_or(InvalidNetwork::DirectoryKey)
    }

    /// Changes with each new directory.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    /// Fetches the directory now.
    ///
    /// # Errors
    /// [`NoDirectory`]; the old one stays. One that cannot be kept for the next start is in force all the same.
    pub async fn refresh(&self) -> Result<(), NoDirectory> {
        let Inner { settings, file, world, current, news } = &*self.0;
        let asked = settings.borrow().clone();
        let Some((url, trust)) = asked.server() else { return Ok(()) };
        let text = fetch::fetch_directory(&format!("{url}current.gz"), &FetchLimits::default()).await?;
        let fetched = Directory::parse(&text, trust, world.now())?;
        let known = self.directory();
        if known.is_some_and(|known| fetched.valid_after() < known.valid_after()) {
            return Err(NoDirectory::Older);
        }
        let fetched = Arc::new(fetched);
        {
            let mut current = current.write().unwrap_or_else(PoisonError::into_inner);
            if *settings.borrow() != asked {
                // Somebody else is to be asked by now.
                return Ok(());
            }
            *current = Some(Arc::clone(&fetched));
        }
        news.send_modify(|count| *count += 1);
        if let Err(e) = replace(file, fetched.text().as_bytes()) {
            warn!(error = %describe(&e), "the directory cannot be kept for the next start");
        }
        Ok(())
    }

    /// How long until the directory in force has ended and another is to be had: not at the same second for all.
    fn until_the_next(&self) -> Option<Duration> {
        let left = self.valid_until()?.duration_since(self.0.world.now()).ok()?;
        Some(left + Duration::from_millis(self.0.world.dice().random_range(0..SPREAD)))
    }

    /// Keeps the directory fresh until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut failing = false;
        let mut settings = self.0.settings.subscribe();
        loop {
            let (config, is_set_up) = {
                let settings = settings.borrow_and_update();
                (settings.config.clone(), settings.server().is_some())
            };
            let refreshed = tokio::select! {
                refreshed = self.refresh(), if is_set_up => refreshed,
                Ok(()) = settings.changed() => continue,
                () = stop.cancelled() => return,
            };
            let wait = match refreshed {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        info!("the directory is fresh again");
                    }
                    config.refresh
                }
                Err(e) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(error = %describe(&e), "no new directory");
                    }
                    config.retry
                }
            };
            let wait = self.until_the_next().map_or(wait, |until| wait.min(until));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = settings.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Network").field(&self.0.settings.borrow().config.directory).finish()
    }
}

/// An error with its causes, in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::spawn_blocking;
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::crypto::pk::PrivateKey;
    use crate::directory::{DirectoryFields, Status, Voter};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Noon of some day.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 19_631 * DAY + DAY / 2
    }

    /// An empty directory of the day so many days ago, valid for three.
    fn directory(key: &PrivateKey, days_ago: u32) -> String {
        let midnight = now() - DAY / 2 - days_ago * DAY;
        let fields = DirectoryFields {
            status: Status::Consensus,
            valid_after: midnight,
            valid_until: midnight + 3 * DAY,
            recommended: std::collections::BTreeSet::new(),
            voters: vec![Voter { key_id: key.public_key().key_id(), url: "http://dir.example/".to_owned() }],
            client_versions: Vec::new(),
            server_versions: Vec::new(),
            descriptors: Vec::new(),
        };
        fields.sign(key, &mut World::real().dice()).unwrap()
    }

    /// A server that gives these answers, one after the other.
    async fn server(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
                stream.write_all((head + &answer).as_bytes()).await.unwrap();
                let _ = stream.shutdown().await;
            }
        });
        url
    }

    fn network(url: String, key: &PrivateKey, file: PathBuf) -> Network {
        let directory_key = key.public_key().key_id().to_string();
        let config = NetworkConfig { directory: url, directory_key, ..NetworkConfig::default() };
        Network::new(config, file, World::new(now, || World::real().dice())).unwrap()
    }

    #[tokio::test]
    async fn older_directory_than_the_one_in_use_is_refused_also_after_a_restart() {
        let key = PrivateKey::generate(2048, &mut World::real().dice()).unwrap();
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("directory");
        let url = server(vec![directory(&key, 1), directory(&key, 2), directory(&key, 2), directory(&key, 0)]).await;
        let first = network(url.clone(), &key, file.clone());
        first.refresh().await.unwrap();
        assert!(matches!(first.refresh().await, Err(NoDirectory::Older)));
        let again = network(url, &key, file);
        assert_eq!(
            again.directory().unwrap().valid_after(),
            now() - DAY / 2 - DAY,
            "what was kept is in force at once"
        );
        assert!(matches!(again.refresh().await, Err(NoDirectory::Older)));
        again.refresh().await.unwrap();
        assert_eq!(again.directory().unwrap().valid_after(), now() - DAY / 2);
    }

    #[tokio::test]
    async fn directory_of_a_stranger_is_refused_and_the_old_one_stays() {
        let mut dice = World::real().dice();
        let [key, stranger] = [(); 2].map(|()| PrivateKey::generate(2048, &mut dice).unwrap());
        let home = tempfile::tempdir().unwrap();
        let url = server(vec![directory(&key, 1), directory(&stranger, 0)]).await;
        let network = network(url, &key, home.path().join("directory"));
        network.refresh().await.unwrap();
        let refused = network.refresh().await;
        assert!(matches!(refused, Err(NoDirectory::Invalid(_))), "{refused:?}");
        assert!(network.directory().is_some());
    }

    #[tokio::test]
    async fn directory_that_cannot_be_kept_is_in_force_all_the_same() {
        let key = PrivateKey::generate(2048, &mut World::real().dice()).unwrap();
        let home = tempfile::tempdir().unwrap();
        let url = server(vec![directory(&key, 0)]).await;
        let network = network(url, &key, home.path().join("no such folder").join("directory"));
        network.refresh().await.unwrap();
        assert!(network.directory().is_some());
        assert_eq!(*network.news().borrow(), 1);
    }

    #[tokio::test]
    async fn directory_is_kept_for_the_owner_alone() {
        let key = PrivateKey::generate(2048, &mut World::real().dice()).unwrap();
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("directory");
        fs::write(&file, "as it was left by an earlier version").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let url = server(vec![directory(&key, 0)]).await;
        let network = network(url, &key, file.clone());
        network.refresh().await.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&file).unwrap(), network.directory().unwrap().text());
    }

    #[tokio::test]
    async fn directory_of_others_is_believed_when_the_settings_say_so_and_forgotten_when_they_do_not() {
        let [key, other] = [(); 2].map(|()| PrivateKey::generate(2048, &mut World::real().dice()).unwrap());
        let home = tempfile::tempdir().unwrap();
        let url = server(vec![directory(&key, 0), directory(&other, 0)]).await;
        let world = World::new(now, || World::real().dice());
        let network = Network::new(NetworkConfig::default(), home.path().join("directory"), world).unwrap();
        assert!(!network.is_set_up());
        network.refresh().await.unwrap();
        assert!(network.directory().is_none(), "nobody is asked");
        let by = |key: &PrivateKey| {
            let directory_key = key.public_key().key_id().to_string();
            NetworkConfig { directory: url.clone(), directory_key, ..NetworkConfig::default() }
        };
        let (stop, mut news) = (CancellationToken::new(), network.news());
        let running = tokio::spawn(network.clone().run(stop.clone()));
        network.apply(&by(&key)).unwrap();
        news.changed().await.unwrap();
        assert!(network.directory().is_some());
        let refused = network.apply(&NetworkConfig { directory_key: "0".repeat(39), ..by(&key) });
        assert_eq!(refused, Err(InvalidNetwork::DirectoryKey));
        network.apply(&NetworkConfig { refresh: Duration::from_secs(7200), ..by(&key) }).unwrap();
        assert!(network.directory().is_some(), "it is signed by the same");
        network.apply(&by(&other)).unwrap();
        assert!(network.directory().is_none(), "it is not signed by who counts now");
        news.borrow_and_update();
        news.changed().await.unwrap();
        assert!(network.directory().is_some());
        stop.cancel();
        running.await.unwrap();
    }

    /// Waits until something is so, by a clock that is not paused, and while no time passes on the one that is.
    async fn until(what: &str, is_so: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(25), "never: {what}");
            spawn_blocking(|| std::thread::sleep(Duration::from_millis(2))).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn directory_that_ends_is_followed_by_the_next_within_a_minute_and_not_at_the_next_refresh() {
        // As in node/adversity: time stands still while a blocking task runs, but for what is let pass.
        let (still, dropped) = std::sync::mpsc::channel::<()>();
        drop(spawn_blocking(move || dropped.recv()));
        let key = PrivateKey::generate(2048, &mut World::real().dice()).unwrap();
        let home = tempfile::tempdir().unwrap();
        // Of the day before yesterday, so that the first ends at the next midnight.
        let url = server(vec![directory(&key, 2), directory(&key, 2), directory(&key, 0)]).await;
        let directory_key = key.public_key().key_id().to_string();
        let refresh = Duration::from_secs(7 * 3600);
        let config = NetworkConfig { directory: url, directory_key, refresh, ..NetworkConfig::default() };
        let began = Instant::now();
        let world = World::new(move || now() + began.elapsed(), || World::real().dice());
        let network = Network::new(config, home.path().join("directory"), world).unwrap();
        let (mut news, stop) = (network.news(), CancellationToken::new());
        let running = tokio::spawn(network.clone().run(stop.clone()));
        for hours in [7, 5] {
            until("a directory", || news.has_changed().unwrap()).await;
            news.borrow_and_update();
            advance(Duration::from_secs(hours * 3600)).await;
        }
        assert!(network.directory().is_none(), "it is midnight");
        advance(Duration::from_secs(60)).await;
        until("the next", || network.directory().is_some()).await;
        assert!(began.elapsed() < Duration::from_secs(13 * 3600));
        stop.cancel();
        running.await.unwrap();
        drop(still);
    }
}
