//! Why settings were refused. Each variant names the place that the operator has to edit.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why no configuration came out.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The file is not there, not readable, or not UTF-8.
    #[error("reading {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// The file has a key that no section knows.
    #[error("{}:{line}: unknown key `{key}`{}", path.display(), Suggestion(nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The whole key, sections included.
        key: String,
        /// The known keys that look most like it.
        nearest: Vec<String>,
    },
    /// A key of the file has a value that its section does not take.
    #[error("{}:{line}: `{key}` is {found}: {expected}", path.display())]
    WrongValue {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The whole key, sections included.
        key: String,
        /// What the file says.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A table of the file lacks a key that has no default.
    #[error("{}:{line}: `{key}` is missing", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The line of the table that lacks it, from 1.
        line: usize,
        /// The whole key, sections included.
        key: String,
    },
    /// An environment variable is wrong.
    #[error("environment variable {variable}: {problem}")]
    Environment {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        problem: BadSetting,
    },
    /// A setting on the command line is wrong.
    #[error("command line: `{key}`: {problem}")]
    Override {
        /// The whole key, sections included.
        key: String,
        /// What is wrong with it.
        problem: BadSetting,
    },
    /// The configuration type does not accept its own defaults: our fault, never the operator's.
    #[error("defaults: `{key}`: {problem}")]
    Defaults {
        /// The whole key, sections included.
        key: String,
        /// What is wrong with it.
        problem: BadSetting,
    },
}

/// What can be wrong with one setting, wherever it was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// No section knows the key.
    #[error("no such key `{key}`{}", Suggestion(nearest))]
    Unknown {
        /// The whole key, sections included.
        key: String,
        /// The known keys that look most like it; for a variable, in its spelling.
        nearest: Vec<String>,
    },
    /// The key is known, the value is not what it takes.
    #[error("{found}: {expected}")]
    Wrong {
        /// What was set.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A table was set without a key that has no default.
    #[error("`{key}` is missing")]
    Missing {
        /// The whole key, sections included.
        key: String,
    },
}

/// `; did you mean … or …?`, or nothing.
struct Suggestion<'a>(&'a [String]);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, others)) = self.0.split_last() else { return Ok(()) };
        let others: Vec<String> = others.iter().map(|key| format!("`{key}`")).collect();
        let or = if others.is_empty() { "" } else { " or " };
        write!(f, "; did you mean {}{or}`{last}`?", others.join(", "))
    }
}
