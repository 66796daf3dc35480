//! Where the values of a configuration came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A configuration and where its values came from.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    /// The values.
    pub settings: C,
    /// Where each came from.
    pub origins: Origins,
}

/// Where one value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file says it.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// The command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// Where the values of a configuration came from.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    file: PathBuf,
    lines: BTreeMap<Vec<String>, usize>,
    /// Variables and the command line; the later wins.
    set: Vec<(Vec<String>, Origin)>,
}

impl Origins {
    pub(crate) fn new(lines: Option<(PathBuf, BTreeMap<Vec<String>, usize>)>, set: Vec<(Vec<String>, Origin)>) -> Self {
        let (file, lines) = lines.unwrap_or_default();
        Self { file, lines, set }
    }

    /// Where the value of `key` (dotted, sections included) came from.
    pub fn of(&self, key: &str) -> Origin {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        if let Some((_, origin)) = self.set.iter().rev().find(|(set, _)| path.starts_with(set)) {
            return origin.clone();
        }
        // A list as a whole came from wherever something in it was set.
        let in_file =
            (1..=path.len()).rev().find_map(|depth| self.lines.get(path.get(..depth)?).map(|line| (depth, line)));
        match in_file {
            Some((depth, line)) if depth == path.len() || self.is_inside_a_value(&path, depth) => {
                Origin::File { path: self.file.clone(), line: *line }
            }
            _ => Origin::Default,
        }
    }

    /// The place of the file or the like that says most about `key`: its own, or that of the section around it.
    pub fn place_of(&self, key: &str) -> Option<Origin> {
        let mut path: Vec<&str> = key.split('.').collect();
        while !path.is_empty() {
            match self.of(&path.join(".")) {
                Origin::Default => drop(path.pop()),
                origin => return Some(origin),
            }
        }
        None
    }

    /// Whether the part of `path` up to `depth` is a key with a value, not a section: nothing is known below it.
    fn is_inside_a_value(&self, path: &[String], depth: usize) -> bool {
        let Some(above) = path.get(..depth) else { return false };
        !self.lines.keys().any(|key| key.len() > depth && key.starts_with(above))
    }
}
