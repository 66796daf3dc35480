//! Hands a mail to a server of its recipient's own domain (RFC 5321 5.1): direct delivery.
//!
//! `dns` finds the servers, `reach` says which of their addresses may be called, `sts` what the domain promises of them, and
//! `super::smtp` holds the conversation. One try, at one server after the other; when to try again is `crate::node`'s to say.
//!
//! Nothing here is ever logged: a domain is half of an address.

mod dns;
mod reach;
mod sts;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::CryptoRng;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

pub use self::dns::NoNameServers;
use self::dns::{Dns, Exchange, NotFound};
use self::sts::Policy;
pub use self::sts::{Fetch, Fetching, Policies, Shelf};
use super::smtp::{Conversation, DeliverError, SmtpExit, SmtpExitConfig, SmtpTls, Trouble};
use crate::packet::HostName;
use crate::path::Mailbox;

/// Servers of a domain that are tried, the preferred ones. Who has more does so to be tried for long.
const MAX_HOSTS: usize = 5;
/// Addresses that are called for one mail (RFC 5321 5.1 asks for two at least).
const MAX_ADDRESSES: usize = 8;
/// Addresses of one server: beyond them it is the turn of the next.
const MAX_ADDRESSES_OF_HOST: usize = 4;
/// Octets of a name, at most (RFC 1035 2.3.4).
const MAX_NAME_LEN: usize = 253;

/// Section `[node.smtp.mx]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MxConfig {
    /// The name servers to ask, which must look further themselves. None: those of the system.
    pub name_servers: Vec<SocketAddr>,
    /// The port of mail servers.
    pub port: u16,
    /// How long one try may take, with all servers of a domain.
    #[serde(with = "crate::settings::time")]
    pub timeout: Duration,
    /// The name to greet them with; without one, the domain of the return address. Never the machine's own name.
    pub hello: Option<String>,
    /// Whether a domain is believed that wants TLS with a good certificate (RFC 8461).
    pub mta_sts: bool,
    /// Addresses that are not of the public network, and that mail may go to all the same.
    pub inside: Vec<IpAddr>,
    /// The addresses of this machine to call mail servers from, one of each kind at most. None: any.
    pub bind: Vec<IpAddr>,
}

impl Default for MxConfig {
    fn default() -> Self {
        Self {
            name_servers: Vec::new(),
            port: 25,
            timeout: Duration::from_secs(5 * 60),
            hello: None,
            mta_sts: true,
            inside: Vec::new(),
            bind: Vec::new(),
        }
    }
}

/// Why no mail can ever be delivered so. Blames the settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMx {
    /// A server would refuse to be greeted so.
    #[error("hello: not a host name")]
    Hello,
    /// Nobody can be asked where mail goes.
    #[error("name_servers")]
    NameServers(#[source] NoNameServers),
    /// No server has it.
    #[error("port: must not be 0")]
    Port,
    /// Which of two should it be?
    #[error("bind: found two addresses of one kind, expected one of IPv4, one of IPv6, or one of each")]
    Bind,
}

/// Why no server of the domain takes the mail. Nothing in it tells who was to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOffered {
    /// The domain takes no mail, or there is none of the name: waiting does not help.
    #[error("the domain takes no mail")]
    NoMail,
    /// None of its servers could be asked about the recipient.
    #[error("no server of the domain is available")]
    Away,
    /// They could not be called, since the address to call from is not one of this machine.
    #[error("servers cannot be called from that address of this machine")]
    NotFromHere,
    /// One has heard of the recipient, and none has answered.
    #[error("no server of the domain has answered")]
    Unanswered,
    /// One refuses the recipient for now.
    #[error("a server of the domain refused the mail for now ({code})")]
    NotNow {
        /// Its answer.
        code: u16,
    },
    /// One refuses the recipient for good, or all that answer refuse all mail of ours.
    #[error("a server of the domain refused the mail ({code})")]
    Refused {
        /// Its answer.
        code: u16,
    },
}

/// The way to the servers of all domains.
#[derive(Clone)]
pub struct MxExit {
    config: MxConfig,
    hello: HostName,
    dns: Dns,
    policies: Arc<Policies>,
}

/// How far a conversation goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upto {
    /// The recipient.
    Recipient,
    /// That a mail comes.
    Mail,
}

/// What an attempt at one server comes to when that server does not take the mail.
enum Missed {
    /// It was not reached, or said nothing.
    Silent,
    /// It was not called: the address to call from is not one of this machine.
    NotFromHere,
    /// It was never told of a recipient.
    Before,
    /// Nor was it, and it takes no mail of ours: what it said.
    NotOurs(u16),
    /// It was told of one, and fell silent.
    Unanswered,
    /// It has said what is to be said of this mail.
    Final(NotOffered),
}

impl MxExit {
    /// Gets ready; asks and connects to nothing yet. `policies` may be shared with others.
    ///
    /// # Errors
    /// [`InvalidMx`].
    pub fn new(config: &MxConfig, return_address: &Mailbox, policies: Arc<Policies>) -> Result<Self, InvalidMx> {
        let hello = config.hello.as_deref().unwrap_or(return_address.domain());
        let hello = HostName::parse(hello).map_err(|_| InvalidMx::Hello)?;
        if config.port == 0 {
            return Err(InvalidMx::Port);
        }
        let of_ipv4 = config.bind.iter().filter(|address| address.to_canonical().is_ipv4()).count();
        if of_ipv4 > 1 || config.bind.len() - of_ipv4 > 1 {
            return Err(InvalidMx::Bind);
        }
        let dns = Dns::new(&config.name_servers).map_err(InvalidMx::NameServers)?;
        Ok(Self { config: config.clone(), hello, dns, policies })
    }

    /// Whether mail leaves in the same way by both.
    pub fn is(&self, other: &Self) -> bool {
        (&self.config, &self.hello) == (&other.config, &other.hello)
    }

    /// Finds a server of the recipient's domain that wants the mail. It has nothing by then.
    ///
    /// Servers of one preference are tried in an order that `dice` give.
    ///
    /// # Errors
    /// [`NotOffered`].
    pub async fn offer(
        &self,
        from: &Mailbox,
        to: &Mailbox,
        dice: &mut impl CryptoRng,
    ) -> Result<Conversation, NotOffered> {
        self.converse(Upto::Mail, from, to, dice).await
    }

    /// Asks as [`MxExit::offer`] does whether a server would take mail for the recipient, and ends without giving it any.
    ///
    /// # Errors
    /// [`NotOffered`].
    pub async fn would_take(&self, from: &Mailbox, to: &Mailbox, dice: &mut impl CryptoRng) -> Result<(), NotOffered> {
        self.converse(Upto::Recipient, from, to, dice).await?.leave().await;
        Ok(())
    }

    async fn converse(
        &self,
        upto: Upto,
        from: &Mailbox,
        to: &Mailbox,
        dice: &mut impl CryptoRng,
    ) -> Result<Conversation, NotOffered> {
        let deadline = Instant::now() + self.config.timeout;
        let domain = HostName::parse(to.domain()).map_err(|_| NotOffered::NoMail)?;
        let found = timeout_at(deadline, async {
            let hosts = in_order(self.exchanges(&domain).await?, dice)?;
            Ok((hosts, self.policy(&domain).await))
        });
        let (hosts, policy) = found.await.unwrap_or(Err(NotOffered::Away))?;
        let enforced = policy.filter(|policy| policy.is_enforced());
        let (mut calls, mut heard, mut may_take, mut refused, mut not_ours) = (0, false, false, None, false);
        for host in hosts {
            if enforced.as_ref().is_some_and(|policy| !policy.names(&host)) {
                continue;
            }
            let mut addresses = timeout_at(deadline, self.addresses(&host)).await.unwrap_or_default();
            // From an address of the other kind nobody is called, and from one that was not set nobody either.
            addresses.retain(|address| self.config.bind.is_empty() || self.own(*address).is_some());
            for address in addresses.into_iter().take(MAX_ADDRESSES_OF_HOST.min(MAX_ADDRESSES - calls)) {
                calls += 1;
                // Half of what is left: one that hangs leaves time for the next, and a single one has time enough.
                let until = deadline - deadline.saturating_duration_since(Instant::now()) / 2;
                match self.try_one(&host, address, enforced.is_some(), (from, to, upto), until).await {
                    Ok(conversation) => return Ok(conversation.until(deadline)),
                    Err(Missed::Final(why)) => return Err(why),
                    Err(Missed::Unanswered) => heard = true,
                    // Another may say otherwise.
                    Err(Missed::NotOurs(code)) => refused = Some(code),
                    Err(Missed::Before) => may_take = true,
                    Err(Missed::NotFromHere) => not_ours = true,
                    Err(Missed::Silent) => {}
                }
            }
        }
        Err(match refused {
            _ if heard => NotOffered::Unanswered,
            Some(code) if !may_take => NotOffered::Refused { code },
            _ if not_ours => NotOffered::NotFromHere,
            _ => NotOffered::Away,
        })
    }

    /// Who takes the mail of a domain: where nobody is named, the host of that name (RFC 5321 5.1).
    async fn exchanges(&self, domain: &HostName) -> Result<Vec<Exchange>, NotOffered> {
        if domain.as_str().len() > MAX_NAME_LEN {
            return Err(NotOffered::NoMail);
        }
        match self.dns.exchanges(domain).await {
            Ok(exchanges) => Ok(exchanges),
            Err(NotFound::Name) => Err(NotOffered::NoMail),
            Err(NotFound::Unknown) => Err(NotOffered::Away),
            Err(NotFound::Record) => match self.dns.addresses(domain).await {
                Ok(_) => Ok(vec![Exchange { preference: 0, host: Some(domain.clone()) }]),
                Err(NotFound::Name | NotFound::Record) => Err(NotOffered::NoMail),
                Err(NotFound::Unknown) => Err(NotOffered::Away),
            },
        }
    }

    /// The addresses of a server that may be called.
    async fn addresses(&self, host: &HostName) -> Vec<IpAddr> {
        let mut addresses = self.dns.addresses(host).await.unwrap_or_default();
        addresses.retain(|address| reach::is_public(*address) || self.config.inside.contains(&address.to_canonical()));
        addresses
    }

    /// The address of this machine that one is called from, where that is set for its kind.
    fn own(&self, address: IpAddr) -> Option<IpAddr> {
        let mut bind = self.config.bind.iter().map(IpAddr::to_canonical);
        bind.find(|own| own.is_ipv4() == address.to_canonical().is_ipv4())
    }

    async fn policy(&self, domain: &HostName) -> Option<Arc<Policy>> {
        if !self.config.mta_sts {
            return None;
        }
        let texts = self.dns.texts(&format!("_mta-sts.{domain}")).await.unwrap_or_default();
        let own = self.clone();
        self.policies.of(domain, &texts, |host| async move { own.addresses(&host).await }).await
    }

    /// Calls one address of a server and says who is to have the mail, and that it comes if the conversation goes so far.
    async fn try_one(
        &self,
        host: &HostName,
        address: IpAddr,
        must_prove_itself: bool,
        (from, to, upto): (&Mailbox, &Mailbox, Upto),
        until: Instant,
    ) -> Result<Conversation, Missed> {
        let config = SmtpExitConfig {
            host: address.to_canonical().to_string(),
            port: self.config.port,
            tls: if must_prove_itself { SmtpTls::Required } else { SmtpTls::Opportunistic },
            timeout: until.saturating_duration_since(Instant::now()),
            hello: Some(self.hello.to_string()),
            bind: self.own(address),
            ..SmtpExitConfig::default()
        };
        let (name, sender) = (host.to_string(), from.clone());
        // What this machine trusts is read from its disk.
        let made = spawn_blocking(move || SmtpExit::called(&config, &name, &sender)).await;
        let Ok(Ok(server)) = made else { return Err(Missed::Before) };
        let mut conversation = server.call(from).await.map_err(|why| match why {
            DeliverError::Unavailable(Trouble::LocalAddress) => Missed::NotFromHere,
            why => before_the_recipient(why, must_prove_itself),
        })?;
        let said = match upto {
            Upto::Recipient => conversation.ask(to).await,
            Upto::Mail => conversation.offer(to).await,
        };
        said.map_err(|why| match why {
            DeliverError::Permanent { code } => Missed::Final(NotOffered::Refused { code }),
            DeliverError::Transient { code } => Missed::Final(NotOffered::NotNow { code }),
            DeliverError::Unavailable(Trouble::TurnedAway { .. }) => Missed::Before,
            DeliverError::Unavailable(_) => Missed::Unanswered,
        })?;
        Ok(conversation)
    }
}

/// What comes of a server that has heard of no recipient: whatever it says, it says of us.
fn before_the_recipient(why: DeliverError, must_prove_itself: bool) -> Missed {
    match (why, why.for_good()) {
        // Before it has proven itself anybody on the way may have said so, to have the mail thrown away.
        (DeliverError::Unavailable(Trouble::TurnedAway { .. }), Some(_)) if must_prove_itself => Missed::Before,
        (_, Some(code)) => Missed::NotOurs(code),
        (DeliverError::Unavailable(Trouble::Connection | Trouble::TimedOut), None) => Missed::Silent,
        (_, None) => Missed::Before,
    }
}

/// The hosts in the order in which they are tried.
fn in_order(mut exchanges: Vec<Exchange>, dice: &mut impl CryptoRng) -> Result<Vec<HostName>, NotOffered> {
    // First, for the sorting leaves what is equal as it is.
    exchanges.shuffle(dice);
    exchanges.sort_by_key(|exchange| exchange.preference);
    let hosts: Vec<_> = exchanges.into_iter().filter_map(|exchange| exchange.host).take(MAX_HOSTS).collect();
    // The root alone: the domain takes no mail (RFC 7505). What else is no name of a host is nobody's either.
    if hosts.is_empty() { Err(NotOffered::NoMail) } else { Ok(hosts) }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
