//! Datagrams of one UDP flow, as QUIC's first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::{Line, UDP};
use usher_models::wire::Direction;

// Input: datagrams, each after two bytes: its direction and length.
fuzz_target!(|data: &[u8]| {
    let mut line = Line::new(UDP, 40_000, 443);
    let mut rest = data;
    while let Some(([high, low], more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes([*high & 0x07, *low]));
        let (bytes, more) = more.split_at(length.min(more.len()));
        rest = more;
        line.datagram(if *high & 0x80 != 0 { Direction::Down } else { Direction::Up }, bytes);
    }
    line.end();
});
