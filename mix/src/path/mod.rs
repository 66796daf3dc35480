//! Where packets go: exit addresses, path specifications, the choice of mixes (path-spec).
//!
//! All of it is pure: the directory, the time and the dice are handed in. Who the mixes are is `crate::directory`'s; the
//! packets that walk a path are `crate::packet::build`'s.

pub mod address;
#[cfg(test)]
mod fixture;
pub mod select;
pub mod spec;
pub mod valid;

#[cfg(feature = "node")]
pub(crate) use address::is_dotted_atoms;
pub use address::{ExitAddress, InvalidAddress, Mailbox};
pub use select::{NoPath, Path, PathRequest, select};
pub use spec::{InvalidPathSpec, PathElement, PathKind, PathSpec};
pub use valid::{BlockLists, CannotDeliver, Exit, Mixes, Target};
