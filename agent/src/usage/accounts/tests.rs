//! Books driven by hand: sessions that come and go, drains, restarts.

use prost::Message as _;

use super::*;
use crate::usage::batches::BATCH_BYTES;

fn accounts() -> Accounts {
    let restored = Restored {
        boot: Boot([7; 16]),
        sequence: 0,
        drained: Micros::new(0),
        baseline: Vec::new(),
        apps: Vec::new(),
        accounts: Vec::new(),
    };
    Accounts::new(restored, 3)
}

fn facts(id: &str, prefix: &str) -> SessionFacts {
    let keys = vec![format!("imsi:{id}")];
    SessionFacts { id: id.into(), keys, prefixes: vec![prefix.parse().unwrap()], ..SessionFacts::default() }
}

fn counted(bytes: u64) -> SlotUsage {
    let mut usage = SlotUsage::default();
    usage.cells[0][0] = Cell { bytes, packets: 1, ..Cell::default() };
    usage
}

fn at(seconds: i64) -> Micros {
    Micros::new(seconds * 1_000_000)
}

fn become_(accounts: &mut Accounts, sessions: &[SessionFacts], now: Micros) -> Plan {
    let plan = accounts.plan(sessions.to_vec(), now, false);
    accounts.apply(plan.changed.clone());
    plan
}

fn decoded(batch: &Encoded) -> telemetry::Batch {
    let decoded = telemetry::Batch::decode(batch.bytes.as_slice()).unwrap();
    assert_eq!(decoded.sequence, batch.sequence);
    decoded
}

fn tell(accounts: &mut Accounts, now: Micros, readings: &[(u32, SlotUsage)]) -> Vec<telemetry::Batch> {
    tell_all(accounts, now, readings, &[])
}

fn tell_all(
    accounts: &mut Accounts,
    now: Micros,
    readings: &[(u32, SlotUsage)],
    apps: &[AppMoved],
) -> Vec<telemetry::Batch> {
    let moved = readings.iter().flat_map(|(slot, usage)| accounts.baseline().moved(*slot, usage)).collect();
    let drained = accounts.drain(now, (moved, apps.to_vec()), &ServedBySlot::new(), &[], |_| None);
    accounts.committed(&drained);
    drained.batches.iter().map(decoded).collect()
}

#[test]
fn an_address_that_moves_takes_none_of_the_old_ones_usage_along() {
    let mut accounts = accounts();
    let old = become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(0));
    assert_eq!(old.bind, [("10.0.0.2/32".parse().unwrap(), 1)]);
    tell(&mut accounts, at(1), &[(1, counted(100))]);

    let moved = become_(&mut accounts, &[facts("b", "10.0.0.2/32")], at(2));
    assert_eq!(moved.unbind, []);
    assert_eq!(moved.bind, [("10.0.0.2/32".parse().unwrap(), 2)]);
    let batches = tell(&mut accounts, at(3), &[(1, counted(150)), (2, counted(7))]);
    let told: Vec<_> = batches[0].usage.iter().map(|usage| (usage.session.as_str(), usage.bytes)).collect();
    assert_eq!(told, [("a", 50), ("b", 7)]);
}

#[test]
fn bytes_by_app_are_told_of_sessions_alone_and_once() {
    let mut accounts = accounts();
    become_(&mut accounts, &[facts("a", "10.0.0.2/32"), facts("b", "10.0.0.3/32")], at(0));
    let moved = |lane, slot, app: &str, now| AppMoved { lane, slot, app: app.into(), now };
    let mut told = |seconds, apps: &[AppMoved]| {
        let batches = tell_all(&mut accounts, at(seconds), &[], apps);
        let rows = batches.into_iter().flat_map(|batch| batch.apps);
        rows.map(|row| (row.session, row.app, row.bytes_up, row.bytes_down)).collect::<Vec<_>>()
    };
    let row = |session: &str, app: &str, up, down| (session.to_owned(), app.to_owned(), up, down);
    let first = [
        moved(0, 2, "streams", [0, 1]),
        moved(1, 2, "streams", [5, 69]),
        moved(2, 1, "streams", [1, 0]),
        moved(3, 3, "chat", [9, 9]),
    ];
    assert_eq!(
        told(1, &first),
        [row("a", "streams", 1, 0), row("b", "streams", 5, 70)],
        "slot 3 is nobody's"
    );
    // The lane that was nobody's is an app's by now: it is told what came since.
    let then = [moved(1, 2, "streams", [6, 69]), moved(3, 1, "chat", [9, 11])];
    assert_eq!(told(2, &then), [row("a", "chat", 0, 2), row("b", "streams", 1, 0)]);
}

#[test]
fn a_close_is_told_after_the_last_usage_and_frees_the_slot() {
    let mut accounts = accounts();
    become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(0));
    tell(&mut accounts, at(1), &[]);
    let plan = become_(&mut accounts, &[], at(2));
    assert_eq!(plan.unbind, ["10.0.0.2/32".parse().unwrap()]);
    assert!(accounts.open("a").is_none());
    assert_eq!(tell(&mut accounts, at(3), &[(1, counted(10))]).len(), 1);
    let batches = tell(&mut accounts, at(4), &[(1, counted(30))]);
    assert_eq!(batches.iter().map(|batch| batch.sequence).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(batches[0].usage[0].bytes, 20);
    assert_eq!(batches[1].sessions[0].state(), telemetry::SessionState::Closed);
    assert_eq!(accounts.session_of(1), "");
    assert_eq!(accounts.used_slots(), [0..2, 4..4], "none of names");

    // What still comes in a slot that is nobody's is nobody's; its next holder starts where the counters stand.
    let batches = tell(&mut accounts, at(5), &[(1, counted(37))]);
    assert_eq!((batches[0].usage[0].session.as_str(), batches[0].usage[0].bytes), ("", 7));
    become_(&mut accounts, &[facts("b", "10.0.0.3/32")], at(5));
    let batches = tell(&mut accounts, at(6), &[(1, counted(38))]);
    assert_eq!((batches[0].usage[0].session.as_str(), batches[0].usage[0].bytes), ("b", 1));
}

#[test]
fn a_session_that_comes_back_keeps_its_slot() {
    let mut accounts = accounts();
    become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(0));
    become_(&mut accounts, &[], at(1));
    let plan = become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(2));
    assert_eq!(plan.bind, [("10.0.0.2/32".parse().unwrap(), 1)]);
    assert_eq!(accounts.open("a").unwrap().slot, 1);
}

#[test]
fn prefixes_under_a_name_are_counted_apart_and_give_way_to_a_session() {
    let mut accounts = accounts();
    let guests = |prefix: &str| SessionFacts::anonymous("guests", vec![prefix.parse().unwrap()]);
    let first = become_(&mut accounts, &[guests("100.64.0.0/10"), facts("a", "10.0.0.2/32")], at(0));
    let slot = 4;
    assert_eq!(first.bind.last(), Some(&("100.64.0.0/10".parse().unwrap(), slot)), "beyond sessions' slots");
    assert!(accounts.open("anonymous guests").is_none(), "no session: nothing can be set for it");
    let batch = &tell(&mut accounts, at(1), &[(ANONYMOUS, counted(3)), (slot, counted(5))])[0];
    let told: Vec<_> = batch
        .usage
        .iter()
        .map(|usage| (usage.session.as_str(), usage.anonymous.as_str(), usage.bytes))
        .collect();
    assert_eq!(told, [("", "", 3), ("", "guests", 5)]);
    assert_eq!(batch.sessions.len(), 1, "only the session is announced");

    // A session of the very same prefix has it, and gives it back when it closes.
    let taken = become_(&mut accounts, &[facts("b", "100.64.0.0/10"), guests("100.64.0.0/10")], at(2));
    assert_eq!(taken.bind, [("100.64.0.0/10".parse().unwrap(), 2)]);
    let back = become_(&mut accounts, &[guests("100.64.0.0/10")], at(3));
    assert_eq!(back.bind, [("100.64.0.0/10".parse().unwrap(), slot)]);

    // Gone from the configuration: its last usage is told under its name, its end is no session's.
    become_(&mut accounts, &[], at(4));
    let last = tell(&mut accounts, at(5), &[(slot, counted(6))]);
    assert_eq!((last[0].usage[0].anonymous.as_str(), last[0].usage[0].bytes), ("guests", 1));
    let ends = tell(&mut accounts, at(9), &[]);
    let ended: Vec<_> =
        last.iter().chain(&ends).flat_map(|batch| &batch.sessions).map(|session| &session.id).collect();
    assert_eq!(ended, ["a", "b"]);
    assert_eq!(accounts.session_of(slot), "");
}

#[test]
fn names_keep_their_slots_over_a_restart_and_take_none_of_sessions() {
    let guests = SessionFacts::anonymous("guests", vec!["100.64.0.0/10".parse().unwrap()]);
    let account = Account { slot: 5, facts: guests.clone(), since: at(0), closing: None };
    let mut accounts = Accounts::new(Restored { accounts: vec![account], ..accounts_restored() }, 3);
    let mut all: Vec<_> = (0..4).map(|n| facts(&format!("s{n}"), &format!("10.0.0.{n}/32"))).collect();
    all.push(guests);
    let more = (0..MAX_ANONYMOUS - 1)
        .map(|n| SessionFacts::anonymous(&format!("n{n}"), vec![format!("100.{n}.0.0/16").parse().unwrap()]));
    all.extend(more);
    let plan = become_(&mut accounts, &all, at(1));
    assert_eq!(plan.without_slot, ["s3"]);
    assert!(
        accounts.all_open().all(|account| (account.slot > 3) == account.facts.anonymous_name().is_some())
    );
    assert_eq!(accounts.slot_of("anonymous guests"), Some(5));
    let slots: BTreeSet<u32> = accounts.all_open().map(|account| account.slot).collect();
    assert_eq!(slots.len(), 3 + MAX_ANONYMOUS);
}

#[test]
fn a_drain_looks_at_no_slot_between_those_of_few_sessions_and_those_of_names() {
    let mut accounts = Accounts::new(accounts_restored(), 200_000);
    assert_eq!(accounts.used_slots()[0], 0..1);
    let guests = SessionFacts::anonymous("guests", vec!["100.64.0.0/10".parse().unwrap()]);
    become_(&mut accounts, &[facts("a", "10.0.0.2/32"), facts("b", "10.0.0.3/32"), guests], at(0));
    assert_eq!(accounts.used_slots(), [0..3, 200_001..200_002]);
    let restored = Restored { accounts: accounts.all_open().cloned().collect(), ..accounts_restored() };
    assert_eq!(Accounts::new(restored, 200_000).used_slots(), [0..3, 200_001..200_002]);
}

#[test]
fn sessions_beyond_the_last_slot_are_named_and_left_anonymous() {
    let accounts = accounts();
    let many: Vec<_> = (0..5).map(|n| facts(&format!("s{n}"), &format!("10.0.0.{n}/32"))).collect();
    let plan = accounts.plan(many, at(0), false);
    assert_eq!(plan.without_slot, ["s3", "s4"]);
    assert_eq!(plan.bind.len(), 3);
}

#[test]
fn every_open_session_is_announced_in_the_first_batch_and_again_when_it_changes() {
    let mut accounts = accounts();
    become_(&mut accounts, &[facts("a", "10.0.0.2/32"), facts("b", "10.0.0.3/32")], at(0));
    assert_eq!(tell(&mut accounts, at(1), &[])[0].sessions.len(), 2);
    assert_eq!(tell(&mut accounts, at(2), &[])[0].sessions.len(), 0);
    let roaming = SessionFacts { roaming: true, ..facts("a", "10.0.0.2/32") };
    become_(&mut accounts, &[roaming, facts("b", "10.0.0.3/32")], at(3));
    let sessions = &tell(&mut accounts, at(4), &[])[0].sessions;
    assert_eq!(sessions.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_drain_of_many_sessions_is_cut_into_batches_of_bounded_size() {
    let restored = Restored { boot: Boot([7; 16]), sequence: 4, ..accounts_restored() };
    let mut accounts = Accounts::new(restored, 30_000);
    let many: Vec<_> = (0..30_000_u32)
        .map(|n| facts(&format!("s{n}"), &format!("10.{}.{}.1/32", n >> 8, n & 255)))
        .collect();
    become_(&mut accounts, &many, at(0));
    let batches = tell(&mut accounts, at(1), &[]);
    assert!(batches.len() > 1);
    assert!(batches.iter().all(|batch| batch.encoded_len() < 2 * BATCH_BYTES));
    assert!(batches.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
    assert_eq!(batches.iter().map(|batch| batch.sessions.len()).sum::<usize>(), 30_000);
}

fn accounts_restored() -> Restored {
    Restored {
        boot: Boot([0; 16]),
        sequence: 0,
        drained: at(0),
        baseline: Vec::new(),
        apps: Vec::new(),
        accounts: Vec::new(),
    }
}

#[test]
fn a_clock_set_back_makes_no_interval_that_ends_before_it_begins() {
    let mut accounts = accounts();
    tell(&mut accounts, at(10), &[]);
    let batch = &tell(&mut accounts, at(5), &[])[0];
    assert!(batch.end_us > batch.start_us);
}
