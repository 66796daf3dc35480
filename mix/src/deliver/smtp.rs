//! Hands a mail to the exit's mail server (RFC 5321); the only file that names lettre.
//!
//! One try: when to try again is `crate::node`'s to say. Answers of the server are kept as their code alone, since their
//! text often repeats the recipient.

use std::fmt::Display;
use std::time::Duration;

use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use serde::{Deserialize, Serialize};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use crate::packet::HostName;
use crate::path::Mailbox;

/// A server that has taken the mail need not say good-bye.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The mail server that takes what leaves the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmtpExitConfig {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether to speak TLS with it.
    pub tls: SmtpTls,
    /// How long one delivery may take. RFC 5321 4.5.3.2 grants a slow server minutes for each answer.
    #[serde(with = "crate::settings::time")]
    pub timeout: Duration,
    /// The name to greet it with; without one, the domain of the return address. Never the machine's own name.
    pub hello: Option<String>,
}

impl Default for SmtpExitConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 25,
            tls: SmtpTls::None,
            timeout: Duration::from_secs(5 * 60),
            hello: None,
        }
    }
}

/// TLS towards the mail server, by STARTTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// Never: for a server on this machine.
    None,
    /// If the server offers it, whatever its certificate; else without (RFC 7435).
    Opportunistic,
    /// Always, and the certificate must be good.
    Required,
}

/// Why no mail can ever be delivered so. Blames the settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSmtpExit {
    /// A server would refuse to be greeted so.
    #[error("hello: not a host name")]
    Hello,
    /// The certificates that this machine trusts can't be read.
    #[error("setting up TLS towards the mail server")]
    Tls(#[source] lettre::transport::smtp::Error),
}

/// Why a mail was not delivered. Nothing in it tells who was to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// The server refused the mail for good.
    #[error("the mail server refused the mail ({code})")]
    Permanent {
        /// Its answer.
        code: u16,
    },
    /// The server refused the mail for now.
    #[error("the mail server refused the mail for now ({code})")]
    Transient {
        /// Its answer.
        code: u16,
    },
    /// It did not come to an answer about the mail.
    #[error("the mail server is not available: {0}")]
    Unavailable(Trouble),
}

/// What kept the server from answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No connection, or a broken one.
    #[error("no connection")]
    Connection,
    /// Slower than the settings allow.
    #[error("too slow")]
    TimedOut,
    /// No TLS, or a bad certificate.
    #[error("TLS failed")]
    Tls,
    /// It turns us away before hearing of any mail.
    #[error("it turns us away ({code})")]
    TurnedAway {
        /// Its answer.
        code: u16,
    },
    /// What it says is not SMTP.
    #[error("it does not speak SMTP")]
    Protocol,
}

/// The way to one mail server.
#[derive(Clone)]
pub struct SmtpExit {
    host: String,
    port: u16,
    tls: SmtpTls,
    tls_parameters: Option<TlsParameters>,
    timeout: Duration,
    hello: ClientId,
}

impl SmtpExit {
    /// Gets ready; connects to nothing yet.
    ///
    /// # Errors
    /// [`InvalidSmtpExit`].
    pub fn new(config: &SmtpExitConfig, return_address: &Mailbox) -> Result<Self, InvalidSmtpExit> {
        let hello = config.hello.as_deref().unwrap_or(return_address.domain());
        let hello = HostName::parse(hello).map_err(|_| InvalidSmtpExit::Hello)?;
        let parameters = TlsParameters::builder(config.host.clone());
        let tls_parameters = match config.tls {
            SmtpTls::None => None,
            SmtpTls::Opportunistic => Some(parameters.dangerous_accept_invalid_certs(true)),
            SmtpTls::Required => Some(parameters),
        };
        Ok(Self {
            host: config.host.clone(),
            port: config.port,
            tls: config.tls,
            tls_parameters: tls_parameters.map(|it| it.build()).transpose().map_err(InvalidSmtpExit::Tls)?,
            timeout: config.timeout,
            hello: ClientId::Domain(hello.to_string()),
        })
    }

    /// Whether this is the same server, spoken to in the same way.
    pub fn is(&self, other: &Self) -> bool {
        let Self { host, port, tls, tls_parameters: _, timeout, hello } = self;
        (host, port, tls, timeout, hello) == (&other.host, &other.port, &other.tls, &other.timeout, &other.hello)
    }

    /// Calls the server and says whose mail is to come, and nothing yet of its recipient: what fails here is no fault of the
    /// mail. All of the conversation has the time of one delivery.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn call(&self, from: &Mailbox) -> Result<Conversation, DeliverError> {
        // lettre's own timeout ends with the TCP handshake.
        let deadline = Instant::now() + self.timeout;
        let connection = timeout_at(deadline, self.connect()).await.map_err(late)?.map_err(no_connection)?;
        let mut conversation = Conversation { connection, deadline };
        conversation.say(Mail::new(Some(address(from)), Vec::new())).await?;
        Ok(conversation)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, lettre::transport::smtp::Error> {
        let mut connection = self.connect_plain().await?;
        let Some(parameters) = &self.tls_parameters else { return Ok(connection) };
        if self.tls == SmtpTls::Opportunistic && !connection.can_starttls() {
            return Ok(connection);
        }
        match connection.starttls(parameters.clone(), &self.hello).await {
            Ok(()) => Ok(connection),
            // TLS of a kind that we cannot speak is no worse than none (RFC 7435 3).
            Err(_) if self.tls == SmtpTls::Opportunistic => self.connect_plain().await,
            Err(error) => Err(error),
        }
    }

    async fn connect_plain(&self) -> Result<AsyncSmtpConnection, lettre::transport::smtp::Error> {
        let server = (self.host.as_str(), self.port);
        AsyncSmtpConnection::connect_tokio1(server, Some(self.timeout), &self.hello, None, None).await
    }
}

/// A conversation with a mail server that waits for a mail.
pub struct Conversation {
    connection: AsyncSmtpConnection,
    deadline: Instant,
}

impl Conversation {
    /// Says who is to have the mail, until the server asks for it. It has nothing by then.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn offer(&mut self, to: &Mailbox) -> Result<(), DeliverError> {
        self.say(Rcpt::new(address(to), Vec::new())).await?;
        self.say(Data).await
    }

    /// Hands the mail over. It has CRLF at the end of each line and ASCII alone, as `mail::MailWriter` writes it.
    ///
    /// # Errors
    /// [`DeliverError`]. After [`Trouble::TimedOut`] or [`Trouble::Connection`] the server may have the mail all the same:
    /// SMTP cannot say.
    pub async fn hand_over(mut self, mail: &[u8]) -> Result<(), DeliverError> {
        // lettre ends the last line itself: with its own end there would be an empty line more.
        let mail = mail.strip_suffix(b"\r\n").unwrap_or(mail);
        let taken = timeout_at(self.deadline, self.connection.message(mail)).await.map_err(late)?;
        // It has the mail, or refused it. However the good-bye goes, to try again would deliver twice.
        self.end().await;
        taken.map(drop).map_err(|error| not_taken(&error))
    }

    async fn say(&mut self, command: impl Display) -> Result<(), DeliverError> {
        match timeout_at(self.deadline, self.connection.command(command)).await.map_err(late)? {
            Ok(_) => Ok(()),
            Err(error) => {
                self.end().await;
                Err(not_taken(&error))
            }
        }
    }

    async fn end(&mut self) {
        let _ = tokio::time::timeout(QUIT_TIMEOUT, self.connection.abort()).await;
    }
}

fn late(_: Elapsed) -> DeliverError {
    DeliverError::Unavailable(Trouble::TimedOut)
}

fn address(mailbox: &Mailbox) -> lettre::Address {
    // Mailbox is stricter than SMTP in all but lengths, and those are the server's to judge.
    let (local, domain) = mailbox.as_str().split_once('@').expect("local@domain: Mailbox");
    lettre::Address::new_dangerous(local, domain)
}

/// Before the server has heard of the mail, its refusal says nothing of the mail.
fn no_connection(error: lettre::transport::smtp::Error) -> DeliverError {
    DeliverError::Unavailable(match error.status() {
        Some(code) => Trouble::TurnedAway { code: code.into() },
        None => trouble(&error),
    })
}

fn not_taken(error: &lettre::transport::smtp::Error) -> DeliverError {
    match error.status().map(u16::from) {
        // 421: the server is about to close, whatever the mail (RFC 5321 3.8).
        Some(code @ 421) => DeliverError::Unavailable(Trouble::TurnedAway { code }),
        Some(code) if error.is_permanent() => DeliverError::Permanent { code },
        Some(code) => DeliverError::Transient { code },
        None => DeliverError::Unavailable(trouble(error)),
    }
}

fn trouble(error: &lettre::transport::smtp::Error) -> Trouble {
    if error.is_timeout() {
        Trouble::TimedOut
    } else if error.is_tls() {
        Trouble::Tls
    } else if error.is_response() {
        Trouble::Protocol
    } else {
        // Also STARTTLS that is required and not offered, which lettre takes for the caller's mistake.
        if error.is_client() { Trouble::Tls } else { Trouble::Connection }
    }
}

#[cfg(test)]
mod tests;
