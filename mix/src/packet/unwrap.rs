//! Takes one layer off a packet (minion-spec 3.2.5).
//!
//! Three steps whose order is the order that compiles: [`open`] decrypts the subheader, [`Opened::admit`] asks the
//! replay log, [`Admitted::process`] does the rest. Building packets is `build`; remembering replays is
//! `store::replay`. Timing differs by outcome here; `node::incoming` evens it out.

use std::borrow::Cow;
use std::fmt;

use zeroize::Zeroizing;

use super::routing::{InvalidRouting, NextHop, RoutingType};
use super::subheader::{ENC_SUBHEADER_LEN, HEADER_REST_LEN, SUBHEADER_OVERHEAD, Subheader};
use super::{HANDLE_LEN, HEADER_LEN, Handle, Header, InvalidPacket, PAYLOAD_LEN, Packet, Payload};
use crate::crypto::pk::PacketKey;
use crate::crypto::stream::StreamKey;
use crate::crypto::{Digest, Keyset, sha1, stream};

/// Remembers which packets were seen. Rotates with the packet key: an entry is of use only as long as its key.
pub trait ReplayLog {
    /// Why the log could not say.
    type Error;

    /// Whether the packet with this replay hash under this packet key (named by the SHA-1 of its public half) is new;
    /// if so, it is not new any more.
    ///
    /// # Errors
    /// When the log cannot be read or written: then nothing is known, and the packet must wait.
    fn admit(&mut self, packet_key: &Digest, replay_hash: &Digest) -> Result<Novelty, Self::Error>;
}

/// The replay log's word on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// Never seen under this key.
    New,
    /// Seen before.
    Replay,
}

/// Why a packet was not admitted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAdmitted<E> {
    /// The packet was seen before: dropped in silence.
    #[error("the packet was seen before")]
    Replay,
    /// The log failed; the packet is to be tried again.
    #[error("the replay log failed")]
    Log(#[source] E),
}

/// A packet whose subheader is decrypted and belongs to it. Nothing may be done with it before [`Opened::admit`].
pub struct Opened<'p> {
    packet: Cow<'p, Packet>,
    subheader: Subheader,
    packet_key: Digest,
}

/// Prints nothing that would recognise the packet.
impl fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(..)")
    }
}

/// Decrypts the first subheader with the first of `keys` that opens it, and checks that it belongs to this header.
///
/// During key overlap there are two keys; the newer goes first.
///
/// # Errors
/// [`InvalidPacket::WrongKey`], [`InvalidPacket::HeaderDigest`], or what [`Subheader::parse`] refuses.
pub fn open<'p>(packet: &'p Packet, keys: &[&PacketKey]) -> Result<Opened<'p>, InvalidPacket> {
    open_in(Cow::Borrowed(packet), keys)
}

fn open_in<'p>(packet: Cow<'p, Packet>, keys: &[&PacketKey]) -> Result<Opened<'p>, InvalidPacket> {
    let (header1, _, _) = packet.parts();
    let (encrypted, rest) = split_header(header1);
    let (plain, packet_key) = decrypt(encrypted, keys)?;
    let subheader = Subheader::parse(&plain)?;
    if subheader.digest != sha1(&[rest]) {
        return Err(InvalidPacket::HeaderDigest);
    }
    Ok(Opened { packet, subheader, packet_key })
}

/// As [`open`], for many packets at once, each with its own verdict. They are changed where they lie.
pub fn open_all(packets: Vec<Packet>, keys: &[&PacketKey]) -> Vec<Result<Opened<'static>, InvalidPacket>> {
    packets.into_iter().map(|packet| open_in(Cow::Owned(packet), keys)).collect()
}

fn split_header(header: &Header) -> (&[u8; ENC_SUBHEADER_LEN], &[u8]) {
    header.split_first_chunk().expect("2048 octets: Header")
}

fn decrypt(
    encrypted: &[u8; ENC_SUBHEADER_LEN],
    keys: &[&PacketKey],
) -> Result<(Zeroizing<Vec<u8>>, Digest), InvalidPacket> {
    keys.iter()
        .find_map(|key| key.decrypt(encrypted).ok().map(|plain| (plain, key.id())))
        .ok_or(InvalidPacket::WrongKey)
}

impl<'p> Opened<'p> {
    /// What the replay log remembers of this packet.
    pub fn replay_hash(&self) -> Digest {
        self.keyset().replay_hash()
    }

    /// SHA-1 of the public packet key that opened it: names the replay log to ask.
    pub fn packet_key(&self) -> Digest {
        self.packet_key
    }

    /// Goes on only if the replay log has never seen this packet.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn admit<L: ReplayLog>(self, log: &mut L) -> Result<Admitted<'p>, NotAdmitted<L::Error>> {
        match log.admit(&self.packet_key, &self.replay_hash()) {
            Ok(Novelty::New) => Ok(Admitted(self)),
            Ok(Novelty::Replay) => Err(NotAdmitted::Replay),
            Err(e) => Err(NotAdmitted::Log(e)),
        }
    }

    fn keyset(&self) -> Keyset<'_> {
        self.subheader.secret.keyset()
    }
}

/// A packet that the replay log has admitted.
#[derive(Debug)]
pub struct Admitted<'p>(Opened<'p>);

/// What is to be done with a packet after its layer is off.
#[derive(PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it was a dummy.
    Drop,
    /// Send `packet` to `next`.
    Relay {
        /// The next mix.
        next: NextHop,
        /// What it gets.
        packet: Packet,
    },
    /// Deliver out of the network.
    Exit {
        /// How.
        exit_type: RoutingType,
        /// To whom, in the terms of the exit type.
        address: Vec<u8>,
        /// For the recipient; absent where the exit type has none.
        handle: Option<Handle>,
        /// What.
        payload: Payload,
    },
}

/// Prints neither destination nor content.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "Drop",
            Self::Relay { .. } => "Relay(..)",
            Self::Exit { .. } => "Exit(..)",
        })
    }
}

impl Admitted<'_> {
    /// As [`Opened::replay_hash`]: what must be on disk before the outcome leaves the node.
    pub fn replay_hash(&self) -> Digest {
        self.0.replay_hash()
    }

    /// As [`Opened::packet_key`].
    pub fn packet_key(&self) -> Digest {
        self.0.packet_key
    }

    /// A key that only the sender and this mix know, for delivery modules that want one (minion-spec 3.2.2).
    pub fn application_key(&self) -> StreamKey {
        self.0.keyset().application_key()
    }

    /// Decrypts the rest of the header and the payload, and swaps the headers where the packet says so.
    ///
    /// # Errors
    /// [`InvalidPacket::UnknownRoutingType`] and [`InvalidPacket::RoutingInfo`]: the sender's nonsense. The packet
    /// stays in the replay log.
    pub fn process(self) -> Result<Outcome, InvalidPacket> {
        let Opened { packet, subheader, .. } = self.0;
        let routing_type = subheader.routing_type;
        if routing_type == RoutingType::DROP {
            return Ok(Outcome::Drop);
        }
        let keyset = subheader.secret.keyset();
        let (header1, _, payload) = packet.parts();
        let (info, next_header) = strip(header1, &subheader, &keyset);
        if routing_type.is_exit() {
            let mut payload = Payload::from_bytes(payload)?;
            keyset.payload_encrypt_keys().decrypt(payload.as_mut_bytes());
            return exit(routing_type, info, payload);
        }
        if !matches!(
            routing_type,
            RoutingType::FWD_HOST | RoutingType::SWAP_FWD_HOST | RoutingType::FWD_IPV4 | RoutingType::SWAP_FWD_IPV4
        ) {
            return Err(InvalidPacket::UnknownRoutingType(routing_type));
        }
        let next = NextHop::parse(routing_type, &info)?;
        // Changed in place, if it is nobody else's: moving 32 KB about is the next cost after the ciphers.
        let mut packet = packet.into_owned();
        let (header1, header2, payload) = packet.parts_mut();
        *header1 = next_header;
        keyset.header_encrypt_keys().decrypt(header2);
        keyset.payload_encrypt_keys().decrypt(payload);
        if routing_type.is_swap() {
            reveal(header2, payload);
            std::mem::swap(header1, header2);
        }
        Ok(Outcome::Relay { next, packet })
    }
}

/// Takes this mix's part off the header: its routing info, and the header that the next mix reads.
fn strip(header: &Header, subheader: &Subheader, keyset: &Keyset<'_>) -> (Vec<u8>, Header) {
    let (_, rest) = split_header(header);
    let junk = stream::prng(&keyset.junk_key(), SUBHEADER_OVERHEAD + subheader.info_len);
    let mut rest = [rest, &junk].concat();
    stream::crypt(&keyset.header_key(), 0, &mut rest);
    let (overflow, rest) = rest.split_at(subheader.overflow_len());
    let (inner, underflow) = subheader.split_inner();
    let next = [underflow, rest].concat();
    let next = next.try_into().expect("2048 octets: what the subheader and its routing info took is filled with junk");
    ([inner, overflow].concat(), next)
}
const _: () = assert!(HEADER_REST_LEN + ENC_SUBHEADER_LEN == HEADER_LEN);

/// The swap point: payload and second header hide each other, so that tagging one destroys both (minion-spec 3.2.5).
fn reveal(header: &mut Header, payload: &mut [u8; PAYLOAD_LEN]) {
    let digest = sha1(&[&header[..]]);
    Keyset::new(&digest.0).hide_payload_keys().decrypt(payload);
    let digest = sha1(&[&payload[..]]);
    Keyset::new(&digest.0).hide_header_keys().decrypt(header);
}

fn exit(exit_type: RoutingType, info: Vec<u8>, payload: Payload) -> Result<Outcome, InvalidPacket> {
    if !exit_type.has_handle() {
        return Ok(Outcome::Exit { exit_type, address: info, handle: None, payload });
    }
    let (handle, address) = info
        .split_first_chunk::<HANDLE_LEN>()
        .ok_or(InvalidPacket::RoutingInfo(InvalidRouting::MissingHandle { len: info.len() }))?;
    Ok(Outcome::Exit { exit_type, address: address.to_vec(), handle: Some(Handle(*handle)), payload })
}
