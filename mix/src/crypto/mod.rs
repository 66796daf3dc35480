//! The cryptography of Type III packets (minion-spec 3.1).
//!
//! Which library does what is decided here and nowhere else; `pk` alone names the RSA backends.

pub mod hash;
pub mod keyset;
pub mod lioness;
pub mod mac;
pub mod pk;
pub mod sealed;
pub mod stream;
pub mod surb_key;

pub use hash::{DIGEST_LEN, Digest, KeyId, Prefix, sha1};
pub use keyset::{Keyset, SharedSecret};
pub use sealed::Passphrase;
pub use stream::CounterRng;
pub use surb_key::SurbKey;
