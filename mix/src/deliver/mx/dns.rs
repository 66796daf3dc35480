//! Asks the name service where the mail of a domain goes; the only file that names hickory.
//!
//! What is asked for is chosen by strangers, and so is what is answered: names come out as host names or not at all, and
//! which of the addresses may be called is `super`'s to say.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};

use crate::packet::HostName;

/// How long one server may take over one question; each is asked three times.
const PATIENCE: Duration = Duration::from_secs(5);
/// Octets of the texts at one name, at most: a policy record has some thirty.
const TEXT_MAX: usize = 4096;

/// The name service.
#[derive(Clone)]
pub(super) struct Dns(TokioResolver);

/// There is no name service to ask.
#[derive(Debug, thiserror::Error)]
#[error("none is set, and those of this system (/etc/resolv.conf) cannot be used")]
pub struct NoNameServers(#[source] NetError);

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotFound {
    /// There is no such name, or it is none.
    #[error("there is no such name")]
    Name,
    /// The name has nothing of the kind.
    #[error("the name has no such record")]
    Record,
    /// Nobody knows at present.
    #[error("the name service has no answer")]
    Unknown,
}

/// A server that takes the mail of a domain, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    /// The lower, the sooner it is tried.
    pub(super) preference: u16,
    /// `None`: what stands there is no name of a host. The root, of a domain that takes no mail, is none either.
    pub(super) host: Option<HostName>,
}

impl Dns {
    /// Asks these servers; where there are none, those of the system.
    ///
    /// # Errors
    /// [`NoNameServers`], where the system has none.
    pub(super) fn new(servers: &[SocketAddr]) -> Result<Self, NoNameServers> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(NoNameServers)?
        } else {
            let servers = servers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|connection| connection.port = server.port());
                config
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        // What this machine calls others is its own business.
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = PATIENCE;
        builder.build().map(Self).map_err(NoNameServers)
    }

    /// Who takes the mail of a domain, in no order.
    pub(super) async fn exchanges(&self, domain: &HostName) -> Result<Vec<Exchange>, NotFound> {
        let found = self.ask(domain.as_str(), RecordType::MX).await?;
        let exchange = |data: &RData| match data {
            RData::MX(mx) => Some(Exchange { preference: mx.preference, host: host(&mx.exchange) }),
            _ => None,
        };
        some(found.iter().filter_map(exchange).collect())
    }

    /// The addresses of a host, those of IPv4 and IPv6 in turns.
    pub(super) async fn addresses(&self, host: &HostName) -> Result<Vec<IpAddr>, NotFound> {
        let name = host.as_str();
        let (four, six) = tokio::join!(self.ask(name, RecordType::A), self.ask(name, RecordType::AAAA));
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::from(address.0)),
            RData::AAAA(address) => Some(IpAddr::from(address.0)),
            _ => None,
        };
        let addresses = |found: &Result<Vec<RData>, NotFound>| -> Vec<IpAddr> {
            found.iter().flatten().filter_map(address).collect()
        };
        let (mut fours, mut sixes) = (addresses(&four).into_iter(), addresses(&six).into_iter());
        let mut turns = Vec::new();
        loop {
            let before = turns.len();
            turns.extend(fours.next());
            turns.extend(sixes.next());
            if turns.len() == before {
                break;
            }
        }
        match (four, six) {
            _ if !turns.is_empty() => Ok(turns),
            (Err(NotFound::Unknown), _) | (_, Err(NotFound::Unknown)) => Err(NotFound::Unknown),
            (Err(NotFound::Name), Err(NotFound::Name)) => Err(NotFound::Name),
            _ => Err(NotFound::Record),
        }
    }

    /// The texts at a name, each in one piece.
    pub(super) async fn texts(&self, name: &str) -> Result<Vec<String>, NotFound> {
        let found = self.ask(name, RecordType::TXT).await?;
        let text = |data: &RData| match data {
            RData::TXT(text) => String::from_utf8(text.txt_data.concat()).ok(),
            _ => None,
        };
        let mut room = TEXT_MAX;
        let fits = |text: &String| {
            let left = room.checked_sub(text.len());
            room = left.unwrap_or_default();
            left.is_some()
        };
        some(found.iter().filter_map(text).take_while(fits).collect())
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, NotFound> {
        let mut name = Name::from_ascii(name).map_err(|_| NotFound::Name)?;
        // As it is, and not below a domain of this machine.
        name.set_fqdn(true);
        let answer = self.0.lookup(name, kind).await.map_err(|error| {
            if error.is_nx_domain() {
                NotFound::Name
            } else if error.is_no_records_found() {
                NotFound::Record
            } else {
                NotFound::Unknown
            }
        })?;
        Ok(answer.answers().iter().map(|record| record.data.clone()).collect())
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dns(..)")
    }
}

fn some<T>(found: Vec<T>) -> Result<Vec<T>, NotFound> {
    if found.is_empty() { Err(NotFound::Record) } else { Ok(found) }
}

fn host(name: &Name) -> Option<HostName> {
    HostName::parse(name.to_ascii().trim_end_matches('.')).ok()
}
