//! `mixgate demo`, and what its file says of it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use crate::letter::{Letter, letters};
use crate::pop3::Pop3;
use crate::program::{Program, command};
use crate::smtp::{Reply, Smtp};
use crate::{PATIENCE, until};

/// The file of `--ready`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the README documents the file")]
pub struct Ready {
    pub pid: u32,
    pub smtp: SocketAddr,
    pub pop3: SocketAddr,
    pub user: String,
    pub password: String,
    pub address: String,
    pub outside: Outside,
    pub nodes: Vec<Node>,
    pub directory: String,
}

/// The world outside.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the README documents the file")]
pub struct Outside {
    pub maildir: PathBuf,
    pub smtp: SocketAddr,
    pub pop3: SocketAddr,
    pub user: String,
    pub password: String,
}

/// A mix.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the README documents the file")]
pub struct Node {
    pub nickname: String,
    pub mmtp: SocketAddr,
    pub identity: String,
    pub home: PathBuf,
}

/// A demonstration that runs.
#[derive(Debug)]
pub struct Demo {
    program: Program,
    /// Where everything is.
    pub ready: Ready,
    _folder: TempDir,
}

impl Demo {
    /// Starts one at free ports, with a mix interval of half a second, and waits until it is up. `home` is kept and can
    /// be continued; `None` is a temporary folder of the program's own.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(home: Option<&Path>) -> Self {
        Self::start_with(home, &["--interval", "500ms"])
    }

    /// As [`Demo::start`], with these options instead of the interval.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(home: Option<&Path>, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ready.json");
        let mut command = command();
        command.args(["demo", "--smtp", "0", "--pop", "0"]).args(options).arg("--ready").arg(&file);
        if let Some(home) = home {
            command.arg("--home").arg(home);
        }
        let mut program = Program::start(command);
        let text = program.until("the file of --ready", |_| fs::read(&file).ok());
        Self { program, ready: serde_json::from_slice(&text).unwrap(), _folder: folder }
    }

    /// A session at the SMTP door, as the user.
    ///
    /// # Panics
    /// When the user is not let in.
    pub fn smtp(&self) -> Smtp {
        let mut smtp = Smtp::connect(self.ready.smtp).unwrap();
        assert_eq!(smtp.command("EHLO client.example").code, 250);
        let login = smtp.login(&self.ready.user, &self.ready.password);
        assert_eq!(login.code, 235, "{login}");
        smtp
    }

    /// Hands a mail in as the user. The reply is the last one: to its end, or the first refusal.
    ///
    /// # Panics
    /// When the door does not speak SMTP.
    pub fn submit(&self, recipients: &[&str], mail: &[u8]) -> Reply {
        self.smtp().mail("<me@example.net>", recipients, mail)
    }

    /// A session in the user's maildrop. The one before may not have heard yet that its client is gone.
    ///
    /// # Panics
    /// When the user is not let in.
    pub fn pop3(&self) -> Pop3 {
        let Ready { pop3, user, password, .. } = &self.ready;
        until("a session in the maildrop", PATIENCE, || match Pop3::open(*pop3, user, password) {
            Err(e) if e.to_string().contains("[IN-USE]") => None,
            opened => Some(opened.unwrap()),
        })
    }

    /// The files of mails that the world outside has.
    ///
    /// # Panics
    /// When its folder cannot be read.
    pub fn arrived(&self) -> BTreeSet<PathBuf> {
        arrived(&self.ready.outside.maildir)
    }

    /// Waits until the world outside has a mail to each of `recipients`, and returns these, in their order.
    ///
    /// # Panics
    /// When one does not come within `bound`, with its recipient.
    pub fn delivered(&self, recipients: &[&str], bound: Duration) -> Vec<Letter> {
        let mut known = BTreeSet::new();
        let mut found: Vec<Option<Letter>> = recipients.iter().map(|_| None).collect();
        let maildir = &self.ready.outside.maildir;
        until(&format!("mail to each of {recipients:?} in {}", maildir.display()), bound, || {
            let new: Vec<PathBuf> = arrived(maildir).difference(&known).cloned().collect();
            for letter in letters(&new) {
                if let Some(i) = recipients.iter().position(|to| *to == letter.to) {
                    found[i] = Some(letter);
                }
            }
            known.extend(new);
            found.iter().all(Option::is_some).then_some(())
        });
        found.into_iter().flatten().collect()
    }

    /// A mail sent now passes: the network serves others, whatever happened before.
    ///
    /// # Panics
    /// When it does not.
    pub fn serves(&self, recipient: &str) {
        let reply = self.submit(&[recipient], b"Subject: still there\r\n\r\nJust looking.\r\n");
        assert_eq!(reply.code, 250, "{reply}");
        let letters = self.delivered(&[recipient], PATIENCE);
        assert_eq!(letters[0].subject, "still there");
    }
}

/// The files in a Maildir that are there in whole.
///
/// # Panics
/// When the folder cannot be read.
pub fn arrived(maildir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(maildir.join("new")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

impl Deref for Demo {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Demo {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}
