//! Every way through a push, and what a restart at any point of it leaves.

use proptest::prelude::*;
use usher_models::setting::Setting;
use usher_models::units::BitsPerSecond;
use usher_models::wire::Class;

use super::*;
use crate::service::Effect;

fn service() -> Service {
    let rate =
        |rate| Effect { class: Some(Class::Video), down: Some(BitsPerSecond(rate)), ..Effect::default() };
    let video = BTreeMap::from([("sd".to_owned(), rate(1_500_000)), ("hd".to_owned(), rate(8_000_000))]);
    Service::new(BTreeMap::from([("video".to_owned(), video)]), Effect::PASS)
}

/// The core with the least of shells: a store that is a copy of what was saved, a data plane that is told to agree or not.
struct Gateway {
    pushes: Pushes,
    stored: Kept,
    applied: Vec<String>,
    agrees: bool,
}

impl Gateway {
    fn new() -> Self {
        Self::restarted(Kept::default(), 0)
    }

    fn restarted(stored: Kept, now: i64) -> Self {
        let pushes = Pushes::new(service(), stored.clone(), 3, Micros::new(now));
        Self { pushes, stored, applied: vec![], agrees: true }
    }

    fn feed(&mut self, now: i64, event: Event) -> Vec<telemetry::Report> {
        let is_open = |session: &str| session != "gone";
        let mut commands =
            std::collections::VecDeque::from(self.pushes.handle(Micros::new(now), event, is_open));
        let mut answers = vec![];
        while let Some(command) = commands.pop_front() {
            match command {
                Command::Save(change) => {
                    for (push, record) in change.pushes {
                        match record {
                            Some(record) => self.stored.pushes.insert(push, record),
                            None => self.stored.pushes.remove(&push),
                        };
                    }
                    for (session, settings) in change.settings {
                        match settings {
                            Some(settings) => self.stored.confirmed.insert(session, settings),
                            None => self.stored.confirmed.remove(&session),
                        };
                    }
                }
                Command::Apply(sessions) => self.applied.extend(sessions),
                Command::Verify { push, sessions, write: _, toward } => {
                    let result = if self.agrees { Ok(()) } else { Err("the map says otherwise".to_owned()) };
                    let verified = Event::Verified { push, sessions, toward, result };
                    commands.extend(self.pushes.handle(Micros::new(now), verified, is_open));
                }
                Command::Answer(report) => answers.push(report),
            }
        }
        answers
    }

    fn step(&mut self, now: i64, push: &str, step: Step) -> telemetry::Report {
        let push = telemetry::Push { push: push.to_owned(), step: Some(step) };
        self.feed(now, Event::Step(push)).remove(0)
    }

    fn video(&self, session: &str) -> Option<&str> {
        Some(self.pushes.in_force(session)?.values["video"].value.as_str())
    }
}

fn desired(session: &str, revision: u64, video: &str, until: Option<i64>) -> telemetry::Desired {
    let otherwise = if until.is_some() { "sd" } else { video };
    let setting = Setting { value: video.into(), until: until.map(Micros::new), otherwise: otherwise.into() };
    Settings { revision, values: BTreeMap::from([("video".to_owned(), setting)]) }.to_desired(session)
}

fn prepare(revision: u64, video: &str) -> Step {
    Step::Prepare(telemetry::Prepare {
        desired: vec![desired("a", revision, video, None)],
        confirm_within_ms: 1,
    })
}

const CONFIRM: Step = Step::Confirm(telemetry::Confirm {});
const CANCEL: Step = Step::Cancel(telemetry::Cancel {});

#[test]
fn a_push_is_held_then_confirmed_and_each_answer_is_what_runs() {
    let mut gateway = Gateway::new();
    let prepared = gateway.step(0, "p1", prepare(1, "hd"));
    assert_eq!((prepared.stage(), &prepared.running), (Stage::Prepared, &vec![desired("a", 1, "hd", None)]));
    assert_eq!(gateway.pushes.next(), Some(Micros::new(1_000)));
    assert_eq!(gateway.stored.confirmed, BTreeMap::new());
    let confirmed = gateway.step(999, "p1", CONFIRM);
    assert_eq!((confirmed.stage(), confirmed.running.len()), (Stage::Confirmed, 1));
    assert_eq!(gateway.step(5_000, "p1", CONFIRM).stage(), Stage::Confirmed);
    gateway.feed(9_000, Event::Tick);
    assert_eq!(gateway.video("a"), Some("hd"));
    let read = Step::Read(telemetry::Read { sessions: vec!["a".into(), "b".into()] });
    let running = gateway.step(9_000, "r1", read);
    assert_eq!(running.stage(), Stage::Running);
    assert_eq!(
        running.running,
        [desired("a", 1, "hd", None), telemetry::Desired { session: "b".into(), ..Default::default() }]
    );
}

#[test]
fn a_drifted_data_plane_is_told_as_running_nothing_and_the_next_push_puts_it_right() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(1, "sd"));
    gateway.step(0, "p1", CONFIRM);
    gateway.agrees = false;
    let read = Step::Read(telemetry::Read { sessions: vec!["a".into()] });
    let drifted = gateway.step(1, "p2", read);
    assert_eq!((drifted.stage(), drifted.running.len()), (Stage::Running, 0));
    assert!(drifted.error.contains("the map says otherwise"), "{}", drifted.error);
    gateway.agrees = true;
    assert_eq!(gateway.step(1, "p2", prepare(1, "sd")).stage(), Stage::Prepared);
}

#[test]
fn what_is_not_confirmed_by_the_deadline_is_undone_also_after_a_restart() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(1, "sd"));
    gateway.step(1, "p1", CONFIRM);
    gateway.step(0, "p2", prepare(2, "hd"));
    assert_eq!(gateway.video("a"), Some("hd"));

    let mut restarted = Gateway::restarted(gateway.stored, 500);
    assert_eq!(restarted.video("a"), Some("hd"));
    assert_eq!(restarted.pushes.next(), Some(Micros::new(1_000)));
    restarted.feed(1_000, Event::Tick);
    assert_eq!((restarted.video("a"), restarted.applied.as_slice()), (Some("sd"), &["a".to_owned()][..]));
    let again = Gateway::restarted(restarted.stored, 1_000).step(1_001, "p2", CONFIRM);
    assert_eq!(again.error, "it is not in force any more: it was not confirmed in time");
}

#[test]
fn a_confirmation_after_the_deadline_is_refused_even_before_the_next_tick() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(1, "hd"));
    assert_eq!(gateway.step(1_000, "p1", CONFIRM).stage(), Stage::Refused);
    assert_eq!(gateway.video("a"), None);
}

#[test]
fn a_cancelled_push_leaves_what_was_confirmed_before() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(1, "sd"));
    gateway.step(0, "p1", CONFIRM);
    gateway.step(0, "p2", prepare(2, "hd"));
    assert_eq!(gateway.step(1, "p2", CANCEL).stage(), Stage::Cancelled);
    assert_eq!(gateway.video("a"), Some("sd"));
    assert_eq!(gateway.step(2, "p2", CANCEL).stage(), Stage::Cancelled);
    assert_eq!(gateway.step(2, "never", CANCEL).stage(), Stage::Cancelled);
    assert_eq!(gateway.step(2, "p1", CANCEL).stage(), Stage::Refused);
}

#[test]
fn what_reads_back_differently_is_undone_and_refused() {
    let mut gateway = Gateway::new();
    gateway.agrees = false;
    let refused = gateway.step(0, "p1", prepare(1, "hd"));
    assert_eq!((refused.stage(), refused.error.as_str()), (Stage::Refused, "the map says otherwise"));
    assert_eq!((gateway.video("a"), gateway.applied.len()), (None, 1));
}

#[test]
fn a_refusal_names_its_reason_and_changes_nothing() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(5, "sd"));
    gateway.step(0, "p1", CONFIRM);
    let before = gateway.stored.clone();
    let one = |desired: telemetry::Desired, within| {
        Step::Prepare(telemetry::Prepare { desired: vec![desired], confirm_within_ms: within })
    };
    for (step, why) in [
        (prepare(4, "hd"), "session `a` runs revision 5, and 4 is lower"),
        (prepare(6, "uhd"), "session `a`: unknown value `uhd` of setting `video`: this gateway knows hd, sd"),
        (one(desired("gone", 1, "hd", None), 1), "session `gone` is not open on this gateway"),
        (
            one(desired("a", 6, "hd", None), 0),
            "`confirm_within_ms: 0` is out of range: expected 1 to 3600000",
        ),
        (CONFIRM, "it was never prepared here"),
    ] {
        let refused = gateway.step(1, "p2", step);
        assert_eq!((refused.stage(), refused.error.as_str()), (Stage::Refused, why));
    }
    assert_eq!(gateway.stored, before);
}

#[test]
fn a_session_that_one_push_holds_is_refused_to_another() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(1, "hd"));
    let refused = gateway.step(1, "p2", prepare(2, "sd"));
    assert!(refused.error.contains("held by push `p1`"), "{}", refused.error);
    let both = vec![desired("b", 1, "hd", None), desired("a", 2, "hd", None)];
    let both = Step::Prepare(telemetry::Prepare { desired: both, confirm_within_ms: 1 });
    assert_eq!(gateway.step(1, "p3", both).stage(), Stage::Refused);
    assert_eq!(gateway.step(1, "p1", prepare(1, "sd")).stage(), Stage::Refused);
    // The same step again is the same step: it only holds for longer.
    assert_eq!(gateway.step(500, "p1", prepare(1, "hd")).stage(), Stage::Prepared);
    assert_eq!(gateway.pushes.next(), Some(Micros::new(1_500)));
}

#[test]
fn a_setting_ends_by_itself_and_the_session_is_applied_again() {
    let mut gateway = Gateway::new();
    let until = Step::Prepare(telemetry::Prepare {
        desired: vec![desired("a", 1, "hd", Some(10_000))],
        confirm_within_ms: 1,
    });
    gateway.step(0, "p1", until);
    gateway.step(0, "p1", CONFIRM);
    assert_eq!(gateway.pushes.next(), Some(Micros::new(10_000)));
    gateway.feed(9_999, Event::Tick);
    assert_eq!(gateway.applied, Vec::<String>::new());
    gateway.feed(10_000, Event::Tick);
    assert_eq!(gateway.applied, ["a"]);
    gateway.feed(10_001, Event::Tick);
    assert_eq!((gateway.applied.len(), gateway.pushes.next()), (1, None));
}

#[test]
fn a_session_that_closes_takes_its_settings_along() {
    let mut gateway = Gateway::new();
    gateway.step(0, "p1", prepare(1, "sd"));
    gateway.step(0, "p1", CONFIRM);
    gateway.step(0, "p2", prepare(2, "hd"));
    gateway.feed(1, Event::Closed(vec!["a".into()]));
    assert_eq!((gateway.pushes.in_force("a"), gateway.stored.confirmed.len()), (None, 0));
    assert_eq!(gateway.step(2, "p2", CONFIRM).error, "it is not in force any more: its sessions have closed");
}

#[test]
fn pushes_that_have_ended_are_remembered_up_to_a_bound() {
    let mut gateway = Gateway::new();
    for push in 0..10_i64 {
        gateway.step(push, &format!("p{push}"), prepare(1, "hd"));
        gateway.step(push, &format!("p{push}"), CONFIRM);
    }
    assert_eq!(gateway.stored.pushes.keys().collect::<Vec<_>>(), ["p7", "p8", "p9"]);
    assert_eq!(gateway.pushes.kept, gateway.stored);
}

#[test]
fn a_setting_that_ends_between_two_ticks_is_taken_back_though_a_step_came_first() {
    let mut gateway = Gateway::new();
    let until = Step::Prepare(telemetry::Prepare {
        desired: vec![desired("a", 1, "hd", Some(10_000))],
        confirm_within_ms: 1,
    });
    gateway.step(0, "p1", until);
    gateway.step(0, "p1", CONFIRM);
    gateway.feed(9_000, Event::Tick);
    gateway.step(10_500, "p2", CANCEL);
    assert_eq!(gateway.pushes.next(), Some(Micros::new(10_000)));
    gateway.feed(10_600, Event::Tick);
    assert_eq!(gateway.applied, ["a"]);
}

#[derive(Debug, Clone)]
enum Move {
    Prepare { push: u8, sessions: Vec<u8>, revision: u64, hd: bool },
    Confirm { push: u8 },
    Cancel { push: u8 },
    Close { session: u8 },
    Disagree(bool),
    Wait(i64),
    Restart,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => (0..4_u8, proptest::collection::vec(0..3_u8, 1..3), 0..5_u64, any::<bool>())
            .prop_map(|(push, sessions, revision, hd)| Move::Prepare { push, sessions, revision, hd }),
        3 => (0..4_u8).prop_map(|push| Move::Confirm { push }),
        2 => (0..4_u8).prop_map(|push| Move::Cancel { push }),
        1 => (0..3_u8).prop_map(|session| Move::Close { session }),
        1 => any::<bool>().prop_map(Move::Disagree),
        3 => (1..1_500_i64).prop_map(Move::Wait),
        1 => Just(Move::Restart),
    ]
}

proptest! {
    /// Whatever comes in whatever order: what is in memory is what is stored, no session is held twice, a refusal leaves
    /// everything as it was, and a confirmed revision never falls while its session is open.
    #[test]
    fn no_order_of_steps_breaks_the_books(moves in proptest::collection::vec(moves(), 1..60)) {
        let mut gateway = Gateway::new();
        let mut now = 0;
        for step in moves {
            gateway.feed(now, Event::Tick);
            let before = gateway.stored.clone();
            let mut closed = None;
            let name = |push: u8| format!("p{push}");
            let answer = match step {
                Move::Prepare { push, sessions, revision, hd } => {
                    let value = if hd { "hd" } else { "sd" };
                    let desired = sessions.iter().map(|id| desired(&format!("s{id}"), revision, value, None));
                    let prepare = telemetry::Prepare { desired: desired.collect(), confirm_within_ms: 1 };
                    Some(gateway.step(now, &name(push), Step::Prepare(prepare)))
                }
                Move::Confirm { push } => Some(gateway.step(now, &name(push), CONFIRM)),
                Move::Cancel { push } => Some(gateway.step(now, &name(push), CANCEL)),
                Move::Close { session } => {
                    let session = format!("s{session}");
                    gateway.feed(now, Event::Closed(vec![session.clone()]));
                    closed = Some(session);
                    None
                }
                Move::Disagree(disagrees) => {
                    gateway.agrees = !disagrees;
                    None
                }
                Move::Wait(micros) => {
                    now += micros;
                    None
                }
                Move::Restart => {
                    let agrees = gateway.agrees;
                    gateway = Gateway::restarted(gateway.stored, now);
                    gateway.agrees = agrees;
                    None
                }
            };
            prop_assert_eq!(&gateway.pushes.kept, &gateway.stored);
            if let Some(refused) = answer.filter(|answer| answer.stage() == Stage::Refused) {
                if gateway.agrees {
                    prop_assert_eq!(&gateway.stored, &before, "refused: {}", refused.error);
                }
                prop_assert!(!refused.error.is_empty());
            }
            let mut held = BTreeSet::new();
            for (_, _, desired) in gateway.pushes.held() {
                for session in desired.keys() {
                    prop_assert!(held.insert(session.clone()), "{} is held twice", session);
                }
            }
            prop_assert!(held.iter().eq(gateway.pushes.holders.keys()));
            for (session, settings) in &before.confirmed {
                let still = gateway.stored.confirmed.get(session);
                prop_assert!(
                    closed.as_ref() == Some(session) || still.is_some_and(|still| still.revision >= settings.revision)
                );
            }
        }
    }
}
