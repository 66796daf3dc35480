//! The commands that talk to the process that runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Configured, Failed};
use crate::commands::{NO_ANSWER, say, warn};
use crate::control::{self, Ask, NotAsked, PATIENCE};
use crate::lock;
use crate::service::{Reloaded, STOP_BOUND};
use crate::status::{DiscardedKeys, Stats, Status, words};

/// How long it may take to sign what it says of itself anew, or to make keys.
const SETTLING: Duration = Duration::from_secs(60);
/// How long a directory server may take.
const UPLOAD: Duration = Duration::from_secs(120);
/// How long after its own bound the process may be there still.
const GRACE: Duration = Duration::from_secs(10);
/// How often to look whether it is.
const LOOK: Duration = Duration::from_millis(50);

/// What to print, and for whom.
#[derive(Args, Debug)]
pub(super) struct OutputArguments {
    #[command(flatten)]
    config: Configured,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn stop(arguments: &Configured) -> Result<(), Failed> {
    // Whoever broke the file must be able to stop what runs.
    let (home, wrong) = arguments.home()?;
    if let Some(wrong) = wrong {
        warn(&format!("{wrong}; stopping the node in {} all the same", home.display()));
    }
    ask(&home, Ask::Stop, PATIENCE).await?;
    let begun = Instant::now();
    while lock::is_taken(&home)? {
        if begun.elapsed() > STOP_BOUND + GRACE {
            let error = anyhow::anyhow!("the process in {} was asked to end, and is there still", home.display());
            return Err(Failed { code: NO_ANSWER, error });
        }
        tokio::time::sleep(LOOK).await;
    }
    say("the process has ended")
}

pub(super) async fn reload(arguments: &Configured) -> Result<(), Failed> {
    let home = home(arguments)?;
    let Reloaded { changed, restart, unsaid } = read(ask(&home, Ask::Reload, SETTLING).await?)?;
    match changed.as_slice() {
        [] => say("nothing has changed")?,
        changed => say(&format!("changed: {}", changed.join(", ")))?,
    }
    if !restart.is_empty() {
        say(&format!("waits for a restart: {}", restart.join(", ")))?;
    }
    match unsaid {
        None => Ok(()),
        Some(why) => Err(anyhow::anyhow!("the descriptors do not say yet what is set: {why}").into()),
    }
}

pub(super) async fn status(arguments: &OutputArguments) -> Result<(), Failed> {
    let status: Status = read(ask(&home(&arguments.config)?, Ask::Status, PATIENCE).await?)?;
    let text = if arguments.json { serde_json::to_string_pretty(&status)? } else { status.text() };
    say(text.trim_end())
}

pub(super) async fn stats(arguments: &OutputArguments) -> Result<(), Failed> {
    let stats: Stats = read(ask(&home(&arguments.config)?, Ask::Stats, PATIENCE).await?)?;
    let text = if arguments.json { serde_json::to_string_pretty(&stats)? } else { stats.text() };
    say(text.trim_end())
}

pub(super) async fn republish(arguments: &Configured) -> Result<(), Failed> {
    let said: String = read(ask(&home(arguments)?, Ask::Republish, UPLOAD).await?)?;
    match said.as_str() {
        "listed" | "waiting" => say(words(&said)),
        _ => Err(anyhow::anyhow!("{}", words(&said)).into()),
    }
}

/// Discards the packet keys ahead of the process in `home`, if there is one.
pub(super) async fn discard(home: &Path) -> Result<Option<DiscardedKeys>, Failed> {
    match control::ask(home, Ask::Discard, SETTLING).await {
        Ok(done) => read(done).map(Some),
        Err(NotAsked::NotRunning { .. }) => Ok(None),
        Err(e) => Err(Failed::not_asked(e)),
    }
}

/// The home of the node, where its process is found.
fn home(arguments: &Configured) -> Result<PathBuf, Failed> {
    Ok(arguments.load()?.node.home)
}

async fn ask(home: &Path, what: Ask, patience: Duration) -> Result<Value, Failed> {
    control::ask(home, what, patience).await.map_err(Failed::not_asked)
}

fn read<T: DeserializeOwned>(done: Value) -> Result<T, Failed> {
    Ok(serde_json::from_value(done)?)
}
