//! The commands of a POP3 client (RFC 1939; CAPA from RFC 2449).
//!
//! Which of them are allowed when is `session`'s to say.

use mix::secret::Secret;

/// Longest command line, its CRLF included (RFC 2449, section 4).
pub const MAX_LINE_LEN: usize = 255;

/// A command. Names and passwords print as `Secret(..)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// What can you do?
    Capa,
    /// I am …
    User(Secret<String>),
    /// … and this proves it. The password may hold spaces.
    Pass(Secret<String>),
    /// How much mail is there?
    Stat,
    /// How long is each, or this one?
    List(Option<usize>),
    /// What is the unique-id of each, or of this one?
    Uidl(Option<usize>),
    /// Send this one.
    Retr(usize),
    /// Send the header and so many lines of this one.
    Top {
        /// Which.
        message: usize,
        /// How many lines of the body.
        lines: usize,
    },
    /// Remove this one when I quit.
    Dele(usize),
    /// Forget what I wanted removed.
    Rset,
    /// Are you there?
    Noop,
    /// Good-bye.
    Quit,
}

/// Why a line is no command. The text goes to the client.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidCommand {
    /// Control characters, or octets that are not UTF-8.
    #[error("that is no text")]
    NotText,
    /// A word that is no command of this server.
    #[error("unknown command")]
    Unknown,
    /// Too few arguments, too many, or numbers that are none.
    #[error("usage: {0}")]
    Usage(&'static str),
}

impl Command {
    /// Reads a line without its end.
    ///
    /// # Errors
    /// As [`InvalidCommand`] names them.
    pub fn parse(line: &[u8]) -> Result<Self, InvalidCommand> {
        let line = std::str::from_utf8(line).map_err(|_| InvalidCommand::NotText)?;
        if line.chars().any(char::is_control) {
            return Err(InvalidCommand::NotText);
        }
        let (keyword, argument) = match line.split_once(' ') {
            Some((keyword, argument)) => (keyword, Some(argument)),
            None => (line, None),
        };
        match keyword.to_ascii_uppercase().as_str() {
            "CAPA" => bare(Self::Capa, argument, "CAPA"),
            "USER" => Ok(Self::User(text(argument, "USER name")?)),
            "PASS" => Ok(Self::Pass(text(argument, "PASS password")?)),
            "STAT" => bare(Self::Stat, argument, "STAT"),
            "LIST" => Ok(Self::List(optional(argument, "LIST [message]")?)),
            "UIDL" => Ok(Self::Uidl(optional(argument, "UIDL [message]")?)),
            "RETR" => Ok(Self::Retr(required(argument, "RETR message")?)),
            "TOP" => top(argument).ok_or(InvalidCommand::Usage("TOP message lines")),
            "DELE" => Ok(Self::Dele(required(argument, "DELE message")?)),
            "RSET" => bare(Self::Rset, argument, "RSET"),
            "NOOP" => bare(Self::Noop, argument, "NOOP"),
            "QUIT" => bare(Self::Quit, argument, "QUIT"),
            _ => Err(InvalidCommand::Unknown),
        }
    }
}

/// Spaces after a command without arguments are forgiven: old clients send them.
fn bare(command: Command, argument: Option<&str>, usage: &'static str) -> Result<Command, InvalidCommand> {
    if argument.is_none_or(|text| text.trim().is_empty()) { Ok(command) } else { Err(InvalidCommand::Usage(usage)) }
}

fn text(argument: Option<&str>, usage: &'static str) -> Result<Secret<String>, InvalidCommand> {
    let text = argument.filter(|text| !text.is_empty()).ok_or(InvalidCommand::Usage(usage))?;
    Ok(Secret::new(text.to_owned()))
}

fn optional(argument: Option<&str>, usage: &'static str) -> Result<Option<usize>, InvalidCommand> {
    match argument.map(str::trim) {
        None | Some("") => Ok(None),
        Some(text) => number(text).map(Some).ok_or(InvalidCommand::Usage(usage)),
    }
}

fn required(argument: Option<&str>, usage: &'static str) -> Result<usize, InvalidCommand> {
    optional(argument, usage)?.ok_or(InvalidCommand::Usage(usage))
}

fn top(argument: Option<&str>) -> Option<Command> {
    let (message, lines) = argument?.trim().split_once(' ')?;
    Some(Command::Top { message: number(message)?, lines: number(lines.trim_start())? })
}

/// Digits only: `parse` alone would take a plus sign. What is too great for the machine names no message and no line
/// either way, so that it is as good as the greatest.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn commands_are_read_in_any_case() {
        let cases = [
            ("capa", Command::Capa),
            ("USER alice", Command::User(secret("alice"))),
            ("pass two  words ", Command::Pass(secret("two  words "))),
            ("Stat", Command::Stat),
            ("LIST", Command::List(None)),
            ("list 2", Command::List(Some(2))),
            ("UIDL", Command::Uidl(None)),
            ("UIDL 07", Command::Uidl(Some(7))),
            ("RETR 1", Command::Retr(1)),
            ("TOP 3 0", Command::Top { message: 3, lines: 0 }),
            ("TOP 3 99999999999999999999999", Command::Top { message: 3, lines: usize::MAX }),
            ("DELE 4", Command::Dele(4)),
            ("RSET", Command::Rset),
            ("noop ", Command::Noop),
            ("QUIT", Command::Quit),
        ];
        for (line, command) in cases {
            assert_eq!(Command::parse(line.as_bytes()), Ok(command), "{line}");
        }
    }

    #[test]
    fn wrong_arguments_are_answered_with_the_usage() {
        let cases = [
            ("USER", "USER name"),
            ("USER ", "USER name"),
            ("PASS", "PASS password"),
            ("STAT 1", "STAT"),
            ("LIST x", "LIST [message]"),
            ("LIST -1", "LIST [message]"),
            ("UIDL +1", "UIDL [message]"),
            ("RETR", "RETR message"),
            ("RETR 1 2", "RETR message"),
            ("TOP", "TOP message lines"),
            ("TOP 1", "TOP message lines"),
            ("TOP 1 -1", "TOP message lines"),
            ("DELE", "DELE message"),
            ("QUIT now", "QUIT"),
        ];
        for (line, usage) in cases {
            assert_eq!(Command::parse(line.as_bytes()), Err(InvalidCommand::Usage(usage)), "{line}");
        }
    }

    #[test]
    fn lines_that_are_no_commands_are_refused_by_name() {
        for line in ["", " ", "STLS", "AUTH PLAIN", "APOP a b", "LISTE", "EHLO x"] {
            assert_eq!(Command::parse(line.as_bytes()), Err(InvalidCommand::Unknown), "{line}");
        }
        for line in [&b"\xff"[..], b"US\0ER x", b"USER a\rb", b"\x16\x03\x01"] {
            assert_eq!(Command::parse(line), Err(InvalidCommand::NotText));
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Command::parse(&line);
        }

        #[test]
        fn no_text_panics(line in "(?i)(TOP|LIST|RETR|USER|PASS|UIDL)[ 0-9a-z+-]{0,40}") {
            let _ = Command::parse(line.as_bytes());
        }
    }
}
