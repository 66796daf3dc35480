//! Mail that cannot be packed: its sender hears that it waits, and when it is given up.

use std::time::SystemTime;

use tracing::debug;

use super::{NotPacked, PAUSE, Sender};
use crate::node::{durable, network};
use crate::payload::headers;
use crate::store::StoreError;
use crate::store::notices::{self, Notice, Undelivered};
use crate::store::outbox::{self, Mail, Waiting};

/// After so many tries its sender hears that a mail waits: four hours after the first, unless directories come more often.
const DELAYED: u32 = 12;

impl NotPacked {
    /// Whether it would be so at each other try, too.
    fn is_final(&self) -> bool {
        match self {
            Self::Address(_) | Self::Unbuildable(_) | Self::Encode(_) | Self::Entity(_) | Self::Header(_) => true,
            Self::NoDirectory | Self::NoPath(_) | Self::Unreachable | Self::NoIdentity | Self::Store(_) => false,
        }
    }

    /// The enhanced status code without its first digit (RFC 3463).
    fn status(&self) -> &'static str {
        match self {
            Self::NoDirectory | Self::NoPath(_) | Self::Unreachable => "4.4",
            Self::Address(_) => "1.3",
            Self::Unbuildable(_) | Self::Encode(_) | Self::Entity(_) | Self::Header(_) => "6.0",
            Self::NoIdentity | Self::Store(_) => "3.0",
        }
    }
}

impl Sender {
    /// Leaves a mail for later, or gives it up; its sender hears of that, and once of its waiting.
    pub(super) async fn not_packed(
        &self,
        waiting: Waiting,
        why: &NotPacked,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let Waiting { id, attempts, mail } = waiting;
        // A clock that was wrong when the mail was taken must not end it at the first try.
        let waited = attempts >= DELAYED && now.duration_since(mail.accepted).is_ok_and(|it| it >= self.give_up);
        let cause = network::describe(why);
        if waited || why.is_final() {
            debug!("a mail is given up: it cannot be packed");
            let notice = undelivered(&mail, &cause, format!("5.{}", why.status()));
            return durable::write(&self.db, move |tx| {
                // Else another has seen to it.
                if outbox::fail(tx, id)? { notices::put(tx, &mail.identity, &notice) } else { Ok(()) }
            })
            .await;
        }
        debug!("a mail waits in the outbox: it cannot be packed yet");
        let pause = PAUSE.0.saturating_mul(1 << attempts.min(16)).min(PAUSE.1);
        let delayed = (attempts == DELAYED).then(|| undelivered(&mail, &cause, format!("4.{}", why.status())));
        durable::write(&self.db, move |tx| {
            outbox::postpone(tx, id, now + pause, &cause)?;
            delayed.map_or(Ok(()), |notice| notices::put(tx, &mail.identity, &notice))
        })
        .await
    }
}

/// What its sender is told of a mail that is given up, or waits, as the status says.
fn undelivered(mail: &Mail, cause: &str, status: String) -> Notice {
    let (headers, _) = headers::parse(&mail.message);
    let recipient = match (&mail.exit.via, String::from_utf8_lossy(&mail.exit.info)) {
        (None, address) => address.into_owned(),
        // As mail clients write it.
        (Some(nickname), name) => format!("{name}@{nickname}.mbox.alt"),
    };
    let (subject, text) = if status.starts_with('4') {
        (
            "Your mail waits",
            format!(
                "Your mail to {recipient} could not leave yet: {cause}.
It is tried again."
            ),
        )
    } else {
        let text = format!(
            "Your mail to {recipient} was given up, and nobody has it: {cause}.
Send it again if you like."
        );
        ("Your mail was not sent", text)
    };
    let undelivered = Undelivered {
        recipient,
        status,
        accepted: mail.accepted,
        message_id: mail.message_id.clone(),
        subject: headers.subject,
    };
    Notice { subject: subject.to_owned(), text, undelivered: Some(undelivered) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::{Notify, watch};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::node::World;
    use crate::node::config::NetworkConfig;
    use crate::node::counters::Counters;
    use crate::node::network::Network;
    use crate::node::sender::Style;
    use crate::packet::RoutingType;
    use crate::payload::encode::Unencodable;
    use crate::store::outbox::OutboxExit;
    use crate::store::{Db, GATEWAY_SCHEMAS};

    const HOUR: Duration = Duration::from_secs(3600);
    const GIVE_UP: Duration = Duration::from_secs(3 * 24 * 3600);

    struct House {
        _folder: tempfile::TempDir,
        sender: Sender,
    }

    /// A sender that knows no directory.
    fn house() -> House {
        let folder = crate::store::testing::private_folder();
        let db = Db::open(&folder.path().join("gateway.db"), &GATEWAY_SCHEMAS).unwrap();
        let world = World::real();
        let sender = Sender {
            db: db.clone(),
            pool: db,
            network: Network::new(NetworkConfig::default(), folder.path().join("directory"), world.clone()).unwrap(),
            style: Style::new("~5", "~5", GIVE_UP).unwrap(),
            reply_to: watch::channel(BTreeMap::new()).1,
            give_up: GIVE_UP,
            bell: Arc::new(Notify::new()),
            counters: Counters::default(),
            world,
            stop: CancellationToken::new(),
        };
        House { _folder: folder, sender }
    }

    fn accepted() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 24 * 3600)
    }

    fn mail(via: Option<&str>) -> Mail {
        Mail {
            identity: "alice".to_owned(),
            exit: OutboxExit {
                routing_type: if via.is_some() { RoutingType::MBOX } else { RoutingType::SMTP },
                info: if via.is_some() { "frida".into() } else { "bob@example.org".into() },
                via: via.map(str::to_owned),
            },
            message: b"SUBJECT:Hello\n\nWorld".as_slice().into(),
            reply_blocks: 1,
            accepted: accepted(),
            message_id: Some("<1@laptop>".to_owned()),
        }
    }

    impl House {
        /// Puts a mail into the outbox, and has it fail so often at this time; what its sender is told by then.
        async fn told(&self, mail: Mail, why: &NotPacked, tries: u32, now: SystemTime) -> Vec<Notice> {
            let db = &self.sender.db;
            let id = db.write(move |tx| outbox::push(tx, &[mail])).unwrap()[0];
            for _ in 0..tries {
                // However long it is put off.
                let waiting = db.read(|view| outbox::next(view, now + 1000 * HOUR, 100)).unwrap();
                let Some(waiting) = waiting.into_iter().find(|it| it.id == id) else { break };
                self.sender.not_packed(waiting, why, now).await.unwrap();
            }
            db.read(|view| notices::next(view, 100)).unwrap().into_iter().map(|waiting| waiting.notice).collect()
        }

        fn left(&self) -> u64 {
            self.sender.db.read(outbox::counts).unwrap().mails
        }
    }

    fn statuses(told: &[Notice]) -> Vec<&str> {
        told.iter().map(|notice| notice.undelivered.as_ref().unwrap().status.as_str()).collect()
    }

    #[tokio::test]
    async fn mail_that_finds_no_path_is_waited_for_then_given_up_and_its_sender_hears_of_both() {
        let house = house();
        let told = house.told(mail(None), &NotPacked::NoDirectory, DELAYED + 50, accepted() + HOUR).await;
        assert_eq!((statuses(&told), house.left()), (vec!["4.4.4"], 1), "however often it was tried, it is early");
        let told = house.told(mail(None), &NotPacked::NoDirectory, DELAYED, accepted() + 9 * GIVE_UP).await;
        assert_eq!((told.len(), house.left()), (1, 2), "however late it is, a clock may be wrong");
        let told = house.told(mail(None), &NotPacked::NoDirectory, DELAYED + 1, accepted() + 9 * GIVE_UP).await;
        assert_eq!((statuses(&told), house.left()), (vec!["4.4.4", "5.4.4"], 2));
        let last = told.last().unwrap();
        assert!(
            last.text.contains("bob@example.org") && last.text.contains("no directory is in force"),
            "{}",
            last.text
        );
        let about = last.undelivered.as_ref().unwrap();
        assert_eq!((about.message_id.as_deref(), about.subject.as_deref()), (Some("<1@laptop>"), Some("Hello")));
    }

    #[tokio::test]
    async fn mail_that_can_never_be_packed_is_given_up_at_once() {
        let house = house();
        let why = NotPacked::Encode(Unencodable::TooLong { len: 1 << 33 });
        let told = house.told(mail(Some("Gamma")), &why, 1, accepted()).await;
        assert_eq!((statuses(&told), house.left()), (vec!["5.6.0"], 0));
        assert_eq!(told[0].undelivered.as_ref().unwrap().recipient, "frida@Gamma.mbox.alt");
    }
}
