//! The putting together of a TCP stream, against a slow and obvious model of it.
//!
//! A client sends a hello in segments: cut, shuffled, overlapping, repeated. As soon as all bytes of the hello are there the
//! flow has its name, unless a bound was met; and never another one.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use usher_agent::classify::{Observation, Verdict};
use usher_fuzz::{ACK, Line, SYN, TCP, hello};
use usher_models::wire::Direction;

#[derive(Debug, Arbitrary)]
struct Connection {
    /// Sequence number of the first byte.
    start: u32,
    /// Extends the name, and so the hello.
    labels: u8,
    /// Where each segment begins and how long it is.
    segments: Vec<(u8, u8)>,
}

/// Segments that no bound refuses, in whatever order: fewer than may come, and than may wait for one before them.
const FEW: usize = 12;

fuzz_target!(|connection: Connection| {
    let name = format!("{}example", "label.".repeat(usize::from(connection.labels % 30)));
    let hello = hello(name.as_bytes());
    let mut line = Line::new(TCP, 40_000, 443);
    line.segment(Direction::Up, SYN, connection.start.wrapping_sub(1), &[]);
    let mut there = vec![false; hello.len()];
    for (number, (from, length)) in connection.segments.iter().enumerate() {
        let from = usize::from(*from).min(hello.len());
        let to = (from + usize::from(*length)).min(hello.len());
        let bytes = &hello[from..to];
        if bytes.len() <= 6 && bytes.iter().all(|byte| *byte == 0) {
            continue; // taken for a keep-alive
        }
        there[from..to].fill(true);
        let sequence = connection.start.wrapping_add(u32::try_from(from).unwrap_or(0));
        let told = line.segment(Direction::Up, ACK, sequence, bytes);
        match told {
            Observation::Named(Verdict { name: Some(found), .. })
            | Observation::Upgraded(Verdict { name: Some(found), .. }) => {
                assert_eq!(*found, *name);
                return;
            }
            // Past a bound it may be told without a name.
            _ if number < FEW => {
                assert!(!there.iter().all(|byte| *byte), "the whole hello names nothing: {told:?}");
            }
            _ => {}
        }
    }
});
