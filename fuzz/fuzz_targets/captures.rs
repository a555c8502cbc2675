//! Capture files, pcap and pcapng: however few bytes come at a time, they hold the same packets.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use usher_agent::capture::records::{Captured, Records};

/// Gives at most so many bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.1.min(into.len());
        self.0.read(&mut into[..count])
    }
}

/// The packets, and why there are no more.
fn packets(from: impl Read) -> (Vec<(i32, i64, usize, Vec<u8>)>, Option<String>) {
    let mut packets = Vec::new();
    let mut records = match Records::new(from) {
        Ok(records) => records,
        Err(error) => return (packets, Some(error.to_string())),
    };
    loop {
        match records.next_packet() {
            Ok(Some(Captured { link, seen, wire, bytes })) => {
                assert!(wire >= bytes.len());
                packets.push((link, seen.get(), wire, bytes.to_vec()));
            }
            Ok(None) => return (packets, None),
            Err(error) => return (packets, Some(error.to_string())),
        }
    }
}

// Input: a byte that says how many come at a time, then the file.
fuzz_target!(|data: &[u8]| {
    let Some((count, file)) = data.split_first() else { return };
    let whole = packets(file);
    assert!(whole.0.len() <= file.len(), "a packet takes bytes");
    assert_eq!(whole, packets(Trickle(file, usize::from(*count).max(1))));
});
