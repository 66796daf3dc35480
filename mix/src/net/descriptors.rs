//! File descriptors: each connection is one, and the system gives a process so many (RLIMIT_NOFILE).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors beside those of connections that settings speak of: databases and their readers, the runs of the replay log,
/// listeners, control, metrics, doors, and a directory server in the same process, which alone may have 256.
const OTHERS: u64 = 512;

/// Connections that settings allow need more descriptors than the system gives.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error(
    "the connections that are allowed, and what else a process opens, need {needed} file descriptors, and it may have {limit}: allow fewer, or raise the hard limit (LimitNOFILE= of systemd, --ulimit nofile= of Docker, ulimit -Hn of a shell)"
)]
pub struct TooFew {
    /// Those of the connections, and some more.
    pub needed: u64,
    /// The hard limit of this process.
    pub limit: u64,
}

/// Lets this process have as many as it may. Where the system does not let it, it has what it had.
pub fn raise() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The soft limit is for programs that use `select`, and none here does.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Whether so many connections fit into what this process may have.
///
/// # Errors
/// [`TooFew`].
pub fn check(connections: usize) -> Result<(), TooFew> {
    fits(connections, getrlimit(Resource::Nofile).maximum)
}

fn fits(connections: usize, limit: Option<u64>) -> Result<(), TooFew> {
    let needed = (connections as u64).saturating_add(OTHERS);
    match limit {
        Some(limit) if needed > limit => Err(TooFew { needed, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_connections_than_the_hard_limit_allows_are_refused_with_the_numbers() {
        assert_eq!(fits(1488, Some(2000)), Ok(()));
        assert_eq!(fits(1489, Some(2000)), Err(TooFew { needed: 2001, limit: 2000 }));
        assert_eq!(fits(1_000_000, None), Ok(()));
    }
}
