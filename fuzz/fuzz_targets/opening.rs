//! Words to a proxy or a mail server, then a ClientHello: whichever way its segments cut it, it names the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::{cutting_loses_no_name, hello};

// Input: two bytes that say where to cut, then what the client says before its hello.
fuzz_target!(|data: &[u8]| cutting_loses_no_name(1080, &[data, &hello(b"pages.example")].concat()));
