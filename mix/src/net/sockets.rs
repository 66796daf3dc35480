//! Listening sockets that were open before the program was: a service manager holds the port while the program
//! restarts (systemd's socket activation). Who takes them over from the environment is the binary's business.

use std::io;
use std::net::{SocketAddr, TcpListener as Opened};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpListener;

/// Sockets that wait for the door they belong to; clones share them. None by default.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Arc<Mutex<Vec<Opened>>>);

impl Inherited {
    /// These sockets.
    pub fn new(sockets: Vec<Opened>) -> Self {
        Self(Arc::new(Mutex::new(sockets)))
    }

    /// Listens at `address`: on the socket that was handed over for it, else on a new one. A socket is for an address
    /// when it is bound to it, or to its port at all addresses.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        match self.take(address) {
            Some(socket) => of_tokio(socket),
            None => TcpListener::bind(address).await,
        }
    }

    /// As [`Inherited::bind`], with a new socket as `new` opens it.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn open(
        &self,
        address: SocketAddr,
        new: impl FnOnce() -> io::Result<TcpListener>,
    ) -> io::Result<TcpListener> {
        self.take(address).map_or_else(new, of_tokio)
    }

    fn take(&self, address: SocketAddr) -> Option<Opened> {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = |socket: &Opened| socket.local_addr().ok();
        let exactly = sockets.iter().position(|socket| bound(socket) == Some(address));
        let everywhere = |socket: &Opened| {
            bound(socket).is_some_and(|bound| bound.ip().is_unspecified() && bound.port() == address.port())
        };
        let found = exactly.or_else(|| sockets.iter().position(everywhere))?;
        Some(sockets.swap_remove(found))
    }

    /// The addresses of those that nobody took.
    pub fn left(&self) -> Vec<SocketAddr> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

fn of_tokio(socket: Opened) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(address: &str) -> Opened {
        Opened::bind(address).unwrap()
    }

    #[tokio::test]
    async fn door_takes_the_socket_of_its_address_and_others_stay() {
        let (own, other) = (open("127.0.0.1:0"), open("127.0.0.1:0"));
        let (address, left) = (own.local_addr().unwrap(), other.local_addr().unwrap());
        let inherited = Inherited::new(vec![other, own]);
        assert_eq!(inherited.bind(address).await.unwrap().local_addr().unwrap(), address);
        assert_eq!(inherited.left(), [left]);
    }

    #[tokio::test]
    async fn socket_for_all_addresses_is_taken_for_one() {
        let everywhere = open("0.0.0.0:0");
        let port = everywhere.local_addr().unwrap().port();
        let inherited = Inherited::new(vec![everywhere]);
        let door = inherited.bind(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        assert!(door.local_addr().unwrap().ip().is_unspecified());
        assert!(inherited.left().is_empty());
    }

    #[tokio::test]
    async fn without_one_a_new_socket_is_opened() {
        let door = Inherited::default().bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        assert_ne!(door.local_addr().unwrap().port(), 0);
    }
}
