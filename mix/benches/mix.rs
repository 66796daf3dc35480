//! What packets cost, beside the one operation that no mix can do without: RSA-2048 with the private key.
//!
//! Criterion measures; at the end stands a table of all figures: median and fastest sample, the ratio to the bare RSA
//! operation of the same run, and what the reference implementation took on a machine of this kind. The ratio is that
//! of the fastest samples, which other programs on the machine disturb least. Stores, sockets and disks are not here.

#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, SystemTime};

use criterion::{BatchSize, Criterion};
use mix::crypto::pk::{PACKET_KEY_LEN, PacketKey, PrivateKey};
use mix::crypto::stream::{StreamKey, prng};
use mix::crypto::surb_key::SurbKey;
use mix::crypto::{CounterRng, Digest, KeyId, Keyset};
use mix::packet::build::{self, Exit, Hop};
use mix::packet::unwrap::{self, Novelty, Outcome, ReplayLog};
use mix::packet::{HostName, HostRoute, PAYLOAD_LEN, Packet, Payload, RoutingType};
use mix::payload::compress::decompress;
use mix::payload::encode::encode;
use mix::payload::fragment::Reassembly;
use mix::payload::{Capacity, Content, EncodedPayload};

/// Octets of the long message. Noise, so that compression wins nothing and all of it is cut into fragments.
const LONG: usize = 1_000_000;

/// The name of the figure that all others are compared with.
const BARE: &str = "bare RSA-2048 private operation";

/// All figures in the order of the table: name, and microseconds that the reference took, where that is known.
const FIGURES: [(&str, Option<f64>); 9] = [
    (BARE, None),
    ("unwrap, relay", Some(663.0)),
    ("unwrap, swap", None),
    ("unwrap, exit", None),
    ("build 3+3 hops", Some(1441.0)),
    ("reply block of 5 hops", Some(460.0)),
    ("LIONESS 28 KB", Some(165.0)),
    ("encode 1 MB to fragments", Some(28_000.0)),
    ("reassemble 1 MB", None),
];

fn main() {
    let start = SystemTime::now();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("criterion");
    let mut criterion = Criterion::default()
        .output_directory(&folder)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    packets(&mut criterion);
    ciphers(&mut criterion);
    messages(&mut criterion);
    criterion.final_summary();
    print_table(&folder, start);
}

/// A mix: its private packet key, and how senders see it.
struct Mix {
    key: PacketKey,
    hop: Hop,
}

impl Mix {
    fn new(number: u8, rng: &mut CounterRng) -> Self {
        let private = PrivateKey::generate(2048, rng).expect("2048 bits are allowed");
        let host = HostName::parse(&format!("mix{number}.example.net")).expect("a host name");
        let route = HostRoute { host, port: 48_099, key_id: KeyId([number; 20]) };
        let hop = Hop { packet_key: private.public_key(), route };
        Self { key: PacketKey::new(&private).expect("2048 bits"), hop }
    }
}

/// A replay log that is emptied between measurements, since they use one packet again and again.
#[derive(Default)]
struct Seen(HashSet<(Digest, Digest)>);

impl ReplayLog for Seen {
    type Error = Infallible;

    fn admit(&mut self, packet_key: &Digest, replay_hash: &Digest) -> Result<Novelty, Self::Error> {
        Ok(if self.0.insert((*packet_key, *replay_hash)) { Novelty::New } else { Novelty::Replay })
    }
}

/// All three steps.
fn take_layer(packet: &Packet, key: &PacketKey, seen: &mut Seen) -> Outcome {
    seen.0.clear();
    let opened = unwrap::open(packet, &[key]).expect("built for this key");
    opened.admit(seen).expect("emptied above").process().expect("built well")
}

fn rng() -> CounterRng {
    CounterRng::new(&StreamKey::new([1; 16]))
}

fn packets(criterion: &mut Criterion) {
    let rng = &mut rng();
    let mixes: Vec<Mix> = (1..=6).map(|number| Mix::new(number, rng)).collect();
    let hops: Vec<Hop> = mixes.iter().map(|mix| mix.hop.clone()).collect();
    let (leg1, leg2) = hops.split_at(3);
    let exit = Exit { exit_type: RoutingType::SMTP, address: b"somebody@example.org".to_vec() };
    let payload = Payload::random(rng);

    // What each mix gets: relays, the swap at the end of the first leg, relays, the exit.
    let mut arriving = vec![build::forward(&payload, &exit, leg1, leg2, rng).expect("six short names fit")];
    for mix in &mixes {
        if let Some(Outcome::Relay { packet, .. }) =
            arriving.last().map(|packet| take_layer(packet, &mix.key, &mut Seen::default()))
        {
            arriving.push(packet);
        }
    }

    let (subheader, _) =
        arriving[0].as_bytes().split_first_chunk::<PACKET_KEY_LEN>().expect("a packet is longer than a subheader");
    criterion.bench_function(BARE, |b| b.iter(|| mixes[0].key.decrypt(black_box(subheader))));
    for (name, place) in [("unwrap, relay", 0), ("unwrap, swap", 2), ("unwrap, exit", 5)] {
        let (packet, key, seen) = (&arriving[place], &mixes[place].key, &mut Seen::default());
        criterion.bench_function(name, |b| b.iter(|| take_layer(black_box(packet), key, seen)));
    }

    criterion.bench_function("build 3+3 hops", |b| {
        b.iter(|| build::forward(black_box(&payload), &exit, leg1, leg2, rng));
    });
    let leg = hops.get(..5).expect("there are six");
    let surb_key = SurbKey::random(rng);
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    criterion.bench_function("reply block of 5 hops", |b| {
        b.iter(|| build::reply_block(black_box(leg), &exit, &surb_key, expires, rng));
    });
}

fn ciphers(criterion: &mut Criterion) {
    let mut block = vec![0; PAYLOAD_LEN];
    let keys = Keyset::new(b"a secret").payload_encrypt_keys();
    criterion.bench_function("LIONESS 28 KB", |b| b.iter(|| keys.encrypt(black_box(&mut block))));
}

fn messages(criterion: &mut Criterion) {
    let message = prng(&StreamKey::new([2; 16]), LONG);
    criterion.bench_function("encode 1 MB to fragments", |b| {
        b.iter(|| encode(black_box(&message), Capacity::Plain, None, &mut rng()));
    });
    let payloads = encode(&message, Capacity::Plain, None, &mut rng()).expect("not too long");
    assert!(reassemble(&payloads) == message, "the message comes back");
    criterion.bench_function("reassemble 1 MB", |b| {
        b.iter_batched(|| &payloads, |payloads| reassemble(black_box(payloads)), BatchSize::LargeInput);
    });
}

/// From the payloads to the message. They are taken from the last to the first, so that the erasure code has work.
fn reassemble(payloads: &[EncodedPayload]) -> Vec<u8> {
    let mut fragments = payloads.iter().rev().map(|payload| match Content::read(payload.as_bytes()) {
        Ok(Content::Fragment(fragment)) => fragment,
        _ => unreachable!("made as a fragment"),
    });
    let first = fragments.next().expect("more than one");
    let mut reassembly = Reassembly::new(&first, u32::MAX).expect("no limit");
    reassembly.add(first).expect("its own first fragment");
    for fragment in fragments {
        reassembly.add(fragment).expect("of the same message");
    }
    let compressed = reassembly.finish().expect("all are there");
    decompress(&compressed, LONG).expect("it was compressed")
}

/// Prints all figures, unless only some were measured, or none because this is but a trial run.
fn print_table(folder: &Path, start: SystemTime) {
    let figures: Option<Vec<Figure>> =
        FIGURES.iter().map(|(name, _)| Figure::read(&folder.join(name).join("new/sample.json"), start)).collect();
    let Some(figures) = figures else { return };
    let bare = FIGURES.iter().zip(&figures).find(|((name, _), _)| *name == BARE);
    let bare = bare.map_or(f64::NAN, |(_, figure)| figure.fastest_us);
    println!("\n{:<32} {:>10} {:>10} {:>10} {:>12}", "", "median us", "fastest us", "x bare RSA", "reference us");
    for ((name, reference), Figure { median_us, fastest_us }) in FIGURES.iter().zip(&figures) {
        let reference = reference.map_or_else(|| "-".to_owned(), |reference| format!("{reference:.0}"));
        let ratio = fastest_us / bare;
        println!("{name:<32} {median_us:>10.1} {fastest_us:>10.1} {ratio:>10.2} {reference:>12}");
    }
    println!("Asked: a relayed packet costs at most 1.30 times the bare operation.");
}

/// What an operation took, in microseconds.
struct Figure {
    median_us: f64,
    fastest_us: f64,
}

impl Figure {
    /// From the samples that criterion wrote to `file`: nanoseconds, and how often the operation ran in them. Nothing
    /// if that was before `start`.
    fn read(file: &Path, start: SystemTime) -> Option<Self> {
        if file.metadata().ok()?.modified().ok()? < start {
            return None;
        }
        let samples: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        let numbers =
            |name| -> Option<Vec<f64>> { samples[name].as_array()?.iter().map(serde_json::Value::as_f64).collect() };
        let (times, counts) = (numbers("times")?, numbers("iters")?);
        let mut each_us: Vec<f64> = times.iter().zip(counts).map(|(time, count)| time / count / 1000.0).collect();
        each_us.sort_by(f64::total_cmp);
        Some(Self { median_us: *each_us.get(each_us.len() / 2)?, fastest_us: *each_us.first()? })
    }
}
