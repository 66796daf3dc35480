//! What an earlier run left in the exit queue: what a start looks at, and what it mends.

use std::time::SystemTime;

use crate::packet::RoutingType;
use crate::store::db::{StoreError, Tx, View, params, seconds};

/// Whether a delivery of this type waits.
///
/// # Errors
/// What the database says.
pub fn waits(view: &View<'_>, exit_type: RoutingType) -> Result<bool, StoreError> {
    view.exists("SELECT 1 FROM exit WHERE exit_type = ?1", params![exit_type.0])
}

/// Lets no delivery wait beyond `latest`, and says how many would have: they were put off by a clock that was ahead.
///
/// # Errors
/// What the database says.
pub fn bring_forward(tx: &Tx<'_>, latest: SystemTime) -> Result<usize, StoreError> {
    tx.execute("UPDATE exit SET next_attempt = ?1 WHERE next_attempt > ?1", params![seconds(latest)])
}

#[cfg(test)]
mod tests {
    use crate::packet::RoutingType;
    use crate::store::queue::exit::{insert_message, next_due, postpone};
    use crate::store::queue::{BY_HAND, SCHEMA, left};
    use crate::store::testing::{fresh, hour};

    #[test]
    fn what_waits_is_told_by_its_type() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        db.write(|tx| insert_message(tx, RoutingType::MBOX, b"frida", b"text")).unwrap();
        assert!(db.read(|view| left::waits(view, RoutingType::MBOX)).unwrap());
        assert!(!db.read(|view| left::waits(view, RoutingType::SMTP)).unwrap());
    }

    #[test]
    fn what_a_clock_that_was_ahead_has_put_off_waits_no_longer_than_anything_else() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let put_off = |until| {
            db.write(move |tx| {
                let id = insert_message(tx, RoutingType::MBOX, b"frida", b"text")?;
                postpone(tx, id, until)
            })
            .unwrap();
        };
        put_off(hour(49));
        put_off(hour(1));
        assert_eq!(db.write(|tx| left::bring_forward(tx, hour(2))).unwrap(), 1);
        assert_eq!(db.read(next_due).unwrap(), Some(hour(1)));
        assert_eq!(db.write(|tx| left::bring_forward(tx, hour(0))).unwrap(), 2);
        assert_eq!(db.read(next_due).unwrap(), Some(hour(0)));
    }
}
