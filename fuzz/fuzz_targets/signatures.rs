//! Datagrams of one UDP flow between any ports.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::{Line, UDP};
use usher_models::wire::Direction;

// Input: the remote port; then datagrams, each after a byte: its direction and length.
fuzz_target!(|data: &[u8]| {
    let Some((port, mut rest)) = data.split_first_chunk::<2>() else { return };
    let mut line = Line::new(UDP, 40_000, u16::from_be_bytes(*port));
    while let Some((head, more)) = rest.split_first() {
        let (bytes, more) = more.split_at((usize::from(*head & 0x7f) * 4).min(more.len()));
        rest = more;
        line.datagram(if *head & 0x80 != 0 { Direction::Down } else { Direction::Up }, bytes);
    }
    line.end();
});
