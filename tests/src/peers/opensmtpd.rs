//! OpenSMTPD.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use super::{DOMAINS, Door, GREY, HOST, PASSWORD, Place, REFUSED, USER, port};

/// Whose mail is refused, for now or at all: a program that it asks (smtpd-filters(7)).
const FILTER: &str = r#"#!/usr/bin/python3
import os, sys
kind, grey, open_file = sys.argv[1:]
phase = "rcpt-to" if kind == "grey" else "mail-from"
for line in sys.stdin:
    line = line.rstrip("\n")
    if line == "config|ready":
        print("register|filter|smtp-in|" + phase)
        print("register|ready", flush=True)
    if not line.startswith("filter|"):
        continue
    parts = line.split("|")
    session, token, address = parts[5], parts[6], parts[7]
    result = "proceed"
    if kind == "closed":
        result = "reject|550 5.7.1 nothing from you"
    elif address.strip("<>") == grey and not os.path.exists(open_file):
        result = "reject|451 4.7.1 come again later"
    print("filter-result|" + session + "|" + token + "|" + result, flush=True)
"#;

/// Whether this is one that TLS can be spoken with. That of Debian 12 itself, 6.8, breaks off every handshake, whatever the
/// certificate and the version of TLS: its process with the sockets has no keys and hands what is to be signed to another,
/// by a note at the key that OpenSSL 3 does not take along into the copy that it signs with ("missing private key").
pub(super) fn speaks_tls() -> bool {
    let output = Command::new("/usr/sbin/smtpd").arg("-h").stdin(Stdio::null()).output().unwrap();
    !String::from_utf8_lossy(&output.stderr).contains("OpenSMTPD 6.")
}

/// What starts it in `place`.
pub(super) fn command(place: &Place, ports: &[SocketAddr]) -> Command {
    place.certificate(0o600);
    place.maildir(Some("nobody"));
    place.write("filter.py", FILTER, 0o755);
    place.write("smtpd.conf", &config(place, ports), 0o644);
    let mut command = Command::new("/usr/sbin/smtpd");
    // In the foreground, where it logs to standard error.
    command.args(["-d", "-f", &place.text("smtpd.conf")]).stdin(Stdio::null());
    command
}

/// The password as the server keeps it.
fn hashed() -> String {
    let output = Command::new("openssl").args(["passwd", "-6", PASSWORD]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn config(place: &Place, ports: &[SocketAddr]) -> String {
    let mut config = format!(
        "pki test cert \"{cert}\"
pki test key \"{key}\"
table logins {{ {USER} = \"{hash}\" }}
table everybody {{ \"@\" = \"nobody\" }}
filter grey proc-exec \"{filter} grey {GREY} {open}\"
filter closed proc-exec \"{filter} closed {GREY} {open}\"
action keep maildir \"{mail}\" virtual <everybody>
match from any for rcpt-to \"{REFUSED}\" reject
match from any for domain {{ {domains} }} action keep
",
        cert = place.text("cert.pem"),
        key = place.text("key.pem"),
        hash = hashed(),
        domains = DOMAINS.map(|domain| format!("\"{domain}\"")).join(", "),
        filter = place.text("filter.py"),
        open = place.text("open"),
        mail = place.text("mail"),
    );
    for (door, options) in [
        (Door::Plain, "filter grey"),
        (Door::StartTls, "tls pki test"),
        (Door::WantsTls, "tls-require pki test"),
        (Door::Implicit, "smtps pki test"),
        (Door::LoginPlain, "tls-require pki test auth <logins>"),
        (Door::Closed, "filter closed"),
    ] {
        let address = port(ports, door);
        config += &format!("listen on {} port {} hostname {HOST} {options}\n", address.ip(), address.port());
    }
    config
}
