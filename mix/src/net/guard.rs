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

use super::seats::{Limits, Seat, Seats};

/// What a listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time. Others are closed at once: who waits in a queue would wait for whoever says nothing.
    pub connections: usize,
    /// Of them from one host.
    pub per_host: usize,
    /// How long a connection lasts, whatever it does.
    pub lifetime: Duration,
    /// How long a client may take to begin its request.
    pub silence: Duration,
}

/// Hands out connections that end.
pub struct Guard {
    listener: TcpListener,
    bounds: Bounds,
    seats: Seats,
    /// Never cancelled itself: the seats are given back, or taken away one by one.
    stop: CancellationToken,
}

impl Guard {
    /// Hands out the connections of `listener`.
    pub fn new(listener: TcpListener, bounds: Bounds) -> Self {
        Self { listener, bounds, seats: Seats::default(), stop: CancellationToken::new() }
    }
}

impl Listener for Guard {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        let limits = Limits { all: self.bounds.connections, per_host: self.bounds.per_host };
        loop {
            // The trait of axum waits a second and tries again when the system has no more file handles.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Some(seat) = self.seats.take(address.ip(), limits, &self.stop) {
                return (Guarded::new(stream, seat, self.bounds), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that takes one seat and ends in time.
pub struct Guarded {
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
    fn new(stream: TcpStream, seat: Seat, bounds: Bounds) -> Self {
        Self {
            stream,
            end: Box::pin(sleep(bounds.lifetime)),
            silence: Some(Box::pin(sleep(bounds.silence))),
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
