//! DNS over TCP: whichever way its segments cut it, it asks the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::{cut, name_said};

// Input: two bytes that say where to cut, then what the client says.
fuzz_target!(|data: &[u8]| {
    if let Some(pieces) = cut(data) {
        assert_eq!(name_said(53, [&*pieces.concat()]), name_said(53, pieces));
    }
});
