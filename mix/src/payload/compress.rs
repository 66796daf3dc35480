//! Compression of messages (E2E-spec 2.1.1) and its bounded reversal (2.3.2).
//!
//! The compressed octets are those of zlib itself, because the exit sees them: a client whose zlib compresses in
//! another way would be told from all others by every message.

use std::io::Write as _;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Decompress, FlushDecompress, Status};

/// What compressed text begins with: deflate with a window of 32 KiB, no dictionary, best compression.
const HEADER: [u8; 2] = [0x78, 0xDA];
/// Octets of the shortest stream: header and checksum.
const MIN_LEN: usize = 2 + 4;

/// Text up to this length is never overcompressed (E2E-spec 2.3.2).
const ALWAYS_ALLOWED: usize = 20 * 1024;

/// From here on text is overcompressed when it is longer than the compressed by more than this (E2E-spec 2.3.2).
const FACTOR_MAX: usize = 20;

/// Why compressed text was refused. Blames its sender.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidCompression {
    /// Does not begin with 78 DA, which all senders must write, or is too short to be any compressed text.
    #[error("compressed text does not begin with 78 DA")]
    Header,
    /// Not a deflate stream, or another checksum.
    #[error("compressed text is corrupt")]
    Corrupt,
    /// Expands further than its receiver lets it: to be handed on as it is, or inflated when the user insists.
    #[error("compressed text expands beyond {limit} octets")]
    Overcompressed {
        /// Octets allowed.
        limit: usize,
    },
}

/// Compresses `message`.
pub fn compress(message: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(message).expect("a Vec takes all that is written");
    encoder.finish().expect("a Vec takes all that is written")
}

/// Octets to which compressed text of `compressed_len` octets may expand without being overcompressed.
pub fn expansion_limit(compressed_len: usize) -> usize {
    compressed_len.saturating_mul(FACTOR_MAX).max(ALWAYS_ALLOWED)
}

/// Undoes [`compress`], and stops when there would be more than `limit` octets: zlib can grow 1000-fold. Never holds
/// more than the limit, and no more than twice what has come out. A stream that is cut short gives what there is of it,
/// and octets behind its end are passed over: so the reference reads, and the payload's own digest has vouched for both.
///
/// # Errors
/// [`InvalidCompression`].
pub fn decompress(compressed: &[u8], limit: usize) -> Result<Vec<u8>, InvalidCompression> {
    if compressed.len() < MIN_LEN || !compressed.starts_with(&HEADER) {
        return Err(InvalidCompression::Header);
    }
    let mut inflater = Decompress::new(true);
    let mut text = Vec::new();
    let mut rest = compressed;
    loop {
        if text.len() == text.capacity() {
            // Beyond the limit one octet, so that exactly the limit is told from more than the limit.
            let room = text.len().max(4 * 1024).min(limit - text.len()).max(1);
            text.reserve_exact(room);
        }
        let used_up = rest.is_empty();
        let before = inflater.total_in();
        let status = inflater.decompress_vec(rest, &mut text, FlushDecompress::None);
        if text.len() > limit {
            // As in the reference: nothing left to read at the limit, and yet no end, is a stream that was cut.
            let cut = InvalidCompression::Corrupt;
            return Err(if used_up { cut } else { InvalidCompression::Overcompressed { limit } });
        }
        let status = status.map_err(|_| InvalidCompression::Corrupt)?;
        let consumed = usize::try_from(inflater.total_in() - before).expect("part of a slice");
        rest = rest.get(consumed..).expect("no more than it was given");
        match (status, rest) {
            (Status::StreamEnd, _) => return Ok(text),
            // It would have written on had there been more to read.
            (_, []) if text.len() < text.capacity() => return Ok(text),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{InvalidCompression, compress, decompress, expansion_limit};

    #[test]
    fn text_of_exactly_the_limit_is_not_overcompressed() {
        let compressed = compress(&[0; 20 * 1024]);
        assert_eq!(decompress(&compressed, expansion_limit(compressed.len())).unwrap(), [0; 20 * 1024]);
        let compressed = compress(&[0; 20 * 1024 + 1]);
        assert_eq!(
            decompress(&compressed, expansion_limit(compressed.len())),
            Err(InvalidCompression::Overcompressed { limit: 20 * 1024 })
        );
    }

    #[test]
    fn bomb_is_stopped_at_the_limit() {
        let compressed = compress(&vec![0; 50_000_000]);
        assert_eq!(decompress(&compressed, 1000), Err(InvalidCompression::Overcompressed { limit: 1000 }));
        assert_eq!(decompress(&compressed, 0), Err(InvalidCompression::Overcompressed { limit: 0 }));
    }

    #[test]
    fn stream_of_another_compression_level_is_refused() {
        let mut compressed = compress(b"text");
        compressed[1] = 0x9C;
        assert_eq!(decompress(&compressed, 100), Err(InvalidCompression::Header));
        assert_eq!(decompress(b"", 100), Err(InvalidCompression::Header));
    }

    #[test]
    fn stream_that_is_cut_short_where_the_limit_is_is_corrupt() {
        // With five octets less, the last that is left stands for the octets from 811 on.
        let whole = compress(&[b"0123456789abcdefghijklmnopqrstuvwxyz".as_slice(), &[b'x'; 1000]].concat());
        let cut = whole.get(..whole.len() - 5).unwrap();
        assert_eq!(decompress(cut, 810), Err(InvalidCompression::Overcompressed { limit: 810 }));
        assert_eq!(decompress(cut, 811), Err(InvalidCompression::Corrupt));
        assert_eq!(decompress(cut, 1035), Err(InvalidCompression::Corrupt));
        assert_eq!(decompress(cut, 1036).map(|text| text.len()), Ok(1036));
        assert_eq!(decompress(&whole, 1035), Err(InvalidCompression::Overcompressed { limit: 1035 }));
    }

    #[test]
    fn octets_behind_the_stream_are_passed_over() {
        let compressed = [compress(b"text"), b"more".to_vec()].concat();
        assert_eq!(decompress(&compressed, 100), Ok(b"text".to_vec()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn text_comes_back(text in prop::collection::vec(any::<u8>(), 0..20_000)) {
            prop_assert_eq!(decompress(&compress(&text), text.len()), Ok(text));
        }

        #[test]
        fn stream_cut_anywhere_gives_the_beginning_of_its_text(text in prop::collection::vec(any::<u8>(), 0..2000), cut in any::<prop::sample::Index>()) {
            let mut compressed = compress(&text);
            compressed.truncate(cut.index(compressed.len()));
            match decompress(&compressed, text.len()) {
                Ok(beginning) => prop_assert!(text.starts_with(&beginning)),
                Err(refusal) => prop_assert_eq!((refusal, compressed.len() < 6), (InvalidCompression::Header, true)),
            }
        }

        #[test]
        fn arbitrary_octets_do_no_harm(octets in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decompress(&[&[0x78, 0xDA], &octets[..]].concat(), 10_000).map(|text| assert!(text.len() <= 10_000));
        }
    }
}
