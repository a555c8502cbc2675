//! Files an operator writes: the agent's configuration, catalogue and sessions; the orchestrator's configuration, policy and
//! profiles.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use usher_agent::classify::Catalogue;
use usher_agent::sessions::Sessions;
use usher_orchestrator::identity::Directory;
use usher_orchestrator::policy::Policy;

fuzz_target!(|text: &str| {
    let _ = usher_agent::config::Config::parse(Path::new("agent.yaml"), text);
    let _ = Catalogue::empty().extend("catalogue.yaml", text);
    let _ = Sessions::from_yaml("sessions.yaml", text, &[]);
    let _ = Sessions::from_csv("sessions.csv", text, &[]);
    let _ = usher_orchestrator::config::Config::parse(Path::new("orchestrator.yaml"), text);
    if let Ok(directory) = Directory::parse("profiles.yaml", text) {
        directory.inputs_since(&Directory::default());
    }
    if let Ok(policy) = Policy::parse("policy.yaml", text) {
        let _ = policy.check(&std::collections::BTreeMap::new());
    }
});
