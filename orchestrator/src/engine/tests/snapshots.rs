//! Snapshots: whole or refused.

use proptest::prelude::*;

use super::*;
use crate::engine::snapshot::{Snapshot, SnapshotError};

fn taken() -> Vec<u8> {
    let mut engine = engine();
    open(&mut engine, 0, "a", "26201");
    open(&mut engine, 0, "b", "00101");
    capped(&mut engine, "b", 1, 14);
    let mut file = Vec::new();
    engine.snapshot(0).write(&mut file).unwrap();
    file
}

#[test]
fn windows_holds_and_messages_go_on_where_they_were() {
    let (mut second, _) = Engine::from_snapshot(&taken()[..]).unwrap();
    // Held since 10 s: it fires at 15 s, told of at 17 s, as if nothing had happened.
    let effects = capped(&mut second, "b", 14, 17);
    assert_eq!(decisions(&effects).len(), 1);
    assert_eq!(decisions(&effects)[0].moment, "starved");
    assert_eq!(second.state_of(&id("a")).unwrap().contacts.len(), 1);
    let link = second.state_of(&id("a")).unwrap().contacts[0].decision.clone();
    assert_eq!(second.tap_state(&link, s(20)), TapState::Open);
}

#[test]
fn a_snapshot_of_a_policy_that_this_build_does_not_read_is_refused() {
    let mut snapshot = taken();
    let version = snapshot.windows(10).position(|bytes| bytes == b"version: 1").unwrap();
    snapshot[version + 9] = b'9';
    let other = Engine::from_snapshot(&snapshot[..]);
    assert!(matches!(other, Err(SnapshotError::Policy(_))), "{other:?}");
}

#[test]
fn the_engine_goes_on_while_a_snapshot_is_kept_and_the_snapshot_does_not_change() {
    let mut engine = engine();
    open(&mut engine, 0, "b", "00101");
    let snapshot = engine.snapshot(0);
    let written = |snapshot: &Snapshot| {
        let mut file = Vec::new();
        snapshot.write(&mut file).unwrap();
        file
    };
    let before = written(&snapshot);
    capped(&mut engine, "b", 1, 20);
    assert_eq!(written(&snapshot), before);
    assert_ne!(written(&engine.snapshot(0)), before);
}

proptest! {
    #[test]
    fn a_cut_or_changed_snapshot_is_refused(at in any::<prop::sample::Index>(), change in 1_u8.., cut in any::<bool>()) {
        let mut file = taken();
        let at = at.index(file.len());
        if cut {
            file.truncate(at);
        } else {
            file[at] ^= change;
        }
        prop_assert!(Engine::from_snapshot(&file[..]).is_err());
    }
}
