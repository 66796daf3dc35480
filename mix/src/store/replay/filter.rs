//! A Bloom filter, so that a look for what is not in a run seldom reads from it.
//!
//! Blocked: all bits of an entry lie in one cache line, so that a look costs one access to memory however large the filter
//! is. It errs towards "may be there" alone. The hashes are random by themselves, so their own octets choose the bits;
//! whoever grinds hashes that meet in one block makes looks slower and no answer wrong.

use crate::crypto::Digest;

/// Bits of memory for each entry where there is room: about one look in a hundred is in vain.
const BITS_PER_ENTRY: u64 = 10;
/// Bits that each entry sets: the best number for [`BITS_PER_ENTRY`].
const PROBES: u32 = 7;
/// Octets in a block: a cache line.
pub(super) const BLOCK_LEN: usize = WORDS * size_of::<u64>();
const WORDS: usize = 8;
/// Bits of a hash that choose one bit in a block.
const PROBE_BITS: u32 = 9;
const _: () = assert!(1 << PROBE_BITS == 8 * BLOCK_LEN);
const _: () = assert!(PROBES * PROBE_BITS <= u64::BITS);

/// Blocks of all filters of a log: 64 MiB. With them a run of up to 26 million entries has ten bits for each, as
/// [`blocks_for`] shares them out; beyond, more looks read from the disk in vain. While runs are merged, the filter of the
/// new one comes on top.
pub(super) const MAX_BLOCKS: usize = (64 << 20) / BLOCK_LEN;

/// How many blocks a run of so many entries gets, where the other runs have `taken` of `most`. Never more than half of
/// what is left: a run that comes later must not go without, and since runs are at least twice as long as the next, that
/// is about its share.
pub(super) fn blocks_for(entries: u64, taken: usize, most: usize) -> usize {
    let wanted = entries.saturating_mul(BITS_PER_ENTRY).div_ceil(8 * BLOCK_LEN as u64);
    usize::try_from(wanted).unwrap_or(usize::MAX).min(most.saturating_sub(taken) / 2)
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Block([u64; WORDS]);

/// Which hashes may be there. Without blocks it knows nothing, and all may be.
pub(super) struct Filter {
    blocks: Vec<Block>,
}

impl Filter {
    pub(super) fn new(blocks: usize) -> Self {
        Self { blocks: vec![Block::default(); blocks] }
    }

    /// The filter in these octets; what is behind the last whole block is left out.
    pub(super) fn from_octets(octets: &[u8]) -> Self {
        let block = |octets: &[u8; BLOCK_LEN]| {
            let (words, _) = octets.as_chunks::<{ size_of::<u64>() }>();
            let mut block = Block::default();
            block.0.iter_mut().zip(words).for_each(|(word, octets)| *word = u64::from_le_bytes(*octets));
            block
        };
        Self { blocks: octets.as_chunks().0.iter().map(block).collect() }
    }

    /// The octets of each block, in order.
    pub(super) fn octets(&self) -> impl Iterator<Item = [u8; BLOCK_LEN]> {
        self.blocks.iter().map(|block| {
            let mut octets = [0; BLOCK_LEN];
            let (places, _) = octets.as_chunks_mut::<{ size_of::<u64>() }>();
            places.iter_mut().zip(block.0).for_each(|(place, word)| *place = word.to_le_bytes());
            octets
        })
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn add(&mut self, hash: &Digest) {
        let (block, bits) = self.place(hash);
        if let Some(block) = self.blocks.get_mut(block) {
            for (word, bit) in probes(bits) {
                block.0[word] |= bit;
            }
        }
    }

    pub(super) fn may_hold(&self, hash: &Digest) -> bool {
        let (block, bits) = self.place(hash);
        self.blocks.get(block).is_none_or(|block| probes(bits).all(|(word, bit)| block.0[word] & bit != 0))
    }

    /// Which block, and what chooses the bits in it. The first octets are not used: runs are ordered by them.
    fn place(&self, hash: &Digest) -> (usize, u64) {
        let [_, _, _, _, _, _, _, _, a, b, c, d, bits @ ..] = hash.0;
        let share = u64::from(u32::from_be_bytes([a, b, c, d])) * self.blocks.len() as u64;
        ((share >> u32::BITS) as usize, u64::from_be_bytes(bits))
    }
}

/// Word and bit of each probe; the word is less than [`WORDS`] by arithmetic.
fn probes(bits: u64) -> impl Iterator<Item = (usize, u64)> {
    (0..PROBES).map(move |probe| {
        let bit = (bits >> (probe * PROBE_BITS)) % (1 << PROBE_BITS);
        ((bit / 64) as usize, 1 << (bit % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::digest;

    fn filled(entries: u64, blocks: usize) -> Filter {
        let mut filter = Filter::new(blocks);
        (0..entries).for_each(|i| filter.add(&digest(&format!("in {i}"))));
        filter
    }

    /// Of a thousand hashes that are not there, how many may be.
    fn in_vain(filter: &Filter) -> usize {
        (0..10_000).filter(|i| filter.may_hold(&digest(&format!("out {i}")))).count() / 10
    }

    #[test]
    fn what_is_there_is_never_denied_and_what_is_not_is_denied_ninety_eight_times_in_a_hundred() {
        let filter = filled(20_000, blocks_for(20_000, 0, MAX_BLOCKS));
        assert!((0..20_000).all(|i| filter.may_hold(&digest(&format!("in {i}")))));
        assert!(in_vain(&filter) <= 20, "{}", in_vain(&filter));
    }

    #[test]
    fn with_less_room_it_errs_more_often_and_without_any_always() {
        let (less, none) = (filled(20_000, 200), filled(20_000, 0));
        assert!((0..20_000).all(|i| less.may_hold(&digest(&format!("in {i}")))));
        assert!(in_vain(&less) > 20);
        assert_eq!(in_vain(&none), 1000);
    }

    #[test]
    fn octets_give_the_same_filter() {
        let filter = filled(1000, 20);
        let octets: Vec<u8> = filter.octets().flatten().collect();
        assert_eq!(octets.len(), 20 * BLOCK_LEN);
        let again = Filter::from_octets(&octets);
        assert!(filter.octets().eq(again.octets()));
    }

    #[test]
    fn all_filters_together_keep_to_the_limit_and_the_last_still_gets_some() {
        let mut taken = 0;
        for entries in (0..8).map(|halved| 1_000_000_u64 >> halved) {
            let blocks = blocks_for(entries, taken, 10_000);
            assert!(blocks > 0);
            taken += blocks;
        }
        assert!(taken <= 10_000);
        assert_eq!(blocks_for(512, 0, MAX_BLOCKS), 10);
    }
}
