//! `mixgate exit opt-out`: who asked for no more mail from the exit.

use std::io::Read as _;
use std::path::Path;

use clap::{Args, Subcommand};
use mail_parser::MessageParser;
use mix::deliver::opt_out;
use mix::node::opt_outs;
use mix::path::Mailbox;
use mix::store::{Db, NODE_SCHEMAS};
use serde_json::Value;

use super::{Configured, Failed, say};
use crate::control::{self, Ask, NotAsked, PATIENCE};
use crate::lock::Lock;

/// To be tried again (sysexits.h): what a mail server keeps a mail for.
const TEMPORARY_FAILURE: u8 = 75;
/// Octets of a mail that are read: its headers, and the begin of its text.
const MAIL_LEN: u64 = 256 * 1024;

/// Who asked for no more mail from this exit: list them, take one more, undo it
///
/// Each mail from an exit with node.smtp.opt_out carries a token by which its recipient, and nobody else, can ask for no
/// more. list and remove look into the database where no process runs.
#[derive(Args, Debug)]
pub(super) struct OptOutArguments {
    #[command(subcommand)]
    command: OptOutCommand,
}

#[derive(Subcommand, Debug)]
enum OptOutCommand {
    /// Print the mailboxes that have opted out, a line each
    ///
    /// Example: mixgate exit opt-out list --config node.toml
    List(Configured),
    /// Let a mailbox opt out, by the token in a mail that it got
    ///
    /// To refuse mail without a token is node.smtp.refusals' part. The node must run: it has the key of the tokens.
    ///
    /// Example: mixgate exit opt-out add 0123456789abcdef0123456789abcdef bob@example.org
    Add {
        /// The token, 32 hexadecimal digits
        token: String,
        /// The mailbox that it came to
        #[arg(value_parser = Mailbox::parse)]
        address: Mailbox,
        #[command(flatten)]
        configured: Configured,
    },
    /// Take a mail on standard input, and let the mailbox opt out that it names with its token
    ///
    /// For the mailbox node.smtp.opt_out.mail, from the .forward of the user whose node it is, or an alias that runs as that
    /// user. Ends with 0 when it is noted, and when there is no token in the mail, of which nobody is told: its sender may be
    /// invented. Ends with 75 when the node does not run or has trouble, so that the mail server tries again.
    ///
    /// Example of a .forward: "|/usr/local/bin/mixgate exit opt-out mail --config /etc/mixgate.toml"
    #[command(verbatim_doc_comment)]
    Mail(Configured),
    /// Let a mailbox that has opted out have mail again
    ///
    /// Ends with 1 when it had not.
    ///
    /// Example: mixgate exit opt-out remove bob@example.org --config node.toml
    Remove {
        /// The mailbox
        #[arg(value_parser = Mailbox::parse)]
        address: Mailbox,
        #[command(flatten)]
        configured: Configured,
    },
}

pub(super) async fn run(arguments: OptOutArguments) -> Result<(), Failed> {
    match arguments.command {
        OptOutCommand::List(configured) => list(&configured.load()?.node.home).await,
        OptOutCommand::Add { token, address, configured } => {
            let ask = Ask::OptOut { token, address: address.to_string() };
            control::ask(&configured.load()?.node.home, ask, PATIENCE).await.map_err(Failed::not_asked)?;
            say("it gets no more mail")
        }
        OptOutCommand::Mail(configured) => mail(&configured).await,
        OptOutCommand::Remove { address, configured } => remove(&configured.load()?.node.home, &address).await,
    }
}

async fn list(home: &Path) -> Result<(), Failed> {
    let mut stopped = None;
    let mut after = String::new();
    loop {
        let part: Vec<String> = match &stopped {
            Some((db, _lock)) => opt_outs::list(db, after.clone()).await?,
            None => match control::ask(home, Ask::OptedOut { after: after.clone() }, PATIENCE).await {
                Ok(part) => serde_json::from_value(part)?,
                Err(NotAsked::NotRunning { .. }) => {
                    stopped = Some(database(home)?);
                    continue;
                }
                Err(e) => return Err(Failed::not_asked(e)),
            },
        };
        let Some(last) = part.last() else { return Ok(()) };
        say(&part.join("\n"))?;
        after.clone_from(last);
    }
}

async fn remove(home: &Path, address: &Mailbox) -> Result<(), Failed> {
    let removed = match control::ask(home, Ask::UndoOptOut { address: address.to_string() }, PATIENCE).await {
        Ok(removed) => removed == Value::Bool(true),
        Err(NotAsked::NotRunning { .. }) => {
            let (db, _lock) = database(home)?;
            let removed = opt_outs::undo(&db, address).await;
            db.close();
            removed?
        }
        Err(e) => return Err(Failed::not_asked(e)),
    };
    if removed { say("it gets mail again") } else { Err(anyhow::anyhow!("{address} has not opted out").into()) }
}

/// The database of a node that does not run, and what keeps one from starting.
fn database(home: &Path) -> Result<(Db, Lock), Failed> {
    let file = home.join("node.db");
    if !file.exists() {
        return Err(anyhow::anyhow!("{} is not there: this node has never run", file.display()).into());
    }
    let lock = Lock::of_home(home)?;
    Ok((Db::open(&file, &NODE_SCHEMAS)?, lock))
}

async fn mail(configured: &Configured) -> Result<(), Failed> {
    let later = |failed: Failed| Failed { code: TEMPORARY_FAILURE, ..failed };
    let mut mail = Vec::new();
    std::io::stdin().lock().take(MAIL_LEN).read_to_end(&mut mail).map_err(|e| later(e.into()))?;
    let Some((token, address)) = wish(&mail) else { return Ok(()) };
    let home = configured.load().map_err(later)?.node.home;
    let ask = Ask::OptOut { token: token.to_string(), address: address.to_string() };
    match control::ask(&home, ask, PATIENCE).await {
        Ok(_) => Ok(()),
        // A token of somebody else's, or of nobody's.
        Err(NotAsked::Refused(refusal)) if refusal.why == control::Why::Request => Ok(()),
        Err(e) => Err(later(Failed::not_asked(e))),
    }
}

/// The token and the mailbox in the subject of a mail, or in its text.
fn wish(mail: &[u8]) -> Option<(opt_out::Token, Mailbox)> {
    let mail = MessageParser::default().parse(mail)?;
    mail.subject().and_then(opt_out::read).or_else(|| opt_out::read(&mail.body_text(0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn wished(mail: &str) -> Option<String> {
        wish(mail.as_bytes()).map(|(token, mailbox)| format!("{token} {mailbox}"))
    }

    #[test]
    fn wish_is_read_from_the_subject_or_the_text() {
        let expected = Some(format!("{TOKEN} bob@example.org"));
        for mail in [
            format!("From: x@y.example\r\nSubject: opt-out {TOKEN} bob@example.org\r\n\r\n"),
            format!("Subject: Re: =?utf-8?Q?opt-out_{TOKEN}?=\n bob@example.org\n\ntext\n"),
            format!("Subject: please\n\nStop it!\n> this subject: opt-out {TOKEN} bob@example.org\n"),
        ] {
            assert_eq!(wished(&mail), expected, "{mail}");
        }
        assert_eq!(wished("Subject: opt-out bob@example.org\n\nno token\n"), None);
        assert_eq!(wished(""), None);
    }
}
