//! What a process says of itself to its operator, as text and as JSON.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::SystemTime;

use mix::directory::date::{format_date, format_time};
use mix::node::stats::Report;
use mix::node::{MailDelivery, NodeStatus, Publication};
use serde::{Deserialize, Serialize};

/// The answer to `status`. Times are UTC; numbers of packets are rounded up to thousands, none included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The version of the program.
    pub(crate) version: String,
    /// The process.
    pub(crate) pid: u32,
    /// Since when it is up.
    pub(crate) up_since: String,
    /// What people call the node.
    pub(crate) nickname: String,
    /// The digest of its identity key, 40 hexadecimal digits.
    pub(crate) fingerprint: String,
    /// Where it takes packets.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where others connect to.
    pub(crate) published: Option<String>,
    /// The packet keys that open packets, the newest first.
    pub(crate) packet_keys: Vec<PacketKey>,
    /// `nowhere`, `pending`, `listed`, `waiting` or `failing`.
    pub(crate) publication: String,
    /// What is proven of the delivery of e-mail; `None` where it is switched off.
    pub(crate) mail_delivery: Option<MailProof>,
    /// What is proven of delivery to users of the node whose mail goes elsewhere; `None` where there are none.
    pub(crate) user_delivery: Option<MailProof>,
    /// What waits.
    pub(crate) queues: Option<Queues>,
    /// Until when the directory in force is valid, where one is known.
    pub(crate) directory_valid_until: Option<String>,
    /// What is allowed and unwise: `key: why`.
    pub(crate) warnings: Vec<String>,
}

/// Whether mail can be handed over, as the node has proven it to itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MailProof {
    /// Whether it can.
    pub(crate) proven: bool,
    /// Whether the descriptor offers it: without a proof for users of the gateway alone.
    pub(crate) offered: bool,
    /// Since when it is as it is, UTC; `None` before the first proof.
    pub(crate) since: Option<String>,
    /// What keeps mail from being handed over: `key: why`.
    pub(crate) why: Option<String>,
}

impl MailProof {
    fn of(delivery: MailDelivery, offered: bool) -> Option<Self> {
        let (proven, since, why) = match delivery {
            MailDelivery::Off => return None,
            MailDelivery::Unproven => (false, None, None),
            MailDelivery::Proven { since } => (true, format_time(since), None),
            MailDelivery::Failing { since, why } => (false, format_time(since), Some(why)),
        };
        Some(Self { proven, offered, since, why })
    }
}

/// For people.
impl fmt::Display for MailProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.as_deref().unwrap_or_default();
        let offer = if self.offered { "is offered for users of the gateway alone" } else { "is not offered" };
        match (self.proven, &self.why) {
            (true, _) => write!(f, "can be delivered, as proven since {since} UTC"),
            (false, Some(why)) => write!(f, "cannot be delivered, and {offer}, since {since} UTC: {why}"),
            (false, None) => write!(f, "{offer} before it is proven that it can be delivered"),
        }
    }
}

/// Dates of a packet key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PacketKey {
    pub(crate) valid_after: String,
    pub(crate) valid_until: String,
}

impl PacketKey {
    /// The key that is valid between these days.
    pub(crate) fn of((valid_after, valid_until): (SystemTime, SystemTime)) -> Self {
        let day = |time| format_date(time).unwrap_or_default();
        Self { valid_after: day(valid_after), valid_until: day(valid_until) }
    }
}

/// The answer to `discard`: which keys have gone, and which are there ahead now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiscardedKeys {
    pub(crate) gone: Vec<PacketKey>,
    pub(crate) made: Vec<PacketKey>,
}

/// Numbers of packets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Queues {
    pub(crate) incoming: u64,
    pub(crate) pool: u64,
    pub(crate) outgoing: u64,
    pub(crate) exit: u64,
}

/// The answer to `stats`: the interval so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// When it began, UTC.
    pub(crate) since: String,
    /// The end of the last slice that is counted, UTC.
    pub(crate) until: String,
    /// What was counted, rounded up to thousands, in the order in which a packet comes by it.
    pub(crate) figures: Vec<(String, u64)>,
}

impl Stats {
    pub(crate) fn of(report: &Report) -> Self {
        let figures = report.figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure));
        Self {
            since: format_time(report.since).unwrap_or_default(),
            until: format_time(report.until).unwrap_or_default(),
            figures: figures.collect(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("From {} to {} UTC, rounded up to thousands:\n", self.since, self.until);
        for (name, figure) in &self.figures {
            // Writing into a text does not fail.
            let _ = writeln!(text, "  {name}: {figure}");
        }
        text
    }
}

impl Status {
    pub(crate) fn of(
        node: NodeStatus,
        since: SystemTime,
        directory_valid_until: Option<SystemTime>,
        warnings: Vec<String>,
    ) -> Self {
        let packet_keys = node.packet_keys.iter().map(|key| PacketKey::of((key.valid_after, key.valid_until)));
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            up_since: format_time(since).unwrap_or_default(),
            nickname: node.nickname,
            fingerprint: node.key_id.to_string(),
            listen: node.addresses,
            published: node.published,
            packet_keys: packet_keys.collect(),
            publication: publication(node.publication).into(),
            mail_delivery: MailProof::of(node.mail_delivery, node.offers_mail),
            user_delivery: MailProof::of(node.user_delivery, node.offers_users),
            queues: node.queues.map(|queues| Queues {
                incoming: queues.incoming,
                pool: queues.pool,
                outgoing: queues.outgoing,
                exit: queues.exit,
            }),
            directory_valid_until: directory_valid_until.and_then(format_time),
            warnings,
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a text does not fail.
        let mut line = |name: &str, value: &dyn fmt::Display| {
            let _ = writeln!(text, "{name:<16}{value}");
        };
        line("nickname", &self.nickname);
        line("fingerprint", &self.fingerprint);
        line("up since", &format_args!("{} UTC (mixgate {}, process {})", self.up_since, self.version, self.pid));
        self.listen.iter().for_each(|address| line("listens at", address));
        line("published as", &self.published.as_deref().unwrap_or("nothing"));
        for key in &self.packet_keys {
            line("packet key", &format_args!("{} to {}", key.valid_after, key.valid_until));
        }
        line("directory", &words(&self.publication));
        if let Some(until) = &self.directory_valid_until {
            line("directory valid", &format_args!("until {until} UTC"));
        }
        if let Some(proof) = &self.mail_delivery {
            line("e-mail", proof);
        }
        if let Some(proof) = &self.user_delivery {
            line("mail for users", proof);
        }
        match &self.queues {
            Some(Queues { incoming, pool, outgoing, exit }) => {
                let most = format_args!(
                    "at most {incoming} incoming, {pool} in the pool, {outgoing} outgoing, {exit} to deliver"
                )
                .to_string();
                line("packets", &most);
            }
            None => line("packets", &"the store does not say"),
        }
        for warning in &self.warnings {
            line("warning", warning);
        }
        text
    }
}

/// As JSON says it.
pub(crate) fn publication(said: Publication) -> &'static str {
    match said {
        Publication::Nowhere => "nowhere",
        Publication::Pending => "pending",
        Publication::Listed => "listed",
        Publication::Waiting => "waiting",
        Publication::Failing => "failing",
    }
}

/// As text says it.
pub(crate) fn words(publication: &str) -> &'static str {
    match publication {
        "nowhere" => "no directory server is asked: network.directory is empty",
        "pending" => "the directory server has not answered yet",
        "listed" => "the directory server lists this node",
        "waiting" => "the directory server has the descriptor, which waits for its operator",
        _ => "the directory server did not take the descriptor; see the log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_reads_what_is_proven_and_what_is_offered() {
        let since = SystemTime::UNIX_EPOCH;
        let failing = || MailDelivery::Failing { since, why: "node.smtp.server: no connection".into() };
        for (delivery, offered, expected) in [
            (MailDelivery::Proven { since }, true, "can be delivered, as proven since 1970"),
            (failing(), false, "cannot be delivered, and is not offered, since 1970"),
            (failing(), true, "cannot be delivered, and is offered for users of the gateway alone, since 1970"),
            (MailDelivery::Unproven, false, "is not offered before it is proven that it can be delivered"),
        ] {
            let said = MailProof::of(delivery, offered).unwrap().to_string();
            assert!(said.starts_with(expected), "{said}");
        }
        assert!(MailProof::of(MailDelivery::Off, false).is_none());
    }
}
