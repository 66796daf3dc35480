//! Builds one header: the subheaders of a leg, one inside the other (minion-spec 3.2.2).

use rand::CryptoRng;

use super::routing::RoutingType;
use super::subheader::{self, ENC_SUBHEADER_LEN, HEADER_REST_LEN, SUBHEADER_OVERHEAD, underflow_len};
use super::{HEADER_LEN, Header};
use crate::crypto::keyset::SharedSecret;
use crate::crypto::pk::PublicKey;
use crate::crypto::{sha1, stream};

/// What one mix on a leg is told, and the key to tell it with.
pub(super) struct Layer<'a> {
    pub(super) packet_key: &'a PublicKey,
    pub(super) secret: &'a SharedSecret,
    pub(super) routing_type: RoutingType,
    pub(super) info: Vec<u8>,
}

/// Whether a header can hold subheaders with routing info of these lengths, first mix first.
///
/// Each takes 84 octets and its routing info; the last needs a whole RSA block, since nothing follows to fill it.
pub fn fits(info_lens: &[usize]) -> bool {
    let Some(last) = info_lens.last() else { return false };
    let total: usize = info_lens.iter().map(|len| len + SUBHEADER_OVERHEAD).sum();
    total <= HEADER_LEN && HEADER_LEN - total + last + SUBHEADER_OVERHEAD >= ENC_SUBHEADER_LEN
}

/// Builds the header; the lengths of its routing infos passed [`fits`]. Takes the padding, then the OAEP seeds, last
/// mix first, from `rng`.
pub(super) fn build(layers: &[Layer<'_>], rng: &mut impl CryptoRng) -> Box<Header> {
    let total: usize = layers.iter().map(taken_off).sum();
    let mut header = vec![0; HEADER_LEN - total];
    rng.fill_bytes(&mut header);
    for (layer, junk) in layers.iter().zip(junk_seen(layers)).rev() {
        header = wrap(layer, &header, &junk, rng);
    }
    header.into_boxed_slice().try_into().expect("2048 octets: each layer adds what its mix takes off")
}

/// Octets that the mix of this layer takes off the header.
fn taken_off(layer: &Layer<'_>) -> usize {
    layer.info.len() + SUBHEADER_OVERHEAD
}

/// Encrypts `header` for the mix of one layer; `junk` is what that mix will find behind it.
fn wrap(layer: &Layer<'_>, header: &[u8], junk: &[u8], rng: &mut impl CryptoRng) -> Vec<u8> {
    let (underflow, rest) = header.split_at(underflow_len(layer.info.len()));
    let (_, overflow) = layer.info.split_at(layer.info.len().min(subheader::MAX_INNER_INFO_LEN));
    let mut body = [overflow, rest].concat();
    stream::crypt(&layer.secret.keyset().header_key(), 0, &mut body);
    let digest = sha1(&[&body, junk]);
    let plain = subheader::pack(layer.secret, &digest, layer.routing_type, &layer.info, underflow);
    let mut wrapped = layer.packet_key.encrypt(&plain, rng).expect("214 octets fit a packet key of 2048 bits");
    wrapped.extend_from_slice(&body);
    wrapped
}

/// The junk that each mix finds at the end of its header: what the mixes before it have appended, encrypted by each on
/// the way. The digests must cover it, so the sender works it out in advance.
fn junk_seen(layers: &[Layer<'_>]) -> impl DoubleEndedIterator<Item = Vec<u8>> + ExactSizeIterator + use<> {
    let mut seen = Vec::with_capacity(layers.len());
    let mut junk = Vec::new();
    for layer in layers {
        let keyset = layer.secret.keyset();
        let start = HEADER_REST_LEN - junk.len();
        seen.push(junk.clone());
        junk.extend(stream::prng(&keyset.junk_key(), taken_off(layer)));
        stream::crypt(&keyset.header_key(), start as u64, &mut junk);
    }
    seen.into_iter()
}
