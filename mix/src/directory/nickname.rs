//! Nicknames: what people call a mix (dir-spec 2).

use std::fmt;
use std::str::FromStr;

/// Longest nickname (dir-spec 3). The reference's comments speak of 128, but it takes no more than these either.
pub const MAX_NICKNAME_LEN: usize = 24;

/// A mix's nickname: a letter, then letters, digits and hyphens, at most 24 in all. Compared without regard to case, since
/// a nickname that differs from another's only in case would be taken for it.
#[derive(Clone)]
pub struct Nickname(String);

/// Why a word is not a nickname. Blames whoever wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidNickname {
    /// No characters, or more than 24.
    #[error("a nickname has 1 to {MAX_NICKNAME_LEN} characters, not {len}")]
    Length {
        /// Characters found.
        len: usize,
    },
    /// The first character is not a letter, or a later one is none of letters, digits, hyphens.
    #[error("a nickname begins with a letter and goes on with letters, digits and hyphens")]
    Character,
}

impl Nickname {
    /// The nickname as its owner writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Nickname {
    type Err = InvalidNickname;

    fn from_str(word: &str) -> Result<Self, InvalidNickname> {
        if word.is_empty() || word.len() > MAX_NICKNAME_LEN {
            return Err(InvalidNickname::Length { len: word.len() });
        }
        let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        if word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.bytes().all(allowed) {
            Ok(Self(word.to_owned()))
        } else {
            Err(InvalidNickname::Character)
        }
    }
}

impl PartialEq for Nickname {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Nickname {}

impl PartialOrd for Nickname {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Nickname {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let lower = |name: &Self| name.0.to_ascii_lowercase();
        lower(self).cmp(&lower(other))
    }
}

impl std::hash::Hash for Nickname {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}

impl fmt::Display for Nickname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nickname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
