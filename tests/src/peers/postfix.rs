//! Postfix, with Cyrus SASL for logins.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use super::{DOMAINS, Door, GREY, HOST, PASSWORD, Place, REFUSED, USER, port};

/// Whose mail is refused for now: Postfix asks for each recipient.
const POLICY: &str = r#"
import os, sys
request = {}
for line in sys.stdin:
    name, _, value = line.rstrip("\n").partition("=")
    if name:
        request[name] = value
        continue
    later = request.get("recipient") == sys.argv[1] and not os.path.exists(sys.argv[2])
    print("action=" + ("451 4.7.1 come again later" if later else "DUNNO") + "\n", flush=True)
    request = {}
"#;

/// The parts that work without a socket to the outside, by the limit of how many run at a time.
const PARTS: &str = "\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";

/// What starts it in `place`.
pub(super) fn command(place: &Place, ports: &[SocketAddr]) -> Command {
    place.certificate(0o600);
    place.maildir(Some("nobody"));
    place.folder("data", Some("postfix"));
    for folder in ["config", "config/sasl", "queue", "log"] {
        place.folder(folder, None);
    }
    place.write("policy.py", POLICY, 0o644);
    place.write("config/main.cf", &main(place), 0o644);
    place.write("config/master.cf", &services(place, ports), 0o644);
    logins(place);
    let mut command = Command::new("/usr/sbin/postfix");
    command.args(["-c", &place.text("config"), "start-fg"]).stdin(Stdio::null());
    command
}

fn main(place: &Place) -> String {
    let path = |name| place.text(name);
    format!(
        "compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
maillog_file = {log}/main.log
maillog_file_prefixes = {log}
myhostname = {HOST}
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtputf8_enable = no
alias_maps =
virtual_mailbox_domains = {domains}
virtual_mailbox_base = {base}
virtual_mailbox_maps = static:mail/
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = reject_unauth_destination,
    check_recipient_access inline:{{{{{REFUSED} = 550 5.1.1 no such user}}}},
    check_policy_service unix:private/policy
smtpd_tls_cert_file = {cert}
smtpd_tls_key_file = {key}
smtpd_tls_received_header = yes
smtpd_tls_loglevel = 1
smtpd_sasl_authenticated_header = yes
smtpd_sasl_local_domain = {HOST}
",
        queue = path("queue"),
        data = path("data"),
        log = path("log"),
        domains = DOMAINS.join(" "),
        base = path("."),
        cert = path("cert.pem"),
        key = path("key.pem"),
    )
}

fn services(place: &Place, ports: &[SocketAddr]) -> String {
    let login = "-o smtpd_tls_security_level=encrypt -o smtpd_sasl_auth_enable=yes -o smtpd_tls_auth_only=yes \
                 -o smtpd_client_restrictions=permit_sasl_authenticated,reject -o smtpd_sasl_path=";
    let doors = [
        (Door::Plain, String::new()),
        (Door::StartTls, "-o smtpd_tls_security_level=may".into()),
        (Door::WantsTls, "-o smtpd_tls_security_level=encrypt".into()),
        (Door::Implicit, "-o smtpd_tls_wrappermode=yes -o smtpd_tls_security_level=encrypt".into()),
        (Door::LoginPlain, format!("{login}plain")),
        (Door::LoginLogin, format!("{login}login")),
        (Door::Closed, "-o smtpd_sender_restrictions=reject -o smtpd_delay_reject=no".into()),
    ];
    let mut services = String::from(PARTS);
    for (door, options) in doors {
        services += &format!("{} inet n - n - - smtpd {options}\n", port(ports, door));
    }
    let (policy, open) = (place.text("policy.py"), place.text("open"));
    services + &format!("policy unix - n n - 0 spawn user=nobody argv=/usr/bin/python3 {policy} {GREY} {open}\n")
}

/// Who may log in, and by what: a file for each of the two doors, where Debian's Postfix looks beside its configuration.
fn logins(place: &Place) {
    let users = place.text("config/sasl/users");
    for (file, mechanism) in [("config/sasl/plain.conf", "PLAIN"), ("config/sasl/login.conf", "LOGIN")] {
        let text =
            format!("pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {users}\nmech_list: {mechanism}\n");
        place.write(file, &text, 0o644);
    }
    let mut saslpasswd = Command::new("/usr/sbin/saslpasswd2");
    saslpasswd.args(["-p", "-c", "-f", &users, "-u", HOST, USER]).stdin(Stdio::piped());
    let mut saslpasswd = saslpasswd.spawn().unwrap();
    saslpasswd.stdin.take().unwrap().write_all(PASSWORD.as_bytes()).unwrap();
    assert!(saslpasswd.wait().unwrap().success(), "saslpasswd2");
    place.give("config/sasl/users", Some("postfix"));
}
