//! Statistics that do no harm: what a node did in an interval, rounded, for its operator (REFERENCE: EventStats).
//!
//! The authors of the specification asked for "packets per day rounded up to 1K, nothing else". Rounding alone hides no
//! single act: who sends 999 packets himself sees the thousandth come. So three things are done.
//!
//! - Each count begins anywhere in the first thousand, by the dice, and is then rounded up. One packet more or less
//!   changes a figure in one case of a thousand, and nobody knows in which, the operator included. No figure is less than
//!   1000: none and one look alike.
//! - What is shown, kept and written changes at the ends of slices alone, 96 in an interval. Between them nothing can be
//!   watched to move.
//! - On disk there is the rounded figure and nothing finer. A start draws the rest anew within its thousand, so that a
//!   crash loses no more than the slice it fell into, and many restarts neither add nor take away on average.
//!
//! An interval ends when its time is over and the node ran for three quarters of it: a report on ten minutes would say
//! too much (so the reference).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt as _;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::clock::{Dice, World};
use super::config::StatsConfig;
use super::counters::{Counters, Counts};
use crate::directory::date::format_time;

/// Figures are multiples of this.
pub const STEP: u64 = 1000;
/// Slices of an interval: a quarter of an hour of a day.
const SLICES: u32 = 96;
/// The shortest slice: an interval of next to nothing must not keep the disk busy for ever.
const SHORTEST: Duration = Duration::from_millis(10);
/// The report begins anew when it is longer than this; one older file is kept. Some seven years of days.
const REPORT_LEN: u64 = 1024 * 1024;
/// The first line of the kept state.
const STATE_HEADER: &str = "mixgate statistics 1";
/// The state is read up to here: some twenty short lines.
const STATE_LEN: usize = 64 * 1024;
/// Counts that are the user's own business, not the node's.
const NOT_THE_NODES: [&str; 2] = ["packed", "unsendable"];

/// Statistics cannot be kept. Counting goes on.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct StatsError {
    /// Which file.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// `count` rounded as all figures are: up, and never to nothing.
pub fn rounded(count: u64) -> u64 {
    count.div_ceil(STEP).max(1).saturating_mul(STEP)
}

/// What may be shown of an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When it began.
    pub since: SystemTime,
    /// The end of the last slice that is counted.
    pub until: SystemTime,
    /// What was counted, rounded, in the order of the counters.
    pub figures: Vec<(&'static str, u64)>,
}

impl Report {
    /// As the text that is appended to the file of reports.
    pub fn text(&self) -> String {
        let time = |time| format_time(time).unwrap_or_default();
        let mut text = format!("========== From {} to {}:\n", time(self.since), time(self.until));
        for (name, figure) in &self.figures {
            text.push_str(&format!("  {name}: {figure}\n"));
        }
        text
    }
}

/// The statistics of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Statistics(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    interval: Duration,
    report: PathBuf,
    state: PathBuf,
    since: SystemTime,
    /// How long the node ran since then.
    up: Duration,
    /// The end of the last slice.
    until: SystemTime,
    /// What the process had counted by then.
    seen: Counts,
    /// Counts with their share of chance. In memory alone.
    running: BTreeMap<&'static str, u64>,
}

impl Statistics {
    /// Goes on with what is kept in `home`, or begins an interval at `now`. What cannot be read is begun anew.
    pub fn open(config: &StatsConfig, home: &Path, now: SystemTime, dice: &mut Dice) -> Self {
        let state = home.join("statistics.state");
        let kept = read_state(&state).filter(|kept| kept.since <= now);
        let Kept { since, up, figures } =
            kept.unwrap_or(Kept { since: now, up: Duration::ZERO, figures: BTreeMap::new() });
        let names = of_the_node(&Counts::default()).map(|(name, _)| name);
        let running = names.map(|name| (name, drawn(figures.get(name).copied().unwrap_or(STEP), dice))).collect();
        let report = report_file(config, &state);
        let interval = config.interval;
        let seen = Counts::default();
        Self(Arc::new(Mutex::new(Inner { interval, report, state, since, up, until: now, seen, running })))
    }

    /// What may be shown of the interval under way, as it was at the end of the last slice.
    pub fn report(&self) -> Report {
        self.inner().report()
    }

    /// Ends a slice: `counts` is what the process has counted since its start. Keeps it, and ends the interval if that
    /// is over.
    ///
    /// # Errors
    /// [`StatsError`]; what was counted is in memory still.
    pub fn end_slice(&self, now: SystemTime, counts: Counts, dice: &mut Dice) -> Result<(), StatsError> {
        let mut inner = self.inner();
        inner.add(now, counts);
        if inner.is_over(now) {
            inner.append()?;
            inner.begin(now, dice);
        }
        inner.keep()
    }

    /// Goes by other settings from now on.
    fn obey(&self, config: &StatsConfig) {
        let mut inner = self.inner();
        inner.interval = config.interval;
        inner.report = report_file(config, &inner.state);
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the statistics of a node while its settings want them. Clones are the same.
#[derive(Clone)]
pub(super) struct Clerk {
    home: PathBuf,
    counters: Counters,
    world: World,
    /// `None`: none are kept.
    book: Arc<Mutex<Option<Statistics>>>,
}

impl Clerk {
    /// Begins at once, if any are wanted.
    pub(super) fn new(config: &StatsConfig, home: PathBuf, counters: Counters, world: World) -> Self {
        let clerk = Self { home, counters, world, book: Arc::default() };
        clerk.begin(config);
        clerk
    }

    /// What may be shown; `None` when none are kept.
    pub(super) fn report(&self) -> Option<Report> {
        self.book().as_ref().map(Statistics::report)
    }

    /// Ends slices until stopped, and one more then.
    pub(super) async fn run(self, mut changes: watch::Receiver<StatsConfig>, stop: CancellationToken) {
        loop {
            let config = changes.borrow_and_update().clone();
            let kept = self.book().clone();
            match kept {
                Some(statistics) if config.enabled => statistics.obey(&config),
                Some(_) => {
                    self.end_slice().await;
                    *self.book() = None;
                }
                None => self.begin(&config),
            }
            let stopped = tokio::select! {
                () = tokio::time::sleep((config.interval / SLICES).max(SHORTEST)), if config.enabled => false,
                Ok(()) = changes.changed() => continue,
                () = stop.cancelled() => true,
            };
            self.end_slice().await;
            if stopped {
                return;
            }
        }
    }

    /// What was counted before is not in them: nobody wanted it kept.
    fn begin(&self, config: &StatsConfig) {
        if config.enabled {
            let statistics = Statistics::open(config, &self.home, self.world.now(), &mut self.world.dice());
            statistics.inner().seen = self.counters.snapshot();
            *self.book() = Some(statistics);
        }
    }

    async fn end_slice(&self) {
        let Some(statistics) = self.book().clone() else { return };
        let (now, counts, mut dice) = (self.world.now(), self.counters.snapshot(), self.world.dice());
        match spawn_blocking(move || statistics.end_slice(now, counts, &mut dice)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => error!(error = %super::network::describe(&e), "the statistics cannot be kept"),
            Err(e) => error!(panicked = e.is_panic(), "the statistics cannot be kept"),
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Option<Statistics>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report_file(config: &StatsConfig, state: &Path) -> PathBuf {
    config.file.clone().unwrap_or_else(|| state.with_file_name("statistics"))
}

impl Inner {
    fn add(&mut self, now: SystemTime, counts: Counts) {
        // A clock that went back, or far ahead, makes no more of a slice than it can have been.
        let passed = now.duration_since(self.until).unwrap_or_default();
        self.up += passed.min(self.interval / SLICES * 2);
        self.until = now;
        self.since = self.since.min(now);
        for ((name, count), (_, seen)) in of_the_node(&counts).zip(of_the_node(&self.seen)) {
            if let Some(running) = self.running.get_mut(name) {
                *running = running.saturating_add(count.saturating_sub(seen));
            }
        }
        self.seen = counts;
    }

    fn is_over(&self, now: SystemTime) -> bool {
        let passed = now.duration_since(self.since).unwrap_or_default();
        passed >= self.interval && self.up >= self.interval * 3 / 4
    }

    fn begin(&mut self, now: SystemTime, dice: &mut Dice) {
        self.since = now;
        self.up = Duration::ZERO;
        self.running.values_mut().for_each(|running| *running = drawn(STEP, dice));
    }

    fn report(&self) -> Report {
        // In the order of the counters, not of the alphabet: as a packet comes by them.
        let figures = of_the_node(&Counts::default())
            .map(|(name, _)| (name, self.running.get(name).copied().map_or(STEP, rounded)))
            .collect();
        Report { since: self.since, until: self.until, figures }
    }

    /// Appends to the file of reports. Before the state is begun anew: a crash in between repeats a report, and loses
    /// none.
    fn append(&self) -> Result<(), StatsError> {
        let failed = |source| StatsError { path: self.report.clone(), source };
        if fs::metadata(&self.report).is_ok_and(|file| file.len() > REPORT_LEN) {
            let mut old = self.report.clone().into_os_string();
            old.push(".old");
            fs::rename(&self.report, old).map_err(failed)?;
        }
        let mut file =
            fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&self.report).map_err(failed)?;
        file.write_all(self.report().text().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// Replaces the state whole or not at all.
    fn keep(&self) -> Result<(), StatsError> {
        let failed = |source| StatsError { path: self.state.clone(), source };
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut text = format!("{STATE_HEADER}\nsince {since}\nup {}\n", self.up.as_secs());
        for (name, figure) in self.report().figures {
            text.push_str(&format!("{name} {figure}\n"));
        }
        let temporary = self.state.with_extension("new");
        let write = || {
            let mut file =
                fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.state)
        };
        write().map_err(failed)
    }
}

/// The counts of `counts` that statistics are about.
fn of_the_node(counts: &Counts) -> impl Iterator<Item = (&'static str, u64)> + use<> {
    counts.figures().into_iter().filter(|(name, _)| !NOT_THE_NODES.contains(name))
}

/// A count that is shown as `figure`: anywhere in its thousand.
fn drawn(figure: u64, dice: &mut Dice) -> u64 {
    figure.saturating_sub(STEP) + dice.random_range(1..=STEP)
}

/// What is kept from one start to the next.
struct Kept {
    since: SystemTime,
    up: Duration,
    figures: BTreeMap<String, u64>,
}

fn read_state(path: &Path) -> Option<Kept> {
    let text = fs::read_to_string(path).ok().filter(|text| text.len() <= STATE_LEN)?;
    let mut lines = text.lines();
    lines.next().filter(|line| *line == STATE_HEADER)?;
    let mut figures: BTreeMap<String, u64> = lines
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect();
    let since = UNIX_EPOCH.checked_add(Duration::from_secs(figures.remove("since")?))?;
    let up = Duration::from_secs(figures.remove("up")?);
    // A figure that is none of ours, as by hand, is brought to one.
    figures.values_mut().for_each(|figure| *figure = rounded(*figure));
    Some(Kept { since, up, figures })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const SLICE: Duration = Duration::from_secs(15 * 60);

    struct Node {
        home: tempfile::TempDir,
        statistics: Statistics,
        counters: Counters,
        now: SystemTime,
        dice: Dice,
    }

    fn node() -> Node {
        let home = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + 20_000 * DAY;
        let mut dice = World::real().dice();
        let statistics = Statistics::open(&StatsConfig::default(), home.path(), now, &mut dice);
        Node { home, statistics, counters: Counters::default(), now, dice }
    }

    impl Node {
        fn slice(&mut self, received: u64) {
            self.now += SLICE;
            self.counters.received(received);
            self.statistics.end_slice(self.now, self.counters.snapshot(), &mut self.dice).unwrap();
        }

        /// As after kill -9: nothing is said before, the counters begin at nothing.
        fn restart(&mut self) {
            self.counters = Counters::default();
            self.statistics = Statistics::open(&StatsConfig::default(), self.home.path(), self.now, &mut self.dice);
        }

        fn received(&self) -> u64 {
            let report = self.statistics.report();
            report.figures.iter().find(|(name, _)| *name == "received").unwrap().1
        }

        fn reports(&self) -> String {
            fs::read_to_string(self.home.path().join("statistics")).unwrap_or_default()
        }
    }

    #[test]
    fn figures_are_thousands_and_never_less_than_what_happened() {
        for count in [0, 1, 2, 999, 1000, 1001, 5500] {
            let mut node = node();
            node.slice(count);
            let shown = node.received();
            assert!(
                shown.is_multiple_of(STEP) && shown >= STEP && shown >= count && shown < count + 2 * STEP,
                "{count}: {shown}"
            );
        }
    }

    #[test]
    fn rounding_goes_up_and_never_to_nothing() {
        assert_eq!([0, 1, 1000, 1001].map(rounded), [1000, 1000, 1000, 2000]);
    }

    #[test]
    fn one_packet_at_the_edge_of_a_thousand_moves_the_figure_in_a_few_cases_of_thousands() {
        // Whoever sends 1000 packets himself does not learn whether there was another.
        let moved = (0..300).filter(|_| {
            let mut node = node();
            node.slice(1000);
            let before = node.received();
            node.slice(1);
            node.received() != before
        });
        // Three in ten thousand million such runs have more.
        assert!(moved.count() < 10);
    }

    #[test]
    fn nothing_moves_within_a_slice() {
        let mut node = node();
        node.slice(10);
        let before = node.statistics.report();
        node.counters.received(50_000);
        assert_eq!(node.statistics.report(), before);
    }

    #[test]
    fn counts_survive_a_kill_and_the_disk_knows_only_thousands() {
        let mut node = node();
        node.slice(12_345);
        let before = node.received();
        let state = fs::read_to_string(node.home.path().join("statistics.state")).unwrap();
        assert!(!state.contains("345"), "{state}");
        let figures = state.lines().skip(3).map(|line| line.split_once(' ').unwrap().1.parse::<u64>().unwrap());
        assert!(figures.clone().count() > 5 && figures.clone().all(|figure| figure.is_multiple_of(STEP)), "{state}");
        node.restart();
        assert_eq!(node.received(), before);
        node.slice(5000);
        assert!(node.received() >= before + 4000);
    }

    #[test]
    fn many_restarts_add_nothing() {
        let mut node = node();
        for _ in 0..50 {
            node.slice(1);
            node.restart();
        }
        // One packet a time, each crossing by chance of one in a thousand.
        assert!(node.received() <= 3000, "{}", node.received());
    }

    #[test]
    fn interval_ends_with_a_report_and_the_next_begins() {
        let mut node = node();
        for _ in 0..96 {
            node.slice(100);
        }
        let reports = node.reports();
        assert!(reports.starts_with("========== From 2024-10-04 00:00:00 to 2024-10-05 00:00:00:\n"), "{reports}");
        assert!(reports.contains("  received: 10000\n") || reports.contains("  received: 11000\n"), "{reports}");
        assert!(!reports.contains("packed") && !reports.contains("unsendable"), "the user's own mail is not counted");
        assert_eq!(node.received(), 1000, "the next begins");
        node.restart();
        assert_eq!(node.statistics.report().since, node.now, "and is kept");
    }

    #[test]
    fn interval_in_which_the_node_hardly_ran_does_not_end() {
        let mut node = node();
        node.slice(5);
        node.now += DAY;
        node.slice(5);
        assert_eq!(node.reports(), "", "a report on two slices would say too much");
    }

    #[test]
    fn clock_that_goes_back_loses_nothing() {
        let mut node = node();
        node.slice(7000);
        let before = node.received();
        node.now -= 2 * DAY;
        node.slice(0);
        assert_eq!(node.received(), before);
    }

    #[test]
    fn nonsense_in_the_kept_state_begins_anew() {
        for text in [
            "",
            "nonsense",
            "mixgate statistics 1\nsince x\n",
            "mixgate statistics 1\nsince 99999999999999999999\nup 1\n",
        ] {
            let mut node = node();
            fs::write(node.home.path().join("statistics.state"), text).unwrap();
            node.restart();
            assert_eq!(node.statistics.report().since, node.now);
        }
    }

    #[test]
    fn long_file_of_reports_begins_anew_and_one_is_kept() {
        let mut node = node();
        fs::write(node.home.path().join("statistics"), vec![b'x'; REPORT_LEN as usize + 1]).unwrap();
        for _ in 0..96 {
            node.slice(0);
        }
        assert!(node.reports().starts_with("=========="));
        assert!(node.home.path().join("statistics.old").exists());
    }

    #[test]
    fn file_that_cannot_be_written_is_named_and_the_interval_goes_on() {
        let mut node = node();
        fs::create_dir(node.home.path().join("statistics")).unwrap();
        for _ in 0..95 {
            node.slice(100);
        }
        node.now += SLICE;
        let failed = node.statistics.end_slice(node.now, node.counters.snapshot(), &mut node.dice).unwrap_err();
        assert_eq!(failed.path, node.home.path().join("statistics"));
        assert!(node.received() >= 9500, "nothing is forgotten");
    }
}
