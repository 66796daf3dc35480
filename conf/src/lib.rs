//! How settings are read: defaults < file < environment < command line.
//!
//! Errors name file, line and key (or the variable, or the option), say what was found and what was expected, and
//! suggest the nearest known key. Section structs live with their owners: nothing here knows a section.
//!
//! What a configuration type owes: `Serialize + Deserialize + Default`, `#[serde(deny_unknown_fields)]` on each
//! struct, no `skip_serializing` (an option that is `None` must still show its key). [`check_shipped`] proves all three.

mod change;
mod error;
mod load;
mod origin;
mod place;
mod shipped;
mod show;

pub use change::{Changes, changes};
pub use error::{BadSetting, ConfError};
pub use load::{ENVIRONMENT_PREFIX, load, load_traced};
pub use origin::{Loaded, Origin, Origins};
pub use shipped::check_shipped;
pub use show::{MASK, Shown};
