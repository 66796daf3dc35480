//! How much memory a long message takes, from its text to the packets. Alone in its file, since the peak is counted
//! for the process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, and what only it calls; the peaks are printed")]

use mix::crypto::pk::PrivateKey;
use mix::crypto::stream::{StreamKey, prng};
use mix::crypto::{CounterRng, KeyId};
use mix::packet::build::{self, Exit, Hop};
use mix::packet::{HostName, HostRoute, Packet, RoutingType};
use mix::payload::encode::encode;
use mix::payload::{Capacity, EncodedPayload};

const LEN: usize = 10_000_000;

/// KiB that the process may hold at any time.
const PEAK_MAX_KIB: u64 = 150_000;

/// The largest resident size so far, in KiB, as Linux counts it.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("so has its status");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

fn assert_peak(what: &str) {
    let peak = peak_kib();
    println!("{what}: peak {} MiB", peak / 1024);
    assert!(peak < PEAK_MAX_KIB, "{what}: {peak} KiB");
}

fn rng() -> CounterRng {
    CounterRng::new(&StreamKey::new([2; 16]))
}

fn encoded(message: &[u8]) -> Vec<EncodedPayload> {
    assert_eq!(message.len(), LEN);
    encode(message, Capacity::Plain, None, &mut rng()).unwrap()
}

/// Words at random from a small vocabulary: compresses as mail does, to about a third.
fn text() -> Vec<u8> {
    let words: Vec<&str> = "liberty secure must guard even his enemy from oppression for if he violates this duty \
                            establishes a precedent that will reach to himself"
        .split_whitespace()
        .collect();
    let mut text = Vec::with_capacity(LEN + 16);
    for octet in prng(&StreamKey::new([1; 16]), LEN / 3) {
        text.extend_from_slice(words[usize::from(octet) % words.len()].as_bytes());
        text.push(if octet > 240 { b'\n' } else { b' ' });
    }
    text.truncate(LEN);
    text
}

/// Packets, all of them kept: more than any sender does. Longer paths make them no larger.
fn packets(payloads: Vec<EncodedPayload>) -> Vec<Packet> {
    let packet_key = PrivateKey::generate(2048, &mut rng()).unwrap().public_key();
    let route = HostRoute { host: HostName::parse("mix.example.net").unwrap(), port: 48_099, key_id: KeyId([1; 20]) };
    let leg = [Hop { packet_key, route }];
    let exit = Exit { exit_type: RoutingType::FRAGMENT, address: Vec::new() };
    let mut rng = rng();
    let build = |payload: EncodedPayload| build::forward(&payload.into_payload().unwrap(), &exit, &leg, &leg, &mut rng);
    payloads.into_iter().map(build).collect::<Result<_, _>>().unwrap()
}

#[test]
fn ten_megabytes_become_packets_in_less_than_150() {
    assert_eq!(encoded(&b"All work and no play makes Jack a dull boy.\n".repeat(LEN / 44 + 1)[..LEN]).len(), 3);
    assert_peak("a line again and again");
    let payloads = encoded(&text());
    println!("{} payloads", payloads.len());
    drop(payloads);
    assert_peak("text");
    // Noise is the worst case: nothing is won by compression.
    let payloads = encoded(&prng(&StreamKey::new([1; 16]), LEN));
    assert_eq!(payloads.len(), 22 * 22);
    assert_peak("noise");
    assert_eq!(packets(payloads).len(), 22 * 22);
    assert_peak("noise, as packets");
}
