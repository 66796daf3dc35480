//! Fragments from people who mean harm: messages that never complete, ids of others, and compression bombs.

use super::*;
use crate::node::exit::reassembly::SCOPE;
use crate::payload::Content as Decoded;
use crate::payload::fragment::{Fragment, Fragmentation, MessageId};
use crate::store::fragments;

/// The first fragment of a message of two blocks, which never gets the second. Its number is its id.
fn lone(number: u32) -> Payload {
    piece(number, 0, 50_000, 7)
}

/// A fragment of a message of this length.
fn piece(id: u32, index: u32, message_len: u32, fill: u8) -> Payload {
    let mut name = [0; 20];
    name[..4].copy_from_slice(&id.to_be_bytes());
    let octets = vec![fill; Capacity::Plain.fragment_len()];
    let fragment = Fragment::new(index, MessageId(name), message_len, octets).unwrap();
    fragment.to_payload().into_payload().unwrap()
}

/// A message for frida as fragments, whatever it takes.
fn fragments_of(exited: &Exited, message: &[u8]) -> Vec<Payload> {
    fragments_for(exited, RoutingType::MBOX, b"frida", message)
}

fn fragments_for(exited: &Exited, exit_type: RoutingType, address: &[u8], message: &[u8]) -> Vec<Payload> {
    let to = Exit { exit_type, address: address.to_vec() };
    let mut dice = exited.service.world.dice();
    let payloads = encode::encode(message, Capacity::Plain, Some(&to), &mut dice).unwrap();
    assert!(payloads.len() > 1, "no fragments");
    payloads.into_iter().map(|payload| payload.into_payload().unwrap()).collect()
}

fn noise(exited: &Exited, len: usize) -> Vec<u8> {
    let mut message = vec![b'\n'; len];
    exited.service.world.dice().fill_bytes(&mut message[1..]);
    message
}

impl Exited {
    fn with_fragments(mut self, max_stored: u64) -> Self {
        let fragments = FragmentsConfig { enabled: true, max_size: 200_000, max_stored, ..FragmentsConfig::default() };
        let ways = self.service.ways.borrow().clone();
        self.service.ways = watch::channel(Ways { fragments, ..ways }).1;
        self
    }

    /// Many at once, in one step, as a batch leaves the pool.
    fn queue_fragments(&self, payloads: Vec<Payload>) {
        let step = move |tx: &Tx<'_>| {
            let mut ids = Vec::new();
            for payload in &payloads {
                let (exit_type, payload) = (RoutingType::FRAGMENT, payload.clone());
                let item = PoolItem::Deliver { exit_type, address: Vec::new(), handle: None, payload };
                ids.push(pool::insert(tx, &item)?);
            }
            pool::release(tx, &ids, None).map(drop)
        };
        self.service.db.write(step).unwrap();
    }

    fn waiting_fragments(&self) -> Vec<fragments::Partial> {
        self.service.db.read(|view| fragments::list(view, SCOPE)).unwrap()
    }

    /// Octets of all files of the database.
    fn on_disk(&self) -> u64 {
        let folder = self.service.db.path().parent().unwrap();
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }
}

#[tokio::test]
async fn twenty_thousand_messages_that_never_complete_take_no_more_than_their_room_and_an_honest_one_arrives() {
    const FLOOD: u32 = 20_000;
    const BATCH: u32 = 500;
    const ROOM: u64 = 64 << 20;
    let exited = exit().with_fragments(ROOM);
    let message = noise(&exited, 90_000);
    let mut honest = fragments_of(&exited, &message);
    let needed = honest.len() as u64;
    for batch in 0..FLOOD / BATCH {
        let mut payloads: Vec<_> = (0..BATCH).map(|number| lone(batch * BATCH + number)).collect();
        // In the middle of the flood, one with each batch.
        if (18..).contains(&batch) {
            payloads.extend(honest.pop());
        }
        exited.queue_fragments(payloads);
        exited.deliver_all().await;
        let stored = exited.waiting_fragments();
        let octets = stored.len() as u64 * Capacity::Plain.fragment_len() as u64;
        assert!(octets <= ROOM, "{} messages", stored.len());
    }
    assert!(honest.is_empty(), "all of {needed} came");
    assert_eq!(exited.mailbox.messages(), vec![message]);
    // The room itself, twice for what SQLite puts aside, and a batch of packets with the log that they are written by.
    let (on_disk, bound) = (exited.on_disk(), 2 * ROOM + (128 << 20));
    assert!(on_disk < bound, "{on_disk} octets on disk, of {bound}");
    let dropped = exited.service.counters.snapshot().undeliverable;
    let left = exited.waiting_fragments().len() as u64;
    assert_eq!(dropped + left, u64::from(FLOOD), "each is counted or waits");
}

#[tokio::test]
async fn whoever_copies_the_id_of_a_message_harms_that_one_at_the_most() {
    let exited = exit();
    let [first, second] = [40_000, 50_000].map(|len| noise(&exited, len));
    let [mine, other] = [fragments_of(&exited, &first), fragments_of(&exited, &second)];
    let Ok(Decoded::Fragment(stolen)) = Decoded::read(mine[0].as_bytes()) else { panic!("a fragment") };
    let id = stolen.message_id();
    let copy = |index, len| {
        let octets = vec![9; Capacity::Plain.fragment_len()];
        Fragment::new(index, id, len, octets).unwrap().to_payload().into_payload().unwrap()
    };
    let len = stolen.fragmentation().message_len();
    // Another length, another text in a place that is taken: E2E-spec 2.4 has it that the message is given up.
    for copied in [copy(0, len + 1), copy(0, len)] {
        let exited = exit();
        exited.queue_fragments(vec![mine[0].clone(), other[0].clone(), copied]);
        exited.deliver_all().await;
        assert_eq!(exited.service.counters.snapshot().undeliverable, 1);
        exited.queue_fragments(mine[1..].to_vec());
        exited.queue_fragments(other[1..].to_vec());
        exited.deliver_all().await;
        assert_eq!(exited.mailbox.messages(), vec![second.clone()], "the other one arrives");
        assert_eq!(exited.waiting_fragments().len(), 0, "nothing of it is kept");
    }
    // A text of his own in a place that is free: the message is wrong then, and is dropped as one that does not decompress.
    let poisoned = exit();
    poisoned.queue_fragments(vec![copy(1, len), other[0].clone()]);
    poisoned.deliver_all().await;
    poisoned.queue_fragments(mine.clone());
    poisoned.queue_fragments(other[1..].to_vec());
    poisoned.deliver_all().await;
    assert_eq!(poisoned.mailbox.messages(), vec![second]);
    assert_eq!(poisoned.waiting_fragments().len(), 0);
}

#[tokio::test]
async fn fragment_that_comes_twice_is_kept_once_and_a_late_one_makes_no_second_message() {
    let exited = exit();
    let message = noise(&exited, 40_000);
    let fragments = fragments_of(&exited, &message);
    exited.queue_fragments([&fragments[..1], &fragments[..1], &fragments[..1]].concat());
    exited.deliver_all().await;
    assert_eq!(exited.waiting_fragments()[0].have, 1);
    exited.queue_fragments([&fragments[..], &fragments[..]].concat());
    exited.deliver_all().await;
    assert_eq!(exited.mailbox.messages(), vec![message]);
    assert_eq!(exited.waiting_fragments().len(), 0);
}

#[tokio::test]
async fn message_with_more_fragments_than_are_taken_is_dropped_at_its_first() {
    let exited = exit();
    let most = exited.service.ways.borrow().fragments.most_fragments();
    let too_long = (2..)
        .map(|blocks| blocks * 28_000)
        .find(|len| u64::from(Fragmentation::new(*len, Capacity::Plain).unwrap().fragments()) > most);
    exited.queue_fragments(vec![piece(1, 0, too_long.unwrap(), 7), piece(2, 0, u32::MAX, 7)]);
    exited.deliver_all().await;
    assert_eq!(exited.waiting_fragments().len(), 0);
    assert_eq!(exited.service.counters.snapshot().undeliverable, 2);
}

/// Sixty megabytes that travel as some sixty kilobytes: three fragments' worth.
fn bomb() -> Vec<u8> {
    let mut bomb = vec![b'a'; 60_000_000];
    bomb[0] = b'\n';
    bomb
}

#[tokio::test]
async fn bomb_in_fragments_or_in_one_packet_is_dropped_where_it_is_larger_than_is_taken() {
    let exited = exit();
    exited.queue_fragments(fragments_of(&exited, &bomb()));
    exited.queue(RoutingType::MBOX, "frida", &bomb()[..20_000_000]);
    exited.deliver_all().await;
    assert_eq!(exited.mailbox.messages(), Vec::<Vec<u8>>::new());
    assert_eq!(exited.service.counters.snapshot().undeliverable, 2);
    assert_eq!((exited.waiting_fragments().len(), exited.due().len()), (0, 0));
}

#[tokio::test]
async fn bomb_that_leaves_as_mail_is_dropped_or_stays_compressed() {
    for (max_size, delivered) in [(100_000, 0), (100_000_000, 1)] {
        let (exited, calls) = exit_by(Server::Takes, |way| way.max_size = max_size).await;
        exited.queue_fragments(fragments_for(&exited, RoutingType::SMTP, b"bob@example.org", &bomb()));
        exited.deliver_all().await;
        let counts = exited.service.counters.snapshot();
        assert_eq!((counts.delivered, counts.undeliverable), (delivered, 1 - delivered), "{max_size}");
        assert_eq!(calls.load(Ordering::Relaxed) as u64, delivered);
    }
    let way = smtp_way(100_000_000, 0);
    let (to, world) = (Mailbox::parse("bob@example.org").unwrap(), World::real());
    let mail = write_mail(&way, &to, Queued::Message(compress(&bomb())), world.now(), &mut world.dice()).unwrap();
    assert!(mail.len() < 120_000 && String::from_utf8(mail).unwrap().contains("Message-type: overcompressed"));
}
