//! What a demonstration remembers from one start to the next: passwords, and the ports of everything that packets or
//! mails on their way know by its port.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use serde::{Deserialize, Serialize};

/// Characters of a made password.
const PASSWORD_LEN: usize = 16;
/// Names of the first mixes; further ones are numbered.
const NAMES: [&str; 5] = ["Aurora", "Borealis", "Cirrus", "Dune", "Ember"];

/// The state of a demonstration, as its home keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The password of the user's identity.
    pub(super) password: String,
    /// The password of the outside world's mailbox.
    pub(super) outside_password: String,
    /// Where exits deliver.
    pub(super) outside_smtp: u16,
    /// Where the directory is served.
    pub(super) directory: u16,
    /// The mixes, in order.
    pub(super) nodes: Vec<NodeState>,
}

/// A mix of a demonstration.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeState {
    /// Its nickname.
    pub(super) nickname: String,
    /// Its port for packets.
    pub(super) port: u16,
}

impl State {
    /// Goes on with what `home` remembers, or begins with `nodes` mixes.
    pub(super) fn load_or_make(home: &Path, nodes: usize) -> anyhow::Result<Self> {
        let path = home.join("demo.json");
        if !path.exists() {
            let state = Self::make(nodes)?;
            replace_file(&path, &serde_json::to_vec_pretty(&state)?)
                .with_context(|| format!("writing {}", path.display()))?;
            return Ok(state);
        }
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let state: Self = serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        if state.nodes.len() != nodes {
            let there = state.nodes.len();
            bail!("{} has a network of {there} mixes; start it with --nodes {there}", home.display());
        }
        Ok(state)
    }

    fn make(nodes: usize) -> anyhow::Result<Self> {
        // All are held until all are known, so that no port is given twice.
        let held = (0..nodes + 2)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<Vec<_>, _>>()
            .context("finding free ports")?;
        let mut ports = held.iter().map(|listener| listener.local_addr().map(|address| address.port()));
        let mut port = || ports.next().context("finding free ports")?.context("finding free ports");
        let name = |i: usize| NAMES.get(i).map_or_else(|| format!("Mix{}", i + 1), |name| (*name).to_owned());
        Ok(Self {
            password: password(),
            outside_password: password(),
            outside_smtp: port()?,
            directory: port()?,
            nodes: (0..nodes)
                .map(|i| Ok(NodeState { nickname: name(i), port: port()? }))
                .collect::<anyhow::Result<_>>()?,
        })
    }
}

/// Writes a file for its owner's eyes alone: whole, or not at all.
pub(super) fn replace_file(path: &Path, octets: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(octets)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LEN).map(char::from).collect()
}

/// An address on this machine.
pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_start_has_the_ports_and_passwords_of_the_first() {
        let home = tempfile::tempdir().unwrap();
        let first = State::load_or_make(home.path(), 7).unwrap();
        let second = State::load_or_make(home.path(), 7).unwrap();
        assert_eq!(first.password, second.password);
        assert_eq!(first.outside_smtp, second.outside_smtp);
        let ports = |state: &State| state.nodes.iter().map(|node| node.port).collect::<Vec<_>>();
        assert_eq!(ports(&first), ports(&second));
        assert_eq!(second.nodes[6].nickname, "Mix7");
    }

    #[test]
    fn other_number_of_mixes_is_refused_with_the_right_one() {
        let home = tempfile::tempdir().unwrap();
        State::load_or_make(home.path(), 3).unwrap();
        let refused = State::load_or_make(home.path(), 4).err().unwrap().to_string();
        assert!(refused.contains("3 mixes"), "{refused}");
    }
}
