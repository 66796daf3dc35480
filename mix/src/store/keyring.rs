//! The keys of the user's identities: from each follow the secrets of the reply blocks made under its name (E2E-spec 4).
//!
//! Which mails an identity gets is `inbox`; what a key decodes is `crate::payload`'s.

use std::fmt;
use std::time::SystemTime;

use rand::CryptoRng;

use super::db::{Row, Schema, StoreError, Tx, View, day_end, instant, params};
use crate::crypto::surb_key::SurbKey;

/// The tables of this file.
pub const SCHEMA: Schema = Schema {
    name: "keyring",
    version: 1,
    sql: "CREATE TABLE identity (name TEXT PRIMARY KEY, surb_key BLOB NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID",
    slots: &[],
};

/// The domain of the user's identities and of message ids that are made here. RFC 9476 keeps `.alt` out of the DNS.
pub const LOCAL_DOMAIN: &str = "mixgate.alt";

/// One of the user's names, and the key of its reply blocks.
#[derive(Clone)]
pub struct Identity {
    /// The name: login at both doors.
    pub name: String,
    /// From this follow the secrets of its reply blocks.
    pub surb_key: SurbKey,
    /// The end of the day on which the key was made.
    pub created: SystemTime,
}

/// Prints no name: which pseudonyms belong to one person is the secret.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// The identity `name`, with a fresh key if it has none yet.
///
/// # Errors
/// What the database says.
pub fn ensure(tx: &Tx<'_>, name: &str, now: SystemTime, rng: &mut impl CryptoRng) -> Result<Identity, StoreError> {
    if let Some(identity) = find(tx, name)? {
        return Ok(identity);
    }
    let surb_key = SurbKey::random(rng);
    let created = day_end(now);
    tx.execute(
        "INSERT INTO identity (name, surb_key, created) VALUES (?1, ?2, ?3)",
        params![name, surb_key.expose(), created],
    )?;
    Ok(Identity { name: name.to_owned(), surb_key, created: instant(created) })
}

/// The identity `name`, if it has a key.
///
/// # Errors
/// What the database says.
pub fn find(view: &View<'_>, name: &str) -> Result<Option<Identity>, StoreError> {
    view.first("SELECT name, surb_key, created FROM identity WHERE name = ?1", params![name], identity)
}

/// All identities, by name: what arrives may be for any of them.
///
/// # Errors
/// What the database says.
pub fn list(view: &View<'_>) -> Result<Vec<Identity>, StoreError> {
    view.all("SELECT name, surb_key, created FROM identity ORDER BY name", &[], identity)
}

/// Forgets the identity `name`: answers to its reply blocks can no longer be read by anybody. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn remove(tx: &Tx<'_>, name: &str) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM identity WHERE name = ?1", params![name])? > 0)
}

fn identity(row: &Row<'_>) -> Result<Identity, StoreError> {
    Ok(Identity { name: row.get(0)?, surb_key: SurbKey::new(row.get(1)?), created: instant(row.get(2)?) })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::{SCHEMA, ensure, find, list, remove};
    use crate::store::testing::{fresh, hour, reopened};

    #[test]
    fn identity_keeps_its_key_across_a_restart() {
        let (folder, db) = fresh(&[SCHEMA]);
        let made = db.write(|tx| ensure(tx, "mark", hour(9), &mut StdRng::seed_from_u64(1))).unwrap();
        let db = reopened(folder.path(), db, &[SCHEMA]);
        let kept = db.write(|tx| ensure(tx, "mark", hour(90), &mut StdRng::seed_from_u64(2))).unwrap();
        assert_eq!(made.surb_key, kept.surb_key);
        assert_eq!((made.created, kept.created), (hour(24), hour(24)));
    }

    #[test]
    fn two_identities_have_two_keys_and_a_removed_one_has_none() {
        let (_folder, db) = fresh(&[SCHEMA]);
        db.write(|tx| {
            let mut rng = StdRng::seed_from_u64(1);
            ensure(tx, "sam", hour(0), &mut rng)?;
            ensure(tx, "mark", hour(0), &mut rng)
        })
        .unwrap();
        let all = db.read(list).unwrap();
        let [mark, sam] = all.as_slice() else { panic!("two identities: {all:?}") };
        assert_eq!((mark.name.as_str(), sam.name.as_str()), ("mark", "sam"));
        assert_ne!(mark.surb_key, sam.surb_key);
        assert_eq!(format!("{mark:?}"), "Identity(..)");
        assert!(db.write(|tx| remove(tx, "sam")).unwrap());
        assert!(!db.write(|tx| remove(tx, "sam")).unwrap());
        assert!(db.read(|view| find(view, "sam")).unwrap().is_none());
    }
}
