//! Days: whole or refused, and where.

use std::io::Cursor;

use proptest::prelude::*;
use usher_models::units::SubscriberId;

use super::*;
use crate::engine::io::{Observed, SessionSeen};
use crate::inputs::tests::{PROFILES, book};

/// A day of one roamer, of whom something is decided, and a few ticks.
fn recorded() -> Vec<u8> {
    let book = book(PROFILES);
    let mut engine = Engine::new(book.policy.clone(), &book.directory).unwrap();
    let at = |second: i64| Micros::new((1_795_258_800 + second) * 1_000_000);
    engine.step(at(0), Input::Tick);
    let about = About {
        version: "0".into(),
        began: at(0),
        position: 7,
        policy_file: "policy.yaml".into(),
        policy: book.policy.text().to_owned(),
        revision: book.policy.revision().to_owned(),
    };
    let mut writer = DayWriter::begin(Cursor::new(Vec::new()), &about, &engine.snapshot(7)).unwrap();
    let abroad = SessionSeen {
        subscriber: SubscriberId("sub-b".into()),
        session: "s".into(),
        open: true,
        serving_plmn: "26201".into(),
        roaming: true,
        time_zone: String::new(),
        rat: String::new(),
    };
    let observed = Observed {
        agent: "gw".into(),
        start: at(0),
        end: at(1),
        sessions: vec![abroad],
        usage: Vec::new(),
        named: Vec::new(),
        apps: Vec::new(),
    };
    for (position, input) in [(8, Input::Observed(observed)), (9, Input::Tick), (10, Input::Tick)] {
        let now = at(i64::try_from(position).unwrap());
        let encoded = postcard::to_allocvec(&(now, &input)).unwrap();
        let effects = Digest::of(&engine.step(now, input));
        writer.entry(&Journaled { position, input: encoded, effects }).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn played(file: &[u8]) -> Result<replay::Report, replay::ReplayError> {
    replay::replay(Day::open(file)?, None, 3)
}

#[test]
fn a_whole_day_is_read_to_its_end() {
    let report = played(&recorded()).unwrap();
    assert!(report.finished && report.difference.is_none(), "{report:?}");
    assert_eq!((report.inputs, report.under.messages), (3, 1));
    assert_eq!(report.under.pushes_per_minute_peak, report.under.pushes);
}

#[test]
fn what_is_no_day_or_another_format_is_told_so() {
    assert!(matches!(Day::open(&b"not a day, but as long as one's head is"[..]), Err(DayError::Foreign)));
    assert!(matches!(Day::open(&b""[..]), Err(DayError::Foreign)));
    let mut file = recorded();
    file[8] += 1;
    let error = Day::open(&file[..]).unwrap_err();
    assert!(error.to_string().contains("format 2, this build reads 1"), "{error}");
}

#[test]
fn an_input_that_leads_to_something_else_is_named() {
    let mut file = recorded();
    // The same day, of a daemon that did something else in the first input.
    let mut day = Day::open(Cursor::new(file.clone())).unwrap();
    day.skip_engine().unwrap();
    let begins = usize::try_from(day.file.stream_position().unwrap()).unwrap();
    let mut rows = Vec::new();
    while let Some(row) = day.next_row().unwrap() {
        rows.push(row);
    }
    file.truncate(begins);
    let mut cursor = Cursor::new(file);
    cursor.set_position(begins as u64);
    let check = Digest::of_bytes(&[&postcard::to_allocvec(&day.about).unwrap()]);
    let mut writer = DayWriter { file: cursor, check, position: 7, entries: 0 };
    for mut row in rows {
        row.effects = row.effects.map(|_| Digest([1; 16]));
        writer.entry(&row).unwrap();
    }
    let report = played(&writer.finish().unwrap().into_inner()).unwrap();
    assert_eq!(report.difference.unwrap().position, 8);
    assert_ne!(report.recorded, report.replayed);
}

proptest! {
    #[test]
    fn a_cut_or_changed_day_is_refused_and_never_misread(
        at in any::<prop::sample::Index>(), change in 1_u8.., cut in any::<bool>(),
    ) {
        let whole = recorded();
        let mut file = whole.clone();
        let at = at.index(file.len());
        if cut {
            file.truncate(at);
        } else {
            file[at] ^= change;
        }
        match played(&file) {
            Err(_) => {}
            // Cut between two entries, it is a day that is still being written.
            Ok(report) => prop_assert!(cut && !report.finished && report.difference.is_none(), "{report:?}"),
        }
    }

    #[test]
    fn strange_inputs_are_refused(input in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut file = Cursor::new(recorded());
        let mut day = Day::open(Cursor::new(file.get_ref().clone())).unwrap();
        day.skip_engine().unwrap();
        let begins = day.file.stream_position().unwrap();
        file.get_mut().truncate(usize::try_from(begins).unwrap());
        file.set_position(begins);
        let mut writer = DayWriter { file, check: day.check, position: 7, entries: 0 };
        writer.entry(&Journaled { position: 8, input, effects: None }).unwrap();
        let file = writer.finish().unwrap().into_inner();
        // Bytes that happen to be an input are played; whatever they are, nothing panics.
        let _ = played(&file);
    }
}
