//! Exim. It gives up root's rights for a configuration that is not the system's, so it does all of its work as one user.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use super::{DOMAINS, Door, HOST, PASSWORD, Place, USER, id, is_root, port};

/// Debian's user for it.
const ITS_USER: &str = "Debian-exim";

/// What starts it in `place`.
pub(super) fn command(place: &Place, ports: &[SocketAddr]) -> Command {
    let owner = is_root().then_some(ITS_USER);
    place.certificate(0o600);
    place.give("key.pem", owner);
    place.maildir(owner);
    place.folder("spool", owner);
    place.folder("log", owner);
    place.write("exim.conf", &config(place, ports), 0o644);
    let mut command = Command::new("/usr/sbin/exim4");
    // In the foreground, with a look at the queue from time to time.
    command.args(["-C", &place.text("exim.conf"), "-bdf", "-q30s"]).stdin(Stdio::null());
    command
}

fn config(place: &Place, ports: &[SocketAddr]) -> String {
    let number = |door| port(ports, door).port();
    let numbers = |doors: &[Door]| doors.iter().map(|door| number(*door).to_string()).collect::<Vec<_>>().join(" : ");
    let (user, group) =
        if is_root() { (ITS_USER.to_owned(), ITS_USER.to_owned()) } else { (id(None, "-un"), id(None, "-gn")) };
    let with_tls = [Door::StartTls, Door::WantsTls, Door::Implicit, Door::LoginPlain, Door::LoginLogin];
    format!(
        "exim_user = {user}
exim_group = {group}
deliver_drop_privilege = true
primary_hostname = {HOST}
qualify_domain = {HOST}
spool_directory = {spool}
log_file_path = {log}/%s.log
pid_file_path = {pid}
local_interfaces = 127.0.0.1
daemon_smtp_ports = {ports}
tls_on_connect_ports = {implicit}
tls_advertise_hosts = ${{if inlist{{$received_port}}{{{tls}}}{{*}}{{}}}}
tls_certificate = {cert}
tls_privatekey = {key}
log_selector = +received_recipients +incoming_port +incoming_interface +tls_cipher
host_lookup =
rfc1413_hosts =
smtp_accept_queue_per_connection = 0
smtp_accept_max = 100
smtp_reserve_hosts =
acl_smtp_mail = sender
acl_smtp_rcpt = recipient
domainlist ours = {domains}

begin acl
sender:
  deny message = nothing from you
       condition = ${{if eq{{$received_port}}{{{closed}}}}}
  deny message = not without TLS
       condition = ${{if inlist{{$received_port}}{{{must}}}}}
       !encrypted = *
  deny message = not without a login
       condition = ${{if inlist{{$received_port}}{{{logins}}}}}
       !authenticated = *
  accept
recipient:
  deny message = no such user
       local_parts = refused
  defer message = come again later
        local_parts = grey
        condition = ${{if !exists{{{open}}}}}
  accept domains = +ours
  deny message = not ours

begin routers
keep:
  driver = accept
  domains = +ours
  transport = keep

begin transports
keep:
  driver = appendfile
  maildir_format
  directory = {mail}

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_advertise_condition = ${{if eq{{$received_port}}{{{plain}}}}}
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{USER}}}}}{{eq{{$auth3}}{{{PASSWORD}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_advertise_condition = ${{if eq{{$received_port}}{{{login}}}}}
  server_prompts = <| Username: | Password:
  server_condition = ${{if and{{{{eq{{$auth1}}{{{USER}}}}}{{eq{{$auth2}}{{{PASSWORD}}}}}}}}}
  server_set_id = $auth1
",
        domains = DOMAINS.join(" : "),
        spool = place.text("spool"),
        log = place.text("log"),
        pid = place.text("spool/exim.pid"),
        ports = numbers(&super::DOORS),
        implicit = number(Door::Implicit),
        tls = numbers(&with_tls),
        cert = place.text("cert.pem"),
        key = place.text("key.pem"),
        closed = number(Door::Closed),
        must = numbers(&[Door::WantsTls, Door::LoginPlain, Door::LoginLogin]),
        logins = numbers(&[Door::LoginPlain, Door::LoginLogin]),
        open = place.text("open"),
        mail = place.text("mail"),
        plain = number(Door::LoginPlain),
        login = number(Door::LoginLogin),
    )
}
