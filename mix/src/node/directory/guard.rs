//! A listener for HTTP that strangers cannot exhaust: so many connections at a time, some of them from one host, each so
//! long. Whoever comes when all are taken gets one from whoever has the most.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::net::seats::{Limits, Seat, Seats};

/// Connections at a time, in all and from one host. Others are closed at once: who waits in a queue would wait for whoever
/// says nothing.
const LIMITS: Limits = Limits { all: 256, per_host: 64 };
/// How long a connection lasts, whatever it does. Enough for a directory of 8 MB over a slow line.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(300);
/// How long a client may take to begin its request.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Hands out connections that end.
pub(super) struct Guard {
    listener: TcpListener,
    seats: Seats,
    /// Never cancelled itself: the seats are given back, or taken away one by one.
    stop: CancellationToken,
}

impl Guard {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, seats: Seats::default(), stop: CancellationToken::new() }
    }
}

impl Listener for Guard {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        loop {
            // The trait of axum waits a second and tries again when the system has no more file handles.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Some(seat) = self.seats.take(address.ip(), LIMITS, &self.stop) {
                return (Guarded::new(stream, seat), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that takes one seat and ends in time.
pub(super) struct Guarded {
    stream: TcpStream,
    /// The end of its time.
    end: Pin<Box<Sleep>>,
    /// The end of its time to begin; `None` once it has.
    silence: Option<Pin<Box<Sleep>>>,
    /// Its seat is somebody else's.
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _seat: Seat,
}

impl Guarded {
    fn new(stream: TcpStream, seat: Seat) -> Self {
        Self {
            stream,
            end: Box::pin(sleep(MAX_CONNECTION_TIME)),
            silence: Some(Box::pin(sleep(MAX_SILENCE))),
            lost: Box::pin(seat.end().clone().cancelled_owned()),
            _seat: seat,
        }
    }

    fn check_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let silent = self.silence.as_mut().is_some_and(|silence| silence.as_mut().poll(context).is_ready());
        let over = self.end.as_mut().poll(context).is_ready() || self.lost.as_mut().poll(context).is_ready();
        if silent || over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if !buffer.filled().is_empty() {
            self.silence = None;
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
