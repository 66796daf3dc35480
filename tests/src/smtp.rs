//! As little of an SMTP client as leaves a test in control of every octet.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a reply may take.
const REPLY: Duration = Duration::from_secs(60);

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its three digits.
    pub code: u16,
    /// What stands behind them, of all lines.
    pub text: String,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

/// A session.
#[derive(Debug)]
pub struct Smtp(BufReader<TcpStream>);

impl Smtp {
    /// Connects, and reads the greeting.
    ///
    /// # Errors
    /// What the system says, or [`io::ErrorKind::InvalidData`] for what is no SMTP.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(REPLY))?;
        stream.set_write_timeout(Some(REPLY))?;
        let mut session = Self(BufReader::new(stream));
        let greeting = session.try_reply()?;
        if greeting.code == 220 { Ok(session) } else { Err(io::Error::other(greeting.to_string())) }
    }

    /// A command, and the reply to it.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn command(&mut self, line: &str) -> Reply {
        self.try_command(line).unwrap()
    }

    /// A command, and the reply to it.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn try_command(&mut self, line: &str) -> io::Result<Reply> {
        self.raw(format!("{line}\r\n").as_bytes())?;
        self.try_reply()
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn raw(&mut self, octets: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(octets)
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// When the connection breaks, or for what is no SMTP.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            let Some((code, rest)) = line.trim_end().split_at_checked(3) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not SMTP: {line:?}")));
            };
            lines.push(rest.get(1..).unwrap_or_default().to_owned());
            if !rest.starts_with('-') {
                let code = code.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                return Ok(Reply { code, text: lines.join("\n") });
            }
        }
    }

    /// Logs in by AUTH LOGIN.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn login(&mut self, user: &str, password: &str) -> Reply {
        assert_eq!(self.command("AUTH LOGIN").code, 334);
        assert_eq!(self.command(&base64(user)).code, 334);
        self.command(&base64(password))
    }

    /// Hands a mail in. The reply is the last one: to its end, or the first refusal.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn mail(&mut self, from: &str, recipients: &[&str], mail: &[u8]) -> Reply {
        self.try_mail(from, recipients, mail).unwrap()
    }

    /// As [`Smtp::mail`].
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn try_mail(&mut self, from: &str, recipients: &[&str], mail: &[u8]) -> io::Result<Reply> {
        let body = if mail.is_ascii() { "" } else { " BODY=8BITMIME" };
        let mut commands = vec![format!("MAIL FROM:{from}{body}")];
        commands.extend(recipients.iter().map(|to| format!("RCPT TO:<{to}>")));
        for command in commands {
            let reply = self.try_command(&command)?;
            if reply.code != 250 {
                return Ok(reply);
            }
        }
        let reply = self.try_command("DATA")?;
        if reply.code != 354 {
            return Ok(reply);
        }
        self.raw(&stuffed(mail))?;
        self.try_reply()
    }
}

/// As a mail goes over the wire: CRLF at the end of each line, dots doubled, a lone dot at the end.
pub fn stuffed(mail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(mail.len() + mail.len() / 32);
    for line in mail.split_inclusive(|octet| *octet == b'\n') {
        let bare = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if bare.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(bare);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
