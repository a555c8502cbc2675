//! Messages between agents and the orchestrator, in both directions.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use usher_agent::service::{Effect, Service};
use usher_agent::uplink::settings::{Command, Event, Kept, Pushes};
use usher_models::telemetry::{FromAgent, ToAgent, from_agent, to_agent};
use usher_models::units::Micros;
use usher_orchestrator::agents;

const NOW: Micros = Micros::new(1_700_000_000_000_000);

// Input: messages, each after two bytes: its length.
fuzz_target!(|data: &[u8]| {
    let mut pushes = Pushes::new(Service::new(BTreeMap::new(), Effect::default()), Kept::default(), 4, NOW);
    let (mut rest, mut now) = (data, NOW);
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let (bytes, more) = more.split_at(usize::from(u16::from_be_bytes(*length)).min(more.len()));
        rest = more;
        if let Ok(FromAgent { message: Some(from_agent::Message::Batch(batch)) }) = FromAgent::decode(bytes)
            && let Ok(batch) = agents::decode("gateway-1", &batch, NOW)
        {
            assert!(
                batch.usage.iter().all(|usage| usage.at_cap.is_none_or(|share| (0.0..=1.0).contains(&share)))
            );
        }
        if let Ok(ToAgent { message: Some(to_agent::Message::Push(push)) }) = ToAgent::decode(bytes) {
            let mut events = vec![Event::Step(push), Event::Tick];
            while let Some(event) = events.pop() {
                for command in pushes.handle(now, event, |_| true) {
                    if let Command::Verify { push, sessions, toward, .. } = command {
                        events.push(Event::Verified { push, sessions, toward, result: Ok(()) });
                    }
                }
            }
            now = now.after(Duration::from_secs(1));
        }
    }
});
