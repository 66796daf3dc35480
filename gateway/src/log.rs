//! Log lines: to standard error, with time and level, never with who sent what to whom.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogLevel;

/// Changes the level of the log that [`init`] has started.
static LEVEL: OnceLock<Box<dyn Fn(LogLevel) + Send + Sync>> = OnceLock::new();

/// Starts logging at `level`. A second call changes nothing: the first one of a process decides.
pub fn init(level: LogLevel) {
    let (targets, change) = reload::Layer::new(targets(level));
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
    if tracing_subscriber::registry().with(targets).with(lines).try_init().is_ok() {
        let set = move |level| {
            // Fails when the subscriber is gone, and with it the log.
            let _ = change.reload(self::targets(level));
        };
        let _ = LEVEL.set(Box::new(set));
    }
}

/// Logs at `level` from now on.
pub fn set_level(level: LogLevel) {
    if let Some(set) = LEVEL.get() {
        set(level);
    }
}

/// Libraries say at debug level what they send and receive. Only our own lines are known to be harmless.
fn targets(level: LogLevel) -> Targets {
    let level = LevelFilter::from(level);
    let ours = ["mixgate", "mix", "smtp_in", "pop_out"].map(|target| (target, level));
    // Who asks the name service names whom, whatever the level: a domain is half of a recipient.
    let names = ("hickory", LevelFilter::OFF);
    Targets::new().with_default(LevelFilter::ERROR.min(level)).with_targets(ours).with_targets([names])
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn whoever_asks_the_name_service_writes_no_line_at_any_level_and_others_write_theirs() {
        for level in [LogLevel::Error, LogLevel::Debug] {
            let targets = targets(level);
            for target in ["hickory_resolver::name_server_pool", "hickory_net::udp", "hickory_proto::op"] {
                assert!(!targets.would_enable(target, &Level::ERROR), "{target}");
            }
            assert!(targets.would_enable("mix::node::exit", &Level::ERROR));
            assert!(targets.would_enable("rustls::conn", &Level::ERROR));
        }
    }
}
