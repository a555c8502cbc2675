//! Files an operator writes: the catalogue, the sessions as YAML and as CSV.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_agent::classify::Catalogue;
use usher_agent::sessions::Sessions;

fuzz_target!(|text: &str| {
    let _ = Catalogue::empty().extend("catalogue.yaml", text);
    let _ = Sessions::from_yaml("sessions.yaml", text, &[]);
    let _ = Sessions::from_csv("sessions.csv", text, &[]);
});
