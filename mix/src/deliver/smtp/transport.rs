//! What the conversation with a mail server stands on: a socket that gives one line at a time, and TLS from the first
//! octet on, which lettre's connection does by itself only where it opens the socket too.

// lettre has no other name for a stream that TLS can be put upon; it is to go with version 0.12.
#![expect(deprecated)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use lettre::transport::smtp::Error;
use lettre::transport::smtp::client::{AsyncNetworkStream, AsyncTokioStream, TlsParameters};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _};

/// Octets taken off the socket at a time.
const READ_LEN: usize = 4096;

/// A socket that gives no more than one line at a time.
///
/// lettre keeps what it has read behind the answer to STARTTLS and takes it for the first answers within TLS. Whoever is on
/// the way could put them there, and so have mail held for taken. What this one holds back becomes a broken handshake.
pub(super) struct ByLine {
    stream: TcpStream,
    held_back: Vec<u8>,
}

impl ByLine {
    pub(super) fn new(stream: TcpStream) -> Self {
        // lettre writes the end of a mail by itself. The system would hold it back until the other side has acknowledged the
        // rest, for which that waits 40 milliseconds. Where it cannot be set, mail is slower and no less right.
        let _ = stream.set_nodelay(true);
        Self { stream, held_back: Vec::new() }
    }
}

/// Prints nothing of what was read.
impl fmt::Debug for ByLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByLine(..)")
    }
}

impl AsyncRead for ByLine {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, held_back } = &mut *self;
        if held_back.is_empty() {
            let mut octets = [0; READ_LEN];
            let mut read = ReadBuf::new(&mut octets);
            ready!(Pin::new(stream).poll_read(cx, &mut read))?;
            held_back.extend_from_slice(read.filled());
        }
        let line = held_back.iter().position(|octet| *octet == b'\n').map_or(held_back.len(), |end| end + 1);
        let given = line.min(buf.remaining());
        let (line, _) = held_back.split_at(given);
        buf.put_slice(line);
        held_back.drain(..given);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByLine {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncTokioStream for ByLine {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

/// A socket with TLS around all that passes.
#[derive(Debug)]
pub(super) struct Wrapped(Compat<AsyncNetworkStream>);

impl Wrapped {
    /// Shakes hands.
    ///
    /// # Errors
    /// No TLS, or a certificate that `parameters` do not take.
    pub(super) async fn new(stream: ByLine, parameters: TlsParameters) -> Result<Self, Error> {
        let mut stream = AsyncNetworkStream::use_existing_tokio1(Box::new(stream));
        stream.upgrade_tls(parameters).await?;
        Ok(Self(stream.compat()))
    }
}

impl AsyncRead for Wrapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wrapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncTokioStream for Wrapped {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().peer_addr()
    }
}
