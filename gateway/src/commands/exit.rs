//! `mixgate exit`: what waits for delivery, and what becomes of it; how mail is signed. Asks the process, where one runs; else
//! it works on the files, with the lock that the process would have.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use mix::deliver::dkim::{BadKeyFile, InvalidDkim, Signer};
use mix::node::World;
use mix::node::by_hand::ExitQueue;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Configured, Failed, opt_out, say};
use crate::control::{self, Ask, NotAsked};
use crate::lock::Lock;
use crate::queue::{AskQueue, Deliveries, Numbers, Which};

/// How long the process may take: to drop much takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Look after an exit
#[derive(Args, Debug)]
pub(super) struct ExitArguments {
    #[command(subcommand)]
    command: ExitCommand,
}

#[derive(Subcommand, Debug)]
enum ExitCommand {
    /// Look at what waits for delivery, and decide what becomes of it
    ///
    /// Shows no contents, no recipients and no times of arrival: ids are drawn by chance, sizes rounded up to powers of
    /// two, waits to quarters of an hour. Works beside the node that runs and when none does. Ends with 0 when it was
    /// done, with 1 when there is no such delivery or nobody has confirmed a drop, with 4 when a process starts just then,
    /// and as the commands of mixgate node otherwise.
    Queue {
        #[command(subcommand)]
        command: QueueCommand,
    },
    OptOut(opt_out::OptOutArguments),
    /// Make the key of node.smtp.dkim, and print what the DNS must say of it, as dkim-record does
    ///
    /// The file is readable to its owner alone: make it as the user that the node runs as. One that is there is left as it is.
    ///
    /// Example: mixgate exit dkim-key --config node.toml
    DkimKey(Configured),
    /// Print what the DNS must say of the key of node.smtp.dkim: the name and the text of a TXT record
    ///
    /// Example: mixgate exit dkim-record --config node.toml
    DkimRecord(Configured),
}

#[derive(Subcommand, Debug)]
enum QueueCommand {
    /// List what waits: id, exit type, size, tries so far, next try
    ///
    /// What is held comes first. At most a thousand deliveries are listed.
    ///
    /// Example: mixgate exit queue list --config node.toml
    List(Shown),
    /// Print how many deliveries wait, by exit type and state
    ///
    /// The numbers are exact, unlike those of mixgate node status: do not keep them.
    ///
    /// Example: mixgate exit queue show-counts --config node.toml
    ShowCounts(Shown),
    /// Do not try deliveries until they are released
    ///
    /// They stay held through restarts, and none of their tries is spent. What comes later is not held, and what is being
    /// delivered just then goes on.
    ///
    /// Example: mixgate exit queue hold smtp --config node.toml
    Hold(Meant),
    /// Try deliveries that are held again when it is their time
    ///
    /// Example: mixgate exit queue release all --config node.toml
    Release(Meant),
    /// Give deliveries up, held or not: nobody gets them
    ///
    /// What is being delivered just then may arrive all the same.
    ///
    /// Example: mixgate exit queue drop 0123456789abcdef --yes --config node.toml
    Drop {
        #[command(flatten)]
        meant: Meant,
        /// Do not ask first
        #[arg(long)]
        yes: bool,
    },
    /// Try deliveries now, but for what is held
    ///
    /// A mail server that was away is called at once; a try that fails counts as one. Where no node runs, they are tried
    /// when it starts.
    ///
    /// Example: mixgate exit queue flush all --config node.toml
    Flush(Meant),
}

#[derive(Args, Debug)]
struct Shown {
    #[command(flatten)]
    config: Configured,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Meant {
    /// all, an exit type (smtp, mbox, fragment, or a number as 0x0100), or an id of the list
    #[arg(value_name = "WHICH")]
    which: Which,
    #[command(flatten)]
    config: Configured,
}

pub(super) async fn exit(arguments: ExitArguments) -> Result<(), Failed> {
    match arguments.command {
        ExitCommand::Queue { command } => queue(command).await,
        ExitCommand::OptOut(arguments) => opt_out::run(arguments).await,
        ExitCommand::DkimKey(configured) => dkim_key(&configured),
        ExitCommand::DkimRecord(configured) => dkim_record(&configured),
    }
}

async fn queue(command: QueueCommand) -> Result<(), Failed> {
    match command {
        QueueCommand::List(Shown { config, json }) => show(&config, json, AskQueue::List, Deliveries::text).await,
        QueueCommand::ShowCounts(Shown { config, json }) => show(&config, json, AskQueue::Counts, Numbers::text).await,
        QueueCommand::Hold(meant) => change(&meant, AskQueue::Hold(meant.which), "held").await,
        QueueCommand::Release(meant) => change(&meant, AskQueue::Release(meant.which), "released").await,
        QueueCommand::Drop { meant, yes } => {
            if !yes {
                confirm(meant.which)?;
            }
            change(&meant, AskQueue::Drop(meant.which), "dropped").await
        }
        QueueCommand::Flush(meant) => change(&meant, AskQueue::Flush(meant.which), "to be tried now").await,
    }
}

async fn show<T: DeserializeOwned>(
    config: &Configured,
    json: bool,
    ask: AskQueue,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failed> {
    let done = done(&config.load()?.node.home, ask).await?;
    if json {
        return say(&serde_json::to_string_pretty(&done)?);
    }
    say(text(&serde_json::from_value(done)?).trim_end())
}

async fn change(meant: &Meant, ask: AskQueue, word: &str) -> Result<(), Failed> {
    let count: u64 = serde_json::from_value(done(&meant.config.load()?.node.home, ask).await?)?;
    say(&match count {
        0 => format!("no delivery is {word} that was not before"),
        1 => format!("1 delivery is {word}"),
        _ => format!("{count} deliveries are {word}"),
    })
}

/// By the process of the node at `home`, or in its place.
async fn done(home: &Path, ask: AskQueue) -> Result<Value, Failed> {
    match control::ask(home, Ask::Queue(ask), PATIENCE).await {
        Ok(done) => return Ok(done),
        Err(NotAsked::NotRunning { .. }) => {}
        Err(e) => return Err(Failed::not_asked(e)),
    }
    if !ExitQueue::is_at(home) {
        return Err(anyhow::anyhow!("there is no queue in {}: no node ran there yet", home.display()).into());
    }
    // Between the question and the answer a process may have started: nothing is touched then.
    let _lock = Lock::of_home(home).map_err(Failed::locked)?;
    Ok(ask.of(&ExitQueue::open(home, World::real())?).await?)
}

/// Whoever drops mail should mean it.
fn confirm(which: Which) -> Result<(), Failed> {
    let not_dropped = |why: &str| Err(anyhow::anyhow!("{why}: nothing was dropped").into());
    if !std::io::stdin().is_terminal() {
        return not_dropped("--yes is missing, and there is no terminal to ask at");
    }
    let mut out = std::io::stderr();
    write!(out, "Drop {}? It cannot be undone. Type yes: ", String::from(which))?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { not_dropped("not confirmed") }
}

fn dkim_key(configured: &Configured) -> Result<(), Failed> {
    let config = configured.load()?.node.smtp.dkim;
    let (signer, made) = Signer::make(&config, &mut World::real().dice()).map_err(dkim_failed)?;
    if let (true, Some(path)) = (made, &config.key_file) {
        writeln!(std::io::stderr(), "made {}; the DNS must say:", path.display())?;
    }
    say(&record_line(&signer))
}

fn dkim_record(configured: &Configured) -> Result<(), Failed> {
    let config = configured.load()?.node.smtp.dkim;
    let signer = Signer::new(&config).and_then(|signer| signer.ok_or(InvalidDkim::NoKey)).map_err(dkim_failed)?;
    say(&record_line(&signer))
}

/// A disk that takes no key is no fault of the configuration.
fn dkim_failed(why: InvalidDkim) -> Failed {
    let is_disk = matches!(why, InvalidDkim::KeyFile { source: BadKeyFile::Make(_), .. });
    let why = anyhow::Error::from(why).context("node.smtp.dkim");
    if is_disk { why.into() } else { Failed::configuration(why) }
}

/// The record as a zone file has it.
fn record_line(signer: &Signer) -> String {
    let (name, text) = signer.record();
    format!("{name}. IN TXT {}", strings(&text))
}

/// The text as strings of at most 255 octets each, which is what a record has (RFC 1035 3.3).
fn strings(text: &str) -> String {
    let strings = text.as_bytes().chunks(255).map(|string| format!("\"{}\"", String::from_utf8_lossy(string)));
    strings.collect::<Vec<_>>().join(" ")
}
