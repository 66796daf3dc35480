//! How much memory a long message takes. Alone in its file, since the peak is counted for the process.

#![cfg(target_os = "linux")]

use mix::crypto::CounterRng;
use mix::crypto::stream::StreamKey;
use mix::payload::Capacity;
use mix::payload::encode::encode;

/// The largest resident size so far, in KiB, as Linux counts it.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("so has its status");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

#[test]
fn ten_megabytes_are_encoded_in_less_than_150() {
    // Noise is the worst case: nothing is won by compression.
    let message = mix::crypto::stream::prng(&StreamKey::new([1; 16]), 10_000_000);
    let mut rng = CounterRng::new(&StreamKey::new([2; 16]));
    let payloads = encode(&message, Capacity::Plain, None, &mut rng).unwrap();
    assert_eq!(payloads.len(), 22 * 22);
    let peak = peak_kib();
    println!("peak: {} MiB", peak / 1024);
    assert!(peak < 150_000, "{peak} KiB");
}
