//! Who the mixes are: descriptors and the signed directories that list them (dir-spec).
//!
//! Everything here is text in, values out: fetching, storing and publishing are done by the floors above, and the time
//! is handed in by whoever has a clock.

pub mod date;
pub mod descriptor;
pub mod fields;
pub mod info;
pub mod nickname;
pub mod policy;
pub mod signed;
#[cfg(test)]
mod tests;
mod value;
pub mod vote;

pub use descriptor::{Delivery, Descriptor, Incoming, InvalidDescriptor, Outgoing};
pub use fields::{DescriptorFields, Unsignable};
pub use nickname::Nickname;
pub use policy::{Policy, Rule};
pub use signed::{Directory, DirectoryFields, InvalidDirectory, Status, Trust, Voter};
pub use value::{InvalidEntry, InvalidValue};
