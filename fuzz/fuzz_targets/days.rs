//! Recorded days: files of anybody, and files that are whole around inputs that are anything.
#![no_main]

use std::io::Cursor;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use usher_models::units::Micros;
use usher_orchestrator::days::{About, Day, DayWriter, replay};
use usher_orchestrator::engine::Engine;
use usher_orchestrator::identity::Directory;
use usher_orchestrator::ledger::Journaled;
use usher_orchestrator::policy::Policy;

const POLICY: &str = include_str!("../../tests/demo/policy.yaml");
const PROFILES: &str = include_str!("../../tests/demo/profiles.yaml");

static BOOK: LazyLock<(Policy, Directory)> = LazyLock::new(|| {
    let policy = Policy::parse("policy.yaml", POLICY).expect("the demo's policy has no mistakes");
    let directory =
        Directory::parse("profiles.yaml", PROFILES).expect("the demo's profiles have no mistakes");
    (policy, directory)
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(day) = Day::open(bytes) {
        let _ = replay::replay(day, None, 1);
    }
    let (policy, directory) = &*BOOK;
    let mut engine = Engine::new(policy.clone(), directory).expect("they fit");
    engine.step(Micros::new(0), usher_orchestrator::engine::io::Input::Tick);
    let about = About {
        version: String::new(),
        began: Micros::new(0),
        position: 0,
        policy_file: "policy.yaml".into(),
        policy: POLICY.into(),
        revision: policy.revision().into(),
    };
    let file = Cursor::new(Vec::new());
    let mut writer = DayWriter::begin(file, &about, &engine.snapshot(0)).expect("memory can be written to");
    let inputs: Vec<&[u8]> = bytes.split(|byte| *byte == 0xff).collect();
    for (position, input) in (1..).zip(&inputs) {
        let row = Journaled { position, input: input.to_vec(), effects: None };
        writer.entry(&row).expect("memory can be written to");
    }
    let mut file = writer.finish().expect("memory can be written to").into_inner();
    if let Ok(report) = replay::replay(Day::open(&file[..]).expect("it is a day"), None, 1) {
        assert_eq!(report.inputs, inputs.len() as u64);
        assert!(report.finished);
    }
    // One bit that is another one is found, wherever it is.
    let at = bytes.iter().fold(7_usize, |at, byte| at.wrapping_mul(31).wrapping_add(usize::from(*byte)))
        % file.len();
    file[at] ^= 1;
    let told =
        Day::open(&file[..]).map_err(replay::ReplayError::from).and_then(|day| replay::replay(day, None, 1));
    assert!(told.is_err(), "byte {at} of {} was changed, and nobody saw", file.len());
});
