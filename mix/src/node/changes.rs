//! What of a node may change while it runs, and the ends from which its services get it.
//!
//! What can fail is made first: settings are taken whole or not at all. When a service looks at what it got is its own
//! business; most do when they next decide something. What ports, folders, names and sealed keys are bound to is not here.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::config::{
    DummiesConfig, NetworkConfig, NodeConfig, OptOutConfig, OutgoingConfig, SmtpDeliveryConfig, StatsConfig, Way,
};
use super::exit::{Elsewhere, MboxWay, MessageIds, SmtpWay, WayOut, Ways};
use super::mixing::Rhythm;
use super::start::NodeError;
use crate::deliver::dkim::Signer;
use crate::deliver::mail::MailWriter;
use crate::deliver::mail::notice::About;
use crate::deliver::maildir::{Maildir, NotKept};
use crate::deliver::mbox::{AddressTable, AddressesError, LocalMailboxes};
use crate::deliver::mx::{Fetch, MxExit, Policies, Shelf};
use crate::deliver::opt_out::{Offer, OptOutKey};
use crate::deliver::refusals::Refusals;
use crate::deliver::sendmail::Sendmail;
use crate::deliver::smtp::SmtpExit;
use crate::net::bandwidth::Bandwidth;
use crate::net::fetch::fetch_policy;
use crate::net::resolve::Resolver;
use crate::net::{connect, listen};
use crate::store::inbox::Arrival;

/// What deliveries are made of, beside settings.
pub(super) struct Deliveries {
    /// Users of this node, when it keeps mail for a gateway.
    pub(super) mailboxes: Option<Arc<dyn LocalMailboxes<Arrival>>>,
    pub(super) message_ids: MessageIds,
    pub(super) opt_out_key: OptOutKey,
    /// What domains promise of their mail servers. Neither a reload nor a restart forgets it.
    pub(super) policies: Arc<Policies>,
}

/// The ends.
pub(super) struct Changes {
    /// All of them, for keys and descriptors.
    pub(super) settings: watch::Sender<Arc<NodeConfig>>,
    pub(super) rhythm: watch::Sender<Rhythm>,
    pub(super) dummies: watch::Sender<DummiesConfig>,
    pub(super) incoming: watch::Sender<listen::Terms>,
    pub(super) outgoing: watch::Sender<OutgoingConfig>,
    pub(super) reach: watch::Sender<connect::Terms>,
    pub(super) reserve: watch::Sender<u64>,
    pub(super) ways: watch::Sender<Ways>,
    pub(super) stats: watch::Sender<StatsConfig>,
    pub(super) network: watch::Sender<NetworkConfig>,
    deliveries: Deliveries,
    /// Who looks up names, whatever the settings say. `None`: the system.
    resolver: Option<Resolver>,
}

/// What was made of settings, and can be taken.
pub(super) struct Made {
    rhythm: Rhythm,
    ways: Ways,
    bandwidth: Option<Bandwidth>,
}

impl Changes {
    /// As a start has them.
    ///
    /// # Errors
    /// [`NodeError`], as [`Changes::make`].
    pub(super) fn new(
        config: &NodeConfig,
        network: NetworkConfig,
        deliveries: Deliveries,
        resolver: Option<Resolver>,
    ) -> Result<Self, NodeError> {
        let Made { rhythm, ways, bandwidth } = make(config, &deliveries)?;
        let incoming = listen::Terms { config: config.incoming.clone(), bandwidth: bandwidth.clone() };
        Ok(Self {
            settings: watch::Sender::new(Arc::new(config.clone())),
            rhythm: watch::Sender::new(rhythm),
            dummies: watch::Sender::new(config.dummies.clone()),
            incoming: watch::Sender::new(incoming),
            outgoing: watch::Sender::new(config.outgoing.clone()),
            reach: watch::Sender::new(config.outgoing.terms(resolver.clone(), bandwidth)),
            reserve: watch::Sender::new(config.disk_reserve),
            ways: watch::Sender::new(ways),
            stats: watch::Sender::new(config.stats.clone()),
            network: watch::Sender::new(network),
            deliveries,
            resolver,
        })
    }

    /// What these settings ask for. Nothing changes yet.
    ///
    /// # Errors
    /// [`NodeError`], as at a start.
    pub(super) fn make(&self, config: &NodeConfig) -> Result<Made, NodeError> {
        make(config, &self.deliveries)
    }

    /// Lets the services go by it: what was made of `config`.
    pub(super) fn take(&self, config: &NodeConfig, made: Made) {
        let Made { rhythm, ways, bandwidth } = made;
        self.ways.send_replace(ways);
        let bandwidth = Bandwidth::changed(self.incoming.borrow().bandwidth.clone(), bandwidth);
        let incoming = listen::Terms { config: config.incoming.clone(), bandwidth: bandwidth.clone() };
        self.incoming.send_replace(incoming);
        let reach = config.outgoing.terms(self.resolver_for(&config.outgoing), bandwidth);
        self.reach.send_replace(reach);
        self.rhythm.send_if_modified(|old| replace(old, rhythm));
        self.dummies.send_if_modified(|old| replace(old, config.dummies.clone()));
        self.outgoing.send_if_modified(|old| replace(old, config.outgoing.clone()));
        self.reserve.send_if_modified(|old| replace(old, config.disk_reserve));
        self.stats.send_if_modified(|old| replace(old, config.stats.clone()));
    }

    /// Names that are known stay known, unless how they are looked up has changed.
    fn resolver_for(&self, config: &OutgoingConfig) -> Option<Resolver> {
        let old = self.outgoing.borrow();
        let same = (old.address_lifetime, old.lookups) == (config.address_lifetime, config.lookups);
        if same { Some(self.reach.borrow().resolver.clone()) } else { self.resolver.clone() }
    }
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}

fn make(config: &NodeConfig, deliveries: &Deliveries) -> Result<Made, NodeError> {
    Ok(Made { rhythm: rhythm(config)?, ways: ways(config, deliveries)?, bandwidth: bandwidth(config)? })
}

/// When packets leave, and which.
pub(super) fn rhythm(config: &NodeConfig) -> Result<Rhythm, NodeError> {
    Ok(Rhythm { pool: config.mixing.pool()?, interval: config.mixing.interval })
}

/// The limit for all links of the node, of which each must get a packet through before anybody gives it up.
pub(super) fn bandwidth(config: &NodeConfig) -> Result<Option<Bandwidth>, NodeError> {
    let links = config.incoming.max_connections.saturating_add(config.outgoing.connections);
    let patience = config.incoming.idle_timeout.min(config.outgoing.progress_timeout);
    Ok(config.bandwidth.limit(links, patience)?)
}

/// Rules that let nobody in at a port of this node were not meant so.
pub(super) fn check_access(config: &NodeConfig, addresses: &[SocketAddr]) -> Result<(), NodeError> {
    let policy = config.incoming.access.policy();
    // Which port 0 becomes is seen at the start.
    match addresses.iter().map(SocketAddr::port).find(|port| *port != 0 && !policy.opens(*port)) {
        Some(port) => Err(NodeError::Access { port }),
        None => Ok(()),
    }
}

/// How messages are delivered.
fn ways(config: &NodeConfig, deliveries: &Deliveries) -> Result<Ways, NodeError> {
    let smtp = config.smtp.enabled.then(|| smtp_way(config, deliveries, None)).transpose()?.map(Arc::new);
    let mbox = config.mbox.enabled.then(|| mbox_way(config, deliveries)).transpose()?.map(Arc::new);
    Ok(Ways { smtp, smtp_retry: config.smtp.retry.clone(), mbox, fragments: config.fragments.clone() })
}

/// How e-mail leaves, by the settings of the chosen way alone. Nothing is changed yet.
pub(super) fn way_out(
    config: &SmtpDeliveryConfig,
    policies: &Arc<Policies>,
) -> Result<(MailWriter, WayOut), NodeError> {
    let writer = MailWriter::new(config.mail.clone())?;
    let out = match config.way {
        Way::Smarthost => WayOut::SmartHost(Box::new(SmtpExit::new(&config.server, writer.return_address())?)),
        Way::Mx => WayOut::Mx(Box::new(MxExit::new(&config.mx, writer.return_address(), Arc::clone(policies))?)),
        Way::Sendmail => WayOut::Sendmail(Sendmail::new(&config.sendmail)?),
        Way::Maildir => WayOut::Maildir(Maildir::new(&config.maildir)?),
    };
    Ok((writer, out))
}

/// The promises of mail domains: those on the shelf, if there is one.
pub(super) fn policies(shelf: Option<Shelf>) -> Arc<Policies> {
    let fetch: Fetch = Box::new(|host, addresses| {
        // Why there is none to be had changes nothing, and to say so would name the domain.
        Box::pin(async move { fetch_policy(host.as_str(), &addresses).await.ok() })
    });
    Arc::new(Policies::new(fetch, shelf))
}

/// Above messages stands `notice` where the settings say nothing of it.
fn smtp_way(node: &NodeConfig, deliveries: &Deliveries, notice: Option<String>) -> Result<SmtpWay, NodeError> {
    let config = &node.smtp;
    let (writer, out) = way_out(config, &deliveries.policies)?;
    let writer = writer.under(set_notice(node)?.or(notice));
    let OptOutConfig { url, mail, .. } = config.opt_out.clone();
    let writer = writer.offering(Offer::new(deliveries.opt_out_key.clone(), url, mail));
    let (message_ids, dkim) = (deliveries.message_ids.clone(), Signer::new(&config.dkim)?);
    let (refusals, limits) = (refusals(config)?, config.limits.clone());
    if let WayOut::Maildir(maildir) = &out
        // Anything else than its mode may pass by itself: until then mail waits.
        && let Err(NotKept::Invalid(why)) = maildir.prepare()
    {
        return Err(why.into());
    }
    let SmtpDeliveryConfig { max_size, inflate_max, ref retry, .. } = *config;
    let mime = config.mime();
    let proof_address = config.proof_address.as_ref().unwrap_or(writer.return_address()).clone();
    Ok(SmtpWay {
        writer,
        out,
        proof_address,
        max_size,
        mime,
        inflate_max,
        retry: retry.clone(),
        message_ids,
        refusals,
        limits,
        dkim,
    })
}

/// What a notice can say of this node.
fn about(config: &NodeConfig) -> About<'_> {
    About { nickname: &config.nickname, host: &config.host, contact: &config.contact }
}

/// What stands above messages by the settings. Read anew whenever it is asked for, as the list of refusals.
pub(super) fn set_notice(config: &NodeConfig) -> Result<Option<String>, NodeError> {
    Ok(config.smtp.mail.notice(&about(config))?)
}

/// Read anew whenever it is asked for, so that a reload takes a list that has changed.
pub(super) fn refusals(config: &SmtpDeliveryConfig) -> Result<Refusals, NodeError> {
    let list = config.refusals.as_deref().map(Refusals::read).transpose()?;
    Ok(list.unwrap_or_default())
}

/// Read anew whenever it is asked for, as the list of refusals. Mail in a folder says that it is for the user as clients write
/// him.
pub(super) fn addresses(config: &NodeConfig) -> Result<Option<AddressTable>, NodeError> {
    let domain = format!("{}.mbox.alt", config.nickname.to_ascii_lowercase());
    let table = config.mbox.address_file.as_deref().map(|path| AddressTable::read(path, &domain));
    Ok(table.transpose().map_err(AddressesError::from)?)
}

fn mbox_way(config: &NodeConfig, deliveries: &Deliveries) -> Result<MboxWay, NodeError> {
    let (mailboxes, max_size) = (deliveries.mailboxes.clone(), config.mbox.max_size);
    let elsewhere = match (addresses(config)?, &config.mbox.address_file) {
        (Some(table), Some(path)) => {
            // What cannot be made or entered may pass by itself: a proof says which, and until then mail waits.
            let prepared = table.prepare();
            prepared.map_err(|(line, source)| AddressesError::Folder { path: path.clone(), line, source })?;
            let notice = config.smtp.mail.notice_for_users(&about(config));
            let mail = SmtpWay { max_size, mime: None, ..smtp_way(config, deliveries, Some(notice.clone()))? };
            let kept = smtp_way(config, deliveries, Some(notice))?;
            let kept = SmtpWay { max_size, mime: None, writer: kept.writer.offering(None), ..kept };
            Some(Elsewhere { table, mail: Arc::new(mail), kept: Arc::new(kept), told: Mutex::default() })
        }
        _ => None,
    };
    if mailboxes.is_none() && elsewhere.is_none() {
        return Err(NodeError::NoMailboxes);
    }
    Ok(MboxWay { mailboxes, max_size, elsewhere })
}
