//! How settings are read: defaults < file < environment < command line.
//!
//! Errors name file, line and key (or the variable, or the option), say what was found and what was expected, and
//! suggest the nearest known key. Section structs live with their owners: nothing here knows a section.
//!
//! What a configuration type owes: `Serialize + Deserialize + Default`, `#[serde(deny_unknown_fields)]` on each
//! struct, no `skip_serializing` (an option that is `None` must still show its key). [`check_shipped`] proves all three.

mod error;
mod load;
mod place;
mod shipped;

pub use error::{BadSetting, ConfError};
pub use load::{ENVIRONMENT_PREFIX, load};
pub use shipped::check_shipped;
