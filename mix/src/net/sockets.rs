//! Listening sockets that were open before the program was: a service manager holds the port while the program
//! restarts (systemd's socket activation). Who takes them over from the environment is the binary's business.

use std::io;
use std::net::{SocketAddr, TcpListener as Opened};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::sockopt::ipv6_v6only;
use tokio::net::TcpListener;

use super::loopback::LoopbackAddress;

/// Sockets that wait for the door they belong to; clones share them. None by default.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Arc<Mutex<Vec<Opened>>>);

/// A socket was handed over that others can reach, for a door that is for this machine alone.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error(
    "the service manager holds a socket at {socket}, which others can reach, for a door without TLS: let it be ListenStream={address}"
)]
pub struct Exposed {
    /// Where the door may listen.
    pub address: SocketAddr,
    /// Where the socket listens.
    pub socket: SocketAddr,
}

/// Why a door that is for this machine alone does not open.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// Its socket is for others too.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The system does not give it.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Inherited {
    /// These sockets.
    pub fn new(sockets: Vec<Opened>) -> Self {
        Self(Arc::new(Mutex::new(sockets)))
    }

    /// Listens at `address`: on the socket that was handed over for it, else on a new one. A socket is for an address
    /// when it is bound to it, or to its port at all addresses of its family, or of both.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        match self.take(address) {
            Some(socket) => of_tokio(socket),
            None => TcpListener::bind(address).await,
        }
    }

    /// As [`Inherited::bind`], for a door that is for this machine alone: a socket for all addresses is refused.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub async fn bind_loopback(&self, address: LoopbackAddress) -> Result<TcpListener, NotOpened> {
        let address = address.into();
        let Some(socket) = self.take(address) else { return Ok(TcpListener::bind(address).await?) };
        let bound = socket.local_addr()?;
        if LoopbackAddress::try_from(bound).is_err() {
            return Err(Exposed { address, socket: bound }.into());
        }
        Ok(of_tokio(socket)?)
    }

    /// The sockets that were handed over for the addresses of one door, in their order. One that serves several of them, as
    /// `[::]` may do for both families, is there for each.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn take_for(&self, addresses: &[SocketAddr]) -> io::Result<Vec<Option<TcpListener>>> {
        let taken: Vec<_> = addresses.iter().map(|address| self.take(*address)).collect();
        let shared = |address| taken.iter().flatten().find(|socket| serves(socket, address)).map(Opened::try_clone);
        let shared: Vec<_> = addresses.iter().map(|address| shared(*address)).collect();
        let each = taken.into_iter().zip(shared);
        each.map(|(own, shared)| own.map(Ok).or(shared).transpose()?.map(of_tokio).transpose()).collect()
    }

    fn take(&self, address: SocketAddr) -> Option<Opened> {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exactly = sockets.iter().position(|socket| socket.local_addr().is_ok_and(|bound| bound == address));
        let found = exactly.or_else(|| sockets.iter().position(|socket| serves(socket, address)))?;
        Some(sockets.swap_remove(found))
    }

    /// The addresses of those that nobody took.
    pub fn left(&self) -> Vec<SocketAddr> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

/// Whether who connects to `address` comes to this socket.
fn serves(socket: &Opened, address: SocketAddr) -> bool {
    let Ok(bound) = socket.local_addr() else { return false };
    let everywhere = || match (bound.is_ipv4(), address.is_ipv4()) {
        (true, false) => false,
        (false, true) => ipv6_v6only(socket).is_ok_and(|only| !only),
        _ => true,
    };
    bound == address || (bound.port() == address.port() && bound.ip().is_unspecified() && everywhere())
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
    async fn socket_of_both_families_serves_both_addresses_of_a_door() {
        let both = open("[::]:0");
        rustix::net::sockopt::set_ipv6_v6only(&both, false).unwrap_or_else(|e| eprintln!("as it is: {e}"));
        assert!(!ipv6_v6only(&both).unwrap(), "a socket of both families");
        let port = both.local_addr().unwrap().port();
        let addresses = ["0.0.0.0", "[::]"].map(|host| format!("{host}:{port}").parse().unwrap());
        let inherited = Inherited::new(vec![both]);
        let doors = inherited.take_for(&addresses).unwrap();
        let bound: Vec<_> = doors.iter().flatten().map(|door| door.local_addr().unwrap()).collect();
        assert_eq!(bound, [addresses[1]; 2]);
        assert!(inherited.left().is_empty());
    }

    #[tokio::test]
    async fn socket_of_one_family_is_not_taken_for_the_other() {
        let four = open("0.0.0.0:0");
        let bound = four.local_addr().unwrap();
        let six: SocketAddr = format!("[::]:{}", bound.port()).parse().unwrap();
        let inherited = Inherited::new(vec![four]);
        let doors = inherited.take_for(&[six, bound]).unwrap();
        assert_eq!(doors.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
    }

    #[tokio::test]
    async fn socket_for_all_addresses_is_refused_for_a_door_of_this_machine_alone() {
        for everywhere in ["0.0.0.0:0", "[::]:0"] {
            let Ok(socket) = Opened::bind(everywhere) else {
                eprintln!("not tried: no {everywhere} here");
                continue;
            };
            let bound = socket.local_addr().unwrap();
            let address = LoopbackAddress::ipv4(bound.port());
            let refused = Inherited::new(vec![socket]).bind_loopback(address).await.unwrap_err();
            let NotOpened::Exposed(why) = refused else { panic!("{refused:?}") };
            assert_eq!(why, Exposed { address: address.into(), socket: bound });
        }
    }

    #[tokio::test]
    async fn door_of_this_machine_alone_takes_its_own_socket() {
        let own = open("127.0.0.1:0");
        let address = own.local_addr().unwrap();
        let inherited = Inherited::new(vec![own]);
        let door = inherited.bind_loopback(LoopbackAddress::try_from(address).unwrap()).await.unwrap();
        assert_eq!(door.local_addr().unwrap(), address);
        assert!(inherited.left().is_empty());
    }

    #[tokio::test]
    async fn without_one_a_new_socket_is_opened() {
        let door = Inherited::default().bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        assert_ne!(door.local_addr().unwrap().port(), 0);
    }
}
