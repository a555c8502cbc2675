//! Segments of one TCP connection, in any order and both ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::{Line, TCP};
use usher_models::wire::Direction;

// Input: segments, each after four bytes: its TCP flags and direction, its place in the stream, its length.
fuzz_target!(|data: &[u8]| {
    let mut line = Line::new(TCP, 40_000, 443);
    let mut rest = data;
    while let Some(([flags, high, low, length], more)) = rest.split_first_chunk::<4>() {
        let (bytes, more) = more.split_at((usize::from(*length) * 8).min(more.len()));
        rest = more;
        let direction = if flags & 0x80 != 0 { Direction::Down } else { Direction::Up };
        line.segment(direction, flags & 0x17, u32::from_be_bytes([0, 0, *high, *low]), bytes);
    }
    line.end();
});
