//! Catalogues: the two forms of text, and what they are compiled to, which is looked up where it lies.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use usher_agent::classify::Catalogue;
use usher_agent::classify::catalogue::Form;

// Input: a byte that says what the rest is; where a compiled catalogue is damaged, and by what; then text, or the catalogue.
fuzz_target!(|data: &[u8]| {
    let Some(([kind, high, low, damage], rest)) = data.split_first_chunk::<4>() else { return };
    let mut catalogue = Catalogue::empty();
    let added = match (kind % 4, std::str::from_utf8(rest)) {
        (0, Ok(text)) => catalogue.extend("catalogue.yaml", text),
        (1 | 2, Ok(text)) => Catalogue::compile("catalogue.list", text, Form::List).and_then(|mut bytes| {
            let at = usize::from(u16::from_be_bytes([*high, *low]));
            match bytes.get_mut(at).filter(|_| kind % 4 == 2) {
                Some(byte) => {
                    *byte ^= damage;
                    catalogue.extend_compiled("catalogue", bytes)
                }
                None => {
                    let read = catalogue.extend_compiled("catalogue", bytes);
                    assert!(read.is_ok(), "what was compiled is not read: {read:?}");
                    read
                }
            }
        }),
        _ => catalogue.extend_compiled("catalogue", rest.to_vec()),
    };
    if added.is_ok() {
        for name in ["a", "a.test", "www.a.test", "b.www.a.test", "xn--a.b.c.d.e.f.example"] {
            let found = catalogue.look_up(name).cloned();
            assert_eq!(catalogue.explain(name).map(|rule| rule.entry.clone()), found);
        }
        catalogue.look_up_address(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        catalogue.look_up_address(IpAddr::from([0x20, 1, 13, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
    }
});
