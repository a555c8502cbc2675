//! DNS over TCP: whichever way its segments cut it, it asks the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::cutting_loses_no_name;

// Input: two bytes that say where to cut, then what the client says.
fuzz_target!(|data: &[u8]| cutting_loses_no_name(53, data));
