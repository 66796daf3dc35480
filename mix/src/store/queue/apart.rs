//! The exit queue where each recipient is delivered to apart, and each domain is a destination of its own.
//!
//! The rest of the queue is `exit`'s.

use std::time::SystemTime;

use crate::packet::RoutingType;
use crate::path::Mailbox;
use crate::store::db::{StoreError, Tx, View, params, seconds, sql_limit};
use crate::store::queue::exit::{self, ExitContent, ExitId, ExitItem};

/// What stands behind the `@` of an address, in lower case.
macro_rules! host {
    () => {
        "lower(CAST(substr(address, instr(address, x'40') + 1) AS TEXT))"
    };
}

/// Whether the last two labels of a domain, its `pair`, are those of a registry. A rule and no list of all suffixes: such a
/// list is old on the day after a release, needs a parser where this needs a line, and all that hangs on it are places. What
/// registries of countries have in common is known by its second label; whoever owns another one, such as `co.de`, may have
/// as many places as he likes, which is why short labels in general will not do.
macro_rules! is_of_a_registry {
    () => {
        "(pair LIKE '%.__' AND substr(pair, 1, length(pair) - 3) IN ('ac', 'co', 'com', 'ed', 'edu', 'go', 'gob', 'gouv',
            'gov', 'id', 'ltd', 'me', 'mil', 'ne', 'net', 'nhs', 'nom', 'or', 'org', 'plc', 'sch'))"
    };
}

/// Makes a delivery to several recipients one for each, with its attempts and its time. Who has had his is then forgotten
/// without the others.
///
/// The row stays for the last of them, with its content; the others get copies.
///
/// # Errors
/// [`StoreError::Missing`]; what the database says.
pub fn split(tx: &Tx<'_>, id: ExitId, recipients: &[Mailbox]) -> Result<(), StoreError> {
    let Some((last, others)) = recipients.split_last() else { return Ok(()) };
    let whole = "SELECT id, attempts, exit_type, address, handle, slot, message, by_mail FROM exit WHERE id = ?1";
    let item = tx.first(whole, params![id.0], |row| exit::item(tx, row))?;
    let item = item.ok_or(StoreError::Missing { what: "delivery" })?;
    for recipient in others {
        let recipient = recipient.as_str().as_bytes();
        let copy = match &item.content {
            ExitContent::Payload { handle, payload } => {
                let slot = tx.put(payload.as_bytes())?;
                exit::enqueue_payload(tx, item.exit_type, recipient, *handle, slot)?
            }
            ExitContent::Message(compressed) => exit::insert_message(tx, item.exit_type, recipient, compressed)?,
        };
        tx.execute(
            "UPDATE exit SET (attempts, next_attempt, held, by_mail) =
                (SELECT attempts, next_attempt, held, by_mail FROM exit WHERE id = ?2) WHERE id = ?1",
            params![copy.0, id.0],
        )?;
    }
    tx.execute("UPDATE exit SET address = ?2 WHERE id = ?1", params![id.0, last.as_str().as_bytes()]).map(drop)
}

/// The e-mail to try now, at most `limit`, and none of those `under_way`: of each owner of domains, with what is
/// under way, at most `each`. An owner is the last two labels of a domain, whatever stands before them, or three where the
/// second is one that registries of countries use, as in `example.co.uk`; and each user of this node whose mail leaves as
/// e-mail.
///
/// # Errors
/// What the database says.
pub fn due_apart(
    view: &View<'_>,
    now: SystemTime,
    under_way: &[ExitId],
    each: usize,
    limit: usize,
) -> Result<Vec<ExitItem>, StoreError> {
    view.all(
        // What is under way keeps its places, even if others have put it off meanwhile. `rtrim(x, replace(x, '.', ''))` takes the last label off.
        concat!(
            "WITH due AS (SELECT id, next_attempt, ",
            host!(),
            " AS host FROM exit
                WHERE (exit_type = ?2 OR by_mail)
                    AND ((held = 0 AND next_attempt <= ?1) OR id IN (SELECT value FROM json_each(?3)))),
            above AS (SELECT id, next_attempt, host, rtrim(rtrim(host, replace(host, '.', '')), '.') AS above FROM due),
            pairs AS (SELECT id, next_attempt, host, substr(host, length(rtrim(above, replace(above, '.', ''))) + 1) AS pair,
                rtrim(rtrim(above, replace(above, '.', '')), '.') AS beyond FROM above),
            owned AS (SELECT id, next_attempt, CASE WHEN ",
            is_of_a_registry!(),
            " THEN substr(host, length(rtrim(beyond, replace(beyond, '.', ''))) + 1) ELSE pair END AS owner FROM pairs),
            under_way AS (SELECT value AS id FROM json_each(?3)),
            placed AS (SELECT id, row_number() OVER
                (PARTITION BY owner ORDER BY id NOT IN under_way, next_attempt, id) AS place FROM owned)
            SELECT exit.id, attempts, exit_type, address, handle, slot, message, by_mail
                FROM exit JOIN placed ON placed.id = exit.id
                WHERE place <= ?4 AND exit.id NOT IN under_way ORDER BY next_attempt, exit.id LIMIT ?5"
        ),
        params![seconds(now), RoutingType::SMTP.0, exit::as_json(under_way), sql_limit(each), sql_limit(limit)],
        |row| exit::item(view, row),
    )
}

/// As [`exit::postpone_all`], of what is for one domain, given in lower case.
///
/// # Errors
/// What the database says.
pub fn postpone_domain(
    tx: &Tx<'_>,
    domain: &str,
    being_tried: &[ExitId],
    now: SystemTime,
    next_attempt: SystemTime,
    tries: u32,
) -> Result<u64, StoreError> {
    let being_tried = exit::as_json(being_tried);
    tx.execute(
        concat!(
            "UPDATE exit SET attempts = attempts + 1, next_attempt = ?3
                WHERE held = 0 AND exit_type = ?1 AND next_attempt <= ?2
                    AND id NOT IN (SELECT value FROM json_each(?5)) AND ?4 = ",
            host!()
        ),
        params![RoutingType::SMTP.0, seconds(now), seconds(next_attempt), domain, being_tried],
    )?;
    let over = tx.all(
        concat!(
            "SELECT id FROM exit WHERE held = 0 AND exit_type = ?1 AND attempts > ?2
                AND id NOT IN (SELECT value FROM json_each(?4)) AND ?3 = ",
            host!()
        ),
        params![RoutingType::SMTP.0, tries, domain, being_tried],
        |row| Ok(ExitId(row.get(0)?)),
    )?;
    over.iter().try_for_each(|id| exit::give_up(tx, *id).map(drop))?;
    Ok(over.len() as u64)
}

/// Leaves a delivery until `next_attempt`, though it was not tried.
///
/// # Errors
/// What the database says.
pub fn leave_until(tx: &Tx<'_>, id: ExitId, next_attempt: SystemTime) -> Result<(), StoreError> {
    tx.execute("UPDATE exit SET next_attempt = ?2 WHERE id = ?1", params![id.0, seconds(next_attempt)]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Handle;
    use crate::store::Db;
    use crate::store::queue::{BY_HAND, SCHEMA};
    use crate::store::testing::{fresh, hour, payload};

    fn queue(db: &Db, addresses: &[&str]) -> Vec<ExitId> {
        let insert = |address: &&str| {
            let address = address.as_bytes().to_vec();
            db.write(move |tx| exit::insert_message(tx, RoutingType::SMTP, &address, b"text")).unwrap()
        };
        addresses.iter().map(insert).collect()
    }

    fn all(db: &Db) -> Vec<ExitItem> {
        db.read(|view| exit::due(view, hour(1000), 1000)).unwrap()
    }

    fn addresses(items: &[ExitItem]) -> Vec<String> {
        items.iter().map(|item| String::from_utf8(item.address.clone()).unwrap()).collect()
    }

    fn mailboxes(names: &[&str]) -> Vec<Mailbox> {
        names.iter().map(|name| Mailbox::parse(name).unwrap()).collect()
    }

    fn due(db: &Db, under_way: &[ExitId], each: usize, limit: usize) -> Vec<String> {
        let under_way = under_way.to_vec();
        let due = db.read(move |view| due_apart(view, hour(1), &under_way, each, limit));
        addresses(&due.unwrap())
    }

    #[test]
    fn what_is_put_off_or_held_while_it_is_under_way_keeps_its_place() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let ids = queue(&db, &["a@x.y", "b@x.y", "c@x.y"]);
        let under_way = ids[..2].to_vec();
        let (put_off, held) = (ids[0], ids[1]);
        db.write(move |tx| {
            leave_until(tx, put_off, hour(500))?;
            tx.execute("UPDATE exit SET held = 1 WHERE id = ?1", params![held.0])
        })
        .unwrap();
        assert_eq!(due(&db, &under_way, 2, 9), [""; 0], "two of the owner are under way");
        assert_eq!(due(&db, &under_way, 3, 9), ["c@x.y"]);
    }

    #[test]
    fn delivery_to_several_becomes_one_for_each_with_its_content_attempts_and_time() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let handle = Some(Handle([7; 20]));
        let id = db.write(move |tx| {
            let slot = tx.put(payload(3).as_bytes())?;
            let id = exit::enqueue_payload(tx, RoutingType::SMTP, b"a@x.y\0b@x.y\0c@x.y", handle, slot)?;
            exit::postpone(tx, id, hour(2))?;
            Ok(id)
        });
        let id = id.unwrap();
        let three = mailboxes(&["a@x.y", "b@x.y", "c@x.y"]);
        db.write(move |tx| split(tx, id, &three)).unwrap();
        let items = all(&db);
        let mut names = addresses(&items);
        names.sort();
        assert_eq!(names, ["a@x.y", "b@x.y", "c@x.y"]);
        for item in &items {
            assert_eq!(item.attempts, 1);
            assert!(item.content == ExitContent::Payload { handle, payload: payload(3) });
        }
        assert!(db.read(|view| exit::due(view, hour(1), 9)).unwrap().is_empty(), "not before its time");
        for item in items {
            assert!(db.write(move |tx| exit::delivered(tx, item.id)).unwrap(), "each by itself");
        }
        assert_eq!(db.read(exit::count).unwrap(), 0);
        let gone = db.write(move |tx| split(tx, id, &mailboxes(&["a@x.y", "b@x.y"])));
        assert!(matches!(gone, Err(StoreError::Missing { .. })));
    }

    #[test]
    fn message_that_was_put_together_is_split_too() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let id = queue(&db, &["a@x.y\0b@x.y"])[0];
        db.write(move |tx| split(tx, id, &mailboxes(&["a@x.y", "b@x.y"]))).unwrap();
        let items = all(&db);
        assert_eq!(items.len(), 2);
        assert!(items.iter().all(|item| item.content == ExitContent::Message(b"text".to_vec())));
    }

    #[test]
    fn domain_with_much_mail_leaves_places_to_others() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        queue(&db, &["a@x.y", "b@X.Y", "c@x.y", "d@x.y", "e@other.example"]);
        assert_eq!(due(&db, &[], 2, 9), ["a@x.y", "b@X.Y", "e@other.example"]);
        assert_eq!(due(&db, &[], 2, 2), ["a@x.y", "b@X.Y"]);
    }

    #[test]
    fn domains_of_one_owner_share_his_places() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        queue(&db, &["a@1.evil.example", "a@2.evil.example", "a@3.deep.evil.example", "a@evil.example", "a@b.example"]);
        queue(&db, &["a@localhost", "b@localhost"]);
        assert_eq!(due(&db, &[], 1, 9), ["a@1.evil.example", "a@b.example", "a@localhost"]);
    }

    #[test]
    fn domains_below_a_registry_of_a_country_have_owners_of_their_own() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        queue(&db, &["a@x.co.uk", "a@y.co.uk", "b@mail.x.co.uk", "a@z.com.au", "b@Deep.Z.COM.au", "a@z.org.nz"]);
        queue(&db, &["a@1.evl.uk", "a@2.evl.uk", "a@1.co.example", "a@2.co.example", "a@co.uk", "b@co.uk"]);
        let first = ["a@x.co.uk", "a@y.co.uk", "a@z.com.au", "a@z.org.nz", "a@1.evl.uk", "a@1.co.example", "a@co.uk"];
        assert_eq!(due(&db, &[], 1, 99), first);
    }

    #[test]
    fn what_is_under_way_keeps_its_places_and_is_not_begun_twice() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let ids = queue(&db, &["a@x.y", "b@x.y", "c@x.y", "d@z.y"]);
        // Not the first of its domain, so that its place is no accident of the order.
        assert_eq!(due(&db, &ids[1..2], 2, 9), ["a@x.y", "d@z.y"]);
        assert_eq!(due(&db, &ids[1..3], 2, 9), ["d@z.y"]);
        assert_eq!(due(&db, &ids, 2, 9), Vec::<String>::new());
    }

    #[test]
    fn domain_that_is_away_puts_off_its_own_mail_alone() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        queue(&db, &["a@X.y", "b@x.y", "c@sub.x.y", "d@ax.y"]);
        db.write(|tx| exit::insert_message(tx, RoutingType::MBOX, b"e@x.y", b"text")).unwrap();
        let put_off = |next| db.write(move |tx| postpone_domain(tx, "x.y", &[], hour(1), hour(next), 1)).unwrap();
        assert_eq!(put_off(1), 0);
        let tried = |db: &Db| all(db).iter().filter(|item| item.attempts > 0).count();
        assert_eq!(tried(&db), 2);
        assert_eq!(put_off(2), 2, "one try, and then it is over");
        assert_eq!(addresses(&all(&db)), ["c@sub.x.y", "d@ax.y", "e@x.y"]);
    }

    #[test]
    fn what_is_left_until_later_has_not_been_tried() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let id = queue(&db, &["a@x.y"])[0];
        db.write(move |tx| leave_until(tx, id, hour(2))).unwrap();
        assert_eq!(due(&db, &[], 1, 9), Vec::<String>::new());
        assert_eq!(all(&db)[0].attempts, 0);
    }
}
