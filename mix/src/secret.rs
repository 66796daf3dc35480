//! Values that must not outlive their use and must not be seen.
//!
//! What is wrapped here is overwritten when dropped and prints as `Secret(..)` in every build.

use std::fmt;

use zeroize::Zeroize;

/// A value that is zeroized on drop and never printed.
///
/// There is no `Deref`: each look at the inside is spelled [`Secret::expose`], so that it can be found.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes charge of `value`.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Do not let it into an error, a log line or a file name.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, to be filled or changed.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Octets of a peer that gather until there is a whole line. One of the lines may be a password: what lay here is
/// overwritten, also where it lay before the buffer grew.
#[derive(Default)]
pub struct Gathered(Secret<Vec<u8>>);

impl Gathered {
    /// Puts octets behind those that are there.
    pub fn extend(&mut self, more: &[u8]) {
        let octets = self.0.expose_mut();
        if octets.capacity() - octets.len() < more.len() {
            // A vector that grows by itself leaves a copy behind.
            let mut grown = Vec::with_capacity((octets.len() + more.len()).next_power_of_two());
            grown.extend_from_slice(octets);
            self.0 = Secret::new(grown);
        }
        self.0.expose_mut().extend_from_slice(more);
    }

    /// All that is there.
    pub fn octets(&self) -> &[u8] {
        self.0.expose()
    }

    /// Takes so many octets off the front, or all where there are fewer.
    pub fn take(&mut self, len: usize) -> Secret<Vec<u8>> {
        let octets = self.0.expose();
        let (front, rest) = octets.split_at(len.min(octets.len()));
        let (front, rest) = (Secret::new(front.to_vec()), Secret::new(rest.to_vec()));
        self.0 = rest;
        front
    }

    /// Forgets all that is there.
    pub fn clear(&mut self) {
        self.0 = Secret::new(Vec::new());
    }
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathered(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::{Gathered, Secret};

    #[test]
    fn gathered_octets_come_out_in_order_and_are_not_printed() {
        let mut gathered = Gathered::default();
        for part in [&b"PASS "[..], b"hunter2\r\n", b"STAT\r\n", &[b'x'; 5000]] {
            gathered.extend(part);
        }
        assert_eq!(gathered.take(14).expose(), b"PASS hunter2\r\n");
        assert_eq!(gathered.octets().len(), 5006);
        assert_eq!(format!("{gathered:?}"), "Gathered(..)");
        assert_eq!(gathered.take(10_000).expose().len(), 5006);
        gathered.extend(b"more");
        gathered.clear();
        assert_eq!(gathered.octets(), b"");
    }

    #[test]
    fn secret_prints_nothing_of_its_value() {
        let secret = Secret::new(String::from("hunter2"));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!(secret.expose(), "hunter2");
    }
}
