//! How fast an exit hands mail to a Postfix on this machine, beside Postfix's own intake by its `smtp-source` and beside the
//! bare RSA rate of all cores, in one run; and how fast to Postfix's `smtp-sink`, which keeps nothing: the exit's own limit.
//!
//! `cargo bench -p mixgate-tests --bench exit_delivery`, as root, with Debian's package `postfix` (and `sasl2-bin`, which its
//! helper wants). The mails are in the exit's queue when it starts; they share the machine with Postfix, which keeps each on
//! its disk and delivers it.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mix::crypto::pk::{PacketKey, PrivateKey};
use mix::deliver::limits::LimitsConfig;
use mix::deliver::mail::MailConfig;
use mix::deliver::smtp::SmtpExitConfig;
use mix::net::sockets::Inherited;
use mix::node::config::{NetworkConfig, NodeConfig, SmtpDeliveryConfig};
use mix::node::{Counters, Node, Parts, World};
use mix::packet::RoutingType;
use mix::path::Mailbox;
use mix::payload::compress::compress;
use mix::store::queue::exit as queue;
use mix::store::{Db, NODE_SCHEMAS};
use mixgate_tests::peers::{DOMAIN, Door, Kind, Peer};
use mixgate_tests::program::{Program, free_ports};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

/// Mails in the queue.
const MAILS: usize = 2000;
/// Octets of text in each.
const TEXT: usize = 2000;
/// Connections of `smtp-source`: as many as an exit delivers at a time.
const CONNECTIONS: &str = "8";

/// Operations a second, on all cores at the same time.
fn bare_rsa_rate() -> f64 {
    let mut rng = StdRng::seed_from_u64(1);
    let private = PrivateKey::generate(2048, &mut rng).unwrap();
    let sealed: [u8; 256] = private.public_key().encrypt(&[7; 128], &mut rng).unwrap().try_into().unwrap();
    let (cores, each) = (thread::available_parallelism().unwrap().get(), 15_000);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let key = PacketKey::new(&private).unwrap();
                (0..each).for_each(|_| drop(std::hint::black_box(key.decrypt(&sealed).unwrap())));
            });
        }
    });
    (cores * each) as f64 / began.elapsed().as_secs_f64()
}

/// Mails a second that Postfix takes from `smtp-source`; a connection for each mail, or `kept` for many.
fn own_intake(server: SocketAddr, kept: bool) -> f64 {
    // A recipient of its own for each, as from the exit: Postfix bounds how many it delivers to one at a time.
    let mut source = Command::new("/usr/sbin/smtp-source");
    source.arg("-N").args(["-s", CONNECTIONS, "-m", &MAILS.to_string(), "-l", &TEXT.to_string()]);
    if kept {
        source.arg("-d");
    }
    source.args(["-f", "nobody@exit.example", "-t", &format!("source@{DOMAIN}"), &server.to_string()]);
    let began = Instant::now();
    assert!(source.status().unwrap().success(), "smtp-source");
    MAILS as f64 / began.elapsed().as_secs_f64()
}

/// Mails a second from the queue of an exit to that server.
async fn by_exit(home: &Path, server: SocketAddr) -> f64 {
    let db = Db::open(&home.join("node.db"), &NODE_SCHEMAS).unwrap();
    let message = compress(format!("\n{}", "All is well.\n".repeat(TEXT / 13)).as_bytes());
    db.write(move |tx| {
        (0..MAILS).try_for_each(|number| {
            let to = format!("exit-{number}@{DOMAIN}");
            queue::insert_message(tx, RoutingType::SMTP, to.as_bytes(), &message).map(drop)
        })
    })
    .unwrap();
    drop(db);
    let smtp = SmtpDeliveryConfig {
        enabled: true,
        limits: LimitsConfig::none(),
        server: SmtpExitConfig { host: server.ip().to_string(), port: server.port(), ..SmtpExitConfig::default() },
        mail: MailConfig { return_address: Mailbox::parse("nobody@exit.example").ok(), ..MailConfig::default() },
        ..SmtpDeliveryConfig::default()
    };
    let mut config = NodeConfig {
        home: home.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        host: "127.0.0.1".into(),
        smtp,
        ..NodeConfig::default()
    };
    config.stats.enabled = false;
    let stop = CancellationToken::new();
    let parts = Parts {
        world: World::real(),
        counters: Counters::default(),
        mailboxes: None,
        network: NetworkConfig::default(),
        directory: None,
        passphrase: None,
        sockets: Inherited::default(),
        stop: stop.clone(),
    };
    let node = Node::start(&config, parts).await.unwrap();
    let waits = || node.db.read(queue::count).unwrap();
    // Its start is not measured, but for what it has delivered by now.
    let (began, first) = (Instant::now(), waits());
    while waits() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rate = first as f64 / began.elapsed().as_secs_f64();
    stop.cancel();
    node.ended().await;
    rate
}

/// A server that takes what comes and throws it away, and where it listens.
fn sink() -> (Program, SocketAddr) {
    let address = free_ports(1)[0];
    let mut sink = Command::new("/usr/sbin/smtp-sink");
    sink.args(["-u", "nobody", &address.to_string(), "100"]);
    let mut sink = Program::start(sink);
    sink.until("a sink", |_| TcpStream::connect(address).ok());
    (sink, address)
}

fn main() {
    if !Kind::Postfix.is_here() {
        return;
    }
    let peer = Peer::start(Kind::Postfix);
    let server = peer.address(Door::Plain);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let home = tempfile::tempdir().unwrap();
    let before = bare_rsa_rate();
    let single = own_intake(server, false);
    let exit = runtime.block_on(by_exit(&home.path().join("exit"), server));
    let many = own_intake(server, true);
    drop(peer);
    let (_sink, server) = sink();
    let alone = runtime.block_on(by_exit(&home.path().join("alone"), server));
    let bare = f64::midpoint(before, bare_rsa_rate());
    println!("bare RSA-2048 private operations, all cores: {bare:.0}/s");
    println!(
        "Postfix from smtp-source, {CONNECTIONS} at a time: {single:.0} mails/s by a connection each, {many:.0}/s by few"
    );
    println!(
        "Postfix from an exit: {exit:.0} mails/s, {:.2} of the first, {:.2} of the second, {:.3} of RSA",
        exit / single,
        exit / many,
        exit / bare
    );
    println!("smtp-sink, which keeps nothing, from an exit: {alone:.0} mails/s, {:.2} of RSA", alone / bare);
}
