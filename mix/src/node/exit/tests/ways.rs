//! The ways out beside the smart host: by a program, and into a folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::deliver::maildir::{Maildir, MaildirConfig};
use crate::deliver::sendmail::{Sendmail, SendmailConfig};
use crate::store::testing::Heard;

/// An exit whose mail leaves by this way, and is tried again after an hour.
fn exit_by(out: WayOut) -> Exited {
    let mut exited = exit();
    let hour = Duration::from_secs(3600);
    let retry = RetrySchedule::new(vec![RetryStep { every: hour, during: 3 * hour }]);
    let way = SmtpWay { out, retry, ..smtp_way(1000, 0) };
    let ways = exited.service.ways.borrow().clone();
    exited.service.ways = watch::channel(Ways { smtp: Some(Arc::new(way)), ..ways }).1;
    exited
}

fn to_folder(path: &Path) -> WayOut {
    WayOut::Maildir(Maildir::new(&MaildirConfig { path: Some(path.to_owned()) }).unwrap())
}

fn to_program(command: &[&str]) -> WayOut {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    WayOut::Sendmail(Sendmail::new(&SendmailConfig { command, ..SendmailConfig::default() }).unwrap())
}

/// A script for a shell in a folder of its own: read by the shell and not run itself, for what was just written may be busy.
fn script(home: &Path, text: &str) -> PathBuf {
    let path = home.join("script");
    fs::write(&path, format!("cd '{}'\n{text}\n", home.display())).unwrap();
    path
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

impl Exited {
    fn mail(&self) {
        self.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }

    /// Delivers what waits, as if the times of the schedule had passed.
    async fn later(&self) {
        self.service.server().until = None;
        let later = SystemTime::now() + Duration::from_secs(2 * 3600);
        let due = self.service.db.read(|view| queue::due(view, later, 1000)).unwrap();
        self.service.deliver_all(due).await;
    }

    fn counts(&self) -> (u64, u64) {
        let counts = self.service.counters.snapshot();
        (counts.delivered, counts.undeliverable)
    }

    /// One mail by a service that runs until it has left.
    async fn one_mail(&self) {
        self.mail();
        let service = tokio::spawn(self.service.clone().run());
        until("mail for bob", || self.counts() == (1, 0)).await;
        self.service.stop.cancel();
        service.await.unwrap();
    }
}

#[tokio::test]
async fn mail_leaves_into_a_maildir() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail");
    exit_by(to_folder(&path)).one_mail().await;
    let [mail] = files(&path.join("new")).try_into().unwrap();
    let text = fs::read_to_string(&mail).unwrap();
    assert!(text.starts_with("Return-Path: <nobody@exit.example>\nX-Original-To: bob@example.org\nTo: "), "{text}");
    assert!(text.ends_with("\ntext\n") && !text.contains('\r'), "{text}");
}

#[tokio::test]
async fn mail_leaves_by_a_program() {
    let home = tempfile::tempdir().unwrap();
    let script = script(home.path(), "echo \"$@\" > argv; cat > mail");
    exit_by(to_program(&["/bin/sh", script.to_str().unwrap()])).one_mail().await;
    let wrote = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
    assert_eq!(wrote("argv"), "-i -f nobody@exit.example -- bob@example.org\n");
    assert!(wrote("mail").starts_with("To: ") && !wrote("mail").contains('\r'), "{}", wrote("mail"));
}

#[tokio::test]
async fn death_between_the_delivery_and_its_note_makes_no_second_mail() {
    for flags in [None, Some(""), Some(":2,S")] {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail");
        let exited = exit_by(to_folder(&path));
        exited.mail();
        // What the process did before it died: all but the note in the database.
        let verdict = exited.service.mail(exited.due().remove(0)).await;
        assert!(matches!(verdict, Verdict::Delivered));
        if let Some(flags) = flags {
            let [mail] = files(&path.join("new")).try_into().unwrap();
            let name = format!("{}{flags}", mail.file_name().unwrap().to_str().unwrap());
            fs::rename(mail, path.join("cur").join(name)).unwrap();
        }
        exited.deliver_all().await;
        assert_eq!(exited.counts(), (1, 0));
        let left = ["tmp", "new", "cur"].map(|folder| files(&path.join(folder)).len());
        assert_eq!(left.iter().sum::<usize>(), 1, "{flags:?}: {left:?}");
    }
}

#[tokio::test]
async fn what_came_since_the_start_and_was_not_tried_is_known_to_lie_in_no_maildir() {
    let home = tempfile::tempdir().unwrap();
    let exited = exit_by(to_folder(&home.path().join("mail")));
    exited.mail();
    let tried = || exited.due().iter().map(|item| exited.service.was_tried(item)).collect::<Vec<_>>();
    assert_eq!(tried(), [Tried::Perhaps], "nobody has looked yet");
    exited.service.begin().await;
    exited.mail();
    assert_eq!(tried(), [Tried::Perhaps, Tried::Never], "the first may be of a process that died");
    let last = exited.due()[1].id;
    exited.service.db.write(move |tx| queue::postpone(tx, last, SystemTime::UNIX_EPOCH)).unwrap();
    exited.mail();
    assert_eq!(tried(), [Tried::Perhaps, Tried::Perhaps, Tried::Never]);
}

#[tokio::test]
async fn same_text_sent_twice_is_two_files_whose_names_tell_nothing() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail");
    let exited = exit_by(to_folder(&path));
    exited.mail();
    exited.mail();
    let keys: Vec<_> = exited.due().iter().map(|item| delivery_key(item).to_string()).collect();
    exited.deliver_all().await;
    let names: Vec<_> = files(&path.join("new"));
    assert_eq!(names.len(), 2);
    for name in names {
        assert!(!keys.iter().any(|key| name.ends_with(key)), "anybody could draw the key from the message");
    }
}

#[tokio::test]
async fn folder_that_cannot_be_written_puts_off_all_mail_and_is_said_once_until_it_can() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail");
    let exited = exit_by(to_folder(&path));
    let said = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Heard(Arc::clone(&said)));
    for _ in 0..3 {
        exited.mail();
    }
    // As on a full disk, and for the superuser too.
    fs::write(&path, "no folder").unwrap();
    exited.deliver_all().await;
    assert_eq!(exited.attempts(), [1, 1, 1]);
    exited.later().await;
    assert_eq!(said.load(Ordering::SeqCst), 1);
    fs::remove_file(&path).unwrap();
    exited.later().await;
    assert_eq!((exited.counts(), files(&path.join("new")).len()), ((3, 0), 3));
    fs::remove_dir_all(&path).unwrap();
    fs::write(&path, "no folder").unwrap();
    exited.mail();
    exited.deliver_all().await;
    assert_eq!(said.load(Ordering::SeqCst), 2, "it had worked in between");
}

#[tokio::test]
async fn program_that_is_missing_puts_off_all_mail_and_is_said_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("sendmail");
    let exited = exit_by(to_program(&[path.to_str().unwrap()]));
    let said = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Heard(Arc::clone(&said)));
    for _ in 0..3 {
        exited.mail();
    }
    exited.deliver_all().await;
    assert_eq!(exited.attempts(), [1, 1, 1]);
    exited.later().await;
    assert_eq!(said.load(Ordering::SeqCst), 1);
    std::os::unix::fs::symlink("/bin/true", &path).unwrap();
    exited.later().await;
    assert_eq!(exited.counts(), (3, 0));
}

#[tokio::test]
async fn program_decides_of_each_mail_by_its_exit_status() {
    let home = tempfile::tempdir().unwrap();
    let text = "cat > mail; case \"$5\" in grey*) exit 75;; nobody*) exit 67;; esac";
    let script = script(home.path(), text);
    let exited = exit_by(to_program(&["/bin/sh", script.to_str().unwrap()]));
    let said = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Heard(Arc::clone(&said)));
    for to in ["grey@example.org", "nobody@example.org", "bob@example.org"] {
        exited.queue(RoutingType::SMTP, to, b"\ntext");
    }
    exited.deliver_all().await;
    assert_eq!((exited.counts(), exited.attempts()), ((1, 1), vec![1]));
    assert_eq!(said.load(Ordering::SeqCst), 0, "of single mails nobody hears");
}

#[tokio::test]
async fn mail_that_waits_for_a_server_is_tried_at_once_when_there_is_another_way() {
    let (mut exited, _) = exit_to(Server::Busy).await;
    let (change, ways) = watch::channel(exited.service.ways.borrow().clone());
    exited.service.ways = ways;
    exited.mail();
    let service = tokio::spawn(exited.service.clone().run());
    until("a failure", || exited.attempts() == [1]).await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail");
    let other = exit_by(to_folder(&path));
    change.send_modify(|ways| ways.smtp.clone_from(&other.service.ways.borrow().smtp));
    until("mail for bob", || exited.counts() == (1, 0)).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    assert_eq!(files(&path.join("new")).len(), 1);
}

#[tokio::test]
async fn leftovers_are_cleared_away_at_the_start_and_where_mail_goes_since_a_reload() {
    let home = tempfile::tempdir().unwrap();
    let left = |folder: &str| {
        fs::create_dir_all(home.path().join(folder).join("tmp")).unwrap();
        let path = home.path().join(folder).join("tmp").join(sha1(&[b"left"]).to_string());
        let long_ago = SystemTime::now() - Duration::from_secs(4 * 24 * 3600);
        fs::File::create(&path).unwrap().set_modified(long_ago).unwrap();
        path
    };
    let (first, second) = (left("first"), left("second"));
    let mut exited = exit_by(to_folder(&home.path().join("first")));
    let (change, ways) = watch::channel(exited.service.ways.borrow().clone());
    exited.service.ways = ways;
    let service = tokio::spawn(exited.service.clone().run());
    until("the first is gone", || !first.exists()).await;
    assert!(second.exists());
    let other = exit_by(to_folder(&home.path().join("second")));
    change.send_modify(|ways| ways.smtp.clone_from(&other.service.ways.borrow().smtp));
    until("the second is gone", || !second.exists()).await;
    exited.service.stop.cancel();
    service.await.unwrap();
}

#[test]
fn way_is_known_by_its_kind_and_its_settings() {
    let ways = || {
        let server = smtp_way(1000, 0).out;
        let programs = [&["/a"][..], &["/a", "-x"]].map(to_program);
        let folders = ["/a", "/b"].map(|path| to_folder(Path::new(path)));
        [server].into_iter().chain(programs).chain(folders).collect::<Vec<_>>()
    };
    for (at, way) in ways().iter().enumerate() {
        for (other_at, other) in ways().iter().enumerate() {
            assert_eq!(way.is(other), at == other_at, "{at} {other_at}");
        }
    }
}
