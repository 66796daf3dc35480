//! Noise at every door: an error or a closed connection within bounds, and the next honest mail passes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mixgate_tests::demo::Demo;
use mixgate_tests::mails::{dice, noise};
use rand::RngExt as _;
use rand::rngs::StdRng;

/// Until a door must have closed on somebody who has said what he had to say.
const BOUND: Duration = Duration::from_secs(45);
/// The most that a door may say to noise.
const MOST: u64 = 1 << 20;

/// What is sent to a door, and then nothing more.
fn pieces(dice: &mut StdRng) -> Vec<Vec<u8>> {
    let mut pieces = vec![
        Vec::new(),
        b"\r\n".repeat(100),
        b"\0".repeat(5000),
        b"\n.\r\n".repeat(50),
        // A line without an end, longer than any limit.
        b"A".repeat(1 << 20),
        [&b"EHLO "[..], &b"x".repeat(100_000), b"\r\n"].concat(),
        b"EHLO client.example\r\nMAIL FROM:<a@b.example".to_vec(),
        b"EHLO client.example\r\nAUTH PLAIN AAAA\r\nAUTH LOGIN\r\n\xff\xfe\r\nAUTH LOGIN\r\nQUFB\r\n".to_vec(),
        b"USER \xff\r\nPASS\r\nAPOP a b\r\nRETR -1\r\nUSER ".to_vec(),
        b"GET / HTTP/1.1\r\nHost".to_vec(),
        b"GET /\xff%00%ff/../../etc/passwd HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf".to_vec(),
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\ndesc=%5BServer%5D%0A%ff%00%zz%".to_vec(),
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n".to_vec(),
        // A TLS handshake whose record is cut short, and one that lies about its length.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff".to_vec(),
        b"MMTP 0.3\r\nSEND\r\n".to_vec(),
    ];
    for _ in 0..3 {
        let octets = dice.random_range(1..100_000);
        pieces.push(noise(octets, dice));
    }
    pieces
}

/// Says `piece`, then nothing, and listens until the door closes. What it answers is its own matter.
fn bother(name: &str, door: SocketAddr, piece: &[u8]) {
    let start = Instant::now();
    let mut stream = TcpStream::connect(door).unwrap_or_else(|e| panic!("{name} does not open: {e}"));
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    // It may close before it has heard all.
    let _ = stream.write_all(piece);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    let closed = (&stream).take(MOST).read_to_end(&mut said);
    let reset = closed.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
    let piece = String::from_utf8_lossy(piece.get(..40).unwrap_or(piece)).into_owned();
    assert!(closed.is_ok() || reset, "{name} stays open after {piece:?}: {closed:?}");
    assert!(start.elapsed() < BOUND, "{name} took {:?} to close on {piece:?}", start.elapsed());
    assert!(said.len() < 1 << 20, "{name} talks without end about {piece:?}");
}

/// The same within TLS, by openssl: a mix takes any client there, and reads what it says.
fn bother_in_tls(name: &str, door: SocketAddr, piece: &[u8]) {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-no_ign_eof", "-connect", &door.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed: .ci/run sees to it");
    let _ = client.stdin.take().unwrap().write_all(piece);
    let mut said = client.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        let mut octets = Vec::new();
        let _ = said.read_to_end(&mut octets);
        octets
    });
    mixgate_tests::until(&format!("the end of TLS with {name}"), BOUND, || client.try_wait().unwrap());
    let said = String::from_utf8_lossy(&reader.join().unwrap()).into_owned();
    assert!(said.is_empty() || said.starts_with("MMTP"), "{name} says {said:?}");
}

/// What is no MMTP, or is cut short (minion-spec 4.2).
fn mmtp_pieces(dice: &mut StdRng) -> Vec<Vec<u8>> {
    let packet = noise(32 * 1024, dice);
    vec![
        Vec::new(),
        b"MMTP 9.9\r\n".to_vec(),
        b"MMTP 0.3".to_vec(),
        b"M".repeat(100_000),
        noise(5000, dice),
        [b"MMTP 0.3\r\nSEND\r\n", &packet[..20_000]].concat(),
        // A whole packet of noise with the right and a wrong digest.
        [b"MMTP 0.3\r\nSEND\r\n", &packet[..], &mix::crypto::sha1(&[&packet, b"SEND"]).0[..]].concat(),
        [b"MMTP 0.3\r\nSEND\r\n", &packet[..], &[0; 20]].concat(),
        [b"MMTP 0.3\r\nJUNK\r\n", &packet[..], &[0; 20]].concat(),
        b"MMTP 0.3\r\nSENT\r\n".to_vec(),
    ]
}

#[test]
fn noise_at_every_door_is_shown_out_and_honest_mail_passes() {
    let mut dice = dice("noise at every door");
    let mut demo = Demo::start(None);
    let ready = demo.ready.clone();
    let directory = ready.directory.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let mut doors = vec![
        ("smtp".to_owned(), ready.smtp),
        ("pop3".to_owned(), ready.pop3),
        ("directory".to_owned(), directory),
        ("outside smtp".to_owned(), ready.outside.smtp),
        ("outside pop3".to_owned(), ready.outside.pop3),
    ];
    doors.extend(ready.nodes.iter().map(|node| (format!("mmtp of {}", node.nickname), node.mmtp)));
    let pieces = pieces(&mut dice);
    thread::scope(|threads| {
        for (name, door) in &doors {
            threads.spawn(|| pieces.iter().for_each(|piece| bother(name, *door, piece)));
        }
    });
    assert!(demo.ended().is_none(), "it ended");
    let in_tls = mmtp_pieces(&mut dice);
    thread::scope(|threads| {
        for node in &ready.nodes {
            threads.spawn(|| in_tls.iter().for_each(|piece| bother_in_tls(&node.nickname, node.mmtp, piece)));
        }
    });
    assert!(demo.ended().is_none(), "it ended");
    demo.serves("after-the-noise@example.org");
    logged_in_noise_ends_too(&demo, &mut dice);
    demo.serves("after-more-noise@example.org");
    // A door that has lost its service is found by asking it.
    demo.pop3().empty();
    assert_eq!(demo.stderr(), "", "strangers' noise is no error of ours");
    demo.stop();
}

/// Noise from somebody who knows the password: within a mail, and after login.
fn logged_in_noise_ends_too(demo: &Demo, dice: &mut StdRng) {
    for _ in 0..10 {
        let mut smtp = demo.smtp();
        let octets = dice.random_range(1..20_000);
        let reply = smtp.mail("<>", &["noise@example.org"], &noise(octets, dice));
        // Noise may be text by luck of the charset: it is delivered or refused, not left open.
        assert!(reply.code == 250 || (500..600).contains(&reply.code), "{reply}");
        let mut smtp = demo.smtp();
        for line in noise(5000, dice).split(|octet| *octet == b'\n') {
            let line = [line, b"\r\n"].concat();
            if smtp.raw(&line).is_err() {
                break;
            }
        }
    }
    for line in ["RETR 99999999999999999999", "TOP 1 -1", "DELE x", "LIST \u{0}", "UIDL 0", "XYZZY"] {
        assert!(demo.pop3().command(line).is_err(), "{line}");
    }
}
