//! Whom an exit does not deliver to (REFERENCE: the blacklist file), and whom it does all the same.
//!
//! A file of lines `Deny KIND VALUE`, as the reference reads them: each file that it takes means the same here, up to the
//! limits below. Lines `Allow KIND VALUE` are new: whoever one of them names is delivered to, whatever the others say and
//! wherever they stand, for the lines of the reference have no order either.
//!
//! How many mails an address gets is `limits`'. Nothing here ever shows an address: an error names its line.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::list::{self, ListError};
use crate::path::{Mailbox, is_dotted_atoms};

mod pattern;

pub use pattern::{InvalidPattern, MAX_PATTERN_LEN, MAX_PATTERNS};

/// Octets of a list: a hundred thousand addresses. It is held in memory whole.
pub const MAX_LEN: usize = 4 * 1024 * 1024;
/// What Python 2 strips from the ends of a text.
const BLANK: [u8; 6] = *b" \t\n\r\x0B\x0C";
/// Letters of a word that an error repeats. The longest that means something has eight.
const SHOWN_LEN: usize = 12;

/// Whom to deliver to. `Debug` shows numbers alone.
#[derive(Default)]
pub struct Refusals {
    denied: Addresses,
    allowed: Addresses,
}

/// Some addresses, all in lower case but for the patterns.
#[derive(Default)]
struct Addresses {
    whole: BTreeSet<String>,
    users: BTreeSet<String>,
    hosts: BTreeSet<String>,
    /// Hosts, with all below them.
    domains: BTreeSet<String>,
    patterns: pattern::Patterns,
}

/// Why a list of refusals was refused. Blames whoever wrote it. Holds no address, so that it may be logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRefusals {
    /// It costs memory.
    #[error("found more than {MAX_LEN} octets, expected a shorter list")]
    TooLong,
    /// Not three parts. The reference splits at each single space.
    #[error(
        "line {line}: found {found} of three parts, expected `Deny` or `Allow`, a kind, and a value, with one space behind each word"
    )]
    Form {
        /// The line, from 1.
        line: usize,
        /// How many parts there are.
        found: usize,
    },
    /// A line is for or against.
    #[error("line {line}: found {found}, expected `Deny` or `Allow`")]
    Verb {
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: Word,
    },
    /// What the value is.
    #[error("line {line}: found {found}, expected one of `address`, `user`, `onehost`, `allhosts`, `pattern`")]
    Kind {
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: Word,
    },
    /// Such a mailbox there is not.
    #[error("line {line}: found a value that no mailbox can have, expected {expected}")]
    Value {
        /// The line, from 1.
        line: usize,
        /// What would do.
        expected: &'static str,
    },
    /// A pattern is more than a value.
    #[error("line {line}: found a pattern without its slashes, expected a regular expression between / and /")]
    Slashes {
        /// The line, from 1.
        line: usize,
    },
    /// The pattern itself.
    #[error("line {line}: the pattern")]
    Pattern {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: InvalidPattern,
    },
    /// Each costs at each mail.
    #[error("line {line}: found one pattern more than {MAX_PATTERNS}, expected no more that deny, or that allow")]
    TooManyPatterns {
        /// The line, from 1.
        line: usize,
    },
    /// Each is small enough, and all together are not.
    #[error("found patterns that take too much memory together, expected fewer or smaller ones")]
    Patterns,
}

/// A word of a list as an error shows it: as it is where it is no more than letters, since other things may be addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Word(Option<String>);

impl Word {
    fn of(octets: &[u8]) -> Self {
        let shown = !octets.is_empty() && octets.len() <= SHOWN_LEN && octets.iter().all(u8::is_ascii_alphabetic);
        Self(shown.then(|| octets.iter().copied().map(char::from).collect()))
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(word) => write!(f, "`{word}`"),
            None => f.write_str("something else"),
        }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Refusals {
    /// Reads the list in a file.
    ///
    /// # Errors
    /// [`ListError`].
    pub fn read(path: &Path) -> Result<Self, ListError<InvalidRefusals>> {
        list::read(path, MAX_LEN, Self::parse)
    }

    /// Reads a list. Words in either case; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// [`InvalidRefusals`].
    pub fn parse(octets: &[u8]) -> Result<Self, InvalidRefusals> {
        if octets.len() > MAX_LEN {
            return Err(InvalidRefusals::TooLong);
        }
        let (mut denied, mut allowed) = (Draft::default(), Draft::default());
        for (line, text) in (1..).zip(octets.split(|octet| *octet == b'\n').map(strip)) {
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let parts: Vec<&[u8]> = text.splitn(3, |octet| *octet == b' ').collect();
            let &[verb, kind, value] = &parts[..] else {
                return Err(InvalidRefusals::Form { line, found: parts.len() });
            };
            let draft = match verb.to_ascii_lowercase().as_slice() {
                b"deny" => &mut denied,
                b"allow" => &mut allowed,
                _ => return Err(InvalidRefusals::Verb { line, found: Word::of(verb) }),
            };
            draft.add(line, kind, strip(value))?;
        }
        Ok(Self { denied: denied.end()?, allowed: allowed.end()? })
    }

    /// Whether nothing is delivered to this mailbox.
    pub fn refuse(&self, to: &Mailbox) -> bool {
        self.denied.contain(to) && !self.allowed.contain(to)
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusals({} lines, and patterns)", self.denied.lines() + self.allowed.lines())
    }
}

impl Addresses {
    fn contain(&self, mailbox: &Mailbox) -> bool {
        let whole = mailbox.as_str().to_ascii_lowercase();
        let Some((user, host)) = whole.split_once('@') else { return false };
        let mut above = Some(host);
        while let Some(domain) = above {
            if self.domains.contains(domain) {
                return true;
            }
            above = domain.split_once('.').map(|(_, above)| above);
        }
        // The patterns are the dearest, so they come last.
        self.whole.contains(&whole)
            || self.users.contains(user)
            || self.hosts.contains(host)
            || self.patterns.find(mailbox.as_str())
    }

    fn lines(&self) -> usize {
        self.whole.len() + self.users.len() + self.hosts.len() + self.domains.len()
    }
}

/// Addresses whose patterns are not compiled yet.
#[derive(Default)]
struct Draft {
    addresses: Addresses,
    patterns: Vec<String>,
}

impl Draft {
    fn add(&mut self, line: usize, kind: &[u8], value: &[u8]) -> Result<(), InvalidRefusals> {
        let addresses = &mut self.addresses;
        let (set, form, expected) = match kind.to_ascii_lowercase().as_slice() {
            b"address" => (&mut addresses.whole, Form::Whole, "user@host"),
            b"user" => (&mut addresses.users, Form::User, "what may stand before the @"),
            b"onehost" => (&mut addresses.hosts, Form::Host, "what may stand behind the @"),
            b"allhosts" => (&mut addresses.domains, Form::Host, "what may stand behind the @"),
            b"pattern" => return self.add_pattern(line, value),
            _ => return Err(InvalidRefusals::Kind { line, found: Word::of(kind) }),
        };
        let value = form.read(value).ok_or(InvalidRefusals::Value { line, expected })?;
        set.insert(value.to_ascii_lowercase());
        Ok(())
    }

    /// The first slash and the last may be the same one, as in the reference: what is between them is nothing then, which is
    /// found everywhere.
    fn add_pattern(&mut self, line: usize, value: &[u8]) -> Result<(), InvalidRefusals> {
        let (Some(inner), true) = (value.strip_prefix(b"/"), value.ends_with(b"/")) else {
            return Err(InvalidRefusals::Slashes { line });
        };
        if self.patterns.len() == MAX_PATTERNS {
            return Err(InvalidRefusals::TooManyPatterns { line });
        }
        let inner = inner.strip_suffix(b"/").unwrap_or_default();
        let translated = pattern::translate(inner).map_err(|source| InvalidRefusals::Pattern { line, source })?;
        self.patterns.push(translated);
        Ok(())
    }

    fn end(self) -> Result<Addresses, InvalidRefusals> {
        let patterns = pattern::Patterns::new(&self.patterns).map_err(|_| InvalidRefusals::Patterns)?;
        Ok(Addresses { patterns, ..self.addresses })
    }
}

/// Which part of a mailbox a value is.
#[derive(Clone, Copy)]
enum Form {
    Whole,
    User,
    Host,
}

impl Form {
    /// As the reference has it. It lets through what `Mailbox` does not, such as a pipe sign: that line is no mistake and
    /// has no effect.
    fn read(self, value: &[u8]) -> Option<&str> {
        let value = std::str::from_utf8(value).ok()?;
        let is_host =
            |host: &str| is_dotted_atoms(host) && !host.bytes().all(|octet| octet.is_ascii_digit() || octet == b'.');
        let is_valid = match self {
            Self::Whole => value.split_once('@').is_some_and(|(user, host)| is_dotted_atoms(user) && is_host(host)),
            Self::User => is_dotted_atoms(value),
            Self::Host => is_host(value),
        };
        is_valid.then_some(value)
    }
}

fn strip(mut octets: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = octets
        && BLANK.contains(first)
    {
        octets = rest;
    }
    while let [rest @ .., last] = octets
        && BLANK.contains(last)
    {
        octets = rest;
    }
    octets
}

#[cfg(test)]
mod tests;
