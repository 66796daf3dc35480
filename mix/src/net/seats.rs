//! Who is connected: the right to a connection, limited in all and by host.
//!
//! When all seats are taken, a newcomer gets one from whoever has the most, as long as the newcomer still has fewer then.
//! So whoever floods the node shares its seats with everybody else alike, and keeps nobody out without a host for each
//! seat.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Of so many connections, one more may be about to leave: those that lost their seat and still answer what they took.
/// With all others they hold a quarter more memory than the limit of connections says, for as long as a stop may take.
const LEAVING: usize = 4;

/// All seats of a listener. Clones are the same seats.
#[derive(Clone, Default)]
pub(crate) struct Seats(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    /// The seats of each host, oldest first.
    by_host: HashMap<IpAddr, VecDeque<Held>>,
    /// How many they are.
    count: usize,
    /// Connections that lost their seat and are not gone yet.
    leaving: usize,
    /// Of the next seat.
    number: u64,
}

struct Held {
    number: u64,
    end: CancellationToken,
}

/// The right to one connection; given back when dropped.
pub(crate) struct Seat {
    seats: Seats,
    host: IpAddr,
    number: u64,
    end: CancellationToken,
}

/// How many there are.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// In all.
    pub(crate) all: usize,
    /// For one host.
    pub(crate) per_host: usize,
}

impl Seats {
    /// A seat for a connection from `address`, when there is one. Its connection must end when `stop` is cancelled.
    pub(crate) fn take(&self, address: IpAddr, limits: Limits, stop: &CancellationToken) -> Option<Seat> {
        let host = one_host(address);
        let mut taken = self.taken();
        let own = taken.by_host.get(&host).map_or(0, VecDeque::len);
        if own >= limits.per_host || (taken.count >= limits.all && !taken.free_one(own, limits)) {
            return None;
        }
        let (number, end) = (taken.number, stop.child_token());
        taken.number += 1;
        taken.count += 1;
        taken.by_host.entry(host).or_default().push_back(Held { number, end: end.clone() });
        Some(Seat { seats: self.clone(), host, number, end })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes a seat from whoever has the most, if that is more than the newcomer will have.
    fn free_one(&mut self, own: usize, limits: Limits) -> bool {
        let Some(most) = self.by_host.values_mut().max_by_key(|held| held.len()) else { return false };
        if most.len() <= own + 1 || self.leaving >= limits.all.div_ceil(LEAVING) {
            return false;
        }
        // The oldest: it has had its time.
        if let Some(held) = most.pop_front() {
            held.end.cancel();
            self.count -= 1;
            self.leaving += 1;
        }
        true
    }
}

impl Seat {
    /// Cancelled when the connection must end.
    pub(crate) fn end(&self) -> &CancellationToken {
        &self.end
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        let place = taken.by_host.get(&self.host).and_then(|held| held.iter().position(|it| it.number == self.number));
        let Some(place) = place else {
            taken.leaving -= 1;
            return;
        };
        taken.count -= 1;
        if let Some(held) = taken.by_host.get_mut(&self.host) {
            held.remove(place);
            if held.is_empty() {
                taken.by_host.remove(&self.host);
            }
        }
    }
}

/// What one host has to itself: an IPv4 address, or a /64 of IPv6.
fn one_host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(octet: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, octet])
    }

    /// What each of these hosts has got.
    fn held(seats: &Seats, hosts: &[u8]) -> Vec<usize> {
        let taken = seats.taken();
        hosts.iter().map(|octet| taken.by_host.get(&host(*octet)).map_or(0, VecDeque::len)).collect()
    }

    #[test]
    fn seats_are_limited_in_all_and_by_host_and_given_back() {
        let limits = Limits { all: 3, per_host: 2 };
        let (seats, stop) = (Seats::default(), CancellationToken::new());
        let [one, same_net, two]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|address| address.parse().unwrap());
        let first = seats.take(one, limits, &stop).unwrap();
        let second = seats.take(same_net, limits, &stop).unwrap();
        assert!(seats.take(one, limits, &stop).is_none(), "one network has two seats");
        let third = seats.take(two, limits, &stop).unwrap();
        assert!(seats.take(two, limits, &stop).is_none(), "three seats in all, and nobody has too many");
        drop(first);
        let fourth = seats.take(two, limits, &stop).unwrap();
        drop((second, third, fourth));
        let taken = seats.taken();
        assert!(taken.by_host.is_empty() && (taken.count, taken.leaving) == (0, 0));
    }

    #[test]
    fn whoever_has_the_most_gives_the_oldest_until_all_have_alike() {
        let limits = Limits { all: 8, per_host: 8 };
        let (seats, stop) = (Seats::default(), CancellationToken::new());
        let mut flood: VecDeque<_> = (0..8).map(|_| seats.take(host(1), limits, &stop).unwrap()).collect();
        let mut others = Vec::new();
        for round in 1..=4 {
            others.push(seats.take(host(2), limits, &stop).expect("there is a seat for others"));
            assert!(flood.iter().take(1).all(|seat| seat.end().is_cancelled()), "the oldest");
            assert!(!flood.iter().skip(1).any(|seat| seat.end().is_cancelled()), "no more than needed");
            flood.pop_front();
            assert_eq!(held(&seats, &[1, 2]), [8 - round, round]);
        }
        assert!(seats.take(host(2), limits, &stop).is_none() && seats.take(host(1), limits, &stop).is_none());
        others.push(seats.take(host(3), limits, &stop).expect("there is a seat for a third"));
        assert_eq!(held(&seats, &[1, 2, 3]).iter().sum::<usize>(), 8);
        assert!(!stop.is_cancelled());
    }

    #[test]
    fn no_more_than_a_quarter_is_about_to_leave() {
        let limits = Limits { all: 8, per_host: 8 };
        let (seats, stop) = (Seats::default(), CancellationToken::new());
        let mut flood: Vec<_> = (0..8).map(|_| seats.take(host(1), limits, &stop).unwrap()).collect();
        let _second = seats.take(host(2), limits, &stop).unwrap();
        let _third = seats.take(host(3), limits, &stop).unwrap();
        assert!(seats.take(host(4), limits, &stop).is_none(), "two are not gone yet");
        flood.remove(0);
        assert!(seats.take(host(4), limits, &stop).is_some());
    }

    #[test]
    fn all_connections_end_with_the_listener() {
        let (seats, stop) = (Seats::default(), CancellationToken::new());
        let seat = seats.take(host(1), Limits { all: 1, per_host: 1 }, &stop).unwrap();
        stop.cancel();
        assert!(seat.end().is_cancelled());
    }
}
