//! As little of a POP3 client.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// A session.
#[derive(Debug)]
pub struct Pop3(BufReader<TcpStream>);

impl Pop3 {
    /// Connects, and logs in.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::Other`] with the answer of a server that refuses.
    pub fn open(address: SocketAddr, user: &str, password: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut session = Self(BufReader::new(stream));
        session.answer()?;
        session.command(&format!("USER {user}"))?;
        session.command(&format!("PASS {password}"))?;
        Ok(session)
    }

    /// A command, and the answer to it.
    ///
    /// # Errors
    /// As [`Pop3::open`].
    pub fn command(&mut self, line: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.strip_prefix("+OK") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(io::Error::other(line.trim().to_owned())),
        }
    }

    /// A command whose answer has several lines, and these, undotted.
    ///
    /// # Errors
    /// As [`Pop3::open`].
    pub fn lines(&mut self, line: &str) -> io::Result<Vec<u8>> {
        self.command(line)?;
        let mut octets = Vec::new();
        loop {
            let mut line = Vec::new();
            if self.0.read_until(b'\n', &mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.strip_prefix(b".") {
                Some(b"\r\n") => return Ok(octets),
                Some(undotted) => octets.extend_from_slice(undotted),
                None => octets.extend_from_slice(&line),
            }
        }
    }

    /// How many messages there are.
    ///
    /// # Panics
    /// When the server does not say.
    pub fn count(&mut self) -> usize {
        let answer = self.command("STAT").unwrap();
        answer.split(' ').next().unwrap().parse().unwrap()
    }

    /// All messages.
    ///
    /// # Panics
    /// When the server does not give them.
    pub fn all(&mut self) -> Vec<Vec<u8>> {
        (1..=self.count()).map(|number| self.lines(&format!("RETR {number}")).unwrap()).collect()
    }

    /// Deletes all messages and says goodbye.
    ///
    /// # Panics
    /// When the server does not do that.
    pub fn empty(mut self) {
        for number in 1..=self.count() {
            self.command(&format!("DELE {number}")).unwrap();
        }
        self.command("QUIT").unwrap();
    }
}
