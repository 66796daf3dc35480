//! When a door says that the system gives it no connections: once, and not with every try for as long as it lasts.

use std::time::Duration;

use tokio::time::Instant;

/// After so long without trouble, the next is another one. Whoever holds all file handles lets one go now and then.
const QUIET: Duration = Duration::from_secs(60);

/// The trouble of one door, if it has any.
#[derive(Debug, Default)]
pub struct Trouble {
    last: Option<Instant>,
}

impl Trouble {
    /// Another failure: whether it is worth a word.
    pub fn is_news(&mut self) -> bool {
        let now = Instant::now();
        let last = self.last.replace(now);
        last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_once_however_long_it_lasts_and_the_next_one_too() {
        let mut trouble = Trouble::default();
        assert!(trouble.is_news());
        for _ in 0..1000 {
            advance(QUIET / 3).await;
            assert!(!trouble.is_news(), "it lasts");
        }
        advance(QUIET).await;
        assert!(trouble.is_news());
        assert!(!trouble.is_news());
    }
}
