//! What is being written to a link. May be interrupted at any await and goes on where it was.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Octets on their way to a peer.
#[derive(Default)]
pub(super) struct Writing {
    octets: Vec<u8>,
    written: usize,
    /// Something was written that TLS may still hold back.
    unflushed: bool,
}

impl Writing {
    /// Puts octets behind those that are there.
    pub(super) fn push(&mut self, octets: &[u8]) {
        self.behind().extend_from_slice(octets);
    }

    /// What is there, to be added to. The room of what was written is used again.
    pub(super) fn behind(&mut self) -> &mut Vec<u8> {
        if self.is_empty() {
            self.octets.clear();
            self.written = 0;
        }
        &mut self.octets
    }

    /// Octets that have not been handed to the link.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.octets.len() - self.written
    }

    /// Whether all octets have been handed to the link.
    pub(super) fn is_empty(&self) -> bool {
        self.written == self.octets.len()
    }

    /// Whether all octets have been handed to the network.
    pub(super) fn is_done(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// Writes some octets; flushes when there are none left.
    pub(super) async fn progress(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self.octets.get(self.written..) {
            Some(rest) if !rest.is_empty() => match writer.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => {
                    self.written += count;
                    self.unflushed = true;
                }
            },
            _ => {
                writer.flush().await?;
                self.unflushed = false;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn octets_arrive_whole_and_in_order_over_a_narrow_link() {
        let (mut near, mut far) = tokio::io::duplex(3);
        let mut writing = Writing::default();
        assert!(writing.is_done());
        writing.push(b"one ");
        writing.progress(&mut near).await.unwrap();
        writing.push(b"two");
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        while !writing.is_done() {
            writing.progress(&mut near).await.unwrap();
        }
        drop(near);
        assert_eq!(reader.await.unwrap(), b"one two");
    }
}
