//! The octets of the Mixminion Transfer Protocol (minion-spec 4): the version line, the unit that carries a packet,
//! the answer to it.
//!
//! Who says what when is `client` and `server`.

use crate::crypto::{DIGEST_LEN, Digest, Prefix};
use crate::packet::{PACKET_LEN, Packet};

/// The one version that is spoken. The specification says 1.0, the network never did (minion-spec A.3).
pub const VERSION: &str = "0.3";

/// How a version line begins.
const VERSION_PREFIX: &str = "MMTP ";

/// Octets in the control line of a unit: `SEND` or `JUNK`, CRLF.
pub const CONTROL_LEN: usize = 6;

/// Octets in a unit: control line, packet, digest (minion-spec 4).
pub const UNIT_LEN: usize = CONTROL_LEN + PACKET_LEN + DIGEST_LEN;

/// Octets in the control line of an answer: `RECEIVED` or `REJECTED`, CRLF.
const ANSWER_CONTROL_LEN: usize = 10;

/// Octets in an answer: control line, digest (minion-spec 4).
pub const ANSWER_LEN: usize = ANSWER_CONTROL_LEN + DIGEST_LEN;
const _: () = assert!(UNIT_LEN == 32794 && ANSWER_LEN == 30);

/// A version line ends within this many octets, or the peer does not speak MMTP. The reference's limit.
pub const MAX_LINE_LEN: usize = 4096;

/// Units that may be under way without an answer. The specification lets a client pause at 16; the reference does so
/// at 6. It bounds what one peer can keep in memory, on either side, to half a megabyte.
pub const WINDOW: usize = 16;

/// What the peer did against the protocol. After any of it the connection is closed and nothing is said.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum PeerMisbehaved {
    /// No CRLF within the limit.
    #[error("no end of line within {MAX_LINE_LEN} octets")]
    EndlessLine,
    /// The first line is not `MMTP`, a space and a list of versions.
    #[error("the first line names no MMTP version")]
    VersionLine,
    /// The client offers only versions that are not spoken here.
    #[error("none of the offered MMTP versions is {VERSION}")]
    NoCommonVersion,
    /// The server chose a version that it was not offered.
    #[error("the server chose another MMTP version than {VERSION}, the one that it was offered")]
    VersionNotOffered,
    /// A unit begins with something else than SEND or JUNK.
    #[error("a command that is neither SEND nor JUNK")]
    UnknownCommand,
    /// The digest that closes a unit is not that of its content. The specification answers REJECTED, the reference
    /// closes the connection.
    #[error("the digest of a packet does not match its content")]
    WrongDigest,
    /// An answer to nothing.
    #[error("an answer though no packet waits for one")]
    UnexpectedAnswer,
    /// An answer that is neither RECEIVED nor REJECTED for the oldest packet that waits for one.
    #[error("an answer that does not fit the packet")]
    WrongAnswer,
    /// The connection ended within a line, a unit or an answer.
    #[error("the connection ended in the middle")]
    Truncated,
}

/// What a unit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A packet to be taken charge of.
    Send,
    /// Padding of the link, to be answered and forgotten.
    Junk,
}

impl Command {
    fn control(self) -> &'static [u8; CONTROL_LEN] {
        match self {
            Self::Send => b"SEND\r\n",
            Self::Junk => b"JUNK\r\n",
        }
    }

    fn digest(self, packet: &Prefix) -> Digest {
        packet.followed_by(match self {
            Self::Send => b"SEND",
            Self::Junk => b"JUNK",
        })
    }

    /// The unit that carries `packet` under this command.
    pub fn unit(self, packet: &Packet) -> Vec<u8> {
        let mut unit = Vec::with_capacity(UNIT_LEN);
        self.put_unit(packet, &hashed(packet), &mut unit);
        unit
    }

    /// Puts the unit of a packet that was hashed before behind these octets.
    pub(super) fn put_unit(self, packet: &Packet, hash: &Prefix, octets: &mut Vec<u8>) {
        octets.extend_from_slice(self.control());
        octets.extend_from_slice(packet.as_bytes());
        octets.extend_from_slice(&self.digest(hash).0);
    }

    /// The answer of a server that has the packet on disk, or has forgotten it if it was padding.
    pub(super) fn received(self, packet: &Prefix) -> Answer {
        let digest = packet.followed_by(match self {
            Self::Send => b"RECEIVED",
            Self::Junk => b"RECEIVED JUNK",
        });
        answer(b"RECEIVED\r\n", digest)
    }
}

/// A packet as the digests of its unit and of both its answers begin.
pub(super) fn hashed(packet: &Packet) -> Prefix {
    Prefix::new(packet.as_bytes())
}

/// An answer as it goes over the wire.
pub(super) type Answer = [u8; ANSWER_LEN];

/// The answer of a server that has not taken the packet.
pub(super) fn rejected(packet: &Prefix) -> Answer {
    answer(b"REJECTED\r\n", packet.followed_by(b"REJECTED"))
}

fn answer(control: &[u8; ANSWER_CONTROL_LEN], digest: Digest) -> Answer {
    let mut answer = [0; ANSWER_LEN];
    let (line, rest) = answer.split_at_mut(ANSWER_CONTROL_LEN);
    line.copy_from_slice(control);
    rest.copy_from_slice(&digest.0);
    answer
}

/// The line by which either side names the version: the client's list has one entry.
pub(super) fn version_line() -> Vec<u8> {
    format!("{VERSION_PREFIX}{VERSION}\r\n").into_bytes()
}

/// Whether the line of a client offers the version spoken here.
///
/// # Errors
/// [`PeerMisbehaved::VersionLine`] when it is no version line, [`PeerMisbehaved::NoCommonVersion`] when it offers
/// others only.
pub(super) fn check_offer(line: &[u8]) -> Result<(), PeerMisbehaved> {
    let list = line.strip_prefix(VERSION_PREFIX.as_bytes()).ok_or(PeerMisbehaved::VersionLine)?;
    if list.is_empty() || list.iter().any(u8::is_ascii_whitespace) {
        return Err(PeerMisbehaved::VersionLine);
    }
    let offered = list.split(|octet| *octet == b',').any(|version| version == VERSION.as_bytes());
    if offered { Ok(()) } else { Err(PeerMisbehaved::NoCommonVersion) }
}

/// A unit that comes in piece by piece. What came of its packet lies where the packet will.
#[derive(Default)]
pub(super) struct PartialUnit {
    control: Partial,
    command: Option<Command>,
    packet: Vec<u8>,
    digest: Partial,
}

impl PartialUnit {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.control.len() + self.packet.len() + self.digest.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.command.is_none()
    }

    /// Takes of `input` what is missing. When the unit is complete, gives its packet, and that as its answers begin.
    ///
    /// # Errors
    /// [`PeerMisbehaved::UnknownCommand`], before more is taken of a peer that speaks another protocol;
    /// [`PeerMisbehaved::WrongDigest`].
    pub(super) fn fill(&mut self, input: &mut &[u8]) -> Result<Option<(Command, Packet, Prefix)>, PeerMisbehaved> {
        let command = match self.command {
            Some(command) => command,
            None => {
                let Some(control) = self.control.fill::<CONTROL_LEN>(input) else { return Ok(None) };
                *self.command.insert(read_command(&control)?)
            }
        };
        self.packet.reserve_exact(PACKET_LEN - self.packet.len());
        take(&mut self.packet, PACKET_LEN, input);
        if self.packet.len() < PACKET_LEN {
            return Ok(None);
        }
        let Some(digest) = self.digest.fill::<DIGEST_LEN>(input) else { return Ok(None) };
        self.command = None;
        let packet = std::mem::take(&mut self.packet).into_boxed_slice();
        let packet = Packet::from_box(packet).expect("32768 octets: waited for above");
        let hash = hashed(&packet);
        if command.digest(&hash).0 == digest {
            Ok(Some((command, packet, hash)))
        } else {
            Err(PeerMisbehaved::WrongDigest)
        }
    }
}

/// Puts of `input` behind `octets` what is missing there to `len`.
fn take(octets: &mut Vec<u8>, len: usize, input: &mut &[u8]) {
    let (taken, rest) = input.split_at(len.saturating_sub(octets.len()).min(input.len()));
    octets.extend_from_slice(taken);
    *input = rest;
}

/// Reads the control line of a unit.
///
/// # Errors
/// [`PeerMisbehaved::UnknownCommand`].
pub(super) fn read_command(control: &[u8; CONTROL_LEN]) -> Result<Command, PeerMisbehaved> {
    [Command::Send, Command::Junk]
        .into_iter()
        .find(|command| command.control() == control)
        .ok_or(PeerMisbehaved::UnknownCommand)
}

/// Octets that have come in and are not yet a whole line or answer. Never longer than the longest of those.
#[derive(Default)]
pub(super) struct Partial(Vec<u8>);

impl Partial {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes of `input` what is missing to `LEN` octets; gives them when they are complete.
    pub(super) fn fill<const LEN: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; LEN]> {
        take(&mut self.0, LEN, input);
        let whole = self.0.as_slice().try_into().ok()?;
        self.0.clear();
        Some(whole)
    }

    /// Takes of `input` up to the end of a line; gives the line without its CRLF when it is complete.
    ///
    /// # Errors
    /// [`PeerMisbehaved::EndlessLine`].
    pub(super) fn line(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, PeerMisbehaved> {
        while let Some((octet, rest)) = input.split_first() {
            self.0.push(*octet);
            *input = rest;
            if let Some(line) = self.0.strip_suffix(b"\r\n") {
                let line = line.to_vec();
                self.0.clear();
                return Ok(Some(line));
            }
            if self.0.len() >= MAX_LINE_LEN {
                return Err(PeerMisbehaved::EndlessLine);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A packet of one octet repeated.
    pub(in crate::mmtp) fn packet(octet: u8) -> Packet {
        Packet::from_bytes(&[octet; PACKET_LEN]).unwrap()
    }

    /// The same, hashed.
    pub(in crate::mmtp) fn hash(octet: u8) -> Prefix {
        hashed(&packet(octet))
    }

    fn hex(octets: &[u8]) -> String {
        octets.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    // The expected digests come from `hashlib`: sha1(b"\x07" * 32768 + b"SEND") and so on.
    #[test]
    fn digests_are_those_of_the_specification() {
        let packet = packet(7);
        let send = Command::Send.unit(&packet);
        let junk = Command::Junk.unit(&packet);
        assert_eq!((send.len(), &send[..6], hex(&send[32774..]).as_str()), (32794, &b"SEND\r\n"[..], SEND_7));
        assert_eq!((junk.len(), &junk[..6], hex(&junk[32774..]).as_str()), (32794, &b"JUNK\r\n"[..], JUNK_7));
        let received = Command::Send.received(&hash(7));
        assert_eq!((&received[..10], hex(&received[10..]).as_str()), (&b"RECEIVED\r\n"[..], RECEIVED_7));
        let received = Command::Junk.received(&hash(7));
        assert_eq!((&received[..10], hex(&received[10..]).as_str()), (&b"RECEIVED\r\n"[..], RECEIVED_JUNK_7));
        let rejected = rejected(&hash(7));
        assert_eq!((&rejected[..10], hex(&rejected[10..]).as_str()), (&b"REJECTED\r\n"[..], REJECTED_7));
    }

    #[test]
    fn a_line_ends_at_its_first_crlf_and_leaves_the_rest() {
        let mut input = &b"MMTP 0.3\r\nSEND\r\n"[..];
        assert_eq!(Partial::default().line(&mut input), Ok(Some(b"MMTP 0.3".to_vec())));
        assert_eq!(input, b"SEND\r\n");
    }

    #[test]
    fn offers_are_read_as_the_reference_reads_them() {
        assert_eq!(check_offer(b"MMTP 0.3"), Ok(()));
        assert_eq!(check_offer(b"MMTP 0.1,0.3,9.9"), Ok(()));
        assert_eq!(check_offer(b"MMTP 0.1,0.2"), Err(PeerMisbehaved::NoCommonVersion));
        assert_eq!(check_offer(b"MMTP 0.33"), Err(PeerMisbehaved::NoCommonVersion));
        for line in [&b""[..], b"MMTP", b"MMTP ", b"MMTP  0.3", b"MMTP 0.3 ", b"MMTP 0.1, 0.3", b"mmtp 0.3", b"GET /"] {
            assert_eq!(check_offer(line), Err(PeerMisbehaved::VersionLine), "{line:?}");
        }
    }

    const SEND_7: &str = "29bad2638feb9f8d320ee68ecb57559a8e2af49d";
    const JUNK_7: &str = "6b21f53fcf911710e6c3a1869fb64650b2a579a6";
    const RECEIVED_7: &str = "ba8c81ffa077ab587ea232c041c2e52d76efba43";
    const RECEIVED_JUNK_7: &str = "dcdc6dd3728f641f39df5f3074591c8b7f439fc3";
    const REJECTED_7: &str = "14f425a4e2b7b497490cba834449c09c4e757e6c";
}
