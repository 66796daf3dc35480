//! Hands a mail to a program that takes it as sendmail does: arguments for the envelope, the mail on its standard input, an
//! exit status of sysexits.h.
//!
//! One try: when to try again is `crate::node`'s to say. No shell reads the command, and what the program prints goes
//! nowhere: it often repeats the recipient.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Access, MemfdFlags, access, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::mail::with_line_feeds;
use crate::path::Mailbox;

/// The mail is not as it should be (sysexits.h).
const EX_DATAERR: i32 = 65;
/// There is no such user (sysexits.h).
const EX_NOUSER: i32 = 67;
/// There is no such host (sysexits.h).
const EX_NOHOST: i32 = 68;

/// The program that takes what leaves the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SendmailConfig {
    /// The program, and arguments of its own.
    pub command: Vec<String>,
    /// How long it may take over one mail. Then it is killed.
    #[serde(with = "crate::settings::time")]
    pub timeout: Duration,
}

impl Default for SendmailConfig {
    fn default() -> Self {
        Self { command: vec!["/usr/sbin/sendmail".into()], timeout: Duration::from_secs(5 * 60) }
    }
}

/// Why no mail can ever be delivered so. Blames the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSendmail {
    /// There is no program to start.
    #[error("command: names no program")]
    NoProgram,
    /// The system could not hand it on.
    #[error("command: holds an octet zero")]
    Zero,
}

/// Why a mail was not delivered. Nothing in it tells who was to have it.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    /// There is no such program, or it may not be run.
    #[error("{program}: {source}")]
    NotStarted {
        /// Which.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// The program refused the mail for good.
    #[error("the program refused the mail ({status})")]
    Refused {
        /// Its exit status.
        status: i32,
    },
    /// The program did not take the mail for now.
    #[error("the program did not take the mail for now")]
    NotNow {
        /// Its exit status; without one, it was killed, or the system could start no more programs.
        status: Option<i32>,
    },
    /// It took longer than the settings allow.
    #[error("the program is too slow")]
    TimedOut,
}

/// A program that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sendmail {
    program: String,
    arguments: Vec<String>,
    timeout: Duration,
}

impl Sendmail {
    /// The one that the settings name; starts nothing yet.
    ///
    /// # Errors
    /// [`InvalidSendmail`].
    pub fn new(config: &SendmailConfig) -> Result<Self, InvalidSendmail> {
        let (program, arguments) = config.command.split_first().ok_or(InvalidSendmail::NoProgram)?;
        if program.is_empty() {
            return Err(InvalidSendmail::NoProgram);
        }
        if config.command.iter().any(|word| word.contains('\0')) {
            return Err(InvalidSendmail::Zero);
        }
        Ok(Self { program: program.clone(), arguments: arguments.to_vec(), timeout: config.timeout })
    }

    /// Hands over a mail that has CRLF at the end of each line, and waits for the end of the program. It is killed when its
    /// time is over, and when nobody waits for it any more.
    ///
    /// # Errors
    /// [`NotSent`]. After [`NotSent::TimedOut`] the program may have taken the mail all the same.
    pub async fn hand_over(&self, from: &Mailbox, to: &Mailbox, mail: &[u8]) -> Result<(), NotSent> {
        children_end_with_a_status().map_err(|source| self.not_started(source))?;
        let stdin = in_memory(&with_line_feeds(mail)).map_err(|source| self.not_started(source))?;
        let child = self.command(from, to, stdin).spawn().map_err(|source| self.not_started(source))?;
        let (_guard, ended) = guarded(child);
        let ended = timeout(self.timeout, ended).await.map_err(|_| NotSent::TimedOut)?;
        verdict(ended.ok().and_then(Result::ok))
    }

    /// Looks whether the program is there and may be run by this process; starts nothing, since whatever it is started for
    /// would be a mail.
    ///
    /// # Errors
    /// [`NotSent::NotStarted`].
    pub fn prove(&self) -> Result<(), NotSent> {
        let not_started = |source| NotSent::NotStarted { program: self.program.clone(), source };
        // As the system looks for it.
        let places = if self.program.contains('/') {
            vec![PathBuf::from(&self.program)]
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|folder| folder.join(&self.program)).collect()
        };
        let mut failure = io::ErrorKind::NotFound.into();
        for place in places {
            match is_program(&place) {
                Ok(()) => return Ok(()),
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                Err(why) => failure = why,
            }
        }
        Err(not_started(failure))
    }

    fn not_started(&self, source: io::Error) -> NotSent {
        // It is there, and can be started when others have ended.
        let for_now = [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM];
        if Errno::from_io_error(&source).is_some_and(|errno| for_now.contains(&errno)) {
            return NotSent::NotNow { status: None };
        }
        NotSent::NotStarted { program: self.program.clone(), source }
    }

    fn command(&self, from: &Mailbox, to: &Mailbox, stdin: File) -> Command {
        let mut command = Command::new(&self.program);
        // A recipient that begins with a hyphen is no option, and a dot alone on a line ends nothing.
        command.args(&self.arguments).args(["-i", "-f", from.as_str(), "--", to.as_str()]);
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command
    }
}

/// Whoever starts a process may have it ignore the ends of its children, and the system then keeps no exit status of them.
/// A handler takes the place of that, for the whole process and until its end, whoever listens to it.
fn children_end_with_a_status() -> io::Result<()> {
    signal(SignalKind::child()).map(drop)
}

/// Whether the file can be run by this process.
fn is_program(path: &Path) -> io::Result<()> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(access(path, Access::EXEC_OK)?)
}

/// The mail as a file that lies in memory. Through a pipe a program whose caller is killed would take half a mail for a whole
/// one; here it begins with all of it.
fn in_memory(mail: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("mail", MemfdFlags::CLOEXEC)?);
    file.write_all(mail)?;
    file.rewind()?;
    Ok(file)
}

/// What the exit status says of the mail.
fn verdict(status: Option<ExitStatus>) -> Result<(), NotSent> {
    match status.and_then(|status| status.code()) {
        Some(0) => Ok(()),
        Some(status @ (EX_DATAERR | EX_NOUSER | EX_NOHOST)) => Err(NotSent::Refused { status }),
        status => Err(NotSent::NotNow { status }),
    }
}

/// Kills a program that runs, with those that it has started, when it is dropped.
struct Guard {
    pid: Pid,
    /// Whether it has ended: then its number may be another's.
    gone: Arc<Mutex<bool>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !*self.gone.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill_process_group(self.pid, Signal::KILL);
            // It may have left the group.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

/// Waits for the end of a program, on a thread of its own.
fn guarded(child: Child) -> (Guard, JoinHandle<io::Result<ExitStatus>>) {
    let guard = Guard { pid: Pid::from_child(&child), gone: Arc::default() };
    let gone = Arc::clone(&guard.gone);
    (guard, spawn_blocking(move || reap(child, &gone)))
}

fn reap(mut child: Child, gone: &Mutex<bool>) -> io::Result<ExitStatus> {
    // Its number stays its own until it is waited for, so this only looks.
    let pid = WaitId::Pid(Pid::from_child(&child));
    while let Err(Errno::INTR) = waitid(pid.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
    let mut gone = gone.lock().unwrap_or_else(PoisonError::into_inner);
    *gone = true;
    child.wait()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    const MAIL: &[u8] = b"Subject: x\r\n\r\n.\r\n-end\r\n";
    /// Far longer than a program needs on a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A program that does what the script says, in a folder of its own.
    struct Program {
        sendmail: Sendmail,
        home: tempfile::TempDir,
    }

    fn program(script: &str, timeout: Duration) -> Program {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("script");
        fs::write(&path, format!("cd '{}'\n{script}\n", home.path().display())).unwrap();
        // Read by a shell that is there, not run itself: a file that was just written may be busy.
        let command = ["/bin/sh", path.to_str().unwrap(), "own argument"].map(str::to_owned).to_vec();
        Program { sendmail: Sendmail::new(&SendmailConfig { command, timeout }).unwrap(), home }
    }

    impl Program {
        async fn take(&self, mail: &[u8]) -> Result<(), NotSent> {
            let from = Mailbox::parse("nobody@exit.example").unwrap();
            let to = Mailbox::parse("-bob@example.org").unwrap();
            self.sendmail.hand_over(&from, &to, mail).await
        }

        fn wrote(&self, name: &str) -> String {
            fs::read_to_string(self.home.path().join(name)).unwrap()
        }
    }

    #[tokio::test]
    async fn program_gets_the_envelope_as_arguments_and_the_mail_with_line_feeds() {
        let program = program("printf '%s\\n' \"$@\" > argv; env > env; cat > mail", PATIENCE);
        program.take(MAIL).await.unwrap();
        assert_eq!(program.wrote("argv"), "own argument\n-i\n-f\nnobody@exit.example\n--\n-bob@example.org\n");
        assert_eq!(program.wrote("mail"), "Subject: x\n\n.\n-end\n");
        // The shell sets some of its own; of ours there is only the path.
        let environment = program.wrote("env");
        let names: Vec<_> = environment.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        assert!(names.contains(&"PATH"), "{names:?}");
        assert!(names.iter().all(|name| ["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)), "{names:?}");
    }

    #[tokio::test]
    async fn exit_status_says_whether_it_is_tried_again() {
        for (status, refused) in
            [(65, true), (67, true), (68, true), (64, false), (69, false), (75, false), (78, false), (1, false)]
        {
            let outcome = program(&format!("cat > mail; exit {status}"), PATIENCE).take(MAIL).await.unwrap_err();
            match outcome {
                NotSent::Refused { status: said } => assert!(refused && said == status, "{status}"),
                NotSent::NotNow { status: said } => assert!(!refused && said == Some(status), "{status}"),
                other => panic!("{status}: {other:?}"),
            }
        }
        let killed = program("kill -9 $$", PATIENCE).take(MAIL).await.unwrap_err();
        assert!(matches!(killed, NotSent::NotNow { status: None }), "{killed:?}");
    }

    #[test]
    fn exit_status_is_known_though_whoever_started_the_process_ignores_those_of_children() {
        // The test above, once more, in a process that is started so.
        let test = "deliver::sendmail::tests::exit_status_says_whether_it_is_tried_again";
        let itself = std::env::current_exe().unwrap();
        let again =
            Command::new("env").arg("--ignore-signal=CHLD").arg(itself).args(["--exact", test]).output().unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn recipient_that_looks_like_an_option_stands_behind_the_end_of_the_options() {
        let sendmail = Sendmail::new(&SendmailConfig::default()).unwrap();
        let from = Mailbox::parse("nobody@exit.example").unwrap();
        for to in ["-bs@example.org", "-C/etc/passwd@example.org", "--@example.org", "-X@example.org"] {
            let to = Mailbox::parse(to).unwrap();
            let command = sendmail.command(&from, &to, in_memory(b"").unwrap());
            let arguments: Vec<_> = command.get_args().collect();
            assert_eq!(arguments, ["-i", "-f", "nobody@exit.example", "--", to.as_str()]);
        }
        // The return address is the operator's own, and what an option takes is no option.
        let from = Mailbox::parse("-bs@exit.example").unwrap();
        let command = sendmail.command(&from, &from, in_memory(b"").unwrap());
        assert_eq!(command.get_args().nth(2).unwrap(), "-bs@exit.example");
    }

    #[tokio::test]
    async fn large_mail_arrives_whole() {
        let program = program("cat > mail", PATIENCE);
        let mail = b"0123456789\r\n".repeat(100_000);
        program.take(&mail).await.unwrap();
        assert_eq!(program.wrote("mail").len(), 11 * 100_000);
    }

    #[tokio::test]
    async fn program_that_does_not_read_is_believed_by_its_status() {
        let mail = b"0123456789\r\n".repeat(100_000);
        program("exit 0", PATIENCE).take(&mail).await.unwrap();
        let refused = program("exit 67", PATIENCE).take(&mail).await.unwrap_err();
        assert!(matches!(refused, NotSent::Refused { status: EX_NOUSER }), "{refused:?}");
    }

    #[tokio::test]
    async fn program_that_prints_megabytes_is_not_held_up() {
        let script = "cat > mail; yes out | head -c 5000000; yes err | head -c 5000000 >&2; echo > done";
        let program = program(script, PATIENCE);
        program.take(MAIL).await.unwrap();
        assert_eq!(program.wrote("done"), "\n");
    }

    /// Whether a process is there and no mere memory of one.
    fn runs(pid: &str) -> bool {
        let status = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
        status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    }

    async fn until(what: &str, is_so: impl Fn() -> bool) {
        let poll = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    const HANGS: &str = "sleep 1000 & echo $! > child; echo $$ > pid.new; mv pid.new pid; sleep 1000; cat > mail";

    #[tokio::test]
    async fn program_that_hangs_is_killed_with_those_that_it_started() {
        let program = program(HANGS, PATIENCE);
        let started = || program.home.path().join("pid").exists();
        let its_time_ends = async {
            until("a start", started).await;
            tokio::time::pause();
            tokio::time::advance(PATIENCE).await;
            tokio::time::resume();
        };
        let (outcome, ()) = tokio::join!(program.take(MAIL), its_time_ends);
        assert!(matches!(outcome, Err(NotSent::TimedOut)), "{outcome:?}");
        let (pid, child) = (program.wrote("pid"), program.wrote("child"));
        until("both gone", || !runs(&pid) && !runs(&child)).await;
        assert!(!program.home.path().join("mail").exists());
    }

    #[tokio::test]
    async fn program_that_nobody_waits_for_is_killed() {
        let program = program(HANGS, PATIENCE);
        let started = || program.home.path().join("pid").exists();
        tokio::select! {
            outcome = program.take(MAIL) => panic!("{outcome:?}"),
            () = until("a start", started) => {}
        }
        let (pid, child) = (program.wrote("pid"), program.wrote("child"));
        until("both gone", || !runs(&pid) && !runs(&child)).await;
    }

    #[tokio::test]
    async fn program_that_leaves_another_behind_has_ended_all_the_same() {
        let program = program("cat > mail; sleep 1000 & echo $! > child", PATIENCE);
        program.take(MAIL).await.unwrap();
        let child = program.wrote("child");
        assert!(runs(&child), "it may have the mail");
        kill_process(Pid::from_raw(child.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_reads_all_of_the_mail_and_never_half() {
        let later = "while [ ! -e go ]; do sleep 0.01; done; cat <&3 > mail.new; mv mail.new mail";
        let program = program(&format!("exec 3<&0; ({later}) & exit 0"), PATIENCE);
        // More than a pipe holds.
        program.take(&b"0123456789\r\n".repeat(100_000)).await.unwrap();
        fs::write(program.home.path().join("go"), "").unwrap();
        until("a mail", || program.home.path().join("mail").exists()).await;
        assert_eq!(program.wrote("mail").len(), 11 * 100_000);
    }

    #[test]
    fn proof_starts_nothing_and_finds_what_a_start_would() {
        let home = tempfile::tempdir().unwrap();
        let plain = home.path().join("plain");
        fs::write(&plain, "no program").unwrap();
        let prove = |program: &str| {
            let config = SendmailConfig { command: vec![program.to_owned()], ..SendmailConfig::default() };
            Sendmail::new(&config).unwrap().prove()
        };
        prove("/bin/sh").unwrap();
        prove("sh").unwrap();
        for (program, kind) in [
            (home.path().join("missing"), ErrorKind::NotFound),
            (plain, ErrorKind::PermissionDenied),
            (home.path().to_owned(), ErrorKind::PermissionDenied),
            ("no-such-program-anywhere".into(), ErrorKind::NotFound),
        ] {
            let refused = prove(program.to_str().unwrap()).unwrap_err();
            let is_it = matches!(&refused, NotSent::NotStarted { program: named, source }
                if *named == program.to_str().unwrap() && source.kind() == kind);
            assert!(is_it, "{refused:?}");
        }
    }

    #[tokio::test]
    async fn program_that_cannot_be_started_is_named_and_the_recipient_is_not() {
        let home = tempfile::tempdir().unwrap();
        let plain = home.path().join("plain");
        fs::write(&plain, "no program").unwrap();
        for (path, kind) in
            [(home.path().join("missing"), ErrorKind::NotFound), (plain.clone(), ErrorKind::PermissionDenied)]
        {
            let command = vec![path.to_str().unwrap().to_owned()];
            let sendmail = Sendmail::new(&SendmailConfig { command, ..SendmailConfig::default() }).unwrap();
            let outcome = Program { sendmail, home: tempfile::tempdir().unwrap() }.take(MAIL).await.unwrap_err();
            let is_it = matches!(&outcome, NotSent::NotStarted { program, source }
                if *program == path.to_str().unwrap() && source.kind() == kind);
            assert!(is_it, "{outcome:?}");
            assert!(!outcome.to_string().contains("bob"));
        }
    }

    #[test]
    fn command_that_names_no_program_is_refused() {
        for (command, why) in [
            (vec![], InvalidSendmail::NoProgram),
            (vec![""], InvalidSendmail::NoProgram),
            (vec!["/usr/sbin/sendmail", "a\0b"], InvalidSendmail::Zero),
        ] {
            let command = command.into_iter().map(str::to_owned).collect();
            let refused = Sendmail::new(&SendmailConfig { command, ..SendmailConfig::default() });
            assert_eq!(refused.unwrap_err(), why);
        }
    }

    #[test]
    fn settings_are_read_as_an_operator_writes_them() {
        let json = r#"{"command": ["/usr/bin/msmtp", "-a", "exit"], "timeout": "90 seconds"}"#;
        let config: SendmailConfig = serde_json::from_str(json).unwrap();
        assert_eq!((config.command.len(), config.timeout), (3, Duration::from_secs(90)));
        let defaults = serde_json::to_string(&SendmailConfig::default()).unwrap();
        assert_eq!(serde_json::from_str::<SendmailConfig>(&defaults).unwrap(), SendmailConfig::default());
    }
}
