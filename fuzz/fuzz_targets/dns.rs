//! DNS messages in datagrams.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_agent::classify::dns::{Message, is_certain_question};

fuzz_target!(|data: &[u8]| {
    let message = Message::parse(data);
    if is_certain_question(data) {
        let message = message.as_ref().expect("a certain question is a message");
        assert!(!message.response && message.question.is_some());
    }
    if let Some(message) = message {
        assert!(message.addresses.len() <= 32);
        assert!(message.question.is_none_or(|name| name.len() <= 253));
        assert!(message.asked.is_none_or(|name| name.bytes().all(|byte| byte.is_ascii_graphic())));
    }
});
