//! The settings of a node and of the sender, as the types they mean. How a file is read is `conf`'s.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::retry::{RetrySchedule, RetryStep};
use crate::batch::{self, DynamicPool, Pool};
use crate::deliver::dkim::DkimConfig;
use crate::deliver::limits::LimitsConfig;
use crate::deliver::mail::MailConfig;
use crate::deliver::maildir::MaildirConfig;
use crate::deliver::mx::MxConfig;
use crate::deliver::sendmail::SendmailConfig;
use crate::deliver::smtp::SmtpExitConfig;
use crate::net::addresses::{Access, ListenAddresses};
use crate::net::bandwidth::{Bandwidth, BandwidthConfig};
use crate::net::connect::{ConnectConfig, Terms};
use crate::net::listen::ListenConfig;
use crate::net::loopback::LoopbackAddress;
use crate::net::resolve::{ResolveConfig, Resolver};
use crate::path::Mailbox;
use crate::payload::Capacity;
use crate::payload::fragment::Fragmentation;

/// Section `[node]`: a mix, and an exit if one of its deliveries is enabled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Whether this process is a mix.
    pub enabled: bool,
    /// What people call it: a letter, then letters, digits and hyphens, 24 at most.
    #[serde(deserialize_with = "crate::settings::nickname")]
    pub nickname: String,
    /// How its operator is reached; published in the descriptor.
    pub contact: String,
    /// Where it keeps keys and queues. Nobody else may read this folder.
    pub home: PathBuf,
    /// Where it listens for other mixes: one address and port, or a list of them.
    pub listen: ListenAddresses,
    /// The host name or IPv4 address that other mixes connect to; published in the descriptor.
    #[serde(deserialize_with = "crate::settings::host")]
    pub host: String,
    /// The port that other mixes connect to, where it is not the first one of `listen` (a forwarded port). 0: the same.
    pub port: u16,
    /// Octets of disk space below which packets of others are refused, so that those that were taken can go on.
    pub disk_reserve: u64,
    /// The fingerprint of the operator's OpenPGP key; published where it is not empty.
    pub contact_fingerprint: String,
    /// What people should read about this node; published where it is not empty.
    pub comments: String,
    /// How long keys live, and how they are kept.
    pub keys: KeysConfig,
    /// When packets leave together.
    pub mixing: MixingConfig,
    /// What is sent to be taken for packets of people.
    pub dummies: DummiesConfig,
    /// Whose connections are taken, and their limits.
    pub incoming: ListenConfig,
    /// How packets reach the next mix.
    pub outgoing: OutgoingConfig,
    /// How much passes over the links.
    pub bandwidth: BandwidthConfig,
    /// Delivery as e-mail.
    pub smtp: SmtpDeliveryConfig,
    /// Delivery to users of this node.
    pub mbox: MboxDeliveryConfig,
    /// Reassembly of fragmented messages before delivery.
    pub fragments: FragmentsConfig,
    /// No setting: what weakens the node in the settings of the process outside of this section, in the words that the
    /// descriptor publishes.
    #[serde(skip)]
    pub elsewhere: Vec<&'static str>,
    /// What is counted for the operator.
    pub stats: StatsConfig,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            nickname: "Unnamed".into(),
            contact: "nobody@example.invalid".into(),
            home: "node".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 48099)).into(),
            host: "localhost".into(),
            port: 0,
            disk_reserve: 256 * 1024 * 1024,
            contact_fingerprint: String::new(),
            comments: String::new(),
            keys: KeysConfig::default(),
            mixing: MixingConfig::default(),
            dummies: DummiesConfig::default(),
            incoming: ListenConfig::default(),
            outgoing: OutgoingConfig::default(),
            bandwidth: BandwidthConfig::default(),
            smtp: SmtpDeliveryConfig::default(),
            mbox: MboxDeliveryConfig::default(),
            fragments: FragmentsConfig::default(),
            elsewhere: Vec::new(),
            stats: StatsConfig::default(),
        }
    }
}

/// Which packets of the pool leave at the end of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixRule {
    /// All of them. No protection when few packets come.
    Timed,
    /// As many as exceed the minimum, at most the rate.
    Cottrell,
    /// Each with the probability that makes Cottrell's number the average.
    Binomial,
}

/// Section `[node.mixing]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixingConfig {
    /// How long packets gather before some leave together.
    #[serde(with = "crate::settings::time")]
    pub interval: Duration,
    /// Which of them leave.
    pub rule: MixRule,
    /// How many always stay (Cottrell and binomial).
    pub minimum: usize,
    /// The largest part of the pool that leaves at once (Cottrell and binomial), between 0 and 1.
    #[serde(deserialize_with = "crate::settings::rate")]
    pub rate: f64,
}

impl Default for MixingConfig {
    fn default() -> Self {
        // The reference's default, timed, gives no protection at low traffic.
        Self { interval: Duration::from_secs(15 * 60), rule: MixRule::Binomial, minimum: 45, rate: 0.65 }
    }
}

impl MixingConfig {
    /// How many packets always stay in the pool.
    pub fn keeps(&self) -> usize {
        if self.rule == MixRule::Timed { 0 } else { self.minimum }
    }

    /// The pool that these settings describe.
    ///
    /// # Errors
    /// What the pool refuses: a rate that is none.
    pub fn pool(&self) -> Result<Pool, batch::InvalidPool> {
        match self.rule {
            MixRule::Timed => Ok(Pool::Timed),
            MixRule::Cottrell => DynamicPool::new(self.minimum, self.rate).map(Pool::Cottrell),
            MixRule::Binomial => DynamicPool::new(self.minimum, self.rate).map(Pool::Binomial),
        }
    }
}

/// Section `[node.outgoing]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutgoingConfig {
    /// When a mix that could not be reached is tried again; after the last step its packets are dropped.
    pub retry: RetrySchedule,
    /// Connections at a time, 2 or more. Each holds up to 64 packets in memory. Half of them are kept for mixes in good
    /// standing: anybody can write a packet that makes this process call at an address of his.
    #[serde(deserialize_with = "two_or_more")]
    pub connections: usize,
    /// Whom to connect to. The port of a rule is the port that is connected to.
    pub access: Access,
    /// How long the host name may take to be looked up, and its addresses, all together, to answer.
    #[serde(with = "crate::settings::time")]
    pub connect_timeout: Duration,
    /// How long the TLS handshake may take.
    #[serde(with = "crate::settings::time")]
    pub handshake_timeout: Duration,
    /// How long nothing may come or go while packets wait for their answer.
    #[serde(with = "crate::settings::time")]
    pub progress_timeout: Duration,
    /// How long the addresses of a host are remembered.
    #[serde(with = "crate::settings::time")]
    pub address_lifetime: Duration,
    /// Host names looked up at a time. Each holds a thread.
    #[serde(deserialize_with = "crate::settings::count")]
    pub lookups: usize,
}

fn two_or_more<'de, D: Deserializer<'de>>(value: D) -> Result<usize, D::Error> {
    let connections = crate::settings::count(value)?;
    if connections >= 2 {
        Ok(connections)
    } else {
        Err(D::Error::custom("must be 2 or more: half are for mixes known"))
    }
}

impl Default for OutgoingConfig {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        // The reference begins with an hour; a mix that only restarts is back sooner. Attempts are made at the ends of
        // mixing intervals, so a rhythm shorter than one would be none.
        let retry = RetrySchedule::new(vec![
            RetryStep { every: Duration::from_secs(15 * 60), during: hours(1) },
            RetryStep { every: hours(1), during: hours(24) },
            RetryStep { every: hours(7), during: hours(5 * 24) },
        ]);
        let (connect, resolve) = (ConnectConfig::default(), ResolveConfig::default());
        Self {
            retry,
            connections: 16,
            access: Access::default(),
            connect_timeout: connect.connect_timeout,
            handshake_timeout: connect.handshake_timeout,
            progress_timeout: connect.progress_timeout,
            address_lifetime: resolve.lifetime,
            lookups: resolve.lookups,
        }
    }
}

impl OutgoingConfig {
    /// What connections go by as these settings say, within `bandwidth`; names are looked up by `resolver`, if there is one,
    /// and not by one of their own.
    pub fn terms(&self, resolver: Option<Resolver>, bandwidth: Option<Bandwidth>) -> Terms {
        let config = ConnectConfig {
            connect_timeout: self.connect_timeout,
            handshake_timeout: self.handshake_timeout,
            progress_timeout: self.progress_timeout,
            ..ConnectConfig::default()
        };
        let resolve = ResolveConfig { lifetime: self.address_lifetime, lookups: self.lookups };
        let resolver = resolver.unwrap_or_else(|| Resolver::system(resolve));
        Terms { config, resolver, policy: self.access.policy().clone(), bandwidth }
    }
}

/// By which way e-mail leaves the node. Each has a section of its own, and only that of the chosen way is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// To a mail server that takes all of it: `[node.smtp.server]`.
    #[default]
    Smarthost,
    /// To the mail servers of each recipient's domain: `[node.smtp.mx]`.
    Mx,
    /// To a program: `[node.smtp.sendmail]`.
    Sendmail,
    /// Into a folder: `[node.smtp.maildir]`.
    Maildir,
}

/// Section `[node.smtp]`: this node delivers e-mail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmtpDeliveryConfig {
    /// Whether it does.
    pub enabled: bool,
    /// The largest message, in octets after decompression. Published in the descriptor.
    #[serde(deserialize_with = "a_kilobyte")]
    pub max_size: u64,
    /// The largest message with attachments, in octets after decompression; 0: attachments are not delivered. Published in
    /// the descriptor.
    #[serde(deserialize_with = "none_or_a_kilobyte")]
    pub mime_max_size: u64,
    /// A message that grows more than twentyfold is delivered compressed, as E2E-spec 2.3.2 demands: else a few packets
    /// would make this exit flood a mailbox. Up to so many octets it is delivered as text all the same.
    pub inflate_max: u64,
    /// When a mail that was not taken is tried again; after the last step it is dropped.
    pub retry: RetrySchedule,
    /// The file of those who get none, and of those who get it all the same. `None`: nobody is refused.
    pub refusals: Option<PathBuf>,
    /// How many mails they get at most.
    pub limits: LimitsConfig,
    /// The mailbox of the operator's that a mail server is asked about, to prove each day that it takes mail of this exit.
    /// `None`: the return address.
    #[serde(with = "crate::deliver::mail::mailbox_text")]
    pub proof_address: Option<Mailbox>,
    /// Who takes it.
    pub way: Way,
    /// The server that takes the mail.
    pub server: SmtpExitConfig,
    /// How the servers of each domain are found and called.
    pub mx: MxConfig,
    /// The program that takes it.
    pub sendmail: SendmailConfig,
    /// The folder that it is put into.
    pub maildir: MaildirConfig,
    /// How the mail looks.
    pub mail: MailConfig,
    /// How recipients ask for no more of it.
    pub opt_out: OptOutConfig,
    /// By which key it is signed.
    pub dkim: DkimConfig,
}

/// Section `[node.smtp.opt_out]`: how a recipient asks for no more mail. With neither a link nor a mailbox, mails say nothing
/// of it, since nobody would hear.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptOutConfig {
    /// A mailbox of the operator's, whose mail is given to `mixgate exit opt-out mail`.
    #[serde(with = "crate::deliver::mail::mailbox_text")]
    pub mail: Option<Mailbox>,
    /// The page that the links lead to, at the operator's web server.
    #[serde(deserialize_with = "web_page")]
    pub url: Option<String>,
    /// Where this process serves that page to the web server. Loopback only.
    pub listen: Option<LoopbackAddress>,
}

/// Octets of the address of a page, at most: a link must fit a line of a mail with token and mailbox.
const PAGE_LEN: usize = 200;

/// The address of a page, to which a query can be appended. In the clear, anybody on the way could opt others out (RFC 8058
/// 3.1).
fn web_page<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let Some(url) = Option::<String>::deserialize(value)? else { return Ok(None) };
    let host = url.strip_prefix("https://").filter(|host| !host.is_empty());
    if host.is_none() || url.len() > PAGE_LEN || !url.bytes().all(|c| c.is_ascii_graphic() && !b"<>\"?#,".contains(&c))
    {
        return Err(D::Error::custom(
            "expected an address such as https://exit.example/opt-out, of 200 letters at most, without ? and #",
        ));
    }
    Ok(Some(url))
}

impl Default for SmtpDeliveryConfig {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            enabled: false,
            max_size: 100 * 1024,
            mime_max_size: 0,
            inflate_max: 0,
            retry: RetrySchedule::new(vec![RetryStep { every: hours(7), during: hours(6 * 24) }]),
            refusals: None,
            limits: LimitsConfig::default(),
            proof_address: None,
            way: Way::default(),
            server: SmtpExitConfig::default(),
            mx: MxConfig::default(),
            sendmail: SendmailConfig::default(),
            maildir: MaildirConfig::default(),
            mail: MailConfig::default(),
            opt_out: OptOutConfig::default(),
            dkim: DkimConfig::default(),
        }
    }
}

impl SmtpDeliveryConfig {
    /// Octets of the largest message with attachments, if any are delivered.
    pub fn mime(&self) -> Option<u64> {
        (self.mime_max_size > 0).then_some(self.mime_max_size)
    }
}

/// Descriptors count in kilobytes: less would be a promise to deliver nothing, and nobody would send any.
fn a_kilobyte<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    match u64::deserialize(value)? {
        0..1024 => Err(D::Error::custom("must be 1024 or more")),
        octets => Ok(octets),
    }
}

/// As [`a_kilobyte`], where there may be none at all.
fn none_or_a_kilobyte<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    match u64::deserialize(value)? {
        1..1024 => Err(D::Error::custom("must be 0, or 1024 and more")),
        octets => Ok(octets),
    }
}

/// Section `[node.mbox]`: this node has users of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MboxDeliveryConfig {
    /// Whether it delivers to them. The names are the identities of the gateway in the same process, and those of
    /// `address_file`.
    pub enabled: bool,
    /// The largest message, in octets after decompression. Published in the descriptor.
    #[serde(deserialize_with = "a_kilobyte")]
    pub max_size: u64,
    /// The file of users whose mail goes to an address or into a folder. `None`: there are none.
    pub address_file: Option<PathBuf>,
}

impl Default for MboxDeliveryConfig {
    fn default() -> Self {
        Self { enabled: false, max_size: 10 * 1024 * 1024, address_file: None }
    }
}

/// Section `[node.fragments]`: reassembly at this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FragmentsConfig {
    /// Whether it does. Without it the exit takes no message of more than one packet.
    pub enabled: bool,
    /// The largest message, in octets as it travels: compressed. Rounded up to the fragments that it is cut into.
    pub max_size: u64,
    /// How long an incomplete message is kept.
    #[serde(with = "crate::settings::time")]
    pub keep: Duration,
    /// Octets of fragments kept at a time: whoever floods the exit shall not fill the disk. Beyond it the oldest incomplete
    /// messages make room.
    pub max_stored: u64,
}

impl Default for FragmentsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            max_size: 10 * 1024 * 1024,
            keep: Duration::from_secs(2 * 24 * 3600),
            max_stored: 1024 * 1024 * 1024,
        }
    }
}

impl FragmentsConfig {
    /// Fragments of the largest message, if compression does not make it shorter: what the descriptor says, and so what
    /// senders go by and this exit must keep to.
    pub fn most_fragments(&self) -> u64 {
        let len = u32::try_from(self.max_size).unwrap_or(u32::MAX);
        Fragmentation::new(len, Capacity::Plain).map_or(0, |cut| cut.fragments().into())
    }
}

/// Section `[network]`: how this process learns who the mixes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Where the directory is: the URL of the server's base. Empty: none is asked.
    #[serde(deserialize_with = "crate::settings::base_url")]
    pub directory: String,
    /// Who must have signed it: the directory server's key id, 40 hexadecimal digits.
    #[serde(deserialize_with = "crate::settings::fingerprint")]
    pub directory_key: String,
    /// How often it is fetched, on a schedule of its own and not when a mail is sent: a fetch just before each mail
    /// would announce it.
    #[serde(with = "crate::settings::time")]
    pub refresh: Duration,
    /// How soon a failed fetch is tried again.
    #[serde(with = "crate::settings::time")]
    pub retry: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            directory: String::new(),
            directory_key: String::new(),
            refresh: Duration::from_secs(3600),
            retry: Duration::from_secs(60),
        }
    }
}

/// Section `[gateway.sender]`: how the user's mail becomes packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SenderConfig {
    /// The mixes that a mail passes, as a path specification. All gateways should use the default: an unusual path
    /// tells one user from another.
    #[serde(deserialize_with = "crate::settings::forward_path")]
    pub path: String,
    /// The mixes that an answer passes, from the swap point of the correspondent's packet on.
    #[serde(deserialize_with = "crate::settings::surb_path")]
    pub reply_path: String,
    /// How long reply blocks are good for.
    #[serde(with = "crate::settings::time")]
    pub reply_block_lifetime: Duration,
    /// How long the user's packets gather before they leave in random order. Where this process is also a mix they
    /// enter the mix's pool and leave with the packets of others.
    #[serde(with = "crate::settings::time")]
    pub interval: Duration,
    /// How long a mail that finds no path waits for one before its sender is told that it is given up.
    #[serde(with = "crate::settings::time")]
    pub give_up: Duration,
    /// How packets reach their first mix where this process is not a mix itself.
    pub outgoing: OutgoingConfig,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            path: "~5".into(),
            reply_path: "~5".into(),
            reply_block_lifetime: Duration::from_secs(7 * 24 * 3600),
            interval: Duration::from_secs(2 * 60),
            give_up: Duration::from_secs(3 * 24 * 3600),
            outgoing: OutgoingConfig::default(),
        }
    }
}

/// Section `[node.dummies]`: what is sent to be taken for packets of people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DummiesConfig {
    /// Whether any is.
    pub enabled: bool,
    /// Dummies that leave with each batch, on average: packets that a mix one to four hops away discards.
    #[serde(deserialize_with = "few_dummies")]
    pub drop_mean: f64,
    /// How often a mix that gets no packets gets padding instead, on average. Zero: never.
    #[serde(with = "crate::settings::time_or_never")]
    pub junk_period: Duration,
}

impl DummiesConfig {
    /// The most dummies on average. A thousand in a quarter of an hour are some 300 MB in an hour, which is no longer
    /// padding.
    pub const DROP_MEAN_MAX: f64 = 1000.0;
}

fn few_dummies<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    let mean = f64::deserialize(value)?;
    // Written so that NaN fails it too.
    if (0.0..=DummiesConfig::DROP_MEAN_MAX).contains(&mean) {
        Ok(mean)
    } else {
        Err(D::Error::custom(format_args!("must lie between 0 and {}", DummiesConfig::DROP_MEAN_MAX)))
    }
}

impl Default for DummiesConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            // A geometric number of mean 8 hides a packet that was flushed out of the pool among as many others, and
            // is nought in one batch of nine. With 2.5 hops on average and four batches an hour it costs each node
            // 2.5 MB an hour. It also keeps a network alive that nobody writes in: each dummy passes 1.5 pools, which
            // fills those that keep 45 within an hour and then moves their packets on.
            drop_mean: 8.0,
            // The reference's ServerProbePeriod.
            junk_period: Duration::from_secs(3600),
        }
    }
}

/// Section `[node.keys]`: how long keys live, and how they are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// How long a packet key is named by descriptors; whole days, rounded up. The next key begins in the middle of this
    /// time, so that there is always one that lasts for half of it: reply blocks need mixes whose key ends after them.
    #[serde(with = "crate::settings::time")]
    pub lifetime: Duration,
    /// How long a key opens packets after that: what was built before it expired may arrive after.
    #[serde(with = "crate::settings::time")]
    pub overlap: Duration,
    /// How long before it begins a key is made and published.
    #[serde(with = "crate::settings::time")]
    pub ahead: Duration,
    /// Bits of the identity key, when one is made.
    pub identity_bits: u32,
    /// Whether the private keys are sealed with a passphrase, which is asked for at the start.
    pub sealed: bool,
}

impl Default for KeysConfig {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        Self { lifetime: days(30), overlap: days(1), ahead: days(14), identity_bits: 2048, sealed: false }
    }
}

/// Section `[node.stats]`: counts for the operator, rounded so that they do no harm (`node::stats`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatsConfig {
    /// Whether they are kept.
    pub enabled: bool,
    /// What one report is about.
    #[serde(with = "crate::settings::time")]
    pub interval: Duration,
    /// Where reports are appended. `None`: `statistics` in the home of the node.
    pub file: Option<PathBuf>,
}

impl Default for StatsConfig {
    fn default() -> Self {
        Self { enabled: true, interval: Duration::from_secs(24 * 3600), file: None }
    }
}
