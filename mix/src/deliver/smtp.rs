//! Hands a mail to the exit's mail server (RFC 5321); this file and its parts alone name lettre.
//!
//! One try: when to try again is `crate::node`'s to say. Answers of the server are kept as their code alone, since their
//! text often repeats the recipient.

mod kept;
mod transport;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lettre::transport::smtp::authentication::Mechanism;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::{Response, Severity};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use self::kept::Kept;
use self::transport::{ByLine, Wrapped};
use super::socks::Proxy;
use crate::packet::HostName;
use crate::path::Mailbox;
use crate::secret::Secret;
use crate::settings::Password;

/// A server that has taken the mail need not say good-bye.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that was kept may take to hear of the next mail, at most: a firewall may have forgotten it.
const STILL_THERE: Duration = Duration::from_secs(10);
/// Octets of a file of certificates, at most: five times what a whole system trusts.
const CA_FILE_MAX: u64 = 1024 * 1024;
/// What begins a certificate in a PEM file (RFC 7468 5).
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// What a server says that wants a login before anything else (RFC 4954 6), or TLS (RFC 3207 4).
const LOGIN_WANTED: u16 = 530;
/// The answer to a login that was taken (RFC 4954 6).
const LOGGED_IN: u16 = 235;
/// The answer that asks for the next line of a login (RFC 4954 4).
const CHALLENGE: u16 = 334;

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
    /// Who logs in there. Without one nobody does.
    pub user: Option<String>,
    /// The password of `user`. Only ever said within TLS, or to a server on this machine.
    pub password: Option<Password>,
    /// A PEM file of certificates that are trusted beside the system's: of a private authority, or the server's own.
    pub ca_file: Option<PathBuf>,
    /// The address of this machine to call it from.
    pub bind: Option<IpAddr>,
    /// The SOCKS5 proxy to call it through, which looks its name up.
    pub socks: Option<Proxy>,
}

impl Default for SmtpExitConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 25,
            tls: SmtpTls::None,
            timeout: Duration::from_secs(5 * 60),
            hello: None,
            user: None,
            password: None,
            ca_file: None,
            bind: None,
            socks: None,
        }
    }
}

/// TLS towards the mail server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// Never: for a server on this machine.
    None,
    /// By STARTTLS if the server offers it, whatever its certificate; else without (RFC 7435).
    Opportunistic,
    /// By STARTTLS, always, and the certificate must be good.
    Required,
    /// From the first octet on (RFC 8314 3), and the certificate must be good.
    Implicit,
}

impl SmtpTls {
    /// Whether nothing is said to a server that has not shown a good certificate.
    fn proves_the_server(self) -> bool {
        matches!(self, Self::Required | Self::Implicit)
    }
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
    /// One of the two is missing.
    #[error("user and password belong together: set both, or neither")]
    HalfLogin,
    /// What AUTH PLAIN cannot say (RFC 4616 2).
    #[error("user and password: there is an octet 0 in one of them, which no login can have")]
    LoginWithNul,
    /// Anybody on the way could read the password.
    #[error(
        "user and password: without TLS that is certain anybody on the way could read them. Set tls to \"required\" or \"implicit\", or deliver to a server on this machine, without a proxy and with its address as host, such as \"127.0.0.1\""
    )]
    LoginInTheClear,
    /// The certificates of the operator's own.
    #[error("ca_file: {}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadCaFile,
    },
    /// Certificates that nobody looks at.
    #[error(
        "ca_file: no certificate is checked with this tls. Set tls to \"required\" or \"implicit\", or leave ca_file out"
    )]
    CaFileUnused,
    /// Two who say where the connection comes from.
    #[error(
        "bind and socks: what calls the mail server is the proxy, by an address of its own. Leave one of the two out"
    )]
    BindWithProxy,
}

/// What is wrong with a file of certificates.
#[derive(Debug, thiserror::Error)]
pub enum BadCaFile {
    /// It can't be read.
    #[error("reading it")]
    Read(#[source] io::Error),
    /// More than anybody trusts.
    #[error("longer than {CA_FILE_MAX} octets")]
    TooLong,
    /// It is no PEM file, or one of other things.
    #[error("there is no certificate in PEM in it")]
    NoCertificate,
    /// One that is none, or that nothing can be checked by.
    #[error("a certificate in it cannot be used")]
    Certificate(#[source] lettre::transport::smtp::Error),
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

impl DeliverError {
    /// What a server has said that takes no mail of ours, neither now nor later.
    pub(super) fn for_good(self) -> Option<u16> {
        match self {
            Self::Permanent { code } => Some(code),
            Self::Unavailable(Trouble::TurnedAway { code }) => (code >= 500).then_some(code),
            Self::Unavailable(Trouble::LoginWanted) => Some(LOGIN_WANTED),
            Self::Transient { .. } | Self::Unavailable(_) => None,
        }
    }
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
    /// It does not take user or password.
    #[error("it refuses the login ({code})")]
    LoginRefused {
        /// Its answer.
        code: u16,
    },
    /// No login that we can speak.
    #[error("it offers neither AUTH PLAIN nor AUTH LOGIN")]
    NoLogin,
    /// It takes no mail from whom it does not know.
    #[error("it takes no mail without a login, or without TLS ({LOGIN_WANTED})")]
    LoginWanted,
    /// The proxy is away, or has not reached it.
    #[error("the SOCKS5 proxy does not reach it")]
    Proxy,
    /// The address to call from is not one of this machine.
    #[error("it cannot be called from that address of this machine")]
    LocalAddress,
}

/// Why a server has not asked for a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAsked {
    /// It had heard of no recipient: no fault of the mail.
    #[error(transparent)]
    Before(DeliverError),
    /// It had.
    #[error(transparent)]
    Recipient(DeliverError),
}

impl Trouble {
    /// The setting of the server that must be mended, where waiting does not help.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::LoginRefused { .. } => Some("password"),
            Self::NoLogin | Self::LoginWanted => Some("user"),
            Self::LocalAddress => Some("bind"),
            Self::Tls => Some("tls"),
            Self::Connection | Self::TimedOut | Self::TurnedAway { .. } | Self::Protocol | Self::Proxy => None,
        }
    }
}

/// The way to one mail server.
#[derive(Clone)]
pub struct SmtpExit {
    /// As it was set, with the name to greet by in any case.
    config: SmtpExitConfig,
    /// What stood in the file of certificates.
    authorities: Option<Vec<u8>>,
    tls_parameters: Option<TlsParameters>,
    hello: ClientId,
    kept: Kept,
}

impl SmtpExit {
    /// Gets ready; connects to nothing yet.
    ///
    /// # Errors
    /// [`InvalidSmtpExit`].
    pub fn new(config: &SmtpExitConfig, return_address: &Mailbox) -> Result<Self, InvalidSmtpExit> {
        Self::called(config, &config.host, return_address)
    }

    /// As [`SmtpExit::new`], of a server whose certificate is for `name`, wherever it is called at.
    ///
    /// # Errors
    /// [`InvalidSmtpExit`].
    pub(super) fn called(
        config: &SmtpExitConfig,
        name: &str,
        return_address: &Mailbox,
    ) -> Result<Self, InvalidSmtpExit> {
        let hello = config.hello.as_deref().unwrap_or(return_address.domain());
        let hello = HostName::parse(hello).map_err(|_| InvalidSmtpExit::Hello)?.to_string();
        check_login(config)?;
        if config.bind.is_some() && config.socks.is_some() {
            return Err(InvalidSmtpExit::BindWithProxy);
        }
        let authorities = authorities(config)?;
        Ok(Self {
            config: SmtpExitConfig { hello: Some(hello.clone()), ..config.clone() },
            tls_parameters: tls_parameters(config, name, authorities.as_deref())?,
            authorities,
            hello: ClientId::Domain(hello),
            kept: Kept::default(),
        })
    }

    /// Whether this is the same server, spoken to in the same way.
    pub fn is(&self, other: &Self) -> bool {
        // The next two are made of these, and what is kept is no part of it.
        let Self { config, authorities, tls_parameters: _, hello: _, kept: _ } = self;
        (config, authorities) == (&other.config, &other.authorities)
    }

    /// Says whose mail is to come and who is to have it, until the server asks for it: by a connection that was kept after
    /// another mail, or else by a new one, which is kept when it has taken the mail. The mail's recipient has nothing by then. All
    /// of the conversation has the time of one delivery.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub async fn offer(&self, from: &Mailbox, to: &Mailbox) -> Result<Conversation, NotAsked> {
        let deadline = Instant::now() + self.config.timeout;
        if let Some((connection, mails)) = self.kept.take() {
            let kept = Conversation { connection, deadline, mails, kept: Some(self.kept.clone()) };
            if let Some(conversation) = self.go_on(kept, from, to).await? {
                return Ok(conversation);
            }
        }
        let mut conversation = self.call_until(deadline, from).await.map_err(NotAsked::Before)?;
        conversation.kept = Some(self.kept.clone());
        conversation.offer(to).await.map_err(NotAsked::Recipient)?;
        Ok(conversation)
    }

    /// Goes on by a connection that was kept. `None` when it is of no use for this mail: the server may have ended it, or
    /// have had enough of it, and which of its answers says so is its own affair. What is final of a recipient is an answer.
    async fn go_on(
        &self,
        mut conversation: Conversation,
        from: &Mailbox,
        to: &Mailbox,
    ) -> Result<Option<Conversation>, NotAsked> {
        let still_there = STILL_THERE.min(self.config.timeout / 4);
        if !matches!(timeout(still_there, conversation.begin(from)).await, Ok(Ok(()))) {
            return Ok(None);
        }
        match conversation.offer(to).await {
            Ok(()) => Ok(Some(conversation)),
            Err(why @ DeliverError::Permanent { .. }) => Err(NotAsked::Recipient(why)),
            // It was there, and a recipient can be slow: too little time for a new one would look like a server that is away.
            Err(why) if conversation.time_left() < self.config.timeout / 2 => Err(NotAsked::Recipient(why)),
            Err(_) => Ok(None),
        }
    }

    /// Ends the connections that were kept, and keeps no more.
    pub async fn close(&self) {
        self.kept.close().await;
    }

    /// Calls the server, logs in where that is set, and says whose mail is to come, and nothing yet of its recipient: what
    /// fails here is no fault of the mail. All of the conversation has the time of one delivery.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn call(&self, from: &Mailbox) -> Result<Conversation, DeliverError> {
        self.call_until(Instant::now() + self.config.timeout, from).await
    }

    async fn call_until(&self, deadline: Instant, from: &Mailbox) -> Result<Conversation, DeliverError> {
        let connected = timeout_at(deadline, self.connect(deadline)).await.map_err(late)?;
        let connection = connected.map_err(DeliverError::Unavailable)?;
        let mut conversation = Conversation { connection, deadline, mails: 0, kept: None };
        match conversation.begin(from).await {
            Err(DeliverError::Transient { code: LOGIN_WANTED }) => Err(DeliverError::Unavailable(Trouble::LoginWanted)),
            said => said.map(|()| conversation),
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<AsyncSmtpConnection, Trouble> {
        let mut connection = match (&self.tls_parameters, self.config.tls) {
            (None, _) | (_, SmtpTls::None) => self.connect_plain().await?,
            (Some(parameters), SmtpTls::Opportunistic) => self.connect_safer(parameters, deadline).await?,
            (Some(parameters), SmtpTls::Required) => {
                let mut connection = self.connect_plain().await?;
                self.start_tls(&mut connection, parameters).await?;
                connection
            }
            (Some(parameters), SmtpTls::Implicit) => {
                let stream = self.reach().await?;
                self.greet(Wrapped::new(stream, parameters.clone()).await.map_err(|error| no_tls(&error))?).await?
            }
        };
        match self.log_in(&mut connection).await {
            Ok(()) => Ok(connection),
            Err(trouble) => {
                quit(&mut connection).await;
                Err(trouble)
            }
        }
    }

    /// TLS of a kind that we cannot speak is no worse than none (RFC 7435 3), and so is a handshake that comes to no end: it
    /// has half of the time that is left.
    async fn connect_safer(
        &self,
        parameters: &TlsParameters,
        deadline: Instant,
    ) -> Result<AsyncSmtpConnection, Trouble> {
        let mut connection = self.connect_plain().await?;
        if !connection.can_starttls() {
            return Ok(connection);
        }
        let share = deadline.saturating_duration_since(Instant::now()) / 2;
        if let Ok(Ok(())) = timeout(share, self.start_tls(&mut connection, parameters)).await {
            return Ok(connection);
        }
        // Else the server might hold the place of this one against the next.
        drop(connection);
        self.connect_plain().await
    }

    async fn start_tls(&self, connection: &mut AsyncSmtpConnection, parameters: &TlsParameters) -> Result<(), Trouble> {
        if !connection.can_starttls() {
            quit(connection).await;
            return Err(Trouble::Tls);
        }
        connection.starttls(parameters.clone(), &self.hello).await.map_err(|error| no_tls(&error))
    }

    async fn connect_plain(&self) -> Result<AsyncSmtpConnection, Trouble> {
        self.greet(self.reach().await?).await
    }

    async fn greet(&self, stream: impl AsyncTokioStream + 'static) -> Result<AsyncSmtpConnection, Trouble> {
        let greeted = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &self.hello).await;
        greeted.map_err(|error| turned_away(&error))
    }

    /// A socket that reaches the server.
    async fn reach(&self) -> Result<ByLine, Trouble> {
        let server = (self.config.host.as_str(), self.config.port);
        let reached = match (&self.config.socks, self.config.bind) {
            (Some(proxy), _) => {
                return proxy.connect(server.0, server.1).await.map(ByLine::new).map_err(|_| Trouble::Proxy);
            }
            (None, Some(address)) => connect_from(address, server).await,
            (None, None) => TcpStream::connect(server).await,
        };
        reached.map(ByLine::new).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Trouble::TimedOut,
            io::ErrorKind::AddrNotAvailable if self.config.bind.is_some() => Trouble::LocalAddress,
            _ => Trouble::Connection,
        })
    }

    /// Says who we are (RFC 4954), where that is set, by the better of the ways that the server offers.
    async fn log_in(&self, connection: &mut AsyncSmtpConnection) -> Result<(), Trouble> {
        let (Some(user), Some(password)) = (&self.config.user, &self.config.password) else { return Ok(()) };
        let offered = |mechanism| connection.server_info().supports_auth_mechanism(mechanism);
        if offered(Mechanism::Plain) {
            let response = joined(&["\0", user, "\0", password.expose()]);
            login_step(connection, &auth_line("AUTH PLAIN ", response.expose()), LOGGED_IN).await
        } else if offered(Mechanism::Login) {
            login_step(connection, &auth_line("AUTH LOGIN", ""), CHALLENGE).await?;
            login_step(connection, &auth_line("", user), CHALLENGE).await?;
            login_step(connection, &auth_line("", password.expose()), LOGGED_IN).await
        } else {
            Err(Trouble::NoLogin)
        }
    }
}

/// A line of a login: `what`, and `said` in base64.
fn auth_line(what: &str, said: &str) -> Secret<String> {
    let encoded = Secret::new(BASE64.encode(said));
    joined(&[what, encoded.expose(), "\r\n"])
}

/// The parts in a row, with room for all of them from the start: what grows leaves copies behind.
fn joined(parts: &[&str]) -> Secret<String> {
    let mut whole = Secret::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        whole.expose_mut().push_str(part);
    }
    whole
}

/// Says a line of a login. lettre's own login would keep the password where nobody overwrites it; the copy of the line that it
/// hands to the socket, and those that TLS makes, are out of our reach.
async fn login_step(connection: &mut AsyncSmtpConnection, line: &Secret<String>, expected: u16) -> Result<(), Trouble> {
    match connection.command(line.expose()).await {
        Ok(answer) if u16::from(answer.code()) == expected => Ok(()),
        Ok(_) => Err(Trouble::Protocol),
        Err(error) => Err(match error.status() {
            Some(code) if error.is_permanent() => Trouble::LoginRefused { code: code.into() },
            _ => turned_away(&error),
        }),
    }
}

/// Who logs in must be able to, and must not be overheard.
fn check_login(config: &SmtpExitConfig) -> Result<(), InvalidSmtpExit> {
    let (user, password) = match (&config.user, &config.password) {
        (None, None) => return Ok(()),
        (Some(user), Some(password)) if !user.is_empty() && !password.expose().is_empty() => (user, password),
        _ => return Err(InvalidSmtpExit::HalfLogin),
    };
    if user.contains('\0') || password.expose().contains('\0') {
        return Err(InvalidSmtpExit::LoginWithNul);
    }
    // Of a name nobody knows yet where it leads, and a proxy is called over the network.
    let is_here = config.host.parse().is_ok_and(|address: IpAddr| address.is_loopback()) && config.socks.is_none();
    if is_here || config.tls.proves_the_server() { Ok(()) } else { Err(InvalidSmtpExit::LoginInTheClear) }
}

/// What stands in the file of certificates, if there is one.
fn authorities(config: &SmtpExitConfig) -> Result<Option<Vec<u8>>, InvalidSmtpExit> {
    let Some(path) = &config.ca_file else { return Ok(None) };
    if !config.tls.proves_the_server() {
        return Err(InvalidSmtpExit::CaFileUnused);
    }
    let read = read_authorities(path);
    read.map(Some).map_err(|source| InvalidSmtpExit::CaFile { path: path.clone(), source })
}

fn read_authorities(path: &Path) -> Result<Vec<u8>, BadCaFile> {
    let mut pem = Vec::new();
    let file = File::open(path).map_err(BadCaFile::Read)?;
    file.take(CA_FILE_MAX + 1).read_to_end(&mut pem).map_err(BadCaFile::Read)?;
    if pem.len() as u64 > CA_FILE_MAX {
        return Err(BadCaFile::TooLong);
    }
    // lettre would take a file without any for one that adds none.
    if !pem.windows(CERTIFICATE.len()).any(|octets| octets == CERTIFICATE) {
        return Err(BadCaFile::NoCertificate);
    }
    Ok(pem)
}

fn tls_parameters(
    config: &SmtpExitConfig,
    name: &str,
    authorities: Option<&[u8]>,
) -> Result<Option<TlsParameters>, InvalidSmtpExit> {
    let parameters = TlsParameters::builder(name.to_owned());
    let parameters = match config.tls {
        SmtpTls::None => return Ok(None),
        SmtpTls::Opportunistic => {
            parameters.dangerous_accept_invalid_certs(true).dangerous_accept_invalid_hostnames(true)
        }
        SmtpTls::Required | SmtpTls::Implicit => parameters,
    };
    let (Some(pem), Some(path)) = (authorities, &config.ca_file) else {
        return parameters.build().map(Some).map_err(InvalidSmtpExit::Tls);
    };
    let with_them = Certificate::from_pem(pem).and_then(|more| parameters.add_root_certificate(more).build());
    with_them.map(Some).map_err(|error| {
        let source = BadCaFile::Certificate(error);
        InvalidSmtpExit::CaFile { path: path.clone(), source }
    })
}

/// Connects from that address, to those of the server's addresses that are of the same kind. Where there are none it is of no use.
async fn connect_from(address: IpAddr, server: (&str, u16)) -> io::Result<TcpStream> {
    let mut failure = io::ErrorKind::AddrNotAvailable.into();
    for server in lookup_host(server).await?.filter(|server| server.is_ipv4() == address.is_ipv4()) {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(address, 0))?;
        match socket.connect(server).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A conversation with a mail server that waits for a mail.
pub struct Conversation {
    connection: AsyncSmtpConnection,
    deadline: Instant,
    /// How many it has handed over before this one.
    mails: u32,
    /// Where the connection is kept for the next mail.
    kept: Option<Kept>,
}

impl Conversation {
    /// The same, with time until then.
    pub(super) fn until(self, deadline: Instant) -> Self {
        Self { deadline, ..self }
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    async fn begin(&mut self, from: &Mailbox) -> Result<(), DeliverError> {
        self.say(Mail::new(Some(address(from)), Vec::new()), Severity::PositiveCompletion).await
    }

    /// Says who is to have the mail, until the server asks for it. It has nothing by then.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn offer(&mut self, to: &Mailbox) -> Result<(), DeliverError> {
        self.ask(to).await?;
        self.say(Data, Severity::PositiveIntermediate).await
    }

    /// Says who would have a mail, and not that one comes.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub(super) async fn ask(&mut self, to: &Mailbox) -> Result<(), DeliverError> {
        self.say(Rcpt::new(address(to), Vec::new()), Severity::PositiveCompletion).await
    }

    /// Asks whether the server would take mail for that recipient, and ends without giving it any.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn would_take(mut self, to: &Mailbox) -> Result<(), DeliverError> {
        self.ask(to).await?;
        self.end().await;
        Ok(())
    }

    /// Says good-bye before it has said that a mail comes.
    pub(super) async fn leave(mut self) {
        self.end().await;
    }

    /// Hands the mail over. It has CRLF at the end of each line and ASCII alone, as `mail::MailWriter` writes it.
    ///
    /// # Errors
    /// [`DeliverError`]. After [`Trouble::TimedOut`] or [`Trouble::Connection`] the server may have the mail all the same:
    /// SMTP cannot say.
    pub async fn hand_over(mut self, mail: &[u8]) -> Result<(), DeliverError> {
        // lettre ends the last line itself: with its own end there would be an empty line more.
        let mail = mail.strip_suffix(b"\r\n").unwrap_or(mail);
        let answered = timeout_at(self.deadline, self.connection.message(mail)).await.map_err(late)?;
        let taken = said(answered, Severity::PositiveCompletion);
        // It has the mail, or refused it. However the good-bye goes, to try again would deliver twice.
        match self.kept.take().filter(|_| taken.is_ok()) {
            Some(kept) => kept.keep(self.connection, self.mails + 1).await,
            None => self.end().await,
        }
        taken
    }

    /// Says it, and waits for an answer of that kind.
    async fn say(&mut self, command: impl Display, expected: Severity) -> Result<(), DeliverError> {
        let answered = timeout_at(self.deadline, self.connection.command(command)).await.map_err(late)?;
        let said = said(answered, expected);
        if said.is_err() {
            self.end().await;
        }
        said
    }

    async fn end(&mut self) {
        quit(&mut self.connection).await;
    }
}

async fn quit(connection: &mut AsyncSmtpConnection) {
    let _ = timeout(QUIT_TIMEOUT, connection.abort()).await;
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
fn turned_away(error: &lettre::transport::smtp::Error) -> Trouble {
    error.status().map_or_else(|| trouble(error), |code| Trouble::TurnedAway { code: code.into() })
}

/// On the way to TLS all that breaks is a handshake, or a certificate: lettre calls both a connection.
fn no_tls(error: &lettre::transport::smtp::Error) -> Trouble {
    match turned_away(error) {
        Trouble::Connection => Trouble::Tls,
        other => other,
    }
}

/// What an answer comes to. One of another kind than its command has belongs to another command: whoever answers once too
/// often would else say yes to a mail that he has not got yet.
fn said(answered: Result<Response, lettre::transport::smtp::Error>, expected: Severity) -> Result<(), DeliverError> {
    match answered {
        Ok(answer) if answer.code().severity == expected => Ok(()),
        Ok(_) => Err(DeliverError::Unavailable(Trouble::Protocol)),
        Err(error) => Err(not_taken(&error)),
    }
}

fn not_taken(error: &lettre::transport::smtp::Error) -> DeliverError {
    match error.status().map(u16::from) {
        // 421: the server is about to close, whatever the mail (RFC 5321 3.8).
        Some(code @ 421) => DeliverError::Unavailable(Trouble::TurnedAway { code }),
        // It wants a login, and said so late (RFC 4954 6): no fault of the mail.
        Some(code @ LOGIN_WANTED) => DeliverError::Transient { code },
        Some(code) if error.is_permanent() => DeliverError::Permanent { code },
        Some(code) => DeliverError::Transient { code },
        None => DeliverError::Unavailable(trouble(error)),
    }
}

fn trouble(error: &lettre::transport::smtp::Error) -> Trouble {
    if error.is_timeout() {
        Trouble::TimedOut
    } else if error.is_response() {
        Trouble::Protocol
    } else {
        Trouble::Connection
    }
}

#[cfg(test)]
pub(crate) mod tests;
