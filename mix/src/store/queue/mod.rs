//! The queues of a node: incoming → pool → outgoing or exit (minion-spec 3.2.5.2, 4).
//!
//! A step from queue to queue is one transaction: a crash loses nothing and repeats nothing. When packets leave the
//! pool is `crate::batch`'s, when a delivery is tried again `crate::node`'s.
//! Packets lie in slots beside the database, and the queues name these: 32 KB are not written again, and their old place
//! overwritten, for each queue that they pass.

pub mod apart;
pub mod exit;
pub mod hand;
pub mod incoming;
pub mod left;
pub mod outgoing;
pub mod pool;
pub mod users;

pub use exit::{ExitContent, ExitId, ExitItem};
pub use incoming::{Admission, IncomingId, Next};
pub use outgoing::{Cargo, Destination, DestinationId, OutgoingId};
pub use pool::{PoolId, PoolItem};

use super::db::Schema;

/// The tables of this folder. No arrival times: they would only help to link what comes in with what goes out.
pub const SCHEMA: Schema = Schema {
    name: "queue",
    version: 3,
    // AUTOINCREMENT where a reader pages by id: a number must not come again.
    sql: "
        CREATE TABLE incoming (id INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL);
        CREATE TABLE pool (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            routing_type INTEGER NOT NULL,
            routing_info BLOB NOT NULL,
            handle BLOB,
            slot INTEGER NOT NULL
        );
        CREATE TABLE destination (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            routing_type INTEGER NOT NULL,
            routing_info BLOB NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            UNIQUE (routing_type, routing_info)
        );
        CREATE TABLE outgoing (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            destination INTEGER NOT NULL REFERENCES destination (id),
            -- Padding of the link has none.
            slot INTEGER
        );
        CREATE INDEX outgoing_by_destination ON outgoing (destination, id);
        CREATE TABLE exit (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            exit_type INTEGER NOT NULL,
            address BLOB NOT NULL,
            handle BLOB,
            attempts INTEGER NOT NULL DEFAULT 0,
            next_attempt INTEGER NOT NULL DEFAULT 0,
            -- The payload of one packet,
            slot INTEGER,
            -- or a message that was put together from fragments.
            message BLOB,
            CHECK ((slot IS NULL) <> (message IS NULL))
        );
        CREATE INDEX exit_by_time ON exit (next_attempt, id);
    ",
    slots: &[
        "SELECT slot FROM incoming",
        "SELECT slot FROM pool",
        "SELECT slot FROM outgoing WHERE slot IS NOT NULL",
        "SELECT slot FROM exit WHERE slot IS NOT NULL",
    ],
};

/// What came later to the exit queue: a database of an earlier build goes on with what waits in it.
pub const BY_HAND: Schema = Schema {
    name: "queue by hand",
    version: 1,
    sql: "
        -- Found to leave as e-mail, whatever its type.
        ALTER TABLE exit ADD COLUMN by_mail INTEGER NOT NULL DEFAULT 0;
        -- By the operator: not tried until it is released.
        ALTER TABLE exit ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
        -- What the operator knows it by, drawn when it is first listed: a number in order would say when it came.
        ALTER TABLE exit ADD COLUMN label BLOB;
        CREATE UNIQUE INDEX exit_by_label ON exit (label) WHERE label IS NOT NULL;
        DROP INDEX exit_by_time;
        CREATE INDEX exit_by_time ON exit (next_attempt, id) WHERE held = 0;
    ",
    slots: &[],
};

#[cfg(test)]
mod tests {
    use super::incoming::{self, Admission, Next};
    use super::pool::{self, PoolItem, Released};
    use super::{BY_HAND, Cargo, DestinationId, ExitContent, SCHEMA, exit, outgoing};
    use crate::packet::{Handle, NextHop, RoutingType};
    use crate::store::Db;
    use crate::store::db::{Schema, StoreError};
    use crate::store::replay::testing::seen;
    use crate::store::replay::{self, ReplayLog};
    use crate::store::testing::{as_after_a_kill, digest, fresh, hop, hour, packet, payload, reopened};

    const SCHEMAS: [Schema; 3] = [SCHEMA, BY_HAND, replay::SCHEMA];

    fn relay(host: &str, fill: u8) -> PoolItem {
        PoolItem::Relay { next: hop(host), packet: packet(fill) }
    }

    fn deliver(fill: u8) -> PoolItem {
        PoolItem::Deliver {
            exit_type: RoutingType::SMTP,
            address: b"a@example.org".to_vec(),
            handle: Some(Handle([fill; 20])),
            payload: payload(fill),
        }
    }

    fn pooled(db: &Db, items: Vec<PoolItem>) {
        db.write(move |tx| items.iter().try_for_each(|item| pool::insert(tx, item).map(|_| ()))).unwrap();
    }

    fn release_all(db: &Db, own: Option<NextHop>) -> Released {
        let ids = db.read(pool::ids).unwrap();
        db.write(move |tx| pool::release(tx, &ids, own.map(|own| own.key_id()).as_ref())).unwrap()
    }

    fn finish(db: &Db, log: &ReplayLog, id: incoming::IncomingId, next: Next) -> Result<Admission, StoreError> {
        let log = log.clone();
        db.write(move |tx| incoming::finish(tx, &log, id, &digest("key"), &digest("packet"), &next))
    }

    fn cargo(db: &Db, to: DestinationId) -> Vec<Cargo> {
        let all = db.read(|view| outgoing::cargo_for(view, to, None, 10)).unwrap();
        all.into_iter().map(|(_, cargo)| cargo).collect()
    }

    fn slots(db: &Db) -> u64 {
        let count = |sql: &&str| db.read(|view| view.count(&sql.replacen("slot", "count(slot)", 1), &[])).unwrap();
        SCHEMA.slots.iter().map(count).sum()
    }

    #[test]
    fn received_packets_wait_through_a_kill() {
        let (folder, db) = fresh(&SCHEMAS);
        let ids: Vec<_> = (1..=3).map(|fill| db.write(move |tx| incoming::push(tx, &packet(fill))).unwrap()).collect();
        let (_copy, db) = as_after_a_kill(folder.path(), &SCHEMAS);
        let all = db.read(|view| incoming::load(view, None, 10, |_| None)).unwrap();
        assert_eq!(all, ids.iter().copied().zip([packet(1), packet(2), packet(3)]).collect::<Vec<_>>());
        let rest = db.read(|view| incoming::load(view, Some(ids[0]), 1, |_| None)).unwrap();
        assert_eq!(rest, [(ids[1], packet(2))]);
    }

    #[test]
    fn number_of_an_incoming_packet_never_comes_again() {
        let (_folder, db) = fresh(&SCHEMAS);
        let first = db.write(|tx| incoming::push(tx, &packet(1))).unwrap();
        assert!(db.write(move |tx| incoming::discard(tx, first)).unwrap());
        assert!(!db.write(move |tx| incoming::discard(tx, first)).unwrap());
        assert!(db.write(|tx| incoming::push(tx, &packet(2))).unwrap() > first);
        assert_eq!(db.read(incoming::count).unwrap(), 1);
    }

    #[test]
    fn replayed_packet_goes_no_further() {
        let (_folder, db) = fresh(&SCHEMAS);
        let first = db.write(|tx| incoming::push(tx, &packet(1))).unwrap();
        let copy = db.write(|tx| incoming::push(tx, &packet(1))).unwrap();
        let log = ReplayLog::open(&db).unwrap();
        assert_eq!(finish(&db, &log, first, Next::Pool(relay("a.example.org", 9))).unwrap(), Admission::Admitted);
        assert_eq!(finish(&db, &log, copy, Next::Pool(relay("a.example.org", 9))).unwrap(), Admission::Replayed);
        assert_eq!(db.read(pool::count).unwrap(), 1);
        assert_eq!(db.read(incoming::count).unwrap(), 0);
        let again = finish(&db, &log, first, Next::Drop);
        assert!(matches!(again, Err(StoreError::Missing { .. })), "{again:?}");
    }

    #[test]
    fn kill_before_the_commit_leaves_the_packet_incoming_and_not_in_the_replay_log() {
        let (folder, db) = fresh(&SCHEMAS);
        let id = db.write(|tx| incoming::push(tx, &packet(1))).unwrap();
        let here = folder.path().to_owned();
        let log = ReplayLog::open(&db).unwrap();
        let (_copy, killed) = db
            .write(move |tx| {
                incoming::finish(tx, &log, id, &digest("key"), &digest("packet"), &Next::Pool(deliver(1)))?;
                Ok(as_after_a_kill(&here, &SCHEMAS))
            })
            .unwrap();
        assert_eq!(killed.read(incoming::count).unwrap(), 1);
        assert_eq!(killed.read(pool::count).unwrap(), 0);
        let log = ReplayLog::open(&killed).unwrap();
        assert_eq!(finish(&killed, &log, id, Next::Pool(deliver(1))).unwrap(), Admission::Admitted);
        let (_copy, killed) = as_after_a_kill(folder.path(), &SCHEMAS);
        assert_eq!(killed.read(incoming::count).unwrap(), 0);
        assert_eq!(killed.read(pool::count).unwrap(), 1);
        assert!(seen(&ReplayLog::open(&killed).unwrap(), digest("key"), digest("packet")));
    }

    #[test]
    fn dummy_leaves_nothing_but_its_replay_entry() {
        let (_folder, db) = fresh(&SCHEMAS);
        let id = db.write(|tx| incoming::push(tx, &packet(1))).unwrap();
        let log = ReplayLog::open(&db).unwrap();
        assert_eq!(finish(&db, &log, id, Next::Drop).unwrap(), Admission::Admitted);
        assert_eq!(db.read(pool::count).unwrap(), 0);
        assert!(seen(&log, digest("key"), digest("packet")));
    }

    #[test]
    fn batch_leaves_by_destination_in_the_order_it_was_given() {
        let (folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![relay("a.example.org", 1), relay("b.example.org", 2), relay("a.example.org", 3), deliver(4)]);
        let mut ids = db.read(pool::ids).unwrap();
        ids.reverse();
        let released = db.write(move |tx| pool::release(tx, &ids, None)).unwrap();
        assert_eq!(released, Released { relays: 3, deliveries: 1, own: 0 });
        let db = reopened(folder.path(), db, &SCHEMAS);
        let all = db.read(outgoing::destinations).unwrap();
        let [a, b] = all.as_slice() else { panic!("two destinations: {all:?}") };
        assert_eq!((&a.next, &b.next), (&hop("a.example.org"), &hop("b.example.org")));
        assert_eq!(cargo(&db, a.id), [Cargo::Packet(packet(3)), Cargo::Packet(packet(1))]);
        assert_eq!(cargo(&db, b.id), [Cargo::Packet(packet(2))]);
        assert_eq!(db.read(pool::count).unwrap(), 0);
    }

    #[test]
    fn batch_released_twice_leaves_once() {
        let (_folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![relay("a.example.org", 1)]);
        let ids = db.read(pool::ids).unwrap();
        let again = ids.clone();
        db.write(move |tx| pool::release(tx, &ids, None)).unwrap();
        assert_eq!(db.write(move |tx| pool::release(tx, &again, None)).unwrap(), Released::default());
        assert_eq!(db.read(outgoing::count).unwrap(), 1);
    }

    #[test]
    fn packet_for_this_mix_itself_comes_in_again() {
        let (_folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![relay("me.example.org", 1), relay("a.example.org", 2)]);
        let own = hop("me.example.org");
        assert_eq!(release_all(&db, Some(own)), Released { relays: 1, deliveries: 0, own: 1 });
        let back = db.read(|view| incoming::load(view, None, 10, |_| None)).unwrap();
        assert_eq!(back.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), [packet(1)]);
        assert_eq!(slots(&db), 2);
    }

    #[test]
    fn sent_packets_are_gone_and_the_failures_before_them_forgotten() {
        let (_folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![relay("a.example.org", 1), relay("a.example.org", 2)]);
        release_all(&db, None);
        let a = db.read(outgoing::destinations).unwrap()[0].id;
        db.write(move |tx| outgoing::failed(tx, a)).unwrap();
        let packets = db.read(|view| outgoing::cargo_for(view, a, None, 10)).unwrap();
        let (first, second) = (packets[0].0, packets[1].0);
        db.write(move |tx| outgoing::sent(tx, &[first])).unwrap();
        assert_eq!(db.read(outgoing::destinations).unwrap()[0].attempts, 0);
        db.write(move |tx| outgoing::sent(tx, &[first, second])).unwrap();
        assert!(db.read(outgoing::destinations).unwrap().is_empty());
        assert_eq!(slots(&db), 0);
    }

    #[test]
    fn padding_is_for_idle_mixes_alone_and_counts_for_no_packet() {
        let (_folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![relay("a.example.org", 1)]);
        release_all(&db, None);
        let pad = |host| db.write(move |tx| outgoing::pad_if_idle(tx, &hop(host))).unwrap();
        assert_eq!([pad("a.example.org"), pad("b.example.org"), pad("b.example.org")], [false, true, false]);
        assert_eq!(db.read(outgoing::count).unwrap(), 1);
        let b = db.read(outgoing::destinations).unwrap()[1].id;
        assert_eq!(cargo(&db, b), [Cargo::Junk]);
        pooled(&db, vec![relay("b.example.org", 2)]);
        release_all(&db, None);
        assert_eq!(cargo(&db, b), [Cargo::Junk, Cargo::Packet(packet(2))]);
        let (junk, _) = db.read(|view| outgoing::cargo_for(view, b, None, 1)).unwrap().remove(0);
        db.write(move |tx| outgoing::sent(tx, &[junk])).unwrap();
        assert_eq!(cargo(&db, b), [Cargo::Packet(packet(2))]);
        assert!(pad("c.example.org"));
        let c = db.read(outgoing::destinations).unwrap()[2].id;
        assert_eq!(db.write(move |tx| outgoing::give_up(tx, c)).unwrap(), 0, "nobody has lost anything");
        assert_eq!(db.read(outgoing::destinations).unwrap().len(), 2);
    }

    #[test]
    fn retries_belong_to_the_destination_and_later_packets_wait_with_the_others() {
        let (folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![relay("a.example.org", 1), relay("b.example.org", 2)]);
        release_all(&db, None);
        let a = db.read(outgoing::destinations).unwrap()[0].id;
        db.write(move |tx| outgoing::failed(tx, a)).unwrap();
        db.write(move |tx| outgoing::failed(tx, a)).unwrap();
        pooled(&db, vec![relay("a.example.org", 3)]);
        release_all(&db, None);
        let db = reopened(folder.path(), db, &SCHEMAS);
        let all = db.read(outgoing::destinations).unwrap();
        assert_eq!(all.iter().map(|to| (to.id == a, to.attempts)).collect::<Vec<_>>(), [(true, 2), (false, 0)]);
        assert_eq!(cargo(&db, a).len(), 2);
        assert_eq!(db.write(move |tx| outgoing::give_up(tx, a)).unwrap(), 2);
        assert_eq!(db.read(outgoing::count).unwrap(), 1);
        assert_eq!(slots(&db), 1);
    }

    #[test]
    fn delivery_is_retried_until_it_is_done() {
        let (folder, db) = fresh(&SCHEMAS);
        pooled(&db, vec![deliver(1)]);
        release_all(&db, None);
        let id = db.read(|view| exit::due(view, hour(0), 10)).unwrap()[0].id;
        db.write(move |tx| exit::postpone(tx, id, hour(7))).unwrap();
        assert!(db.read(|view| exit::due(view, hour(6), 10)).unwrap().is_empty());
        assert_eq!(db.read(exit::next_due).unwrap(), Some(hour(7)));
        let db = reopened(folder.path(), db, &SCHEMAS);
        let due = db.read(|view| exit::due(view, hour(7), 10)).unwrap();
        let [item] = due.as_slice() else { panic!("one delivery: {due:?}") };
        assert_eq!(item.attempts, 1);
        assert_eq!((item.exit_type, item.address.as_slice()), (RoutingType::SMTP, &b"a@example.org"[..]));
        assert_eq!(item.content, ExitContent::Payload { handle: Some(Handle([1; 20])), payload: payload(1) });
        assert!(db.write(move |tx| exit::delivered(tx, id)).unwrap());
        assert!(!db.write(move |tx| exit::give_up(tx, id)).unwrap());
        assert!(!db.write(move |tx| exit::postpone(tx, id, hour(9))).unwrap());
        assert_eq!((db.read(exit::count).unwrap(), slots(&db)), (0, 0));
    }

    #[test]
    fn database_of_an_earlier_build_goes_on_with_what_waits_in_it() {
        let (folder, db) = fresh(&[SCHEMA]);
        let earlier = "INSERT INTO exit (exit_type, address, message, attempts) VALUES (257, x'66', x'74', 3)";
        db.write(|tx| tx.insert(earlier, &[])).unwrap();
        let db = reopened(folder.path(), db, &SCHEMAS);
        let due = db.read(|view| exit::due(view, hour(0), 10)).unwrap();
        assert_eq!(due.iter().map(|item| (item.attempts, item.by_mail)).collect::<Vec<_>>(), [(3, false)]);
    }

    #[test]
    fn message_put_together_from_fragments_waits_like_any_delivery() {
        let (_folder, db) = fresh(&SCHEMAS);
        db.write(|tx| exit::insert_message(tx, RoutingType::MBOX, b"someone", b"compressed")).unwrap();
        let due = db.read(|view| exit::due(view, hour(0), 10)).unwrap();
        assert_eq!(due[0].exit_type, RoutingType::MBOX);
        assert_eq!(due[0].content, ExitContent::Message(b"compressed".to_vec()));
        assert_eq!(format!("{:?}", due[0].content), "ExitContent(..)");
    }

    #[test]
    fn row_that_names_a_slot_beyond_the_file_is_called_damage() {
        let (folder, db) = fresh(&SCHEMAS);
        db.write(|tx| tx.insert("INSERT INTO incoming (slot) VALUES (5)", &[])).unwrap();
        let read = db.read(|view| incoming::load(view, None, 1, |_| None));
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
        drop(db);
        let refused = Db::open(&folder.path().join("store.db"), &SCHEMAS);
        assert!(matches!(refused, Err(StoreError::Corrupt { what }) if what.contains("beyond the end")));
    }

    #[test]
    fn slot_that_two_rows_name_is_called_damage() {
        let (folder, db) = fresh(&SCHEMAS);
        db.write(|tx| incoming::push(tx, &packet(1))).unwrap();
        db.write(|tx| tx.insert("INSERT INTO outgoing (destination, slot) SELECT 1, slot FROM incoming", &[]))
            .unwrap_err();
        db.write(|tx| tx.insert("INSERT INTO incoming (slot) SELECT slot FROM incoming", &[])).unwrap();
        drop(db);
        let refused = Db::open(&folder.path().join("store.db"), &SCHEMAS);
        assert!(matches!(refused, Err(StoreError::Corrupt { what }) if what.contains("two rows")));
    }
}
