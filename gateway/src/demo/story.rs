//! The whole story without hands: a mail goes out, arrives in the outside world, is answered through its reply block,
//! and the answer is read over POP3.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use lettre::address::Envelope;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use mail_parser::MessageParser;
use mix::path::ExitAddress;
use smtp_in::recipient;
use tokio::time::{sleep, timeout};

use super::network::Demo;
use super::{correspondent, pop3};

/// How often is looked whether something has come.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// What the correspondent answers unless told otherwise.
const ANSWER: &str = "Your message has arrived. This answer came back through its reply block.\n";

/// What is to be sent and answered.
pub(crate) struct Story {
    mail: Vec<u8>,
    recipients: Vec<String>,
    answer: Vec<u8>,
    timeout: Duration,
    /// The step that is under way.
    current: Mutex<&'static str>,
}

impl Story {
    /// Reads the mail and the answer. Recipients are those of the mail's headers if `to` is empty; each step may take
    /// `timeout`.
    pub(crate) fn read(mail: &Path, to: Vec<String>, answer: Option<&Path>, timeout: Duration) -> anyhow::Result<Self> {
        let octets = read(mail)?;
        let mut recipients = if to.is_empty() { recipients_of(&octets) } else { to };
        if recipients.is_empty() {
            bail!("{} names no recipient; give one with --to", mail.display());
        }
        recipients.sort();
        recipients.dedup();
        for address in &recipients {
            let leads_to = recipient::parse(address).with_context(|| format!("the recipient {address}"))?;
            if !matches!(leads_to, ExitAddress::Smtp(_)) {
                bail!("mail to {address} does not come to the outside world, which --send waits for");
            }
        }
        let answer = answer.map_or_else(|| Ok(ANSWER.into()), read)?;
        let current = Mutex::new("starting the network");
        Ok(Self { mail: octets, recipients, answer, timeout, current })
    }

    /// That the story was not told to its end, and where it was.
    pub(crate) fn interrupted(&self) -> anyhow::Error {
        let step = *self.current.lock().unwrap_or_else(PoisonError::into_inner);
        anyhow::anyhow!("interrupted during this step: {step}")
    }

    /// Tells the story; fails with the name of the step that did not come.
    pub(crate) async fn tell(&self, demo: &Demo) -> anyhow::Result<()> {
        let Self { mail, recipients, answer, .. } = self;
        let known: BTreeSet<PathBuf> = demo.outside().arrived()?.into_iter().collect();

        self.step("handing the mail in over SMTP", submit(demo, mail, recipients)).await?;
        let delivered = self.step("delivery to the outside world", arrival(demo, &known, recipients.len())).await?;
        for message in &delivered {
            show("delivered message", message)?;
        }

        let seen = self.step("looking into the maildrop over POP3", maildrop(demo)).await?;
        let first = delivered.first().context("nothing was delivered")?;
        self.step("answering through the reply block", reply(demo, first, answer)).await?;
        let answered = self.step("the answer in the maildrop over POP3", answered(demo, &seen)).await?;
        show("answer", &answered)?;
        if !reads_as(&answered, answer) {
            bail!("step failed: the answer in the maildrop does not read as it was written");
        }
        Ok(())
    }

    async fn step<T>(&self, name: &'static str, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = name;
        let within = humantime::format_duration(self.timeout);
        match timeout(self.timeout, step).await {
            Ok(ended) => ended.with_context(|| format!("step failed: {name}")),
            Err(_) => bail!("step did not come within {within}: {name}"),
        }
    }
}

/// Who the headers of a mail name: To, Cc, Bcc.
fn recipients_of(mail: &[u8]) -> Vec<String> {
    let Some(parsed) = MessageParser::default().parse(mail) else { return Vec::new() };
    let lists = [parsed.to(), parsed.cc(), parsed.bcc()];
    let named = lists.into_iter().flatten().flat_map(|list| list.clone().into_list());
    named.filter_map(|one| one.address.map(|address| address.to_string())).collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Hands the mail in as a mail client does.
async fn submit(demo: &Demo, mail: &[u8], recipients: &[String]) -> anyhow::Result<()> {
    let (user, password) = demo.login();
    let parse = |address: &String| address.parse().with_context(|| format!("the recipient {address}"));
    let recipients = recipients.iter().map(parse).collect::<anyhow::Result<_>>()?;
    let envelope = Envelope::new(Some(demo.address().parse()?), recipients)?;
    let transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(demo.smtp().ip().to_string())
        .port(demo.smtp().port())
        .credentials(Credentials::new(user.to_owned(), password.to_owned()))
        .authentication(vec![Mechanism::Plain])
        .timeout(None)
        .build();
    transport.send_raw(&envelope, &with_crlf(mail)).await?;
    Ok(())
}

/// Mail programs end lines with CRLF on the wire, whatever the file has.
fn with_crlf(mail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(mail.len());
    for line in mail.split_inclusive(|octet| *octet == b'\n') {
        let bare = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
        out.extend_from_slice(bare);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Waits for `count` new mails in the outside world.
async fn arrival(demo: &Demo, known: &BTreeSet<PathBuf>, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    loop {
        let new: Vec<PathBuf> = demo.outside().arrived()?.into_iter().filter(|path| !known.contains(path)).collect();
        if new.len() >= count {
            return new.iter().map(|path| read(path)).collect();
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The unique ids of what is in the maildrop already.
async fn maildrop(demo: &Demo) -> anyhow::Result<BTreeSet<String>> {
    let mut session = pop3::Session::open(demo.pop3(), demo.login()).await?;
    let seen = session.list().await?.into_iter().map(|(_, id)| id).collect();
    session.close().await?;
    Ok(seen)
}

async fn reply(demo: &Demo, delivered: &[u8], text: &[u8]) -> anyhow::Result<()> {
    let directory = demo.gateway().network.as_ref().and_then(mix::node::network::Network::directory);
    let surbs = correspondent::reply_blocks(delivered)?;
    correspondent::answer(text, &surbs, &*directory.context("no directory is in force")?).await
}

async fn answered(demo: &Demo, seen: &BTreeSet<String>) -> anyhow::Result<Vec<u8>> {
    loop {
        let mut session = pop3::Session::open(demo.pop3(), demo.login()).await?;
        let answer = session.first_other_than(seen).await?;
        session.close().await?;
        match answer {
            Some(answer) => return Ok(answer),
            None => sleep(LOOK_AGAIN).await,
        }
    }
}

/// Whether a mail shows this text, but for how its lines end. What is no text cannot be shown, and comes in armour.
fn reads_as(mail: &[u8], text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return true };
    let parsed = MessageParser::default().parse(mail);
    let shown = parsed.as_ref().and_then(|mail| mail.body_text(0)).unwrap_or_default();
    let lines = |text: &str| text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    lines(&shown) == lines(text)
}

/// Prints octets as they are between two marker lines.
fn show(what: &str, octets: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "----- begin {what} -----")?;
    out.write_all(octets)?;
    writeln!(out, "----- end {what} -----")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::{reads_as, with_crlf};

    #[test]
    fn answer_that_reads_otherwise_than_it_was_written_is_noticed() {
        let mail = b"Subject: x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nSch\xc3\xb6n \r\nda.\r\n";
        assert!(reads_as(mail, "Sch\u{f6}n\nda.\n\n".as_bytes()));
        assert!(!reads_as(mail, b"Unread"));
        assert!(reads_as(mail, b"\xff no text, so in armour"));
    }

    #[test]
    fn lines_end_with_crlf_whatever_the_file_has() {
        assert_eq!(with_crlf(b"a\nb\r\n\nc"), b"a\r\nb\r\n\r\nc\r\n");
    }
}
