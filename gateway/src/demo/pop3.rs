//! As much of a POP3 client as the demonstration needs: it fetches what has arrived.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A session in a maildrop.
pub(super) struct Session(BufReader<TcpStream>);

impl Session {
    /// Connects and logs in.
    pub(super) async fn open(address: SocketAddr, (user, password): (&str, &str)) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting to POP3")?;
        let mut session = Self(BufReader::new(stream));
        session.answer().await?;
        session.command(&format!("USER {user}")).await?;
        session.command(&format!("PASS {password}")).await?;
        Ok(session)
    }

    /// Numbers and unique ids of all messages.
    pub(super) async fn list(&mut self) -> anyhow::Result<Vec<(String, String)>> {
        self.command("UIDL").await?;
        let lines = self.lines().await?;
        let pairs = lines.iter().map(|line| String::from_utf8_lossy(line).trim().to_owned());
        Ok(pairs.filter_map(|line| line.split_once(' ').map(|(n, id)| (n.to_owned(), id.to_owned()))).collect())
    }

    /// The first message whose unique id is not among `known`.
    pub(super) async fn first_other_than(&mut self, known: &BTreeSet<String>) -> anyhow::Result<Option<Vec<u8>>> {
        let list = self.list().await?;
        let Some((number, _)) = list.into_iter().find(|(_, id)| !known.contains(id)) else { return Ok(None) };
        self.command(&format!("RETR {number}")).await?;
        Ok(Some(self.lines().await?.concat()))
    }

    /// Says goodbye; nothing was deleted.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.command("QUIT").await.map(|_| ())
    }

    async fn command(&mut self, command: &str) -> anyhow::Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        if !line.starts_with("+OK") {
            bail!("POP3 says: {}", line.trim());
        }
        Ok(line)
    }

    /// Lines up to the lone dot, as they were before dots were doubled.
    async fn lines(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            if self.0.read_until(b'\n', &mut line).await? == 0 {
                bail!("POP3 ended within an answer");
            }
            match line.strip_prefix(b".") {
                Some(b"\r\n") => return Ok(lines),
                Some(undotted) => lines.push(undotted.to_vec()),
                None => lines.push(line),
            }
        }
    }
}
