//! Messages too long for one payload: cut into fragments, and put together again (E2E-spec 2.1.2, 2.1.3, 2.3.3).
//!
//! A message is whitened, padded to whole chunks, and each chunk of K blocks becomes N fragments, any K of which are
//! enough. Here is the arithmetic, in memory; keeping fragments over days is `store::fragments`'.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use rand::CryptoRng;

use super::fec::ErasureCode;
use super::{Capacity, EncodedPayload, FRAGMENT_HEADER_LEN};
use crate::crypto::lioness::LionessKeys;
use crate::crypto::{Digest, Keyset, sha1};

/// Octets in a message id (E2E-spec 2.2.1.2).
pub const MESSAGE_ID_LEN: usize = 20;

/// Largest index that 23 bits hold (E2E-spec 2.2.1.2). The reference can't write more than 65535; a message of 4 GiB,
/// the longest that there is, has 206,316 fragments.
const INDEX_MAX: u32 = 0x7f_ffff;

/// The codes that are in use: K is a power of two up to 16, N is 4K/3 rounded up (E2E-spec 2.1.2).
static CODES: LazyLock<[ErasureCode; 4]> =
    LazyLock::new(|| [2usize, 4, 8, 16].map(|k| ErasureCode::new(k, (4 * k).div_ceil(3)).expect("0 < K < N < 256")));

/// Names a fragmented message: 20 random octets. It links the fragments of one message, so it is never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub [u8; MESSAGE_ID_LEN]);

impl MessageId {
    /// A fresh id.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut octets = [0; MESSAGE_ID_LEN];
        rng.fill_bytes(&mut octets);
        Self(octets)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageId(..)")
    }
}

/// How a message of some length is cut. All follows from its length and the capacity of its payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmentation {
    message_len: u32,
    capacity: Capacity,
    code: &'static ErasureCode,
    chunks: u32,
}

impl Fragmentation {
    /// The cut for a message of `message_len` octets: compressed, and with the exit address before it if there is one.
    ///
    /// # Errors
    /// [`InvalidFragment::MessageLen`] when it needs no more than one fragment.
    pub fn new(message_len: u32, capacity: Capacity) -> Result<Self, InvalidFragment> {
        let blocks = to_usize(message_len).div_ceil(capacity.fragment_len());
        if blocks < 2 {
            return Err(InvalidFragment::MessageLen { len: message_len });
        }
        let [.., largest] = &*CODES;
        let code = CODES.iter().find(|code| code.k() >= blocks).unwrap_or(largest);
        let chunks = u32::try_from(blocks.div_ceil(code.k())).expect("fewer than the message has octets");
        Ok(Self { message_len, capacity, code, chunks })
    }

    /// Octets of the message.
    pub fn message_len(&self) -> u32 {
        self.message_len
    }

    /// Of the payloads.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Fragments of a chunk that are enough.
    pub fn k(&self) -> u32 {
        to_u32(self.code.k())
    }

    /// Fragments made of a chunk.
    pub fn n(&self) -> u32 {
        to_u32(self.code.n())
    }

    /// Chunks of the message.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Fragments of the message: as many packets are sent.
    pub fn fragments(&self) -> u32 {
        self.chunks * self.n()
    }

    /// Fragments that are enough when they are spread well.
    pub fn needed(&self) -> u32 {
        self.chunks * self.k()
    }

    /// Octets of the message with padding to whole chunks.
    pub fn padded_len(&self) -> usize {
        to_usize(self.needed()) * self.capacity.fragment_len()
    }

    /// Chunk, and place in the chunk, of the fragment with this index; nothing when there is no such fragment.
    pub fn position(&self, index: u32) -> Option<(u32, u32)> {
        (index < self.fragments()).then(|| (index / self.n(), index % self.n()))
    }

    fn chunk_len(&self) -> usize {
        self.code.k() * self.capacity.fragment_len()
    }
}

/// One fragment, its checksum verified, its index and sizes possible.
#[derive(Clone, PartialEq, Eq)]
pub struct Fragment {
    index: u32,
    message_id: MessageId,
    fragmentation: Fragmentation,
    octets: Vec<u8>,
}

/// Prints nothing that would link it to another.
impl fmt::Debug for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fragment(..)")
    }
}

/// Why octets are not a fragment. Blames their sender.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidFragment {
    /// Fragments have one length for each capacity: 28625 or 28587.
    #[error("fragment of {len} octets; it must have 28625 or 28587")]
    Len {
        /// Octets found.
        len: usize,
    },
    /// So short a message is no reason for fragments.
    #[error("a message of {len} octets fits one fragment")]
    MessageLen {
        /// Octets stated.
        len: u32,
    },
    /// The message has fewer fragments.
    #[error("fragment {index} of a message that has {fragments}")]
    Index {
        /// Index stated.
        index: u32,
        /// Fragments of the message.
        fragments: u32,
    },
}

impl Fragment {
    /// A fragment of a message of `message_len` octets. The capacity follows from the count of `octets`.
    ///
    /// # Errors
    /// [`InvalidFragment`].
    pub fn new(index: u32, message_id: MessageId, message_len: u32, octets: Vec<u8>) -> Result<Self, InvalidFragment> {
        let capacity = Capacity::of_fragment_len(octets.len()).ok_or(InvalidFragment::Len { len: octets.len() })?;
        let fragmentation = Fragmentation::new(message_len, capacity)?;
        match fragmentation.position(index) {
            Some(_) => Ok(Self { index, message_id, fragmentation, octets }),
            None => Err(InvalidFragment::Index { index, fragments: fragmentation.fragments() }),
        }
    }

    /// Where it belongs among the fragments of its message.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its message.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// How its message was cut.
    pub fn fragmentation(&self) -> Fragmentation {
        self.fragmentation
    }

    /// Its part of the message.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// The payload that carries it: flag and index | digest of all that follows | message id | message size | octets.
    pub fn to_payload(&self) -> EncodedPayload {
        debug_assert!(self.index <= INDEX_MAX);
        let [_, index @ ..] = self.index.to_be_bytes();
        let message_len = self.fragmentation.message_len.to_be_bytes();
        let Digest(digest) = sha1(&[&self.message_id.0, &message_len, &self.octets]);
        let mut payload = Vec::with_capacity(FRAGMENT_HEADER_LEN + self.octets.len());
        payload.extend_from_slice(&index);
        payload.extend_from_slice(&digest);
        payload.extend_from_slice(&self.message_id.0);
        payload.extend_from_slice(&message_len);
        payload.extend_from_slice(&self.octets);
        if let Some(first) = payload.first_mut() {
            *first |= super::decode::FRAGMENT_FLAG;
        }
        EncodedPayload::from_octets(payload)
    }
}

/// Cuts `message` into the payloads of all its fragments, in order. Takes the message id from `rng`, then the padding.
pub(super) fn split(
    mut message: Vec<u8>,
    fragmentation: &Fragmentation,
    rng: &mut impl CryptoRng,
) -> Vec<EncodedPayload> {
    debug_assert_eq!(message.len(), to_usize(fragmentation.message_len));
    let message_id = MessageId::random(rng);
    let unpadded = message.len();
    // Only the message is whitened; the padding is random already, and not part of it (the reference does so too).
    whitening().encrypt(&mut message);
    message.reserve_exact(fragmentation.padded_len() - unpadded);
    message.resize(fragmentation.padded_len(), 0);
    rng.fill_bytes(message.split_at_mut(unpadded).1);
    let mut payloads = Vec::with_capacity(to_usize(fragmentation.fragments()));
    let mut index = 0;
    for chunk in message.chunks_exact(fragmentation.chunk_len()) {
        let blocks: Vec<&[u8]> = chunk.chunks_exact(fragmentation.capacity.fragment_len()).collect();
        for position in 0..fragmentation.code.n() {
            let octets = fragmentation.code.encode(position, &blocks).expect("K blocks of one length, position < N");
            payloads.push(Fragment { index, message_id, fragmentation: *fragmentation, octets }.to_payload());
            index += 1;
        }
    }
    payloads
}

/// A fragmented message of which some fragments are here.
#[derive(Clone)]
pub struct Reassembly {
    message_id: MessageId,
    fragmentation: Fragmentation,
    chunks: Vec<Chunk>,
}

/// Prints how far it is, not what it is.
impl fmt::Debug for Reassembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reassembly({} of {})", self.have(), self.fragmentation.needed())
    }
}

/// Fragments by their place in the chunk, until there are K; then the data.
#[derive(Clone)]
enum Chunk {
    Partial(BTreeMap<u32, Vec<u8>>),
    Whole(Vec<u8>),
}

/// What became of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addition {
    /// It was kept.
    Stored,
    /// It is here already.
    Duplicate,
    /// Its chunk is complete without it.
    Unneeded,
}

/// Why a fragment was refused. Fragments are checked one by one before they come here, so one that does not fit was
/// made so: the whole message is to be given up (E2E-spec 2.3.3).
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum MismatchedFragment {
    /// The message is longer than its receiver wants to hold.
    #[error("a message of {len} octets; at most {max} are taken")]
    MessageTooLong {
        /// Octets stated.
        len: u32,
        /// Octets allowed.
        max: u32,
    },
    /// It has another message id.
    #[error("the fragment belongs to another message")]
    MessageId,
    /// It states another length of the message.
    #[error("fragments state different lengths of one message")]
    MessageLen,
    /// It is of the other capacity.
    #[error("fragments of one message have different capacities")]
    Capacity,
    /// Another fragment was here in its place.
    #[error("two fragments of one message claim the same place")]
    Conflict,
}

impl Reassembly {
    /// Begins with what `first` says of its message; `first` itself is yet to be added. All that is kept later has at
    /// most the message's size with padding, and a message of more than `message_len_max` octets is not begun.
    ///
    /// # Errors
    /// [`MismatchedFragment::MessageTooLong`].
    pub fn new(first: &Fragment, message_len_max: u32) -> Result<Self, MismatchedFragment> {
        let fragmentation = first.fragmentation;
        if fragmentation.message_len > message_len_max {
            return Err(MismatchedFragment::MessageTooLong { len: fragmentation.message_len, max: message_len_max });
        }
        let chunks = (0..fragmentation.chunks).map(|_| Chunk::Partial(BTreeMap::new())).collect();
        Ok(Self { message_id: first.message_id, fragmentation, chunks })
    }

    /// The message that it is to become.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// How the message was cut.
    pub fn fragmentation(&self) -> Fragmentation {
        self.fragmentation
    }

    /// Adds one fragment.
    ///
    /// # Errors
    /// [`MismatchedFragment`]; nothing has changed then.
    pub fn add(&mut self, fragment: Fragment) -> Result<Addition, MismatchedFragment> {
        if fragment.message_id != self.message_id {
            return Err(MismatchedFragment::MessageId);
        }
        if fragment.fragmentation.message_len != self.fragmentation.message_len {
            return Err(MismatchedFragment::MessageLen);
        }
        if fragment.fragmentation.capacity != self.fragmentation.capacity {
            return Err(MismatchedFragment::Capacity);
        }
        let (chunk, place) = self.fragmentation.position(fragment.index).expect("checked when the fragment was made");
        let chunk = self.chunks.get_mut(to_usize(chunk)).expect("as many chunks as positions speak of");
        let Chunk::Partial(received) = chunk else { return Ok(Addition::Unneeded) };
        match received.get(&place) {
            Some(earlier) if *earlier == fragment.octets => return Ok(Addition::Duplicate),
            Some(_) => return Err(MismatchedFragment::Conflict),
            None => received.insert(place, fragment.octets),
        };
        if received.len() == self.fragmentation.code.k() {
            let blocks: Vec<(usize, &[u8])> = received.iter().map(|(i, octets)| (to_usize(*i), &octets[..])).collect();
            let data = self.fragmentation.code.decode(&blocks).expect("K different blocks of one length");
            *chunk = Chunk::Whole(data);
        }
        Ok(Addition::Stored)
    }

    /// Fragments that count: no more than K of each chunk.
    pub fn have(&self) -> u32 {
        let have = |chunk: &Chunk| match chunk {
            Chunk::Partial(received) => to_u32(received.len()),
            Chunk::Whole(_) => self.fragmentation.k(),
        };
        self.chunks.iter().map(have).sum()
    }

    /// Whether the message is there.
    pub fn is_complete(&self) -> bool {
        self.have() == self.fragmentation.needed()
    }

    /// The message, unwhitened: compressed text, for an exit with an address before it.
    ///
    /// # Errors
    /// Itself, when it is not complete.
    pub fn finish(self) -> Result<Vec<u8>, Self> {
        if !self.is_complete() {
            return Err(self);
        }
        let mut message = Vec::with_capacity(self.fragmentation.padded_len());
        for chunk in self.chunks {
            if let Chunk::Whole(data) = chunk {
                message.extend_from_slice(&data);
            }
        }
        message.truncate(to_usize(self.fragmentation.message_len));
        whitening().decrypt(&mut message);
        Ok(message)
    }
}

/// Whitening needs no secret: it makes a message unreadable until all of it is there (E2E-spec 2.1.3).
fn whitening() -> LionessKeys {
    Keyset::new(b"WHITEN").lioness_keys(b"WHITEN")
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).expect("at least 32 bits in a usize")
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).expect("at most 22: K or N of a chunk")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Addition, Fragment, Fragmentation, InvalidFragment, MessageId, MismatchedFragment, Reassembly, split};
    use crate::crypto::CounterRng;
    use crate::crypto::stream::StreamKey;
    use crate::payload::{Capacity, Content};

    fn fragments(message: &[u8], capacity: Capacity) -> Vec<Fragment> {
        let fragmentation = Fragmentation::new(u32::try_from(message.len()).unwrap(), capacity).unwrap();
        let payloads = split(message.to_vec(), &fragmentation, &mut CounterRng::new(&StreamKey::new([5; 16])));
        let read = |octets: &[u8]| match Content::read(octets).unwrap() {
            Content::Fragment(fragment) => fragment,
            Content::Singleton { .. } => panic!("not a fragment"),
        };
        payloads.iter().map(|payload| read(payload.as_bytes())).collect()
    }

    fn fragment(index: u32, id: u8, message_len: u32, capacity: Capacity, fill: u8) -> Fragment {
        Fragment::new(index, MessageId([id; 20]), message_len, vec![fill; capacity.fragment_len()]).unwrap()
    }

    #[test]
    fn impossible_fragments_are_refused_by_name() {
        let new = |index, message_len, len| Fragment::new(index, MessageId([0; 20]), message_len, vec![0; len]);
        assert_eq!(new(0, 50_000, 28_624), Err(InvalidFragment::Len { len: 28_624 }));
        assert_eq!(new(0, 28_625, 28_625), Err(InvalidFragment::MessageLen { len: 28_625 }));
        assert_eq!(new(0, 0, 28_625), Err(InvalidFragment::MessageLen { len: 0 }));
        assert_eq!(new(3, 28_626, 28_625), Err(InvalidFragment::Index { index: 3, fragments: 3 }));
        assert!(new(2, 28_626, 28_625).is_ok());
        assert!(new(206_315, u32::MAX, 28_625).is_ok(), "the longest message that there is");
    }

    #[test]
    fn message_longer_than_wanted_is_not_begun() {
        let first = fragment(0, 1, 50_000, Capacity::Plain, 0);
        assert_eq!(
            Reassembly::new(&first, 49_999).unwrap_err(),
            MismatchedFragment::MessageTooLong { len: 50_000, max: 49_999 }
        );
        assert!(Reassembly::new(&first, 50_000).is_ok());
    }

    #[test]
    fn fragments_that_do_not_fit_are_refused_by_name() {
        let first = fragment(0, 1, 60_000, Capacity::Plain, 0);
        let mut message = Reassembly::new(&first, u32::MAX).unwrap();
        assert_eq!(message.add(first.clone()), Ok(Addition::Stored));
        assert_eq!(message.add(first), Ok(Addition::Duplicate));
        let refused = [
            (fragment(0, 1, 60_000, Capacity::Plain, 9), MismatchedFragment::Conflict),
            (fragment(1, 2, 60_000, Capacity::Plain, 0), MismatchedFragment::MessageId),
            (fragment(1, 1, 60_001, Capacity::Plain, 0), MismatchedFragment::MessageLen),
            (fragment(1, 1, 60_000, Capacity::EncryptedForward, 0), MismatchedFragment::Capacity),
        ];
        for (fragment, why) in refused {
            assert_eq!(message.add(fragment), Err(why));
        }
        assert_eq!(message.have(), 1);
        assert!(message.finish().is_err());
    }

    #[test]
    fn fragment_of_a_whole_chunk_is_not_needed() {
        let text = vec![7; 30_000];
        let mut fragments = fragments(&text, Capacity::Plain).into_iter();
        let mut message = Reassembly::new(fragments.as_slice().first().unwrap(), u32::MAX).unwrap();
        assert_eq!(message.add(fragments.next().unwrap()), Ok(Addition::Stored));
        assert!(!message.is_complete());
        assert_eq!(message.add(fragments.next().unwrap()), Ok(Addition::Stored));
        assert!(message.is_complete());
        assert_eq!(message.add(fragments.next().unwrap()), Ok(Addition::Unneeded));
        assert_eq!(message.finish().unwrap(), text);
    }

    #[test]
    fn nothing_of_a_fragment_is_printed() {
        assert_eq!(format!("{:?}", fragment(0, 1, 50_000, Capacity::Plain, 0)), "Fragment(..)");
        assert_eq!(format!("{:?}", MessageId([1; 20])), "MessageId(..)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn any_k_fragments_of_each_chunk_give_the_message_back(
            len in 28_700usize..600_000,
            encrypted: bool,
            seed: u64,
        ) {
            let capacity = if encrypted { Capacity::EncryptedForward } else { Capacity::Plain };
            let text: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut fragments = fragments(&text, capacity);
            // Any order will do; one that the seed makes.
            fragments.sort_by_key(|fragment| (u64::from(fragment.index()) + 1).wrapping_mul(seed | 1));
            let mut message = Reassembly::new(&fragments[0], u32::MAX).unwrap();
            let mut stored = 0;
            for fragment in fragments {
                stored += u32::from(message.add(fragment).unwrap() == Addition::Stored);
            }
            prop_assert_eq!(stored, message.fragmentation().needed());
            prop_assert_eq!(message.finish().unwrap(), text);
        }
    }
}
