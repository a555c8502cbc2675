//! Tokens of the links that people tap.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_models::units::Micros;
use usher_orchestrator::advice::Links;

const NOW: Micros = Micros::new(1_700_000_000_000_000);

fuzz_target!(|token: &str| {
    let links = Links::with_key([7; 32], "https://advice.example");
    if let Ok(decision) = links.open(token, NOW) {
        // Whoever signs with the key gets the same link: nothing but the key makes one.
        assert!(!decision.0.is_empty());
    }
});
