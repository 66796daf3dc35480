//! Mail servers that people run, from Debian, each with a configuration, a queue and a log of a test's own: as smart hosts of
//! an exit and as servers of the domain `example.org` and of some below it, whose mail it keeps in one Maildir.
//!
//! What all of them do is said here, and how each is told to do it in a file of its own. Postfix and OpenSMTPD run as root
//! alone. The queue of OpenSMTPD is the system's, since its place is compiled in.

mod exim;
mod opensmtpd;
mod postfix;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::demo::arrived;
use crate::program::{Program, free_ports};
use crate::smtp::Smtp;
use crate::{PATIENCE, says_what_is_missing, until};

/// Whom it keeps mail for.
pub const DOMAIN: &str = "example.org";
/// The same and others.
pub const DOMAINS: [&str; 4] = [DOMAIN, "bare.example.org", "backup.example.org", "many.example.org"];
/// Whose mail it refuses for now, until [`Peer::lets_grey_in`].
pub const GREY: &str = "grey@example.org";
/// Whose mail it refuses for good.
pub const REFUSED: &str = "refused@example.org";
/// Who logs in.
pub const USER: &str = "exit";
/// With this password.
pub const PASSWORD: &str = "open-sesame";
/// What it is called.
pub const HOST: &str = "mx.example.org";
/// The variable that says which server must be there; one of the names of [`Kind`].
const WANTED: &str = "MIXGATE_PEER";

/// A mail server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wietse Venema's.
    Postfix,
    /// Of Cambridge, and the one that `.ci/run` installs: it runs as any user.
    Exim,
    /// OpenBSD's.
    OpenSmtpd,
}

/// Where it listens, and what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Without TLS.
    Plain,
    /// With STARTTLS for whoever wants it.
    StartTls,
    /// With STARTTLS, and no mail without.
    WantsTls,
    /// TLS from the first octet on.
    Implicit,
    /// STARTTLS, and no mail without a login, by PLAIN. OpenSMTPD offers LOGIN as well.
    LoginPlain,
    /// The same by LOGIN; not with OpenSMTPD, which always offers both.
    LoginLogin,
    /// Takes nothing from anybody.
    Closed,
}

/// Held by the OpenSMTPD that runs.
static ALONE: Mutex<()> = Mutex::new(());

/// In the order of the ports.
const DOORS: [Door; 7] =
    [Door::Plain, Door::StartTls, Door::WantsTls, Door::Implicit, Door::LoginPlain, Door::LoginLogin, Door::Closed];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Postfix => "postfix",
            Self::Exim => "exim",
            Self::OpenSmtpd => "opensmtpd",
        }
    }

    /// The programs that it needs here, as Debian installs them, and the packages that have them.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Postfix => &[("/usr/sbin/postfix", "postfix"), ("/usr/sbin/saslpasswd2", "sasl2-bin")],
            Self::Exim => &[("/usr/sbin/exim4", "exim4-daemon-light")],
            Self::OpenSmtpd => &[("/usr/sbin/smtpd", "opensmtpd")],
        }
    }

    /// Whether it offers only what the door says.
    pub fn has(self, door: Door) -> bool {
        (self, door) != (Self::OpenSmtpd, Door::LoginLogin)
    }

    /// Why it cannot run here, if it cannot.
    fn missing(self) -> Option<String> {
        if let Some((_, package)) = self.programs().iter().find(|(program, _)| !Path::new(program).exists()) {
            return Some(format!("Debian's package {package}"));
        }
        if self == Self::OpenSmtpd && !opensmtpd::speaks_tls() {
            return Some("OpenSMTPD 7, which Debian 12 has in bookworm-backports".into());
        }
        (self != Self::Exim && !is_root()).then(|| format!("{}, which runs as root alone", self.name()))
    }

    /// Whether it runs here. Says so when it does not; and no more than one of them is installed at a time.
    ///
    /// # Panics
    /// When it does not, and the variable MIXGATE_PEER names it, or TESTS_COMPLETE is set and it is the one of `.ci/run`.
    pub fn is_here(self) -> bool {
        let Some(missing) = self.missing() else { return true };
        let wanted = std::env::var(WANTED).ok();
        assert!(wanted.as_deref() != Some(self.name()), "missing: {missing}");
        if wanted.is_none() && self == Self::Exim {
            says_what_is_missing(&missing);
        } else {
            println!("not tested here: {missing}; tests/peers.sh has all of them, one after the other");
        }
        false
    }
}

fn is_root() -> bool {
    id(None, "-u") == "0"
}

/// What `id` says of a user, or of who runs this.
fn id(user: Option<&str>, what: &str) -> String {
    let output = Command::new("id").arg(what).args(user).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A server that runs.
#[derive(Debug)]
pub struct Peer {
    /// Which.
    pub kind: Kind,
    ports: Vec<SocketAddr>,
    place: Place,
    program: Program,
    /// Let go of when it has ended.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// Its folder, and the names of things in there.
#[derive(Debug)]
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        // Its parts run as users of their own.
        fs::set_permissions(place.0.path(), Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as text, for configurations.
    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn folder(&self, name: &str, owner: Option<&str>) {
        fs::create_dir(self.path(name)).unwrap();
        self.give(name, owner);
    }

    /// Gives a file or folder to a user, where there is another than who runs this.
    fn give(&self, name: &str, owner: Option<&str>) {
        if let Some(user) = owner {
            let number = |what| Some(id(Some(user), what).parse().unwrap());
            chown(self.path(name), number("-u"), number("-g")).unwrap();
        }
    }

    /// A Maildir that this user can write to.
    fn maildir(&self, owner: Option<&str>) {
        for name in ["mail", "mail/new", "mail/cur", "mail/tmp"] {
            self.folder(name, owner);
        }
    }

    /// A certificate for 127.0.0.1, `cert.pem` and `key.pem`, and `ca.pem` of who vouches for it.
    fn certificate(&self, key_mode: u32) {
        let openssl = |arguments: &str| {
            let mut openssl = Command::new("openssl");
            openssl.current_dir(self.0.path()).args(arguments.split(' ')).stdin(Stdio::null());
            let output = openssl.output().expect("openssl is installed: .ci/run sees to it");
            assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30";
        openssl(&format!("{request} -keyout ca.key -out ca.pem -subj /CN=authority"));
        let names = "-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1,DNS:mx.example.org";
        openssl(&format!("{request} -keyout key.pem -out cert.pem -subj /CN={HOST} -CA ca.pem -CAkey ca.key {names}"));
        fs::set_permissions(self.path("key.pem"), Permissions::from_mode(key_mode)).unwrap();
    }
}

impl Peer {
    /// Starts it, and waits until it greets. Where there can be no two of a kind, it waits for the other's end first.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(kind: Kind) -> Self {
        let alone = (kind == Kind::OpenSmtpd).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
        let place = Place::new();
        let ports = free_ports(DOORS.len());
        let command = match kind {
            Kind::Postfix => postfix::command(&place, &ports),
            Kind::Exim => exim::command(&place, &ports),
            Kind::OpenSmtpd => opensmtpd::command(&place, &ports),
        };
        let mut peer = Self { kind, ports, place, program: Program::start(command), _alone: alone };
        let address = peer.address(Door::Plain);
        peer.program.until("the greeting of the mail server", |_| Smtp::connect(address).ok());
        peer
    }

    /// Where a door of it is.
    pub fn address(&self, door: Door) -> SocketAddr {
        port(&self.ports, door)
    }

    /// The certificate of who vouches for it.
    pub fn authority(&self) -> PathBuf {
        self.place.path("ca.pem")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        match self.kind {
            Kind::Postfix | Kind::Exim => fs::read_to_string(self.place.path("log/main.log")).unwrap_or_default(),
            Kind::OpenSmtpd => self.program.stderr(),
        }
    }

    /// The line of its log that says that it has delivered a mail to this recipient.
    ///
    /// # Panics
    /// When it does not come.
    pub fn logs_delivery(&self, to: &str) -> String {
        let says = |line: &&str| match self.kind {
            Kind::Postfix => line.contains(&format!("to=<{to}>")) && line.contains("status=sent"),
            Kind::Exim => line.contains("=>") && line.contains(&format!("<{to}>")),
            Kind::OpenSmtpd => line.contains(&format!("rcpt=<{to}>")) && line.contains("stat=Delivered"),
        };
        until("a delivery in the log of the mail server", PATIENCE, || self.log().lines().find(says).map(str::to_owned))
    }

    /// How often its log says that it has answered so about this recipient, or the login of one.
    pub fn refusals(&self, code: &str, whom: &str) -> usize {
        // Exim writes what it answered and no code.
        let code = match (self.kind, code) {
            (Kind::Exim, "451") => "temporarily rejected",
            (Kind::Exim, _) => "rejected",
            (_, code) => code,
        };
        let says = |line: &&str| line.contains(code) && line.contains(whom);
        self.log().lines().filter(says).count()
    }

    /// The files of the mails that it has delivered.
    ///
    /// # Panics
    /// When their folder cannot be read.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        arrived(&self.place.path("mail"))
    }

    /// The mails that it has delivered.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn mails(&self) -> Vec<Vec<u8>> {
        self.files().iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// From now on it takes what it refused for now.
    ///
    /// # Panics
    /// When its folder cannot be written.
    pub fn lets_grey_in(&self) {
        self.place.write("open", "", 0o644);
    }

    /// It takes connections, since the system does, and says nothing.
    pub fn hangs(&self) {
        self.signal("STOP");
    }

    /// It goes on where it was.
    pub fn goes_on(&self) {
        self.signal("CONT");
    }

    /// To all of its processes.
    fn signal(&self, name: &str) {
        let processes: Vec<String> = family(self.program.id()).iter().map(u32::to_string).collect();
        let kill = format!("kill -{name} {}", processes.join(" "));
        // One that has ended by now needs no signal.
        let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- what {} logged:\n{}", self.kind.name(), self.log());
        }
        // What is stopped hears of no end.
        self.goes_on();
        self.signal("TERM");
        let _ = self.program.ended();
    }
}

/// A process, and all that it started, and so on.
fn family(root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let parents: Vec<(u32, u32)> = processes();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, its)| *its == parent).map(|(process, _)| *process));
        next += 1;
    }
    family
}

/// All processes, each with its parent.
fn processes() -> Vec<(u32, u32)> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let with_parent = |process: u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Some((process, parent.trim().parse().ok()?))
    };
    numbers.filter_map(with_parent).collect()
}

fn port(ports: &[SocketAddr], door: Door) -> SocketAddr {
    ports[DOORS.iter().position(|it| *it == door).unwrap()]
}
