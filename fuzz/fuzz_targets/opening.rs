//! Words to a proxy or a mail server, then a ClientHello: whichever way its segments cut it, it names the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_fuzz::{cut, hello, name_said};

// Input: two bytes that say where to cut, then what the client says before its hello.
fuzz_target!(|data: &[u8]| {
    let said = [data, &hello(b"pages.example")].concat();
    if let Some(pieces) = cut(&said) {
        assert_eq!(
            name_said(1080, [&*pieces.concat()]),
            name_said(1080, pieces),
            "{:?}",
            pieces.map(<[u8]>::escape_ascii).map(|piece| piece.to_string())
        );
    }
});
