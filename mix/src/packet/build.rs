//! Builds packets and reply blocks (minion-spec 3.3).
//!
//! All chance comes from the `rng` that is handed in, in a fixed order: handle or session key, secrets of the first
//! leg, secrets of the second, padding and OAEP seeds of the second header, then of the first. So a recorded stream
//! rebuilds the same packet.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::CryptoRng;

use super::header::{self, Layer};
use super::routing::{HostRoute, NextHop, RoutingType};
use super::surb::Surb;
use super::{HANDLE_LEN, HEADER_LEN, Handle, Header, PAYLOAD_LEN, Packet, Payload};
use crate::crypto::keyset::{SECRET_LEN, SharedSecret};
use crate::crypto::pk::{OAEP_OVERHEAD, PublicKey};
use crate::crypto::surb_key::SurbKey;
use crate::crypto::{Keyset, sha1};

/// Octets that an encrypted forward payload has less than others: OAEP padding and session key, but for the part that
/// spills into the handle (E2E-spec 2.3).
pub const ENCRYPTED_FORWARD_OVERHEAD: usize = OAEP_OVERHEAD - HANDLE_LEN + SECRET_LEN;
/// Octets of the content of an encrypted forward payload.
pub const ENCRYPTED_FORWARD_LEN: usize = PAYLOAD_LEN - ENCRYPTED_FORWARD_OVERHEAD;
const _: () = assert!(ENCRYPTED_FORWARD_OVERHEAD == 38);

/// One mix on a leg: where it is and how to encrypt for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its current packet key, of 2048 bits.
    pub packet_key: PublicKey,
    /// How the mix before it reaches it.
    pub route: HostRoute,
}

/// Where a packet leaves the network.
#[derive(Clone, PartialEq, Eq)]
pub struct Exit {
    /// How it is delivered.
    pub exit_type: RoutingType,
    /// To whom, in the terms of the exit type; without the handle.
    pub address: Vec<u8>,
}

/// Prints how, never to whom.
impl std::fmt::Debug for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exit({}, ..)", self.exit_type)
    }
}

/// Why a packet cannot be built. The caller's path or address is at fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Unbuildable {
    /// A leg without mixes.
    #[error("a leg of the path is empty")]
    EmptyLeg,
    /// The first leg does not fit a header.
    #[error("the first leg of the path does not fit one header; take fewer mixes or shorter host names")]
    FirstLegTooLong,
    /// The second leg, with the exit address, does not fit a header.
    #[error("exit address and second leg of the path do not fit one header; take fewer mixes or a shorter address")]
    SecondLegTooLong,
    /// Below 0x0100 only DROP ends a path; replies and encrypted forward messages need an exit type with a handle.
    #[error("{0} is not an exit type that serves for this kind of packet")]
    NotAnExit(RoutingType),
    /// Packet keys have 2048 bits.
    #[error("a mix on the path has a packet key of {bits} bits; it must have 2048")]
    PacketKeySize {
        /// What was found.
        bits: u32,
    },
    /// The content of an encrypted forward payload has 28634 octets.
    #[error("content of {len} octets; an encrypted forward payload holds 28634")]
    ContentLength {
        /// Octets given.
        len: usize,
    },
    /// A reply block that expires after the year 2106 or before 1970 cannot say so.
    #[error("the expiry of a reply block must lie between 1970 and 2106")]
    Expiry,
}

/// Builds a forward packet: `payload` leaves the network at the last mix of `leg2`, by `exit`. Where the exit type has
/// a handle, it gets a random one, so that plaintext forward packets look like all others.
///
/// # Errors
/// [`Unbuildable`].
pub fn forward(
    payload: &Payload,
    exit: &Exit,
    leg1: &[Hop],
    leg2: &[Hop],
    rng: &mut impl CryptoRng,
) -> Result<Packet, Unbuildable> {
    let handle = exit.exit_type.has_handle().then(|| Handle::random(rng));
    forward_with_handle(payload, exit, handle, leg1, leg2, rng)
}

/// Builds a dummy: a forward packet of random payload that the last mix discards (DROP), and that no mix before it can
/// tell from others. With an empty `leg2` the last mix of `leg1` discards it; there is no swap point then, and noise in
/// the place of the second header, which looks no different while it is encrypted.
///
/// # Errors
/// [`Unbuildable`].
pub fn dummy(leg1: &[Hop], leg2: &[Hop], rng: &mut impl CryptoRng) -> Result<Packet, Unbuildable> {
    let payload = Payload::random(rng);
    if !leg2.is_empty() {
        return forward(&payload, &Exit { exit_type: RoutingType::DROP, address: Vec::new() }, leg1, leg2, rng);
    }
    check_leg(leg1, &[], Unbuildable::FirstLegTooLong)?;
    let secrets = random_secrets(leg1, rng);
    let mut header2: Header = [0; HEADER_LEN];
    rng.fill_bytes(&mut header2);
    let header1 = leg_header(leg1, &secrets, (RoutingType::DROP, Vec::new()), rng);
    // Encrypted for each mix of the leg, noise is still noise.
    Ok(Packet::from_parts(&header1, &header2, &payload))
}

/// Builds a forward packet whose content only the holder of `key` can read (E2E-spec 2.3). `content` has
/// [`ENCRYPTED_FORWARD_LEN`] octets.
///
/// # Errors
/// [`Unbuildable`].
pub fn encrypted_forward(
    content: &[u8],
    key: &PublicKey,
    exit: &Exit,
    leg1: &[Hop],
    leg2: &[Hop],
    rng: &mut impl CryptoRng,
) -> Result<Packet, Unbuildable> {
    if content.len() != ENCRYPTED_FORWARD_LEN {
        return Err(Unbuildable::ContentLength { len: content.len() });
    }
    // The handle is the beginning of the ciphertext: an exit that does not hand it on loses the message.
    if !exit.exit_type.has_handle() {
        return Err(Unbuildable::NotAnExit(exit.exit_type));
    }
    let (handle, payload) = encrypt_to(content, key, rng);
    forward_with_handle(&payload, exit, Some(handle), leg1, leg2, rng)
}

/// RSA for the beginning of (session key | content), LIONESS for the rest; the first 20 octets become the handle.
fn encrypt_to(content: &[u8], key: &PublicKey, rng: &mut impl CryptoRng) -> (Handle, Payload) {
    let session_key = SharedSecret::random(rng);
    let plain = [session_key.expose(), content].concat();
    let (rsa_part, lioness_part) = plain.split_at(key.modulus_len() - OAEP_OVERHEAD);
    let rsa_part = loop {
        let encrypted = key.encrypt(rsa_part, rng).expect("as long as the key takes: split above");
        // A top bit that is always zero tells nothing of the modulus, and is what random handles look like.
        if encrypted.first().is_some_and(|octet| octet & 0x80 == 0) {
            break encrypted;
        }
    };
    let mut lioness_part = lioness_part.to_vec();
    session_key.keyset().end_to_end_keys().encrypt(&mut lioness_part);
    let whole = [rsa_part, lioness_part].concat();
    let (handle, payload) = whole.split_first_chunk().expect("28692 octets");
    (Handle(*handle), Payload::from_bytes(payload).expect("28672 octets: the overhead is made up for above"))
}

fn forward_with_handle(
    payload: &Payload,
    exit: &Exit,
    handle: Option<Handle>,
    leg1: &[Hop],
    leg2: &[Hop],
    rng: &mut impl CryptoRng,
) -> Result<Packet, Unbuildable> {
    let Exit { exit_type, address } = exit;
    if !exit_type.is_exit() && *exit_type != RoutingType::DROP {
        return Err(Unbuildable::NotAnExit(*exit_type));
    }
    let first = leg2.first().ok_or(Unbuildable::EmptyLeg)?;
    let swap = (RoutingType::SWAP_FWD_HOST, first.route.to_bytes());
    check_leg(leg1, &swap.1, Unbuildable::FirstLegTooLong)?;
    let info = [handle.as_ref().map_or(&[][..], |handle| &handle.0), address].concat();
    check_leg(leg2, &info, Unbuildable::SecondLegTooLong)?;

    let secrets1 = random_secrets(leg1, rng);
    let secrets2 = random_secrets(leg2, rng);
    let header2 = leg_header(leg2, &secrets2, (*exit_type, info), rng);
    let header1 = leg_header(leg1, &secrets1, swap, rng);
    let mut payload = payload.clone();
    for secret in secrets2.iter().rev() {
        secret.keyset().payload_encrypt_keys().encrypt(payload.as_mut_bytes());
    }
    Ok(assemble(&header1, &secrets1, &header2, payload))
}

/// Builds a reply: `payload` goes over `leg1` to the first mix of `surb`, then whither that leads. Each block serves
/// once; the caller sees to that (`store::surbs`).
///
/// # Errors
/// [`Unbuildable::EmptyLeg`], [`Unbuildable::FirstLegTooLong`], [`Unbuildable::PacketKeySize`].
pub fn reply(payload: &Payload, leg1: &[Hop], surb: &Surb, rng: &mut impl CryptoRng) -> Result<Packet, Unbuildable> {
    let swap = surb.swap_routing();
    check_leg(leg1, &swap.1, Unbuildable::FirstLegTooLong)?;
    let mut payload = payload.clone();
    // Decrypted, not encrypted: so its owner undoes all steps of the way alike, by encrypting (E2E-spec 4).
    surb.key.keyset().payload_encrypt_keys().decrypt(payload.as_mut_bytes());
    let secrets1 = random_secrets(leg1, rng);
    let header1 = leg_header(leg1, &secrets1, swap, rng);
    Ok(assemble(&header1, &secrets1, &surb.header, payload))
}

/// Makes a reply block: what is sent through it arrives at `exit` over `leg`, and `key` decodes it. All secrets follow
/// from a seed that travels as the handle, so nothing needs to be remembered for each block (E2E-spec 4).
///
/// # Errors
/// [`Unbuildable`].
pub fn reply_block(
    leg: &[Hop],
    exit: &Exit,
    key: &SurbKey,
    expires: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<Surb, Unbuildable> {
    let first = leg.first().ok_or(Unbuildable::EmptyLeg)?;
    let use_by = expires.duration_since(UNIX_EPOCH).map_err(|_| Unbuildable::Expiry)?.as_secs();
    let use_by = u32::try_from(use_by).map_err(|_| Unbuildable::Expiry)?;
    if !exit.exit_type.has_handle() {
        return Err(Unbuildable::NotAnExit(exit.exit_type));
    }
    let seed = key.new_seed(rng);
    let info = [&seed[..], &exit.address].concat();
    check_leg(leg, &info, Unbuildable::SecondLegTooLong)?;
    let mut secrets_rng = key.secrets(&seed);
    // The recipient undoes the last mix first: the stream gives its secret first, and the sender's key last.
    let mut secrets = random_secrets(leg, &mut secrets_rng);
    secrets.reverse();
    let shared = SharedSecret::random(&mut secrets_rng);
    let header = leg_header(leg, &secrets, (exit.exit_type, info), rng);
    Ok(Surb { header, use_by, first_hop: NextHop::Host(first.route.clone()), key: shared })
}

fn random_secrets(leg: &[Hop], rng: &mut impl CryptoRng) -> Vec<SharedSecret> {
    leg.iter().map(|_| SharedSecret::random(rng)).collect()
}

/// Whether a header holds this leg when its last mix gets routing info `last`.
fn check_leg(leg: &[Hop], last: &[u8], too_long: Unbuildable) -> Result<(), Unbuildable> {
    if let Some(hop) = leg.iter().find(|hop| hop.packet_key.bits() != 2048) {
        return Err(Unbuildable::PacketKeySize { bits: hop.packet_key.bits() });
    }
    let (_, followers) = leg.split_first().ok_or(Unbuildable::EmptyLeg)?;
    let mut lens: Vec<usize> = followers.iter().map(|hop| hop.route.to_bytes().len()).collect();
    lens.push(last.len());
    if header::fits(&lens) { Ok(()) } else { Err(too_long) }
}

/// The header of a leg whose last mix gets `last`, each other the way to its follower.
fn leg_header(
    leg: &[Hop],
    secrets: &[SharedSecret],
    last: (RoutingType, Vec<u8>),
    rng: &mut impl CryptoRng,
) -> Box<Header> {
    let followers = leg.iter().skip(1).map(|hop| (RoutingType::FWD_HOST, hop.route.to_bytes()));
    let layers: Vec<Layer<'_>> = leg
        .iter()
        .zip(secrets)
        .zip(followers.chain([last]))
        .map(|((hop, secret), (routing_type, info))| Layer { packet_key: &hop.packet_key, secret, routing_type, info })
        .collect();
    header::build(&layers, rng)
}

/// Hides second header and payload from each other, then encrypts both for the first leg (minion-spec 3.3.1).
fn assemble(header1: &Header, secrets1: &[SharedSecret], header2: &Header, mut payload: Payload) -> Packet {
    let mut header2 = *header2;
    let digest = sha1(&[payload.as_bytes()]);
    Keyset::new(&digest.0).hide_header_keys().encrypt(&mut header2);
    let digest = sha1(&[&header2]);
    Keyset::new(&digest.0).hide_payload_keys().encrypt(payload.as_mut_bytes());
    for secret in secrets1.iter().rev() {
        let keyset = secret.keyset();
        keyset.header_encrypt_keys().encrypt(&mut header2);
        keyset.payload_encrypt_keys().encrypt(payload.as_mut_bytes());
    }
    Packet::from_parts(header1, &header2, &payload)
}
