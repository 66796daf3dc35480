//! Moves what arrived into the maildrops, and what the user is to be told.
//!
//! Each arrival is one transaction: taken from the inbox, and put into a maildrop or among the fragments. A crash in
//! between loses nothing and repeats nothing. When to look is the gateway's.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use mix::crypto::{CounterRng, SharedSecret};
use mix::payload::{Fragment, headers};
use mix::store::fragments::{self, Addition, FragmentFacts, FragmentedId};
use mix::store::inbox::{self, ArrivalId, Arrived};
use mix::store::keyring::Identity;
use mix::store::{Db, StoreError, Tx, keyring, notices};
use rand::CryptoRng;

use crate::maildrop;
use crate::open::{self, Opened, Owner, Unreadable, Why};
use crate::pop3::{Letter, Uidl};
use crate::render::{self, Envelope};
use crate::report;

/// Arrivals held in memory at once: a megabyte, unless an exit delivered longer messages.
const BATCH: usize = 32;
/// Octets of fragments that wait in one scope, at most: 256 MiB. Strangers can fill it; then the oldest messages make room.
const MAX_STORED_FRAGMENTS: u64 = 256 << 20;
/// What the subject of a mail about something unreadable says.
const UNREADABLE_SUBJECT: &str = "Unreadable anonymous message";

/// Empties the inbox, puts together what is complete, and makes mails of the notices; says how many mails were put into maildrops. It waits for the
/// disk, and computes: call it off the async threads.
///
/// # Errors
/// What the database says. What was done before stays done, the rest is found again by the next call.
pub fn run_once(db: &Db, inflate_max: usize, now: SystemTime, rng: &mut impl CryptoRng) -> Result<usize, StoreError> {
    run_with(db, inflate_max, now, rng, |arrived, keyring| open::open(arrived, keyring, inflate_max))
}

/// As [`run_once`], by another way to open what arrived.
fn run_with(
    db: &Db,
    inflate_max: usize,
    now: SystemTime,
    rng: &mut impl CryptoRng,
    open: impl Fn(&Arrived, &[Identity]) -> (Owner, Opened),
) -> Result<usize, StoreError> {
    let keyring = db.read(keyring::list)?;
    let mut owners: BTreeSet<Owner> = Owner::all(&keyring).collect();
    let (mut mails, mut after) = (0, None);
    loop {
        // First what is complete already, and takes room.
        for owner in &owners {
            mails += complete(db, owner, inflate_max, now, rng)?;
        }
        let batch = db.read(|view| inbox::next(view, after, BATCH))?;
        let Some(last) = batch.last() else { break };
        after = Some(last.id);
        for arrived in batch {
            mails += one_at_a_time(|| {
                let (owner, opened) = open(&arrived, &keyring);
                let made = settle(db, arrived.id, &owner, opened, now, rng);
                owners.insert(owner);
                made
            })?;
        }
    }
    Ok(mails + tell(db, now, rng)?)
}

/// Makes mails of the notices.
fn tell(db: &Db, now: SystemTime, rng: &mut impl CryptoRng) -> Result<usize, StoreError> {
    let mut mails = 0;
    loop {
        let batch = db.read(|view| notices::next(view, BATCH))?;
        if batch.is_empty() {
            return Ok(mails);
        }
        for notices::Waiting { id, identity, notice } in batch {
            let letter = report::report(&Envelope { identity: &identity, astray: None, date: now }, &notice, rng);
            let mail = Mail { identity, uidl: Uidl::random(rng), letter };
            mails += db.write(move |tx| if notices::taken(tx, id)? { mail.add(tx) } else { Ok(0) })?;
        }
    }
}

/// What comes to grief over one arrival stays where it is and is tried again by the next call; the others must not wait
/// for it. What it was has been said by then, without its words.
fn one_at_a_time(work: impl FnOnce() -> Result<usize, StoreError>) -> Result<usize, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Ok(0))
}

/// Takes an arrival out of the inbox, and puts what it was where it belongs. Says how many mails it made.
fn settle(
    db: &Db,
    id: ArrivalId,
    owner: &Owner,
    opened: Opened,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<usize, StoreError> {
    let mail = match opened {
        Opened::Message(message) => Mail::message(owner, &message, now, rng),
        Opened::Unreadable(unreadable) => Mail::unreadable(owner, &unreadable, now, rng),
        Opened::Fragment(fragment) => return keep(db, id, owner, fragment, now, rng),
    };
    db.write(move |tx| {
        // Gone when another call was faster: then the mail is there already.
        if inbox::taken(tx, id)? { mail.add(tx) } else { Ok(0) }
    })
}

/// Keeps a fragment, or makes a mail of one that cannot be kept.
fn keep(
    db: &Db,
    id: ArrivalId,
    owner: &Owner,
    fragment: Fragment,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<usize, StoreError> {
    let owner = owner.clone();
    // The step runs on another thread, and needs dice of its own.
    let mut dice = CounterRng::new(&SharedSecret::random(rng).keyset().application_key());
    db.write(move |tx| {
        if !inbox::taken(tx, id)? {
            return Ok(0);
        }
        let facts = FragmentFacts::of(&fragment);
        let why = match fragments::add(tx, &owner.scope(), &facts, fragment.octets(), now, MAX_STORED_FRAGMENTS)? {
            Addition::Added { displaced: 0, .. } | Addition::Duplicate | Addition::Unneeded | Addition::AlreadyDone => {
                return Ok(0);
            }
            Addition::Added { .. } => {
                let lost = Unreadable { why: Why::Displaced, armored: Vec::new() };
                return Mail::unreadable(&owner, &lost, now, &mut dice).add(tx);
            }
            Addition::Mismatch => Why::Mismatch,
            Addition::OverLimit => Why::NoRoom,
        };
        Mail::unreadable(&owner, &Unreadable::fragment(why, &fragment), now, &mut dice).add(tx)
    })
}

/// Makes mails of the messages of which enough fragments are here, those that a crash left so among them.
fn complete(
    db: &Db,
    owner: &Owner,
    inflate_max: usize,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<usize, StoreError> {
    let scope = owner.scope();
    let (mut mails, mut after) = (0, None);
    loop {
        let ready = db.read(|view| fragments::ready(view, &scope, after, BATCH))?;
        let Some(last) = ready.last() else { return Ok(mails) };
        after = Some(*last);
        for message in ready {
            mails += one_at_a_time(|| {
                let Some(ready) = db.read(|view| fragments::load(view, message))? else { return Ok(0) };
                join(db, message, open::reassemble(ready, inflate_max), owner, now, rng)
            })?;
        }
    }
}

fn join(
    db: &Db,
    message: FragmentedId,
    text: Result<Vec<u8>, Unreadable>,
    owner: &Owner,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<usize, StoreError> {
    let mail = match text {
        Ok(text) => Mail::message(owner, &text, now, rng),
        Err(unreadable) => Mail::unreadable(owner, &unreadable, now, rng),
    };
    db.write(move |tx| if fragments::complete(tx, message, now)? { mail.add(tx) } else { Ok(0) })
}

/// A mail on its way into a maildrop.
struct Mail {
    identity: String,
    uidl: Uidl,
    letter: Letter,
}

impl Mail {
    fn message(owner: &Owner, message: &[u8], now: SystemTime, rng: &mut impl CryptoRng) -> Self {
        let (headers, body) = headers::parse(message);
        let letter = render::mail(&envelope(owner, now), &headers, body, rng);
        Self::new(owner, letter, rng)
    }

    fn unreadable(owner: &Owner, unreadable: &Unreadable, now: SystemTime, rng: &mut impl CryptoRng) -> Self {
        let why = format!("An anonymous message arrived that cannot be read. {}", unreadable.why);
        let armored = String::from_utf8_lossy(&unreadable.armored);
        let letter = render::notice(&envelope(owner, now), UNREADABLE_SUBJECT, &why, &armored, rng);
        Self::new(owner, letter, rng)
    }

    fn new(owner: &Owner, letter: Letter, rng: &mut impl CryptoRng) -> Self {
        Self { identity: owner.identity.clone(), uidl: Uidl::random(rng), letter }
    }

    fn add(self, tx: &Tx<'_>) -> Result<usize, StoreError> {
        maildrop::add(tx, &self.identity, &self.uidl, &self.letter)?;
        Ok(1)
    }
}

fn envelope(owner: &Owner, now: SystemTime) -> Envelope<'_> {
    Envelope { identity: &owner.identity, astray: owner.astray.as_deref(), date: now }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use mix::crypto::sha1;
    use mix::crypto::stream::{StreamKey, prng};
    use mix::crypto::surb_key::SurbKey;
    use mix::packet::{Handle, Payload};
    use mix::payload::armor::{ArmoredMessage, messages_from_text};
    use mix::payload::compress::compress;
    use mix::payload::encode::encode;
    use mix::payload::{Capacity, Content, MessageId};
    use mix::store::GATEWAY_SCHEMAS;
    use mix::store::inbox::Arrival;
    use rand::Rng as _;

    use super::*;
    use crate::pop3::{Mailbox as _, Maildrops as _};

    const INFLATE_MAX: usize = 100_000;

    /// A gateway's database with two identities, and what is sent to them.
    struct House {
        folder: tempfile::TempDir,
        db: Db,
        rng: CounterRng,
        delivered: u32,
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn open_db(folder: &tempfile::TempDir) -> Db {
        let schemas = [&GATEWAY_SCHEMAS[..], &[maildrop::SCHEMA]].concat();
        Db::open(&folder.path().join("private/db"), &schemas).unwrap()
    }

    impl House {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let db = open_db(&folder);
            for (seed, name) in [(1, "alice"), (2, "bob")] {
                db.write(move |tx| keyring::ensure(tx, name, now(), &mut CounterRng::new(&StreamKey::new([seed; 16]))))
                    .unwrap();
            }
            Self { folder, db, rng: CounterRng::new(&StreamKey::new([3; 16])), delivered: 0 }
        }

        fn key(&self, identity: &str) -> SurbKey {
            self.db.read(|view| keyring::find(view, identity)).unwrap().unwrap().surb_key
        }

        fn deliver(&mut self, identity: &'static str, arrival: Arrival) {
            self.delivered += 1;
            let key = sha1(&[&self.delivered.to_be_bytes()]);
            assert!(self.db.write(move |tx| inbox::put(tx, &key, identity, &arrival, now())).unwrap());
        }

        fn collect(&mut self) -> usize {
            run_once(&self.db, INFLATE_MAX, now(), &mut self.rng).unwrap()
        }

        /// The mails of an identity, as text with line feeds.
        fn mails(&self, identity: &str) -> Vec<String> {
            let mailbox = maildrop::Store::new(self.db.clone()).open(identity).unwrap();
            let fetch = |uidl: &Uidl| mailbox.fetch(uidl).unwrap().unwrap();
            let text = |letter: Letter| String::from_utf8(letter.as_bytes().to_vec()).unwrap().replace("\r\n", "\n");
            mailbox.list().unwrap().iter().map(|listed| text(fetch(&listed.uidl))).collect()
        }

        fn payloads(&mut self, message: &[u8]) -> Vec<Payload> {
            let encoded = encode(message, Capacity::Plain, None, &mut self.rng).unwrap();
            encoded.into_iter().map(|payload| payload.into_payload().unwrap()).collect()
        }

        /// What arrives of `payload` after a reply block of three mixes that was made with `key`.
        fn reply(&mut self, key: &SurbKey, mut payload: Payload) -> Arrival {
            let handle = Handle(key.new_seed(&mut self.rng));
            let mut stream = key.secrets(&handle.0);
            let mut secrets = [[0; 16]; 4];
            secrets.iter_mut().for_each(|secret| stream.fill_bytes(secret));
            for secret in secrets.into_iter().rev() {
                SharedSecret::new(secret).keyset().payload_encrypt_keys().decrypt(payload.as_mut_bytes());
            }
            Arrival::Payload { handle: Some(handle), payload }
        }

        fn replies(&mut self, key: &SurbKey, message: &[u8]) -> Vec<Arrival> {
            let payloads = self.payloads(message);
            payloads.into_iter().map(|payload| self.reply(key, payload)).collect()
        }
    }

    /// Letters and spaces that hardly compress.
    fn long_text(len: usize) -> String {
        let noise = prng(&StreamKey::new([9; 16]), len);
        noise.iter().map(|octet| if octet % 64 == 0 { '\n' } else { char::from(b'!' + octet % 90) }).collect()
    }

    fn armored_in(mail: &str) -> ArmoredMessage {
        messages_from_text(mail.as_bytes()).unwrap().remove(0).item
    }

    #[test]
    fn arrival_that_cannot_be_worked_on_waits_and_holds_up_no_other() {
        let mut house = House::new();
        for text in ["one", "two", "three"] {
            house.deliver("alice", Arrival::Message(format!("\n{text}").into_bytes()));
        }
        let fails_at_two = |arrived: &Arrived, keyring: &[Identity]| {
            assert!(!matches!(&arrived.arrival, Arrival::Message(text) if text.ends_with(b"two")), "a bug of ours");
            open::open(arrived, keyring, INFLATE_MAX)
        };
        assert_eq!(run_with(&house.db, INFLATE_MAX, now(), &mut house.rng, fails_at_two).unwrap(), 2);
        assert_eq!(house.mails("alice").len(), 2);
        // Another version of the program may know better.
        assert_eq!(house.collect(), 1);
        assert_eq!(house.mails("alice").len(), 3);
    }

    #[test]
    fn notice_lands_in_the_maildrop_of_its_identity_once() {
        let mut house = House::new();
        let notice = notices::Notice { subject: "News".into(), text: "All is well.".into(), undelivered: None };
        house.db.write(move |tx| notices::put(tx, "bob", &notice)).unwrap();
        assert_eq!((house.collect(), house.collect()), (1, 0));
        let [mail] = &house.mails("bob")[..] else { panic!("not one mail") };
        assert!(mail.contains("Subject: News\n") && mail.ends_with("\n\nAll is well.\n"), "{mail}");
        assert!(house.mails("alice").is_empty());
    }

    #[test]
    fn reply_lands_in_the_maildrop_of_its_identity_once() {
        let mut house = House::new();
        let key = house.key("alice");
        let reply = house.replies(&key, b"SUBJECT:Re: hello\n\nan answer\n").remove(0);
        house.deliver("alice", reply);
        assert_eq!(house.collect(), 1);
        assert_eq!(house.collect(), 0);
        let [mail] = &house.mails("alice")[..] else { panic!("not one mail") };
        assert!(mail.contains("Subject: Re: hello\n") && mail.ends_with("\n\nan answer\n"), "{mail}");
        assert!(!mail.contains("X-Mixgate-Warning"), "{mail}");
        assert!(house.mails("bob").is_empty());
        assert_eq!(house.db.read(inbox::count).unwrap(), 0);
    }

    #[test]
    fn reply_to_one_identity_in_the_mailbox_of_another_goes_to_its_owner_with_a_warning() {
        let mut house = House::new();
        let key = house.key("alice");
        let reply = house.replies(&key, b"SUBJECT:a trap\n\nan answer\n").remove(0);
        house.deliver("bob", reply);
        assert_eq!(house.collect(), 1);
        assert!(house.mails("bob").is_empty());
        let mail = house.mails("alice").remove(0);
        assert!(mail.contains("Subject: [to another identity!] a trap\n"), "{mail}");
        assert!(mail.contains("X-Mixgate-Warning: this reply came to the mailbox of bob."), "{mail}");
    }

    #[test]
    fn plaintext_forward_messages_and_whole_messages_are_mailed() {
        let mut house = House::new();
        let payload = house.payloads(b"FROM:Lance\n\nforward\n").remove(0);
        house.deliver("bob", Arrival::Payload { handle: None, payload });
        house.deliver("bob", Arrival::Message(b"SUBJECT:put together by the exit\n\nwhole\n".to_vec()));
        assert_eq!(house.collect(), 2);
        let mails = house.mails("bob");
        assert!(mails[0].starts_with("From: \"Lance\" <anonymous@nym.alt>\n"), "{}", mails[0]);
        assert!(mails[1].contains("Subject: put together by the exit\n") && mails[1].ends_with("\n\nwhole\n"));
    }

    #[test]
    fn fragments_become_one_mail_when_there_are_enough_even_after_a_restart() {
        let mut house = House::new();
        let key = house.key("alice");
        let text = long_text(50_000);
        let mut replies = house.replies(&key, format!("\n{text}\n").as_bytes());
        assert_eq!(replies.len(), 3);
        house.deliver("alice", replies.remove(2));
        assert_eq!(house.collect(), 0);
        house.db.close();
        house.db = open_db(&house.folder);
        for reply in replies {
            house.deliver("alice", reply);
        }
        // Two of three are enough; the last is unneeded.
        assert_eq!(house.collect(), 1);
        assert_eq!(house.collect(), 0);
        let letters = maildrop::Store::new(house.db.clone()).open("alice").unwrap();
        let letter = letters.fetch(&letters.list().unwrap()[0].uidl).unwrap().unwrap();
        let parsed = mail_parser::MessageParser::new().parse(letter.as_bytes()).unwrap();
        assert_eq!(parsed.body_text(0).unwrap().replace("\r\n", "\n").trim_end(), text.trim_end());
    }

    #[test]
    fn complete_fragments_that_a_crash_left_behind_are_found() {
        let mut house = House::new();
        let payloads = house.payloads(format!("\n{}", long_text(50_000)).as_bytes());
        for payload in &payloads[..2] {
            let Content::Fragment(fragment) = Content::read(payload.as_bytes()).unwrap() else { panic!() };
            let add = move |tx: &Tx<'_>| {
                fragments::add(tx, "bob", &FragmentFacts::of(&fragment), fragment.octets(), now(), MAX_STORED_FRAGMENTS)
            };
            house.db.write(add).unwrap();
        }
        assert_eq!(house.collect(), 1);
        assert_eq!(house.mails("bob").len(), 1);
    }

    #[test]
    fn halves_of_a_message_sent_to_two_identities_never_meet() {
        let mut house = House::new();
        let message = format!("\n{}", long_text(50_000));
        let payloads = house.payloads(message.as_bytes());
        let (alice, bob) = (house.key("alice"), house.key("bob"));
        let to_alice = house.reply(&alice, payloads[0].clone());
        let to_bob = house.reply(&bob, payloads[1].clone());
        // Alice's, but carried to the mailbox of bob.
        let astray = house.reply(&alice, payloads[2].clone());
        house.deliver("alice", to_alice);
        house.deliver("bob", to_bob);
        house.deliver("bob", astray);
        assert_eq!(house.collect(), 0);
        let second = house.reply(&alice, payloads[1].clone());
        house.deliver("alice", second);
        assert_eq!(house.collect(), 1);
        assert!(house.mails("bob").is_empty());
    }

    #[test]
    fn undecodable_payload_is_kept_in_armour() {
        let mut house = House::new();
        let (payload, handle) = (Payload::random(&mut house.rng), Handle([7; 20]));
        house.deliver("alice", Arrival::Payload { handle: Some(handle), payload: payload.clone() });
        house.deliver("alice", Arrival::Payload { handle: None, payload: payload.clone() });
        assert_eq!(house.collect(), 2);
        let mails = house.mails("alice");
        assert!(mails[0].contains("It was encrypted for"), "{}", mails[0]);
        let octets = payload.as_bytes().to_vec();
        assert_eq!(armored_in(&mails[0]), ArmoredMessage::Encrypted { handle, payload: octets.clone() });
        assert_eq!(armored_in(&mails[1]), ArmoredMessage::Binary(octets));
    }

    #[test]
    fn bomb_stays_compressed() {
        let mut house = House::new();
        let bomb = vec![b'x'; 3_000_000];
        let payload = house.payloads(&bomb).remove(0);
        house.deliver("alice", Arrival::Payload { handle: None, payload });
        assert_eq!(house.collect(), 1);
        let mail = house.mails("alice").remove(0);
        assert!(mail.contains("grow enormously"), "{mail}");
        assert_eq!(armored_in(&mail), ArmoredMessage::Overcompressed(compress(&bomb)));
    }

    #[test]
    fn contradicting_fragment_gives_a_notice() {
        let mut house = House::new();
        let fragment = |message_len| {
            Fragment::new(0, MessageId([5; 20]), message_len, vec![1; Capacity::Plain.fragment_len()]).unwrap()
        };
        for message_len in [50_000, 50_001] {
            let payload = fragment(message_len).to_payload().into_payload().unwrap();
            house.deliver("alice", Arrival::Payload { handle: None, payload });
        }
        assert_eq!(house.collect(), 1);
        let mail = house.mails("alice").remove(0);
        assert!(mail.contains("contradicts the others of its message"), "{mail}");
        let contents = fragment(50_001).to_payload().as_bytes().to_vec();
        assert_eq!(armored_in(&mail), ArmoredMessage::Fragment(contents));
    }

    #[test]
    fn fragment_of_an_enormous_message_is_not_stored() {
        let mut house = House::new();
        let octets = vec![1; Capacity::Plain.fragment_len()];
        let fragment = Fragment::new(0, MessageId([5; 20]), open::MAX_FRAGMENTED_LEN + 1, octets).unwrap();
        let payload = fragment.to_payload().into_payload().unwrap();
        house.deliver("alice", Arrival::Payload { handle: None, payload });
        assert_eq!(house.collect(), 1);
        assert!(house.mails("alice").remove(0).contains("too long to be put together"));
        assert!(house.db.read(|view| fragments::list(view, "alice")).unwrap().is_empty());
    }

    #[test]
    fn fragments_that_make_no_text_give_a_notice() {
        let mut house = House::new();
        for index in 0..2 {
            let octets = vec![1; Capacity::Plain.fragment_len()];
            let fragment = Fragment::new(index, MessageId([5; 20]), 50_000, octets).unwrap();
            let payload = fragment.to_payload().into_payload().unwrap();
            house.deliver("alice", Arrival::Payload { handle: None, payload });
        }
        assert_eq!(house.collect(), 1);
        let mail = house.mails("alice").remove(0);
        assert!(mail.contains("does not decompress"), "{mail}");
        assert_eq!(armored_in(&mail).contents().len(), 50_000);
    }

    #[test]
    fn closed_database_is_an_error() {
        let mut house = House::new();
        house.db.close();
        assert!(matches!(run_once(&house.db, INFLATE_MAX, now(), &mut house.rng), Err(StoreError::Closed)));
    }
}
