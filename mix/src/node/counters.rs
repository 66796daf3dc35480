//! What a process has done since it started, as numbers: counts, never contents, and nothing that tells one person's
//! act from another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Cells>, Arc<Pulse>);

/// Whether workers move. Nobody is told any of it.
#[derive(Debug, Default)]
struct Pulse {
    beats: AtomicU64,
    busy: AtomicU64,
}

impl Counters {
    /// A worker works, until it drops what it gets.
    pub(super) fn working(&self) -> Working {
        self.1.busy.fetch_add(1, Ordering::Relaxed);
        self.beat();
        Working(self.clone())
    }

    /// A worker lives: it tries again what the store refused.
    pub(super) fn beat(&self) {
        self.1.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes as long as workers move; `None` when none has anything to do.
    pub(super) fn pulse(&self) -> Option<u64> {
        (self.1.busy.load(Ordering::Relaxed) > 0).then(|| self.1.beats.load(Ordering::Relaxed))
    }
}

/// A worker that works.
pub(super) struct Working(Counters);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.1.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.beat();
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        struct Cells {
            $($name: AtomicU64,)*
        }

        /// The state of the counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            $(
                $(#[$doc])*
                pub fn $name(&self, more: u64) {
                    self.0.$name.fetch_add(more, Ordering::Relaxed);
                }
            )*

            /// All of them.
            pub fn snapshot(&self) -> Counts {
                Counts { $($name: self.0.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Counts {
            /// Names and numbers, in the order in which a packet comes by them.
            pub fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        impl std::ops::AddAssign for Counts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Connections of other mixes and clients that were let in.
    connections,
    /// Packets that were taken from other mixes and clients.
    received,
    /// Packets that were answered REJECTED for want of room, padding included.
    rejected,
    /// Packets that opened under no key, or were nonsense inside.
    invalid,
    /// Packets that were seen before.
    replayed,
    /// Dummies that ended here.
    dropped,
    /// Packets that left the pool for other mixes.
    mixed,
    /// Connections to other mixes that were begun.
    attempted,
    /// Those of them at whose end the right mix was.
    connected,
    /// Packets that other mixes have taken.
    relayed,
    /// Attempts to reach a mix that failed.
    unreachable,
    /// Those of them that the rules for outgoing connections forbid.
    denied,
    /// Packets given up because their mix was not reached in time.
    expired,
    /// Dummies made here, to leave with a batch. They count among the mixed and the relayed, as whatever they are to be
    /// taken for.
    dummies,
    /// Padding of links that other mixes have taken.
    junk,
    /// Messages delivered out of the network.
    delivered,
    /// Messages that could not be delivered and were given up.
    undeliverable,
    /// Those of them that the list of refusals forbids.
    refused,
    /// Those of them whose recipient has asked for no more mail.
    opted_out,
    /// Times that a mail was put off since its recipient, its domain or all together had as many as the limits let through.
    limited,
    /// The user's mails that became packets.
    packed,
    /// The user's mails that could not become packets.
    unsendable,
}
