//! Mail clients that people use, from Debian, and Python's: none of them shares a line with this program.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use mixgate_tests::demo::{Demo, Ready};
use mixgate_tests::letter::letter;
use mixgate_tests::mails::plain;
use mixgate_tests::{PATIENCE, has, until};

const TEXT: &str = "Ahoj, tady posílám příliš žluťoučkého koně.\n.\nЗдравствуйте! 漢字 🦆\n";

/// Sends a mail with [`TEXT`] to an address.
type Client = fn(&Demo, &str);

/// Runs a client with the mail on its standard input.
fn run(command: &mut Command, stdin: &[u8]) {
    let program = command.get_program().to_owned();
    let client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut client = client.unwrap_or_else(|e| panic!("{program:?}: {e}; .ci/run installs it"));
    // A client that does not read it says why itself.
    let _ = client.stdin.take().unwrap().write_all(stdin);
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}: {}: {said}", output.status);
}

fn swaks(demo: &Demo, to: &str) {
    let ready = &demo.ready;
    let mut command = Command::new("swaks");
    command.args(["--server", &ready.smtp.to_string(), "--auth", "PLAIN"]);
    command.args(["--auth-user", &ready.user, "--auth-password", &ready.password]);
    command.args(["--from", "me@example.net", "--to", to, "--data", "-"]);
    run(&mut command, &plain(to, "by swaks", TEXT));
}

fn msmtp(demo: &Demo, to: &str) {
    let ready = &demo.ready;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("msmtprc");
    let text = format!(
        "account default\nhost {}\nport {}\nfrom me@example.net\nauth login\nuser {}\npassword {}\ntls off\n",
        ready.smtp.ip(),
        ready.smtp.port(),
        ready.user,
        ready.password
    );
    fs::write(&config, text).unwrap();
    // It holds a password: msmtp takes no file that others may read.
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    run(Command::new("msmtp").arg("-C").arg(&config).arg(to), &plain(to, "by msmtp", TEXT));
}

fn curl(demo: &Demo, to: &str) {
    let ready = &demo.ready;
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--url", &format!("smtp://{}/client.example", ready.smtp)]);
    command.args(["--user", &format!("{}:{}", ready.user, ready.password)]);
    command.args(["--mail-from", "me@example.net", "--mail-rcpt", to, "--upload-file", "-"]);
    run(&mut command, &plain(to, "by curl", TEXT.replace('\n', "\r\n").as_str()));
}

/// As Python programs send: a charset and a transfer encoding of its own choice, and SMTPUTF8 when it is there.
const SMTPLIB: &str = r#"
import smtplib, sys
from email.message import EmailMessage
host, port, user, password, to = sys.argv[1:]
mail = EmailMessage()
mail["From"], mail["To"], mail["Subject"] = "Žofie <zofie@example.net>", to, "by smtplib: žluť"
mail.set_content(sys.stdin.read(), cte="base64")
mail.add_alternative("<p>not this</p>", subtype="html")
with smtplib.SMTP(host, int(port)) as smtp:
    smtp.login(user, password)
    assert smtp.send_message(mail) == {}
"#;

fn smtplib(demo: &Demo, to: &str) {
    let (ready, smtp) = (&demo.ready, demo.ready.smtp);
    let mut command = Command::new("python3");
    command.args(["-c", SMTPLIB, &smtp.ip().to_string(), &smtp.port().to_string(), &ready.user, &ready.password, to]);
    run(command.env("PYTHONUTF8", "1"), TEXT.as_bytes());
}

/// Prints all messages, and deletes them.
const POPLIB: &str = r#"
import poplib, sys
host, port, user, password = sys.argv[1:]
pop = poplib.POP3(host, int(port), timeout=60)
assert "UIDL" in pop.capa()
pop.user(user)
pop.pass_(password)
count, size = pop.stat()
octets = 0
for number in range(1, count + 1):
    _, lines, _ = pop.retr(number)
    octets += sum(len(line) + 2 for line in lines)
    assert pop.top(number, 0)[1] == lines[: lines.index(b"") + 1]
    sys.stdout.buffer.write(b"\r\n".join(lines) + b"\r\n")
    pop.dele(number)
assert octets == size, (octets, size)
pop.quit()
"#;

/// The first mail in the maildrop.
fn fetched_by_curl(ready: &Ready) -> Vec<u8> {
    let url = format!("pop3://{}/1", ready.pop3);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--user", &format!("{}:{}", ready.user, ready.password), &url]);
    let curl = curl.output().unwrap();
    assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
    curl.stdout
}

#[test]
fn mail_of_every_client_is_delivered_readable() {
    let demo = Demo::start(None);
    let clients: [(&str, Client, &str, &str); 4] = [
        ("swaks", swaks, "by-swaks@example.org", "by swaks"),
        ("msmtp", msmtp, "by-msmtp@example.org", "by msmtp"),
        ("curl", curl, "by-curl@example.org", "by curl"),
        ("python3", smtplib, "by-smtplib@example.org", "by smtplib: žluť"),
    ];
    let clients: Vec<_> = clients.into_iter().filter(|(program, ..)| has(program)).collect();
    for (_, client, to, _) in &clients {
        client(&demo, to);
    }
    smtplib(&demo, &demo.ready.address);
    let recipients: Vec<&str> = clients.iter().map(|(_, _, to, _)| *to).collect();
    let letters = demo.delivered(&recipients, PATIENCE);
    for (letter, &(_, _, _, subject)) in letters.iter().zip(&clients) {
        assert_eq!(letter.body(), TEXT, "{subject}");
        assert_eq!(letter.subject, subject);
        assert_eq!(letter.from, "\"[Anon] Žofie\" <nobody@exit.example>", "{subject}");
    }
    assert_eq!(demo.arrived().len(), clients.len(), "each once");
    // And the own mail, fetched by poplib and by curl.
    until("the own mail", PATIENCE, || (demo.pop3().count() == 1).then_some(()));
    let ready = &demo.ready;
    let by_curl = has("curl").then(|| fetched_by_curl(ready));
    let (host, port) = (ready.pop3.ip().to_string(), ready.pop3.port().to_string());
    let poplib =
        Command::new("python3").args(["-c", POPLIB, &host, &port, &ready.user, &ready.password]).output().unwrap();
    assert!(poplib.status.success(), "{}", String::from_utf8_lossy(&poplib.stderr));
    by_curl.into_iter().for_each(|mail| assert_eq!(poplib.stdout, mail));
    let own = letter(&poplib.stdout);
    assert_eq!((own.body(), own.subject.as_str()), (TEXT, "by smtplib: žluť"));
    assert_eq!(demo.pop3().count(), 0, "deleted at QUIT");
    demo.said_nothing_of(&["example.org", "žluť", "koně", "smtplib", "Žofie"]);
}
