//! Mails to send, and chance that can be repeated.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Random bits per digit of [`incompressible`]: 64 digits.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Chance from a seed, which is printed. `MIXGATE_TEST_SEED` sets another.
///
/// # Panics
/// When the variable is no number.
pub fn dice(story: &str) -> StdRng {
    let seed = std::env::var("MIXGATE_TEST_SEED").map_or(20_030_514, |seed| seed.parse().unwrap());
    println!("{story}: MIXGATE_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Lines of text that zlib cannot make much smaller than three quarters.
pub fn incompressible(octets: usize, dice: &mut StdRng) -> String {
    let mut text = String::with_capacity(octets + 77);
    while text.len() < octets {
        text.extend((0..76).map(|_| char::from(DIGITS[dice.random_range(0..DIGITS.len())])));
        text.push('\n');
    }
    text
}

/// Octets of any kind.
pub fn noise(octets: usize, dice: &mut StdRng) -> Vec<u8> {
    (0..octets).map(|_| dice.random()).collect()
}

/// A plain mail of UTF-8 text, not encoded for transfer.
pub fn plain(to: &str, subject: &str, text: &str) -> Vec<u8> {
    format!(
        "From: Žofie <zofie@example.net>\r\nTo: {to}\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{text}"
    )
    .into_bytes()
}
