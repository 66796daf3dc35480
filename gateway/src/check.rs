//! Looks at a configuration as a start does, without touching disk or network; and says what of it is allowed and unwise,
//! and who can read its file.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use mix::directory::Descriptor;
use mix::node::config::{MixRule, NodeConfig};
use mix::node::directory::DirectoryServer;
use mix::node::network::Network;
use mix::node::retry::RetrySchedule;
use mix::node::sender::Style;
use mix::path::ExitAddress;
use mixgate_conf::{Origin, Origins};
use smtp_in::error::NotServing;

use crate::config::{Config, IdentityConfig};
use crate::start::StartError;

/// A pool that keeps more holds 320 MB, and packets for days.
const MOST_KEPT: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Looks at the settings of all roles that are enabled.
///
/// # Errors
/// [`StartError`] for which [`StartError::is_configuration`] is true: what a start would say too.
pub fn check(config: &Config) -> Result<(), StartError> {
    let Config { network, gateway, node, directory, .. } = config;
    if !(gateway.enabled || node.enabled || directory.enabled) {
        return Err(StartError::NoRole);
    }
    if config.metrics.listen.is_some() && !node.enabled {
        return Err(StartError::NoMetrics);
    }
    if directory.enabled {
        DirectoryServer::check(directory)?;
    }
    if node.enabled {
        mix::node::check(node, gateway.enabled)?;
        if !network.directory.is_empty() && !network.directory_key.is_empty() {
            Network::check(network)?;
        }
    }
    if gateway.enabled {
        if network.directory.is_empty() {
            return Err(StartError::NoDirectory);
        }
        Network::check(network)?;
        if gateway.identities.is_empty() {
            return Err(StartError::NoIdentity);
        }
        reply_addresses(&gateway.identities, node)?;
        Style::new(&gateway.sender.path, &gateway.sender.reply_path, gateway.sender.reply_block_lifetime)?;
        gateway.smtp.policy().map_err(NotServing::from)?;
    }
    Ok(())
}

/// As [`check`], on a thread that may wait: files are read and patterns compiled while the process serves.
pub(crate) async fn check_aside(config: &Config) -> Result<(), StartError> {
    let config = config.clone();
    let checked = tokio::task::spawn_blocking(move || check(&config)).await;
    checked.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

/// Where answers to each identity arrive, once each of them can be logged in as, and gets its answers here.
pub(crate) fn reply_addresses(
    identities: &[IdentityConfig],
    node: &NodeConfig,
) -> Result<BTreeMap<String, ExitAddress>, StartError> {
    let mut names = BTreeSet::new();
    let mut addresses = BTreeMap::new();
    for IdentityConfig { name, password, reply_to } in identities {
        if name.is_empty() || password.expose().is_empty() || !names.insert(name) {
            return Err(StartError::Identity { name: name.clone() });
        }
        if reply_to.is_empty() {
            continue;
        }
        let address =
            ExitAddress::parse(reply_to).map_err(|source| StartError::ReplyTo { name: name.clone(), source })?;
        if !is_kept_here(&address, node) {
            return Err(StartError::NoMailbox { name: name.clone(), node: node.nickname.clone() });
        }
        addresses.insert(name.clone(), address);
    }
    Ok(addresses)
}

/// Answers arrive where the gateway can read them: at the node in this process.
fn is_kept_here(address: &ExitAddress, node: &NodeConfig) -> bool {
    match address {
        ExitAddress::Mbox { server: Some(server), .. } => {
            node.enabled && node.mbox.enabled && server.as_str().eq_ignore_ascii_case(&node.nickname)
        }
        _ => false,
    }
}

/// Something that is allowed, and that an operator may not have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The key that it is about.
    pub key: &'static str,
    /// What is unwise about it.
    pub text: String,
}

/// All that is allowed and unwise. `origins` tells what somebody wrote and what is a default, where that is known.
pub fn warnings(config: &Config, origins: Option<&Origins>) -> Vec<Warning> {
    let config = &config.clone().told_of_each_other();
    let mut found = Vec::new();
    let mut warn = |key, text: &str| found.push(Warning { key, text: text.to_owned() });
    let node = &config.node;
    if node.enabled {
        let weaknesses = mix::node::weaknesses(node);
        if !weaknesses.is_empty() {
            let why = weaknesses.join(", ");
            warn("node", &format!("protects its users less than it could, and its descriptor says so: {why}"));
        }
        warn_of_mixing(node, origins, &mut warn);
        warn_of_reach(config, &mut warn);
        warn_of_want(node, &mut warn);
        let interval = node.mixing.interval;
        warn_of_schedule("node.outgoing.retry", &node.outgoing.retry, interval, &mut warn);
        if node.smtp.enabled || (node.mbox.enabled && node.mbox.address_file.is_some()) {
            warn_of_schedule("node.smtp.retry", &node.smtp.retry, interval, &mut warn);
            warn_of_opting_out(node, &mut warn);
            warn_of_signing(node, &mut warn);
        }
    }
    warn_of_mixes(config, &mut warn);
    if let Some(origins) = origins {
        warn_of_readers(config, origins, &mut warn);
    }
    let gateway = &config.gateway;
    if gateway.enabled && node.enabled && node.mixing.keeps() > 0 {
        let kept = node.mixing.keeps();
        warn(
            "node.mixing.minimum",
            &format!("own mail leaves only when the pool holds more packets than these {kept}"),
        );
    }
    if gateway.enabled && !node.enabled {
        let sender = &gateway.sender;
        warn_of_schedule("gateway.sender.outgoing.retry", &sender.outgoing.retry, sender.interval, &mut warn);
    }
    found
}

/// Passwords in a file that others than its owner can read, or write.
fn warn_of_readers(config: &Config, origins: &Origins, warn: &mut impl FnMut(&'static str, &str)) {
    let identities = ("gateway.identities", !config.gateway.identities.is_empty());
    let server = ("node.smtp.server.password", config.node.smtp.server.password.is_some());
    for (key, _) in [identities, server].into_iter().filter(|(_, has_passwords)| *has_passwords) {
        let Origin::File { path, .. } = origins.of(key) else { continue };
        let Ok(found) = std::fs::metadata(&path) else { continue };
        let mode = found.mode() & 0o777;
        if mode & 0o066 != 0 {
            let path = path.display();
            warn(
                key,
                &format!("{path} holds passwords and has mode {mode:04o}, which lets others read it: chmod 600 {path}"),
            );
        }
    }
}

/// Mail that strangers have sent to others, who are not told how to stop it.
fn warn_of_opting_out(node: &NodeConfig, warn: &mut impl FnMut(&'static str, &str)) {
    let offer = &node.smtp.opt_out;
    if node.smtp.enabled && offer.mail.is_none() && offer.url.is_none() {
        let text = "neither mail nor url is set, so mails do not tell their recipients how to get no more: you will hear of \
                    each who wants none";
        warn("node.smtp.opt_out", text);
    }
}

/// A signature that receivers do not take for one of the sender, and a key that is not the operator's alone.
fn warn_of_signing(node: &NodeConfig, warn: &mut impl FnMut(&'static str, &str)) {
    let dkim = &node.smtp.dkim;
    if let (Some(signs), Some(from)) = (&dkim.domain, &node.smtp.mail.return_address) {
        let (signs, from) = (signs.to_ascii_lowercase(), from.domain().to_ascii_lowercase());
        if from != signs && !from.ends_with(&format!(".{signs}")) {
            let text = format!(
                "neither {from}, which mail comes from, nor above it: receivers (DMARC) count no such signature"
            );
            warn("node.smtp.dkim.domain", &text);
        }
    }
    if let Some(path) = &dkim.key_file
        && let Ok(found) = std::fs::metadata(path)
        && found.mode() & 0o066 != 0
    {
        let (path, mode) = (path.display(), found.mode() & 0o777);
        warn(
            "node.smtp.dkim.key_file",
            &format!("{path} has mode {mode:04o}, which lets others read it: chmod 600 {path}"),
        );
    }
}

/// Deliveries that the node has told others of and that are switched off, by what it last said of itself.
pub fn switched_off(node: &NodeConfig, said: &Descriptor) -> Vec<Warning> {
    let off = |key, was: bool, is: bool, how_long| {
        let text = format!(
            "false, and the descriptor of the node offers it: mail that waits is kept for {how_long}, to be delivered if it is switched on by then"
        );
        (was && !is).then_some(Warning { key, text })
    };
    let smtp = off("node.smtp.enabled", said.smtp().is_some(), node.smtp.enabled, "the time of node.smtp.retry");
    let mbox = off("node.mbox.enabled", said.mbox().is_some(), node.mbox.enabled, "a day");
    smtp.into_iter().chain(mbox).collect()
}

fn warn_of_mixing(node: &NodeConfig, origins: Option<&Origins>, warn: &mut impl FnMut(&'static str, &str)) {
    let mixing = &node.mixing;
    if mixing.rule == MixRule::Timed {
        for key in ["node.mixing.minimum", "node.mixing.rate"] {
            if origins.is_some_and(|origins| origins.of(key) != Origin::Default) {
                warn(key, "without effect: the rule is timed");
            }
        }
    } else if mixing.rate < 0.05 {
        warn("node.mixing.rate", "unusually low: packets will wait for long");
    }
}

fn warn_of_reach(config: &Config, warn: &mut impl FnMut(&'static str, &str)) {
    let node = &config.node;
    let nowhere = node.host == "localhost" || node.host.starts_with("127.");
    if nowhere && !node.listen.as_slice().iter().all(|address| address.ip().is_loopback()) {
        warn("node.host", "nobody but this machine reaches the node there");
    }
    if node.fragments.enabled && !node.smtp.enabled && !node.mbox.enabled {
        warn("node.fragments.enabled", "without effect: no delivery is enabled");
    }
    let mail = node.smtp.max_size;
    if node.fragments.enabled && node.smtp.enabled && node.fragments.max_size < mail {
        warn("node.fragments.max_size", "smaller than node.smtp.max_size: larger mail is never put together");
    }
    let attachments = node.smtp.mime().filter(|_| node.smtp.enabled);
    if attachments.is_some_and(|attachments| node.fragments.enabled && node.fragments.max_size < attachments) {
        let why = "smaller than node.smtp.mime_max_size: larger mail with attachments is never put together";
        warn("node.fragments.max_size", why);
    }
    if attachments.is_some() && !node.fragments.enabled {
        warn("node.smtp.mime_max_size", "attachments of more than one packet need node.fragments.enabled");
    }
}

/// A process that learns of no mixes.
fn warn_of_mixes(config: &Config, warn: &mut impl FnMut(&'static str, &str)) {
    let Some((key, why)) = config.no_mixes() else { return };
    let mut then = Vec::new();
    if config.node.enabled && config.network.directory.is_empty() {
        then.push("nobody is told of this node");
    }
    if config.node.enabled && config.node.dummies.enabled {
        then.push("it sends no dummies");
    }
    if config.gateway.enabled {
        then.push("no mail can be sent");
    }
    if !then.is_empty() {
        warn(key, &format!("{why}, and so {}", then.join(", and ")));
    }
}

/// What a node would lack.
fn warn_of_want(node: &NodeConfig, warn: &mut impl FnMut(&'static str, &str)) {
    let kept = node.mixing.keeps();
    if kept > MOST_KEPT {
        warn("node.mixing.minimum", &format!("no packet leaves before more than {kept} have come together"));
    }
    if node.disk_reserve == 0 {
        warn(
            "node.disk_reserve",
            "0: packets are taken until the disk is full, and those that were taken cannot go on then",
        );
    }
    if node.contact.trim().is_empty() {
        warn("node.contact", "empty: nobody can tell the operator of this node that something is wrong with it");
    }
}

/// The reference's doubts about a schedule of retries. Attempts are made at the ends of mixing intervals.
fn warn_of_schedule(
    key: &'static str,
    schedule: &RetrySchedule,
    interval: Duration,
    warn: &mut impl FnMut(&'static str, &str),
) {
    let total: Duration = schedule.steps().iter().map(|step| step.during).sum();
    let pace = |every: Duration| every.max(interval).max(Duration::from_secs(1));
    let attempts: u128 =
        schedule.steps().iter().map(|step| step.during.as_nanos().div_ceil(pace(step.every).as_nanos())).sum();
    let shortest = schedule.steps().iter().map(|step| step.every).min().unwrap_or(interval);
    if total < DAY {
        warn(key, "gives up in less than a day");
    }
    if total > 14 * DAY {
        warn(key, "goes on for more than 14 days");
    }
    if shortest < interval {
        warn(key, "more often than the mixing interval: rounded to its ends");
    } else if shortest < 5 * MINUTE {
        warn(key, "more often than every five minutes");
    }
    if attempts < 5 {
        warn(key, "fewer than 5 attempts");
    }
    if attempts > 50 {
        warn(key, "more than 50 attempts");
    }
}

#[cfg(test)]
mod tests {
    use mix::node::retry::RetryStep;

    use super::*;

    fn node() -> Config {
        let mut config = Config::default();
        config.node.enabled = true;
        config.node.host = "mix.example".into();
        config.network.directory = "http://directory.example/".into();
        config.network.directory_key = "0123456789ABCDEF0123456789ABCDEF01234567".into();
        config
    }

    /// A node that delivers e-mail.
    fn exit() -> Config {
        let mut config = node();
        config.node.smtp.enabled = true;
        config.node.smtp.opt_out.mail = mix::path::Mailbox::parse("opt-out@exit.example").ok();
        config
    }

    fn schedule(steps: &[(u64, u64)]) -> RetrySchedule {
        let seconds = Duration::from_secs;
        let step = |&(every, during)| RetryStep { every: seconds(every), during: seconds(during) };
        RetrySchedule::new(steps.iter().map(step).collect())
    }

    fn texts(config: &Config) -> Vec<String> {
        warnings(config, None).into_iter().map(|warning| format!("{}: {}", warning.key, warning.text)).collect()
    }

    #[test]
    fn sound_configuration_is_warned_of_nothing() {
        check(&node()).unwrap();
        assert_eq!(texts(&node()), Vec::<String>::new());
        assert_eq!(texts(&exit()), Vec::<String>::new());
    }

    #[test]
    fn exit_whose_mail_does_not_say_how_to_get_no_more_of_it_is_warned() {
        let mut config = exit();
        config.node.smtp.opt_out.mail = None;
        let none = "node.smtp.opt_out: neither mail nor url is set, so mails do not tell their recipients how to get no more: \
                    you will hear of each who wants none";
        assert_eq!(texts(&config), [none]);
        config.node.smtp.opt_out.url = Some("https://exit.example/opt-out".into());
        assert_eq!(texts(&config), Vec::<String>::new());
        config.node.smtp.opt_out.url = None;
        config.node.smtp.enabled = false;
        assert_eq!(texts(&config), Vec::<String>::new(), "no mail");
    }

    #[test]
    fn defaults_of_no_role_are_warned_of() {
        let mut config = node();
        for (gateway, node, directory) in [(true, false, false), (false, true, false), (false, false, true)] {
            (config.gateway.enabled, config.node.enabled, config.directory.enabled) = (gateway, node, directory);
            assert_eq!(texts(&config), Vec::<String>::new(), "{gateway} {node} {directory}");
        }
        // What a node of its own user must know is no fault of the defaults.
        (config.gateway.enabled, config.node.enabled, config.node.smtp.enabled) = (true, true, true);
        let keys: Vec<_> = warnings(&config, None).iter().map(|warning| warning.key).collect();
        assert_eq!(keys, ["node.smtp.opt_out", "node.mixing.minimum"]);
    }

    #[test]
    fn each_doubt_of_the_reference_about_a_schedule_is_said() {
        let day = 24 * 3600;
        for (steps, doubt) in [
            (&[(3600, day - 3600)][..], "gives up in less than a day"),
            (&[(24 * 3600, 15 * day)], "goes on for more than 14 days"),
            (&[(20 * 3600, day + 1)], "fewer than 5 attempts"),
            (&[(1800, 2 * day)], "more than 50 attempts"),
            (&[(600, 3600), (3600, day)], "more often than the mixing interval: rounded to its ends"),
        ] {
            let mut config = node();
            config.node.outgoing.retry = schedule(steps);
            assert_eq!(texts(&config), [format!("node.outgoing.retry: {doubt}")]);
        }
        let mut config = node();
        config.node.mixing.interval = MINUTE;
        config.node.outgoing.retry = schedule(&[(120, 600), (3600, day)]);
        assert!(texts(&config).contains(&"node.outgoing.retry: more often than every five minutes".to_owned()));
    }

    #[test]
    fn signature_that_does_not_count_and_key_that_others_can_read_are_warned_of() {
        use std::os::unix::fs::PermissionsExt as _;
        let key = tempfile::NamedTempFile::new().unwrap();
        let mode = |mode| std::fs::set_permissions(key.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let mut config = exit();
        config.node.smtp.mail.return_address = mix::path::Mailbox::parse("nobody@exit.example").ok();
        config.node.smtp.dkim.key_file = Some(key.path().to_owned());
        let keys = |config: &Config| warnings(config, None).iter().map(|warning| warning.key).collect::<Vec<_>>();
        mode(0o600);
        for (domain, counts) in
            [("exit.example", true), ("Example", true), ("mail.exit.example", false), ("it.example", false)]
        {
            config.node.smtp.dkim.domain = Some(domain.into());
            let expected = if counts { vec![] } else { vec!["node.smtp.dkim.domain"] };
            assert_eq!(keys(&config), expected, "{domain}");
        }
        config.node.smtp.dkim.domain = Some("exit.example".into());
        mode(0o640);
        assert_eq!(keys(&config), ["node.smtp.dkim.key_file"]);
    }

    #[test]
    fn weakness_that_is_published_is_said() {
        let mut config = node();
        config.node.mixing.rule = MixRule::Timed;
        assert_eq!(
            texts(&config),
            ["node: protects its users less than it could, and its descriptor says so: Mix algorithm is not secure"]
        );
    }

    #[test]
    fn node_that_nobody_reaches_or_hears_of_is_warned() {
        let mut config = node();
        config.node.host = "localhost".into();
        config.network.directory.clear();
        let keys: Vec<_> = warnings(&config, None).iter().map(|warning| warning.key).collect();
        assert_eq!(keys, ["node", "node.host", "network.directory"]);
    }

    #[test]
    fn attachments_that_no_fragments_bring_are_warned_of() {
        let mut config = exit();
        config.node.smtp.mime_max_size = 1 << 20;
        config.node.smtp.enabled = false;
        assert_eq!(texts(&config), Vec::<String>::new(), "no delivery, no attachments");
        config.node.smtp.enabled = true;
        let packet = "node.smtp.mime_max_size: attachments of more than one packet need node.fragments.enabled";
        assert_eq!(texts(&config), [packet]);
        config.node.fragments.enabled = true;
        assert_eq!(texts(&config), Vec::<String>::new());
        config.node.fragments.max_size = 1 << 19;
        let size = "node.fragments.max_size: smaller than node.smtp.mime_max_size: larger mail with attachments is never \
                    put together";
        assert_eq!(texts(&config), [size]);
    }

    #[test]
    fn node_that_can_send_no_dummies_is_warned_and_says_so_to_others() {
        type Change = fn(&mut Config);
        let changes: [(&str, Change); 3] = [
            ("network.directory", |config| config.network.directory.clear()),
            ("network.directory_key", |config| config.network.directory_key.clear()),
            ("network.directory_key", |config| config.network.directory_key = "0".repeat(40)),
        ];
        for (key, change) in changes {
            let mut config = node();
            change(&mut config);
            check(&config).unwrap();
            let keys: Vec<_> = warnings(&config, None).iter().map(|warning| warning.key).collect();
            assert_eq!(keys, ["node", key]);
            let told = config.clone().told_of_each_other().node;
            assert_eq!(mix::node::weaknesses(&told), ["Dummies are not sent"], "{key}");
            // Whoever wants none is told of that alone.
            config.node.dummies.enabled = false;
            assert!(!texts(&config).iter().any(|text| text.contains("no dummies")), "{key}");
        }
        let mut config = node();
        config.node.dummies.junk_period = Duration::ZERO;
        assert_eq!(
            texts(&config),
            ["node: protects its users less than it could, and its descriptor says so: Idle links are not padded"]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_warned_of() {
        type Change = fn(&mut NodeConfig);
        let changes: [(&str, Change); 4] = [
            ("node.mixing.minimum", |node| node.mixing.minimum = 100_000_000_000),
            ("node.disk_reserve", |node| node.disk_reserve = 0),
            ("node.contact", |node| node.contact.clear()),
            ("node.contact", |node| node.contact = " ".into()),
        ];
        for (key, change) in changes {
            let mut config = node();
            change(&mut config.node);
            let keys: Vec<_> = warnings(&config, None).iter().map(|warning| warning.key).collect();
            assert_eq!(keys, [key]);
        }
        let mut config = node();
        config.gateway.enabled = true;
        config.network.directory_key = "0".repeat(40);
        assert!(warnings(&config, None).iter().any(|warning| warning.key == "network.directory_key"));
    }

    #[test]
    fn fragments_of_a_message_that_would_never_be_there_together_are_refused() {
        let mut config = node();
        config.node.fragments.enabled = true;
        config.node.fragments.max_size = config.node.fragments.max_stored + 1;
        let refused = check(&config).unwrap_err();
        assert!(refused.is_configuration(), "{refused}");
        assert_eq!(refused.key(), Some("node.fragments.max_size"));
        config.node.fragments.enabled = false;
        check(&config).unwrap();
    }

    #[test]
    fn each_role_is_looked_at() {
        assert!(matches!(check(&Config::default()), Err(StartError::NoRole)));
        let mut config = node();
        config.directory.enabled = true;
        config.directory.url = "nowhere".into();
        assert!(matches!(check(&config), Err(StartError::Directory(_))));
        let mut config = node();
        config.gateway.enabled = true;
        config.network.directory_key.clear();
        assert!(matches!(check(&config), Err(StartError::Network(_))));
        let mut config = Config::default();
        config.directory.enabled = true;
        config.metrics.listen = Some(mix::net::loopback::LoopbackAddress::ipv4(0));
        assert!(matches!(check(&config), Err(StartError::NoMetrics)));
    }
}
