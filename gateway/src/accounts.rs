//! Who may log in: one identity, one account, for sending and for fetching.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use mix::crypto::{Digest, sha1};
use subtle::ConstantTimeEq;

use crate::config::IdentityConfig;

/// The accounts of a gateway; clones share them. Passwords are kept as digests, which have one length.
#[derive(Clone)]
pub struct Accounts(Arc<RwLock<BTreeMap<String, Digest>>>);

impl Accounts {
    /// One account for each identity.
    pub fn new(identities: &[IdentityConfig]) -> Self {
        Self(Arc::new(RwLock::new(table(identities))))
    }

    /// One account for each of these instead. Sessions that are open stay so.
    pub fn replace(&self, identities: &[IdentityConfig]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table(identities);
    }

    /// Whether this is the password of this user. Takes as long for a wrong name as for a wrong password.
    pub fn check(&self, user: &str, password: &str) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(user).copied();
        let right = known.unwrap_or(Digest([0; 20]));
        bool::from(right.0.ct_eq(&digest(password).0)) && known.is_some()
    }

    /// Whether there is such a user.
    pub fn contains(&self, user: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(user)
    }
}

fn table(identities: &[IdentityConfig]) -> BTreeMap<String, Digest> {
    identities.iter().map(|identity| (identity.name.clone(), digest(identity.password.expose()))).collect()
}

fn digest(password: &str) -> Digest {
    sha1(&[password.as_bytes()])
}

/// Prints nothing of them.
impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accounts(..)")
    }
}

impl smtp_in::policy::Accounts for Accounts {
    fn check(&self, user: &str, password: &str) -> bool {
        self.check(user, password)
    }
}

impl pop_out::pop3::Accounts for Accounts {
    fn check(&self, user: &str, password: &str) -> bool {
        self.check(user, password)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Password;

    #[test]
    fn account_opens_to_its_own_password_alone() {
        let identity = |name: &str, password: &str| IdentityConfig {
            name: name.into(),
            password: Password::new(password.to_owned()),
            ..IdentityConfig::default()
        };
        let accounts = Accounts::new(&[identity("alice", "a"), identity("bob", "b")]);
        assert!(accounts.check("alice", "a") && accounts.check("bob", "b"));
        for (user, password) in [("alice", "b"), ("alice", ""), ("carol", "a"), ("carol", ""), ("", "")] {
            assert!(!accounts.check(user, password), "{user} {password}");
        }
    }
}
