//! The service that makes packet keys ahead of time, puts them into use, and erases them, while the node runs (dir-spec 6).
//!
//! A key opens packets from its Valid-After on, as in the reference, until it is erased: when Valid-Until and the overlap
//! are past. A key that has begun is not put away when the clock goes back. What happens to the files is `keys`', what is
//! said about them `describe`'s.
//!
//! The way out of a key: the workers lose it; when none has it in hand any more, its file is erased; then what is
//! remembered of its packets. Each step rests on the one before: while anybody could open packets with it, they are
//! remembered. What a crash leaves of the last step is taken up at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::clock::{CLOCK_MARGIN, Steadiness, World};
use super::config::NodeConfig;
use super::describe::{self, Descriptors};
use super::durable;
use super::exit::Standing;
use super::incoming::PacketKeys;
use super::keys::{DatedKey, KeyPlan, Keyring};
use super::network::{Network, describe as in_one_line};
use super::start::{NO_DUMMIES, NodeError};
use crate::crypto::Digest;
use crate::crypto::pk::PacketKey;
use crate::store::replay::ReplayLog;
use crate::store::{Db, StoreError};

/// The longest time between two looks at the clock: it may be set at any moment.
const CHECK: Duration = Duration::from_secs(60);
/// How often to look whether the workers have let go of a key. A batch takes a fraction of a second.
const LETTING_GO: Duration = Duration::from_millis(20);
/// How long one look waits for that. A worker that cannot write has its key until the disk is mended, and all else of keys and
/// descriptors goes on meanwhile.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);
/// Packets forgotten in one step.
const FORGOTTEN_AT_ONCE: usize = 4096;
/// The keyring, shared with whoever checks new settings.
pub(super) type SharedKeyring = Arc<Mutex<Keyring>>;

/// A lock whose last holder panicked is as good as any: what is on disk is whole, and the keyring changes last.
pub(super) fn held(keyring: &SharedKeyring) -> MutexGuard<'_, Keyring> {
    keyring.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long no directory may be in force before others are told what follows. The first one takes its time, and so does
/// that of a new day.
const BLIND: Duration = Duration::from_secs(3600);
/// Wishes that wait.
const WISHES: usize = 8;
/// The longest time that a descriptor waits for its own time: that counts in seconds.
const SECOND: Duration = Duration::from_secs(1);

/// What an operator may want done at once, and who waits for it.
pub(super) enum Wish {
    /// What follows from the settings in force.
    Look(oneshot::Sender<Result<(), NodeError>>),
    /// Other keys in place of those that have not begun.
    DiscardAhead(oneshot::Sender<Result<Discarded, NodeError>>),
}

/// What became of the keys that had not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// The days of those that are gone: first, and the midnight that ends the last.
    pub gone: Vec<(SystemTime, SystemTime)>,
    /// The days of those that are there ahead now.
    pub made: Vec<(SystemTime, SystemTime)>,
}

/// The service.
pub(super) struct Rotation {
    pub(super) keyring: SharedKeyring,
    /// What the workers open packets with.
    pub(super) live: PacketKeys,
    pub(super) replay: ReplayLog,
    pub(super) db: Db,
    /// The settings in force.
    pub(super) config: watch::Receiver<Arc<NodeConfig>>,
    /// Where the node listens.
    pub(super) port: u16,
    /// What the node says of itself.
    pub(super) descriptors: watch::Sender<Arc<Descriptors>>,
    pub(super) world: World,
    pub(super) stop: CancellationToken,
    /// Takes wishes.
    pub(super) wishes: mpsc::Sender<Wish>,
    wished: mpsc::Receiver<Wish>,
    directory: Option<Network>,
    /// Whether e-mail can be delivered, and so whether others are told that it is.
    standing: watch::Receiver<Standing>,
    state: State,
}

/// What the service knows beside what it was given.
struct State {
    clock: Steadiness,
    /// Keys that have been in use.
    begun: BTreeSet<Digest>,
    /// Keys that the workers get no more, and may have in hand still.
    leaving: BTreeMap<Digest, Weak<PacketKey>>,
    /// Keys that are gone, of which packets are remembered.
    to_forget: Vec<Digest>,
    /// What the descriptors were made of.
    said: Option<Said>,
    /// Since when no directory has been in force.
    blind_since: Option<Instant>,
}

/// What descriptors are made of: while it stays the same, so do they.
#[derive(PartialEq)]
struct Said {
    config: Arc<NodeConfig>,
    /// Each key, and whether it has begun and expired.
    keys: Vec<(Digest, bool, bool)>,
}

/// What a service of keys is made of.
pub(super) struct Office {
    pub(super) keyring: Keyring,
    pub(super) replay: ReplayLog,
    pub(super) db: Db,
    pub(super) config: watch::Receiver<Arc<NodeConfig>>,
    pub(super) port: u16,
    pub(super) world: World,
    pub(super) stop: CancellationToken,
    /// Who the mixes are; a node without it does not know that it could.
    pub(super) directory: Option<Network>,
    /// Whether e-mail can be delivered.
    pub(super) standing: watch::Receiver<Standing>,
}

impl Rotation {
    /// Makes the keys that are missing, and the descriptors; nothing is erased yet.
    ///
    /// # Errors
    /// [`NodeError`].
    pub(super) fn start(office: Office) -> Result<Self, NodeError> {
        let Office { mut keyring, replay, db, config, port, world, stop, directory, standing } = office;
        let now = world.now();
        let settings = Arc::clone(&config.borrow());
        keyring.make_ahead(&KeyPlan::new(&settings.keys)?, now, &mut world.dice())?;
        let stated = standing.borrow().states(settings);
        let descriptors = describe::describe(&stated, port, &keyring, now, &mut world.dice())?;
        let known: BTreeSet<_> = keyring.packet_keys().iter().map(|key| key.id()).collect();
        let to_forget = replay.packet_keys()?.into_iter().filter(|key| !known.contains(key)).collect();
        let mut state = State {
            clock: Steadiness::new(now),
            begun: BTreeSet::new(),
            leaving: BTreeMap::new(),
            to_forget,
            said: None,
            blind_since: None,
        };
        let live = loaded(&in_use(&keyring, &mut state.begun, now), &[])?;
        let (wishes, wished) = mpsc::channel(WISHES);
        Ok(Self {
            keyring: Arc::new(Mutex::new(keyring)),
            live: Arc::new(tokio::sync::RwLock::new(live)),
            replay,
            db,
            config,
            port,
            descriptors: watch::channel(Arc::new(descriptors)).0,
            world,
            stop,
            wishes,
            wished,
            directory,
            standing,
            state,
        })
    }

    /// Looks after the keys until stopped.
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        let mut failing = false;
        let mut wish = None;
        loop {
            match stop.run_until_cancelled(self.look_for(wish.take())).await {
                None => return,
                Some(Ok(())) => failing = false,
                Some(Err(e)) => {
                    if !std::mem::replace(&mut failing, true) {
                        error!(error = %e, "the keys cannot be looked after; trying again");
                    }
                }
            }
            tokio::select! {
                () = sleep(self.until_next()) => {}
                changed = self.config.changed() => if changed.is_err() { return },
                Ok(()) = self.standing.changed() => {}
                Some(wished) = self.wished.recv() => wish = Some(wished),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks, and tells who wished it what came of it.
    ///
    /// # Errors
    /// In words: the error itself is whose wish it was.
    async fn look_for(&mut self, wish: Option<Wish>) -> Result<(), String> {
        match wish {
            None => self.look().await.map_err(|e| in_one_line(&e)),
            Some(Wish::Look(answer)) => tell(answer, self.look().await),
            Some(Wish::DiscardAhead(answer)) => tell(answer, self.discard_ahead().await),
        }
    }

    /// Erases the keys that have not begun, their descriptors with them, and makes others by the settings in force. What
    /// opens packets, or has, stays.
    async fn discard_ahead(&mut self) -> Result<Discarded, NodeError> {
        let now = self.world.now();
        let begun = self.state.begun.clone();
        let gone = self.in_office(move |keyring| keyring.discard_ahead(now, &begun)).await??;
        if !gone.is_empty() {
            info!(keys = gone.len(), "packet keys that had not begun are discarded, with their descriptors");
        }
        self.look().await?;
        let keys = held(&self.keyring).packet_keys().to_vec();
        let ahead = keys.iter().filter(|key| key.valid_after > now);
        Ok(Discarded { gone, made: ahead.map(|key| (key.valid_after, key.valid_until)).collect() })
    }

    /// Does all that is to be done at this time.
    ///
    /// # Errors
    /// What could not be done; the rest is. It is tried again at the next look.
    pub(super) async fn look(&mut self) -> Result<(), NodeError> {
        let now = self.world.now();
        let steady = self.state.clock.look(now);
        let config = Arc::clone(&self.config.borrow_and_update());
        let plan = KeyPlan::new(&config.keys)?;
        let made = self.make_ahead(plan, now).await;
        self.put_into_use(now).await?;
        let erased = self.erase(plan, now, steady).await;
        let forgotten = self.forget().await;
        let config = self.standing.borrow_and_update().states(config);
        let config = self.with_what_is_missing(config);
        let described = self.describe(config, now).await;
        made.and(erased).and(forgotten).and(described)
    }

    /// The settings, and that they send no dummies, where no directory has told for an hour of mixes to send them through.
    fn with_what_is_missing(&mut self, config: Arc<NodeConfig>) -> Arc<NodeConfig> {
        match &self.directory {
            Some(network) if network.directory().is_none() => {
                let since = *self.state.blind_since.get_or_insert_with(Instant::now);
                if since.elapsed() < BLIND || !config.dummies.enabled || config.elsewhere.contains(&NO_DUMMIES) {
                    return config;
                }
                let mut config = NodeConfig::clone(&config);
                config.elsewhere.push(NO_DUMMIES);
                Arc::new(config)
            }
            _ => {
                self.state.blind_since = None;
                config
            }
        }
    }

    async fn make_ahead(&self, plan: KeyPlan, now: SystemTime) -> Result<(), NodeError> {
        let world = self.world.clone();
        let made = self.in_office(move |keyring| keyring.make_ahead(&plan, now, &mut world.dice())).await??;
        if made > 0 {
            info!(keys = made, "packet keys made ahead");
        }
        Ok(())
    }

    /// Lets the workers have what opens packets now.
    async fn put_into_use(&mut self, now: SystemTime) -> Result<(), NodeError> {
        let mut keys = in_use(&held(&self.keyring), &mut self.state.begun, now);
        keys.retain(|key| !self.state.leaving.contains_key(&key.id()));
        let current = self.live.read().await.clone();
        if ids(&current) != keys.iter().map(|key| key.id()).collect::<Vec<_>>() {
            let keys = loaded(&keys, &current)?;
            drop(current);
            *self.live.write().await = keys;
            info!("another packet key is in use");
        }
        Ok(())
    }

    async fn erase(&mut self, plan: KeyPlan, now: SystemTime, steady: bool) -> Result<(), NodeError> {
        let over = |key: &&Arc<DatedKey>| plan.is_over(key, now, steady);
        let over: Vec<Digest> = held(&self.keyring).packet_keys().iter().filter(over).map(|key| key.id()).collect();
        // Where the clock went back in the meantime, a key may be wanted again.
        self.state.leaving.retain(|id, _| over.contains(id));
        let (until, mut erased) = (Instant::now() + LET_GO_WITHIN, Ok(()));
        for id in over {
            if !self.take_from_workers(id, until).await {
                erased = Err(NodeError::KeyInHand);
                continue;
            }
            self.in_office(move |keyring| keyring.erase(&id)).await??;
            self.state.leaving.remove(&id);
            self.state.begun.remove(&id);
            self.state.to_forget.push(id);
            info!("a packet key whose time was over is erased");
        }
        erased
    }

    /// Whether, by then at the latest, no worker has the key any more: what it was opening is written, its replay entries
    /// too. It gets it no more in any case.
    async fn take_from_workers(&mut self, id: Digest, until: Instant) -> bool {
        let mut live = self.live.write().await;
        // Only what the workers hold keeps it alive from here on.
        for key in live.extract_if(.., |key| key.id() == id) {
            self.state.leaving.insert(id, Arc::downgrade(&key));
        }
        drop(live);
        while self.state.leaving.get(&id).is_some_and(|key| key.strong_count() > 0) {
            if Instant::now() >= until {
                return false;
            }
            sleep(LETTING_GO).await;
        }
        true
    }

    async fn forget(&mut self) -> Result<(), NodeError> {
        while let Some(&id) = self.state.to_forget.last() {
            let log = self.replay.clone();
            // Where it may wait: a run is overwritten whole.
            let step = spawn_blocking(move || log.forget_some(&id, FORGOTTEN_AT_ONCE));
            if !step.await.unwrap_or(Err(StoreError::Closed))? {
                self.state.to_forget.pop();
                durable::wipe(&self.db).await;
            }
        }
        Ok(())
    }

    async fn describe(&mut self, config: Arc<NodeConfig>, now: SystemTime) -> Result<(), NodeError> {
        let state = |key: &Arc<DatedKey>| (key.id(), key.valid_after <= now, key.valid_until <= now);
        let keys = held(&self.keyring).packet_keys().iter().map(state).collect();
        let said = Said { config: Arc::clone(&config), keys };
        let ahead = |stated: &describe::Stated| stated.descriptor.check_published(now).is_err();
        if self.state.said.as_ref() == Some(&said) && !self.descriptors.borrow().all.iter().any(ahead) {
            return Ok(());
        }
        let (world, port) = (self.world.clone(), self.port);
        let described =
            self.in_office(move |keyring| describe::describe(&config, port, keyring, now, &mut world.dice())).await??;
        // Nobody is told before the time that it states.
        let newest = described.all.iter().map(|stated| stated.descriptor.published()).max().unwrap_or(now);
        sleep(newest.duration_since(self.world.now()).unwrap_or_default().min(SECOND)).await;
        self.descriptors.send_if_modified(|known| {
            let news = **known != described;
            if news {
                *known = Arc::new(described);
            }
            news
        });
        self.state.said = Some(said);
        Ok(())
    }

    /// Works with the keyring where it may wait for the disk and for RSA.
    async fn in_office<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Keyring) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let keyring = Arc::clone(&self.keyring);
        let done = spawn_blocking(move || work(&mut held(&keyring))).await;
        // Only when the process ends, or the work panicked.
        done.map_err(|_| NodeError::Store(StoreError::Closed))
    }

    /// How long until something is to be done: exactly, since clients use a new key from its first second on.
    fn until_next(&self) -> Duration {
        let now = self.world.now();
        let plan = KeyPlan::new(&self.config.borrow().keys).ok();
        let keyring = held(&self.keyring);
        let times = keyring.packet_keys().iter().flat_map(|key| {
            let ends = plan.map(|plan| plan.opens_until(key));
            [Some(key.valid_after), ends, ends.map(|ends| ends + CLOCK_MARGIN)]
        });
        let until = times.flatten().filter_map(|time| time.duration_since(now).ok()).filter(|until| !until.is_zero());
        until.min().unwrap_or(CHECK).min(CHECK)
    }
}

fn tell<T>(answer: oneshot::Sender<Result<T, NodeError>>, done: Result<T, NodeError>) -> Result<(), String> {
    let said = done.as_ref().map(|_| ()).map_err(|e| in_one_line(e));
    // Whoever wished it may be gone.
    let _ = answer.send(done);
    said
}

/// The keys that open packets: those that have begun. The newest first, since most packets are for that.
fn in_use(keyring: &Keyring, begun: &mut BTreeSet<Digest>, now: SystemTime) -> Vec<Arc<DatedKey>> {
    begun.extend(keyring.packet_keys().iter().filter(|key| key.valid_after <= now).map(|key| key.id()));
    keyring.packet_keys().iter().rev().filter(|key| begun.contains(&key.id())).cloned().collect()
}

fn ids(keys: &[Arc<PacketKey>]) -> Vec<Digest> {
    keys.iter().map(|key| key.id()).collect()
}

/// Loads what is not loaded yet.
fn loaded(keys: &[Arc<DatedKey>], before: &[Arc<PacketKey>]) -> Result<Vec<Arc<PacketKey>>, NodeError> {
    let load = |dated: &Arc<DatedKey>| {
        let id = dated.id();
        let known = before.iter().find(|key| key.id() == id).map(Arc::clone);
        known.map_or_else(|| PacketKey::new(&dated.key).map(Arc::new).map_err(NodeError::from), Ok)
    };
    keys.iter().map(load).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::time::advance;

    use super::*;
    use crate::crypto::pk::{PACKET_KEY_LEN, PublicKey};
    use crate::node::config::{KeysConfig, NetworkConfig};
    use crate::store::NODE_SCHEMAS;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn day(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY + days * DAY
    }

    /// A node without its network, whose clock is set by the test.
    struct Mix {
        home: tempfile::TempDir,
        clock: Arc<Mutex<SystemTime>>,
        rotation: Rotation,
    }

    fn office(home: &tempfile::TempDir, world: World) -> (Office, watch::Sender<Arc<NodeConfig>>) {
        let plan = KeyPlan::new(&KeysConfig::default()).unwrap();
        let keyring = Keyring::open(&home.path().join("keys"), &plan, None, &mut world.dice()).unwrap();
        let db = Db::open(&home.path().join("node.db"), &NODE_SCHEMAS).unwrap();
        // So that some of what is to be forgotten lies in runs.
        crate::store::replay::testing::flush_beyond(db.path(), 1);
        let replay = ReplayLog::open(&db).unwrap();
        let config = NodeConfig { nickname: "Alice".into(), home: home.path().into(), ..NodeConfig::default() };
        let (settings, config) = watch::channel(Arc::new(config));
        let stop = CancellationToken::new();
        let standing = watch::channel(Standing::default()).1;
        (Office { keyring, replay, db, config, port: 48099, world, stop, directory: None, standing }, settings)
    }

    fn started(home: tempfile::TempDir, now: SystemTime) -> Mix {
        let clock = Arc::new(Mutex::new(now));
        let shown = Arc::clone(&clock);
        let real = World::real();
        let world = World::new(move || *shown.lock().unwrap(), move || real.dice());
        let rotation = Rotation::start(office(&home, world).0).unwrap();
        Mix { home, clock, rotation }
    }

    fn private() -> tempfile::TempDir {
        let permissions = fs::Permissions::from_mode(0o700);
        tempfile::Builder::new().permissions(permissions).tempdir().unwrap()
    }

    impl Mix {
        fn now(&self) -> SystemTime {
            *self.clock.lock().unwrap()
        }

        /// Lets time pass, on the clock and on the wall.
        async fn pass(&self, time: Duration) {
            *self.clock.lock().unwrap() += time;
            advance(time).await;
        }

        async fn live(&self) -> Vec<Arc<PacketKey>> {
            self.rotation.live.read().await.clone()
        }

        fn keys(&self) -> Vec<Arc<DatedKey>> {
            held(&self.rotation.keyring).packet_keys().to_vec()
        }

        /// A packet that came under this key.
        fn remember(&self, key: &Digest, packet: u32) {
            let (key, hash) = (*key, crate::crypto::sha1(&[&packet.to_be_bytes()]));
            let log = self.rotation.replay.clone();
            self.rotation.db.write(move |tx| log.remember(tx, &key, &hash)).unwrap();
            self.rotation.replay.tidy_up().unwrap();
        }

        fn remembered(&self, key: &Digest) -> u64 {
            self.rotation.replay.count(key).unwrap()
        }

        /// The program ends here and starts again.
        fn restarted(self) -> Self {
            let Self { home, rotation, .. } = self;
            let now = rotation.world.now();
            rotation.replay.close();
            rotation.db.close();
            started(home, now)
        }

        fn in_home(&self) -> String {
            fs::read_to_string(self.home.path().join("descriptor")).unwrap()
        }
    }

    fn opens(key: &PacketKey, public: &PublicKey) -> bool {
        let block = public.encrypt(b"subheader", &mut rand::rng()).unwrap();
        let block: [u8; PACKET_KEY_LEN] = block.try_into().unwrap();
        key.decrypt(&block).is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn in_sixty_days_at_each_hour_exactly_the_right_keys_open_packets() {
        let mut mix = started(private(), day(0) + DAY / 2);
        let mut seen: BTreeMap<SystemTime, Arc<DatedKey>> = BTreeMap::new();
        let mut last = Vec::new();
        for hour in 0..60 * 24 {
            mix.rotation.look().await.unwrap();
            let now = mix.now();
            for key in mix.keys() {
                seen.entry(key.valid_after).or_insert(key);
            }
            let right = |key: &&Arc<DatedKey>| key.valid_after <= now && now < key.valid_until + DAY;
            let right: Vec<_> = seen.values().rev().filter(right).map(|key| key.id()).collect();
            let live = mix.live().await;
            assert_eq!(ids(&live), right, "hour {hour}");
            if last != right {
                for dated in seen.values() {
                    let opened = live.iter().any(|key| opens(key, &dated.key.public_key()));
                    assert_eq!(opened, right.contains(&dated.id()), "hour {hour}");
                }
            }
            // Two weeks ahead all is made and said.
            let descriptors = Arc::clone(&mix.rotation.descriptors.borrow());
            assert!(descriptors.all.iter().any(|stated| stated.descriptor.is_valid_at(now + 14 * DAY)), "hour {hour}");
            let newest = descriptors.all.iter().rfind(|stated| stated.descriptor.is_valid_at(now)).unwrap();
            assert_eq!(descriptors.current, newest.descriptor, "hour {hour}");
            assert!(
                descriptors.current.is_valid_during(now, now + 14 * DAY),
                "reply blocks live for a week, hour {hour}"
            );
            assert_eq!(mix.in_home(), descriptors.current.text(), "hour {hour}");
            for key in &right {
                mix.remember(key, hour);
            }
            last = right;
            mix.pass(HOUR).await;
        }
        let begins: Vec<_> =
            seen.keys().map(|begins| begins.duration_since(day(0)).unwrap().as_secs() / 86_400).collect();
        assert_eq!(begins, [0, 15, 30, 45, 60]);
        let there: Vec<_> = mix.keys().iter().map(|key| key.id()).collect();
        for dated in seen.values() {
            let (erased, file) = (!there.contains(&dated.id()), dated.descriptor_file());
            assert_eq!(file.exists(), !erased);
            assert_eq!(file.with_extension("key").exists(), !erased);
            assert!(!erased || mix.remembered(&dated.id()) == 0);
        }
        assert_eq!(seen.len() - there.len(), 2, "the first two are over");
    }

    #[tokio::test(start_paused = true)]
    async fn clock_that_jumps_two_days_ahead_and_back_costs_no_key() {
        let mut mix = started(private(), day(0));
        for _ in 0..29 {
            mix.pass(DAY).await;
            mix.rotation.look().await.unwrap();
        }
        let before = ids(&mix.live().await);
        let first = mix.keys()[0].id();
        mix.remember(&first, 1);
        *mix.clock.lock().unwrap() += 2 * DAY;
        for _ in 0..12 {
            mix.rotation.look().await.unwrap();
            assert!(ids(&mix.live().await).contains(&first), "it still opens packets");
            mix.pass(HOUR).await;
        }
        *mix.clock.lock().unwrap() -= 2 * DAY;
        mix.rotation.look().await.unwrap();
        assert!(before.iter().all(|key| mix.keys().iter().any(|there| there.id() == *key)));
        assert_eq!(mix.remembered(&first), 1);
        // And when the clock has been steady for a day, the key goes in time.
        mix.pass(DAY + DAY / 2 - HOUR).await;
        mix.rotation.look().await.unwrap();
        assert!(mix.keys().iter().any(|key| key.id() == first));
        mix.pass(HOUR).await;
        mix.rotation.look().await.unwrap();
        assert!(mix.keys().iter().all(|key| key.id() != first));
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_cannot_write_keeps_its_key_and_holds_up_nothing_else() {
        let mut mix = started(private(), day(0) + DAY / 2);
        mix.rotation.look().await.unwrap();
        let first = mix.keys()[0].id();
        mix.remember(&first, 1);
        let in_hand: Vec<_> = mix.live().await.into_iter().filter(|key| key.id() == first).collect();
        for _ in 0..32 {
            mix.pass(DAY).await;
            let began = Instant::now();
            let outcome = mix.rotation.look().await;
            assert!(began.elapsed() <= 2 * LET_GO_WITHIN);
            if let Err(why) = outcome {
                assert!(matches!(why, NodeError::KeyInHand), "{why}");
                assert!(!ids(&mix.live().await).contains(&first), "no other packet is opened with it");
            }
        }
        assert!(matches!(mix.rotation.look().await, Err(NodeError::KeyInHand)), "its time is over");
        assert!(mix.keys().iter().any(|key| key.id() == first) && mix.remembered(&first) == 1);
        let now = mix.now();
        assert!(mix.rotation.descriptors.borrow().current.is_valid_at(now), "others are told of the next key");
        drop(in_hand);
        mix.rotation.look().await.unwrap();
        assert!(mix.keys().iter().all(|key| key.id() != first) && mix.remembered(&first) == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn clock_that_jumps_two_days_back_puts_no_key_away_and_leaves_none_missing() {
        let mut mix = started(private(), day(1));
        mix.pass(15 * DAY + HOUR).await;
        mix.rotation.look().await.unwrap();
        let both = ids(&mix.live().await);
        assert_eq!(both.len(), 2, "the second has begun");
        *mix.clock.lock().unwrap() -= 2 * DAY;
        mix.rotation.look().await.unwrap();
        assert_eq!(ids(&mix.live().await), both);
        let current = Arc::clone(&mix.rotation.descriptors.borrow().current);
        assert!(current.is_valid_at(mix.now()) && current.check_published(mix.now()).is_ok());
        // On the first day of a node.
        let mut young = started(private(), day(0));
        young.rotation.look().await.unwrap();
        *young.clock.lock().unwrap() -= 2 * DAY;
        young.rotation.look().await.unwrap();
        assert_eq!(young.live().await.len(), 2);
        assert!(young.rotation.descriptors.borrow().current.is_valid_at(young.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn key_goes_only_when_no_worker_has_it_in_hand_and_its_packets_are_forgotten_after() {
        let mut mix = started(private(), day(0));
        mix.pass(33 * DAY).await;
        let first = mix.keys()[0].clone();
        mix.remember(&first.id(), 1);
        let in_hand = mix.live().await;
        let file = first.descriptor_file().with_extension("key");
        let mut look = Box::pin(mix.rotation.look());
        // The look waits as long as a worker has the key in hand.
        assert!(tokio::time::timeout(LET_GO_WITHIN / 2, &mut look).await.is_err());
        assert!(file.exists());
        drop(in_hand);
        look.await.unwrap();
        assert!(!file.exists());
        assert_eq!(mix.remembered(&first.id()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn kill_between_key_and_replay_entries_leaves_what_the_next_start_clears() {
        let mut mix = started(private(), day(0));
        mix.pass(20 * DAY).await;
        mix.rotation.look().await.unwrap();
        let keys = mix.keys();
        let [first, second, ..] = &keys[..] else { panic!("two keys") };
        (0..3).for_each(|packet| mix.remember(&first.id(), packet));
        mix.remember(&second.id(), 1);
        // Before the first step: all is as it was.
        let mix = mix.restarted();
        assert_eq!((mix.remembered(&first.id()), mix.keys()[0].id()), (3, first.id()));
        // After the first step.
        held(&mix.rotation.keyring).erase(&first.id()).unwrap();
        let mut mix = mix.restarted();
        assert!(mix.live().await.iter().all(|key| key.id() != first.id()), "nobody opens packets with it");
        assert_eq!(mix.remembered(&first.id()), 3);
        mix.rotation.look().await.unwrap();
        assert_eq!((mix.remembered(&first.id()), mix.remembered(&second.id())), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn service_puts_a_key_into_use_in_the_first_second_of_its_time() {
        let home = private();
        let (start, real) = (Instant::now(), World::real());
        let world = World::new(move || day(0) + DAY / 3 + start.elapsed(), move || real.dice());
        let (office, settings) = office(&home, world.clone());
        let stop = office.stop.clone();
        let rotation = Rotation::start(office).unwrap();
        let (live, mut descriptors) = (Arc::clone(&rotation.live), rotation.descriptors.subscribe());
        let service = tokio::spawn(rotation.run());
        // Two weeks before, it is there and not in use.
        descriptors.changed().await.unwrap();
        let second = descriptors.borrow_and_update().all[1].descriptor.clone();
        assert_eq!(second.valid_after(), day(15));
        let id = Digest(second.packet_key().key_id().0);
        assert!(world.now() < day(1) + 2 * CHECK);
        assert_eq!(live.read().await.len(), 1);
        sleep(day(15).duration_since(world.now()).unwrap() + Duration::from_secs(1)).await;
        assert_eq!(ids(&live.read().await).first(), Some(&id), "the newest first");
        // Settings that change are stated at once.
        let changed = NodeConfig { contact: "alice@example.org".into(), ..NodeConfig::clone(&settings.borrow()) };
        descriptors.borrow_and_update();
        settings.send_replace(Arc::new(changed));
        descriptors.changed().await.unwrap();
        assert!(descriptors.borrow().current.text().contains("Contact: alice@example.org"));
        stop.cancel();
        service.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_within_a_second_are_all_stated_and_none_is_from_the_future() {
        let home = private();
        let (start, real) = (Instant::now(), World::real());
        let world = World::new(move || day(1) + start.elapsed(), move || real.dice());
        let (office, settings) = office(&home, world.clone());
        let mut rotation = Rotation::start(office).unwrap();
        let mut descriptors = rotation.descriptors.subscribe();
        let mut last = Arc::clone(&descriptors.borrow_and_update().current);
        for change in 0..15 {
            let changed =
                NodeConfig { contact: format!("alice{change}@example.org"), ..NodeConfig::clone(&settings.borrow()) };
            settings.send_replace(Arc::new(changed));
            rotation.look().await.unwrap();
            let next = Arc::clone(&descriptors.borrow_and_update().current);
            assert!(next.text().contains(&format!("Contact: alice{change}@")), "{}", next.text());
            assert!(next.published() > last.published(), "the newer replaces the older");
            let ahead = next.published().duration_since(world.now()).unwrap_or_default();
            assert_eq!(ahead, Duration::ZERO, "change {change}");
            last = next;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn node_that_has_had_no_directory_for_an_hour_says_that_it_sends_no_dummies() {
        let home = private();
        let (start, real) = (Instant::now(), World::real());
        let world = World::new(move || day(1) + start.elapsed(), move || real.dice());
        let (mut office, _settings) = office(&home, world.clone());
        let network = NetworkConfig { directory_key: "7".repeat(40), ..NetworkConfig::default() };
        office.directory = Some(Network::new(network, home.path().join("directory"), world).unwrap());
        let mut rotation = Rotation::start(office).unwrap();
        let insecure = |rotation: &Rotation| rotation.descriptors.borrow().current.why_insecure().map(str::to_owned);
        for _ in 0..2 {
            rotation.look().await.unwrap();
            assert_eq!(insecure(&rotation), None, "it may come yet");
            advance(HOUR / 2).await;
        }
        rotation.look().await.unwrap();
        assert_eq!(insecure(&rotation).as_deref(), Some("Dummies are not sent"));
        // With a directory that comes, all is as before.
        rotation.directory = None;
        rotation.look().await.unwrap();
        assert_eq!(insecure(&rotation), None);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_have_not_begun_are_discarded_and_others_made_by_the_plan_in_force() {
        let home = private();
        let (start, real) = (Instant::now(), World::real());
        let world = World::new(move || day(1) + start.elapsed(), move || real.dice());
        let (mut office, _) = office(&home, world.clone());
        let with = |lifetime| {
            let keys = KeysConfig { lifetime: lifetime * DAY, ..KeysConfig::default() };
            Arc::new(NodeConfig { nickname: "Alice".into(), home: home.path().into(), keys, ..NodeConfig::default() })
        };
        let (settings, in_force) = watch::channel(with(4));
        office.config = in_force;
        let mut rotation = Rotation::start(office).unwrap();
        let begins = |rotation: &Rotation| {
            let keys = held(&rotation.keyring).packet_keys().to_vec();
            keys.iter()
                .map(|key| key.valid_after.duration_since(day(0)).unwrap().as_secs() / 86_400)
                .collect::<Vec<_>>()
        };
        assert_eq!(begins(&rotation), [1, 3, 5, 7, 9, 11, 13, 15]);
        let first = held(&rotation.keyring).packet_keys()[0].id();
        settings.send_replace(with(20));
        let Discarded { gone, made } = rotation.discard_ahead().await.unwrap();
        assert_eq!(gone.len(), 7);
        assert_eq!(begins(&rotation), [1, 2, 12]);
        assert_eq!(made, [(day(2), day(22)), (day(12), day(32))]);
        assert_eq!(ids(&rotation.live.read().await), [first]);
        let descriptors = Arc::clone(&rotation.descriptors.borrow());
        assert_eq!(descriptors.all.len(), 3);
        let left = fs::read_dir(home.path().join("keys")).unwrap().count();
        assert_eq!(left, 7, "identity, three keys, three descriptors");
    }
}
