//! DNS messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_agent::classify::dns::Message;

fuzz_target!(|data: &[u8]| {
    if let Some(message) = Message::parse(data) {
        assert!(message.addresses.len() <= 32);
        assert!(message.question.is_none_or(|name| name.len() <= 253));
    }
});
