//! A network of single processes whose exit hands its mail to others.

use std::fs;
use std::net::SocketAddr;

use mix::packet::RoutingType;
use mix::payload::compress::compress;
use mix::store::queue::exit as queue;
use mix::store::{Db, NODE_SCHEMAS};
use mixgate_tests::mails::plain;
use mixgate_tests::peers::PASSWORD;
use mixgate_tests::program::{Program, command, free_ports};
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run};
use mixgate_tests::{PATIENCE, until};
use tempfile::TempDir;

/// What no process of ours may say.
const SECRETS: [&str; 4] = ["example.org", "example.com", "kanárek", PASSWORD];

/// A mix, an exit and a gateway, each a process of its own.
pub(super) struct House {
    folder: TempDir,
    smtp: SocketAddr,
    /// The configuration of the exit, but for how it delivers.
    exit_config: String,
    exit: Program,
    others: [Program; 2],
}

impl House {
    /// The exit delivers so: lines of `roles`.
    pub(super) fn start(delivery: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(5);
        let [dir, alpha, gamma, smtp, pop3] = ports[..] else { panic!("five ports") };
        // The first process is directory and mix. Its own key is known only once it has been up.
        let mut first = run(folder.path(), "first", &directory(dir));
        let net = network(dir, &directory_key(&mut first));
        first.stop();
        let first = run(folder.path(), "first", &format!("{net}{}{}", directory(dir), node("Alpha", alpha, None)));
        let exit_config = format!("{net}{}", node("Gamma", gamma, None));
        let mut exit = run(folder.path(), "gamma", &format!("{exit_config}{delivery}"));
        is_up(&mut exit);
        let mut door = run(folder.path(), "gateway", &format!("{net}{}", gateway(smtp, pop3, "Alpha,Gamma")));
        door.until("the SMTP door", |_| login(smtp));
        Self { folder, smtp, exit_config, exit, others: [first, door] }
    }

    /// From now on the exit delivers so.
    pub(super) fn delivers_by(&self, delivery: &str) {
        let file = self.folder.path().join("gamma.toml");
        fs::write(&file, format!("{}{delivery}", self.exit_config)).unwrap();
        let mut command = command();
        let output = command.current_dir(self.folder.path()).args(["node", "reload", "--config"]).arg(&file).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with("changed: node.smtp.") && !said.contains("restart"), "{said}");
    }

    /// Puts a message for all of these into the exit's queue, as its mixing does, while it is down: no client of ours writes
    /// to several by one message.
    pub(super) fn finds_after_a_restart(&mut self, to: &[&str]) {
        self.exit.stop();
        keeps_to_itself(&self.exit);
        let db = Db::open(&self.folder.path().join("Gamma/node.db"), &NODE_SCHEMAS).unwrap();
        let (address, message) = (to.join("\0"), compress("\nJeště zpívá.\n".as_bytes()));
        db.write(move |tx| queue::insert_message(tx, RoutingType::SMTP, address.as_bytes(), &message)).unwrap();
        drop(db);
        let mut command = command();
        command.current_dir(self.folder.path()).args(["run", "--config", "gamma.toml"]);
        self.exit = Program::start(command);
        is_up(&mut self.exit);
    }

    /// Hands in a mail to this recipient.
    pub(super) fn sends(&self, to: &str) {
        let mail = plain(to, "kanárek", "Ještě zpívá.\n.\nA dál.\n");
        // Until the gateway knows the exit, it says so.
        until("a mail that is taken", PATIENCE, || {
            let reply = login(self.smtp)?.mail("<me@example.net>", &[to], &mail);
            assert!([250, 451, 550].contains(&reply.code), "{reply}");
            (reply.code == 250).then_some(())
        });
    }

    /// How often the exit has logged this.
    pub(super) fn said(&self, words: &str) -> usize {
        self.exit.stderr().matches(words).count()
    }

    /// Until the exit logs this once more than it had `before`.
    pub(super) fn says(&mut self, words: &str, before: usize) {
        self.exit.until(words, |exit| (exit.stderr().matches(words).count() > before).then_some(()));
    }

    /// Ends all of it, and looks at what is left.
    pub(super) fn ends(mut self) {
        for program in self.others.iter_mut().chain([&mut self.exit]) {
            program.stop();
            keeps_to_itself(program);
        }
        let db = Db::open(&self.folder.path().join("Gamma/node.db"), &NODE_SCHEMAS).unwrap();
        assert_eq!(db.read(queue::count).unwrap(), 0, "all was delivered or refused");
    }
}

/// From then on it may be asked.
fn is_up(exit: &mut Program) {
    exit.until("the node that is up", |exit| exit.stderr().contains("the node is up").then_some(()));
}

fn keeps_to_itself(program: &Program) {
    program.said_nothing_of(&SECRETS);
    program.logged_nothing_that_links();
}
