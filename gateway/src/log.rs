//! Log lines: to standard error, with time and level, never with who sent what to whom.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogLevel;

/// Starts logging at `level`. A second call changes nothing: the first one of a process decides.
pub fn init(level: LogLevel) {
    let level = LevelFilter::from(level);
    // Libraries say at debug level what they send and receive. Only our own lines are known to be harmless.
    let ours = ["mixgate", "mix", "smtp_in", "pop_out"].map(|target| (target, level));
    let targets = Targets::new().with_default(LevelFilter::ERROR.min(level)).with_targets(ours);
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    std::panic::set_hook(Box::new(|panic| {
        // Where, never what: the words of a panic may be those of a mail.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a bug: please report this line");
    }));
    // Fails when a subscriber is set already, as in tests that start several gateways in one process.
    let _ = tracing_subscriber::registry().with(targets).with(lines).try_init();
}
