//! `mixgate demo`: a whole network on this machine, to look at or to send one mail through.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failed, StopSignals};
use crate::demo::{Demo, Options, Story};
use crate::{config, log};

/// Run a whole network on this machine: directory, mixes, exits, gateway, and the world outside
///
/// Everything listens on loopback and nothing leaves this machine, but all sockets, keys and queues are real. Ends with
/// Ctrl-C.
///
/// Example: mixgate demo --send letter.eml
#[derive(Args, Debug)]
pub(super) struct DemoArguments {
    /// How many mixes. Two of them are exits
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=50))]
    nodes: u16,
    /// Port for the mail client to send by; 0 is any free one
    #[arg(long, value_name = "PORT", default_value_t = 20025)]
    smtp: u16,
    /// Port for the mail client to fetch by; 0 is any free one
    #[arg(long, value_name = "PORT", default_value_t = 20110)]
    pop: u16,
    /// How long packets gather in each mix before some leave
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// Keep everything in this folder, and go on from there at the next start [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Write where everything is to this file, as JSON, once all is up
    #[arg(long, value_name = "FILE")]
    ready: Option<PathBuf>,
    /// Send this mail, wait for it outside, answer it through its reply block, wait for the answer, and end
    #[arg(long, value_name = "FILE.eml")]
    send: Option<PathBuf>,
    /// Recipient of the mail, instead of those in its To, Cc and Bcc. May be given several times
    #[arg(long, value_name = "ADDR", requires = "send")]
    to: Vec<String>,
    /// What the correspondent answers [default: a line of text]
    #[arg(long, value_name = "FILE.txt", requires = "send")]
    reply: Option<PathBuf>,
    /// How long to wait for each step of --send
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = interval)]
    timeout: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval.is_zero() => Err("must be longer than nothing".into()),
        Ok(interval) => Ok(interval),
        Err(e) => Err(format!("{e}; expected a time such as 2s or 500ms")),
    }
}

pub(super) async fn run(arguments: DemoArguments) -> Result<(), Failed> {
    log::init(config::LogLevel::Error);
    let story =
        arguments.send.map(|mail| Story::read(&mail, arguments.to, arguments.reply.as_deref(), arguments.timeout));
    let story = story.transpose()?;
    let options = Options {
        nodes: arguments.nodes.into(),
        smtp: arguments.smtp,
        pop3: arguments.pop,
        interval: arguments.interval,
        home: arguments.home,
    };
    let mut signals = StopSignals::listen_at_terminal()?;
    if let Some(file) = &arguments.ready {
        Demo::unannounce(file)?;
    }
    // A script that waits for a story must not take its interruption for its end.
    let asked = || story.as_ref().map_or(Ok(()), |story| Err(story.interrupted().into()));
    let mut demo = tokio::select! {
        demo = Demo::start(options) => demo?,
        () = signals.asked() => return asked(),
    };
    if let Some(file) = &arguments.ready {
        demo.announce(file)?;
    }
    let ended = match &story {
        Some(story) => tokio::select! {
            told = story.tell(&demo) => told.map_err(Failed::from),
            () = signals.asked() => asked(),
        },
        None => {
            demo.explain();
            tokio::select! {
                ended = demo.watch() => ended.map_err(Failed::from),
                () = signals.asked() => Ok(()),
            }
        }
    };
    tokio::select! {
        () = demo.stop() => ended,
        // Whoever asks twice does not want to wait.
        () = signals.asked() => ended,
    }
}
