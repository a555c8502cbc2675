//! Each moment of the policy the product ships with, on hand-made days.

use super::*;

const SHIPPED: &str = include_str!("../../../../deploy/policy.yaml");
const PLANS: &str = r#"plans:
  basic:
    settings: {video: sd, qos_up: normal, qos_down: normal, roam_pass: none, roam_gate: open}
    numbers: {price: 15.0, quota: 1.0e9, over_price: 2.0, roam_limit: 50.0, up_bps: 8.0e6, down_bps: 1.0e8}
    currency: EUR
  flex:
    settings: {video: sd, qos_up: normal, qos_down: normal, roam_pass: none, roam_gate: open}
    numbers: {price: 9.5, quota: 5.0e8, roam_limit: 50.0, up_bps: 8.0e6, down_bps: 1.0e8}
    currency: EUR
countries:
  "262": {name: Testland, pass_price: 3.0, expected_per_day: 12.0, price_per_mb: 0.5, currency: EUR}
  "232": {name: Otherland, pass_price: 4.0, expected_per_day: 12.0, price_per_mb: 0.5, currency: EUR}
subscribers:
"#;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// The first midnight, UTC, after the days here begin, at 11 o'clock.
const MIDNIGHT: i64 = 13 * HOUR;

/// The shipped policy, and subscriber `a`, whose profile says this too.
struct World {
    engine: Engine,
    now: i64,
}

impl World {
    fn new(profile: &str) -> Self {
        Self::with(&format!(
            "  - {{id: a, keys: ['imsi:1'], plan: basic, bill_day: 22, consent: {{service: true, advice: true}}{profile}}}\n"
        ))
    }

    fn with(subscribers: &str) -> Self {
        // Nobody is held out, and nothing tried: luck has tests of its own.
        let sure = SHIPPED.replace("holdout: 0.05", "holdout: 0").replace("explore: 0.02", "explore: 0");
        assert!(sure.contains("holdout: 0 ") && sure.contains("explore: 0 "));
        let policy = Policy::parse("policy.yaml", &sure).unwrap_or_else(|errors| panic!("{errors}"));
        let profiles = format!("{PLANS}{subscribers}");
        let directory =
            Directory::parse("profiles.yaml", &profiles).unwrap_or_else(|errors| panic!("{errors}"));
        Self { engine: Engine::new(policy, &directory).unwrap_or_else(|errors| panic!("{errors}")), now: 0 }
    }

    /// The gateway tells of the next so many seconds.
    fn tells(&mut self, seconds: i64, sessions: Vec<SessionSeen>, usage: Vec<UsageSeen>) -> Vec<Effect> {
        let (start, end) = (s(self.now), s(self.now + seconds));
        self.now += seconds;
        let observed =
            Observed { agent: "gw".into(), start, end, sessions, usage, named: Vec::new(), apps: Vec::new() };
        self.engine.step(end.after(std::time::Duration::from_millis(500)), Input::Observed(observed))
    }

    /// The same again and again, up to a time.
    fn goes_on(&mut self, to: i64, step: i64, usage: &[UsageSeen]) -> Vec<Effect> {
        let mut effects = Vec::new();
        while self.now < to {
            effects.extend(self.tells(step.min(to - self.now), Vec::new(), usage.to_vec()));
        }
        effects
    }

    /// Is served in this network from now on.
    fn goes_to(&mut self, plmn: &str) -> Vec<Effect> {
        self.tells(1, vec![session("a", true, plmn)], Vec::new())
    }

    fn tap(&mut self, say: &Say) -> Vec<Effect> {
        self.engine.step(s(self.now + 60), Input::Tapped(say.decision.clone()))
    }
}

fn used(class: Class, direction: DirectionName, bytes: u64) -> UsageSeen {
    UsageSeen {
        line: Line(0),
        class,
        direction,
        bytes: Bytes(bytes),
        packets: 1 + bytes / 1_000,
        dropped_packets: 0,
        at_cap: None,
        quality: Quality::default(),
    }
}

/// What was decided at a moment, last.
fn at<'e>(effects: &'e [Effect], moment: &str) -> &'e Decision {
    let found = decisions(effects).into_iter().rfind(|decision| decision.moment == moment);
    found.unwrap_or_else(|| panic!("no {moment} in {effects:#?}"))
}

fn chosen<'e>(effects: &'e [Effect], moment: &str) -> Option<&'e str> {
    at(effects, moment).chosen.as_deref()
}

#[test]
fn hd_starved_lifts_the_rate_while_video_is_held_back() {
    let mut world = World::new("");
    world.goes_to("00101");
    let capped = UsageSeen { at_cap: Some(1.0), ..used(Class::Video, DirectionName::Down, 200_000) };
    let effects = world.goes_on(150, 1, &[capped]);
    assert_eq!(chosen(&effects, "hd_starved"), Some("hd_evening"));
    assert_eq!(world.engine.settings_of(&id("a")).unwrap().values["video"].value, "hd");
    // Nothing is starved while the setting is up, though the plan is what it was.
    assert_eq!(decisions(&world.goes_on(400, 1, &[capped])), Vec::<&Decision>::new());
}

#[test]
fn call_bad_makes_room_for_a_call() {
    let mut world = World::new("");
    world.goes_to("00101");
    let quality = Quality { qoo: Some(20.0), ..Quality::default() };
    let call = UsageSeen { quality, ..used(Class::Call, DirectionName::Down, 10_000) };
    let upload = used(Class::Bulk, DirectionName::Up, 990_000);
    let effects = world.goes_on(80, 1, &[call, upload]);
    assert_eq!(chosen(&effects, "call_bad"), Some("call_boost"));
    let mut world = World::new("");
    world.goes_to("00101");
    assert_eq!(decisions(&world.goes_on(80, 1, &[call])), Vec::<&Decision>::new(), "the line is not full");
}

#[test]
fn game_spike_is_against_what_the_line_is_used_to() {
    let mut world = World::new("");
    world.goes_to("00101");
    let game = |rtt| {
        let quality = Quality { rtt_ms: Some(rtt), ..Quality::default() };
        UsageSeen { quality, ..used(Class::Game, DirectionName::Down, 1_000) }
    };
    let calm = world.goes_on(2 * HOUR, 10, &[game(30.0)]);
    assert_eq!(decisions(&calm), Vec::<&Decision>::new());
    let effects = world.goes_on(2 * HOUR + 120, 1, &[game(200.0)]);
    assert_eq!(chosen(&effects, "game_spike"), Some("game_boost"));
}

#[test]
fn an_arrival_is_told_of_once_for_each_country_whatever_else_may_not_be_said() {
    // No consent to anything, at night.
    let mut world = World::with("  - {id: a, keys: ['imsi:1'], plan: basic}\n");
    world.goes_on(MIDNIGHT, HOUR, &[]);
    let effects = world.goes_to("26201");
    let welcome = says(&effects)[0];
    assert!(
        welcome.text.contains("Testland. Data costs 0.50 EUR a megabyte and stops at 50.00 EUR"),
        "{welcome:?}"
    );
    assert_eq!(chosen(&effects, "roam_bare"), None, "that is marketing");
    // The same country by another network, then home for a day and back, then a second country.
    assert_eq!(says(&world.goes_to("26202")), Vec::<&Say>::new());
    world.goes_to("00101");
    world.goes_on(MIDNIGHT + DAY, HOUR, &[]);
    assert_eq!(says(&world.goes_to("26201")), Vec::<&Say>::new());
    let effects = world.goes_to("23201");
    assert!(says(&effects)[0].text.contains("Otherland"));
    // A second trip to the first, days later.
    world.goes_to("00101");
    world.goes_on(MIDNIGHT + 6 * DAY, HOUR, &[]);
    assert!(says(&world.goes_to("26201"))[0].text.contains("Testland"));
}

#[test]
fn regulated_messages_count_against_no_budget() {
    let mut world = World::new("");
    let effects = world.goes_to("26201");
    assert_eq!(chosen(&effects, "arrival"), Some("welcome"));
    assert_eq!(chosen(&effects, "roam_bare"), Some("roam_pass"));
    assert_eq!(says(&effects).len(), 2);
    world.goes_to("23201");
    world.goes_on(DAY, HOUR, &[]);
    // Two welcomes and one offer: of two messages a week one is left.
    let effects = world.goes_on(3 * DAY, HOUR, &[]);
    let stopped = at(&effects, "roam_bare").candidates[0].stopped_by.clone().unwrap();
    assert_eq!(stopped.gate, Gate::SameAction, "{stopped:?}");
}

#[test]
fn spending_abroad_is_warned_of_then_stopped_until_the_next_bill_or_until_agreed() {
    let mut world = World::new("");
    world.goes_on(MIDNIGHT + 10 * HOUR, HOUR, &[]);
    world.goes_to("26201");
    // 0.5 a megabyte: ten megabytes a minute are 5.
    let surf = [used(Class::Web, DirectionName::Down, 10_000_000)];
    let from = world.now;
    let effects = world.goes_on(from + 10 * 60, 60, &surf);
    let warning = says(&effects).into_iter().find(|say| say.action == "spend_warning").unwrap();
    assert!(warning.text.starts_with("80 % of this month's roaming limit of 50.00 EUR"), "{warning:?}");
    assert!(decisions(&effects).iter().all(|decision| decision.moment != "bill_limit"));
    let effects = world.goes_on(from + 14 * 60, 60, &surf);
    assert_eq!(chosen(&effects, "bill_limit"), Some("spend_stop"));
    let gate = |world: &World| world.engine.settings_of(&id("a")).unwrap().values["roam_gate"].clone();
    // The next bill is on the 22nd of December, midnight UTC.
    let until = Some(s(MIDNIGHT + 30 * DAY));
    assert_eq!((gate(&world).value, gate(&world).until), ("closed".to_owned(), until));
    let told = says(&effects).into_iter().find(|say| say.action == "spend_stopped").unwrap().clone();
    assert_eq!(Some(told.expires), until, "to agree there is time as long as it is closed");
    let effects = world.tap(&told);
    assert_eq!(desires(&effects).len(), 1);
    assert_eq!((gate(&world).value, gate(&world).until), ("agreed".to_owned(), until));
    // Who has agreed is left alone.
    let effects = world.goes_on(from + HOUR, 60, &surf);
    assert!(says(&effects).is_empty() && desires(&effects).is_empty(), "{effects:?}");
    // The next month has a limit of its own.
    world.goes_on(MIDNIGHT + 30 * DAY + 20 * 60, HOUR, &[]);
    assert_eq!(gate(&world).value, "open");
    let from = world.now;
    let effects = world.goes_on(from + 13 * 60, 60, &surf);
    assert_eq!(chosen(&effects, "bill_limit"), Some("spend_stop"));
}

#[test]
fn with_a_pass_use_abroad_costs_nothing_more() {
    let mut world = World::new("");
    let effects = world.goes_to("26201");
    let offer = says(&effects).into_iter().find(|say| say.action == "roam_pass").unwrap().clone();
    world.tap(&offer);
    let effects = world.goes_on(3 * HOUR, 60, &[used(Class::Web, DirectionName::Down, 50_000_000)]);
    assert_eq!(decisions(&effects), Vec::<&Decision>::new());
    assert_eq!(world.engine.facts_of(&id("a"), s(world.now))["roam_spend"], Some(0.0));
}

/// From one midnight to another, so much a day, all of it around noon.
fn months(world: &mut World, days: i64, bytes_a_day: u64) -> Vec<Effect> {
    let mut effects = world.goes_to("00101");
    effects.extend(world.goes_on(MIDNIGHT, HOUR, &[]));
    for day in 0..days {
        effects.extend(world.goes_on(MIDNIGHT + day * DAY + 12 * HOUR, 2 * HOUR, &[]));
        effects.extend(world.tells(60, Vec::new(), vec![used(Class::Web, DirectionName::Down, bytes_a_day)]));
        effects.extend(world.goes_on(MIDNIGHT + (day + 1) * DAY, 2 * HOUR, &[]));
    }
    effects
}

#[test]
fn overpaying_is_known_after_two_whole_bills_and_a_tap_orders_the_plan_that_suits() {
    let mut world = World::new("");
    // Fifteen megabytes a day: far below either quota.
    let effects = months(&mut world, 60, 15_000_000);
    assert_eq!(decisions(&effects), Vec::<&Decision>::new(), "one bill and a bit");
    let effects =
        world.goes_on(MIDNIGHT + 60 * DAY + 12 * HOUR, HOUR, &[used(Class::Web, DirectionName::Down, 1_000)]);
    assert_eq!(decisions(&effects), Vec::<&Decision>::new());
    // The 22nd of January: two bills are whole. At night nothing is said, in the morning it still holds.
    let busy = [used(Class::Web, DirectionName::Down, 1_000)];
    let effects = world.goes_on(MIDNIGHT + 61 * DAY + 9 * HOUR, HOUR, &busy);
    let said: Vec<_> = decisions(&effects).iter().map(|it| (it.moment.as_str(), it.chosen.clone())).collect();
    assert_eq!(said, [("overpaying", None), ("overpaying", Some("better_plan".to_owned()))]);
    let stopped = decisions(&effects)[0].candidates[0].stopped_by.clone().unwrap();
    assert_eq!(stopped.gate, Gate::Quiet);
    let offer = says(&effects)[0].clone();
    assert_eq!(offer.text, "flex suits how you use us and saves about 5.50 EUR a month.");
    assert_eq!((offer.tap["plan"].as_str(), offer.tap_seconds), ("flex", 0));
    world.engine.take_dirty();
    world.tap(&offer);
    assert_eq!(world.engine.profile(&id("a")).unwrap().plan, "flex");
    // The order outlives a restart, and the file that does not know of it yet; not the file that says something else.
    let state = world.engine.take_dirty().pop().unwrap().1.unwrap();
    let mut again = World::new("");
    again.engine.restore(id("a"), state);
    assert_eq!(again.engine.profile(&id("a")).unwrap().plan, "flex");
    let mut told = again.engine.profile(&id("a")).unwrap();
    (told.plan, told.moved) = ("basic".into(), true);
    again.engine.step(s(world.now + 100), Input::Profile(told.clone()));
    assert_eq!(again.engine.profile(&id("a")).unwrap().plan, "flex");
    told.plan = "flex".into();
    again.engine.step(s(world.now + 101), Input::Profile(told.clone()));
    told.plan = "basic".into();
    again.engine.step(s(world.now + 102), Input::Profile(told));
    assert_eq!(again.engine.profile(&id("a")).unwrap().plan, "basic", "changed back at the counter");
}

#[test]
fn no_plan_is_offered_that_one_of_the_months_would_not_have_fitted() {
    let mut world = World::new("");
    // 18 megabytes a day are 540 to 558 a month: more than the small plan has.
    months(&mut world, 63, 18_000_000);
    assert_eq!(world.engine.facts_of(&id("a"), s(world.now))["sub.fit_saves"], Some(0.0));
}

#[test]
fn near_quota_is_told_to_whom_another_plan_would_suit_and_once() {
    let mut world = World::new("");
    world.goes_to("00101");
    world.goes_on(MIDNIGHT + 11 * HOUR, HOUR, &[]);
    let mut profile = world.engine.profile(&id("a")).unwrap();
    profile.offer = crate::identity::Offer {
        fit_plan: Some("flex".into()),
        fit_saves: Some(6.0),
        ..crate::identity::Offer::default()
    };
    let heavy = [used(Class::Web, DirectionName::Down, 950_000_000)];
    let effects = world.goes_on(MIDNIGHT + 12 * HOUR - 600, 600, &heavy[..0]);
    assert_eq!(decisions(&effects), Vec::<&Decision>::new());
    world.engine.step(s(world.now), Input::Profile(profile));
    let effects = world.goes_on(MIDNIGHT + 12 * HOUR, 600, &heavy);
    let decision = at(&effects, "near_quota");
    assert!(decision.facts["used"].unwrap() >= 0.8e9, "{decision:?}");
    // The line overpays as well: the same offer is made once.
    assert_eq!(says(&effects).len(), 1);
    assert_eq!(says(&effects)[0].text, "flex suits how you use us and saves about 6.00 EUR a month.");
}

#[test]
fn an_add_on_is_idle_when_no_byte_of_it_was_used_in_a_month() {
    let profile = ", addons: [hdtv], offer: {partner: example-tv, partner_fit: 0.7}";
    let mut world = World::new(profile);
    let effects = months(&mut world, 31, 1_000_000);
    // The partner is asked first; as nobody answers, there is no offer.
    let asked =
        effects.iter().find_map(|effect| if let Effect::Ask(ask) = effect { Some(ask) } else { None });
    assert_eq!(
        asked.map(|ask| (ask.action.as_str(), ask.partner.as_str())),
        Some(("swap_addon", "example-tv"))
    );
    let swaps = decisions(&effects).into_iter().flat_map(|made| &made.candidates);
    let mut swaps = swaps.filter(|candidate| candidate.action == "swap_addon");
    assert!(swaps.any(|swap| gate(swap) == Some(Gate::Partner)));
    assert!(says(&effects).iter().all(|say| say.action != "swap_addon"));
    // A byte in that time, and it is in use; a flow whose bytes the agent does not tell, and nobody knows. Another app changes nothing.
    let flow = |app: &str| NamedSeen {
        line: Line(0),
        app: app.into(),
        class: Class::Video,
        at: s(0),
        counted: false,
    };
    let used = AppUsageSeen { line: Line(0), app: "hdtv".into(), bytes: Bytes(1) };
    for (named, apps, is_idle) in [
        (vec![], vec![used], false),
        (vec![flow("hdtv")], vec![], false),
        (vec![flow("streams"), NamedSeen { counted: true, ..flow("hdtv") }], vec![], true),
    ] {
        let mut world = World::new(profile);
        months(&mut world, 10, 1_000_000);
        let observed = Observed {
            agent: "gw".into(),
            start: s(world.now),
            end: s(world.now + 1),
            sessions: Vec::new(),
            usage: Vec::new(),
            named: named.into_iter().map(|named| NamedSeen { at: s(world.now), ..named }).collect(),
            apps,
        };
        world.now += 1;
        world.engine.step(s(world.now), Input::Observed(observed));
        let effects = world.goes_on(MIDNIGHT + 35 * DAY, 2 * HOUR, &[]);
        assert_eq!(decisions(&effects).iter().any(|it| it.moment == "hdtv_idle"), is_idle, "{effects:?}");
    }
}

#[test]
fn a_line_left_behind_by_its_organisation_is_offered_what_suits() {
    let member = |name: usize, moved: bool| {
        format!(
            "  - {{id: m{name}, keys: ['imsi:9{name}'], plan: basic, organisation: acme, moved: {moved}}}\n"
        )
    };
    let a = "  - {id: a, keys: ['imsi:1'], plan: basic, organisation: acme, consent: {service: true, advice: true}, \
             offer: {fit_plan: flex, fit_saves: 6.0}}\n";
    let members: String = (0..4).map(|name| member(name, name < 3)).collect();
    let mut world = World::with(&format!("{a}{members}"));
    let effects = world.goes_to("00101");
    assert_eq!(chosen(&effects, "org_moved"), Some("better_plan"));
    // Of four nothing is told.
    let members: String = (0..3).map(|name| member(name, true)).collect();
    let mut world = World::with(&format!("{a}{members}"));
    assert_eq!(decisions(&world.goes_to("00101")), Vec::<&Decision>::new());
}

/// Three days abroad from a day on, with so much use, and home again.
fn trip(world: &mut World, day: i64, bytes: u64) -> Vec<Effect> {
    let mut effects = world.goes_on(day * DAY, 2 * HOUR, &[]);
    effects.extend(world.goes_to("26201"));
    effects.extend(world.tells(60, Vec::new(), vec![used(Class::Web, DirectionName::Down, bytes)]));
    effects.extend(world.goes_on((day + 3) * DAY, 2 * HOUR, &[]));
    effects.extend(world.goes_to("00101"));
    effects
}

#[test]
fn who_used_to_roam_and_came_back_from_a_silent_trip_is_told_of_the_pass() {
    let mut world = World::new("");
    let mut effects = trip(&mut world, 1, 30_000_000);
    effects.extend(trip(&mut world, 20, 30_000_000));
    assert!(decisions(&effects).iter().all(|it| it.moment != "lapsed_roamer"));
    let effects = trip(&mut world, 50, 1_000);
    assert_eq!(chosen(&effects, "lapsed_roamer"), Some("roam_again"));
    let facts = world.engine.facts_of(&id("a"), s(world.now));
    assert!(facts["sub.trip_share"].unwrap() < 0.001 && facts["sub.trips"] == Some(3.0), "{facts:?}");
    // Never seen abroad is not silent abroad.
    let mut world = World::new("");
    world.goes_to("00101");
    assert_eq!(world.engine.facts_of(&id("a"), s(1))["sub.trip_share"], None);
}

#[test]
fn before_the_next_trip_of_a_regular_traveller_there_is_a_hint() {
    let mut world = World::new("");
    for number in 0..4 {
        let effects = trip(&mut world, 1 + 30 * number, 1_000_000);
        assert!(decisions(&effects).iter().all(|it| it.moment != "trip_ahead"));
    }
    // The next is due on day 121: a week before.
    let effects = world.goes_on(113 * DAY, 2 * HOUR, &[]);
    assert!(decisions(&effects).iter().all(|it| it.moment != "trip_ahead"));
    let effects = world.goes_on(115 * DAY, 2 * HOUR, &[]);
    assert_eq!(chosen(&effects, "trip_ahead"), Some("trip_hint"));
}

#[test]
fn a_month_that_is_over_is_near_no_quota() {
    let mut world = World::new("");
    world.goes_to("00101");
    // Nine tenths are used in the last days of the month: there is nothing to be done for it any more.
    world.goes_on(MIDNIGHT + 27 * DAY, 2 * HOUR, &[]);
    let heavy = [used(Class::Web, DirectionName::Down, 900_000_000)];
    let effects = world.tells(3_600, Vec::new(), heavy.to_vec());
    assert_eq!(decisions(&effects), Vec::<&Decision>::new());
    // Nor when the next month begins, and the windows still are the last one's.
    let last = MIDNIGHT + 30 * DAY;
    let mut effects = world.goes_on(last - 600, HOUR, &[]);
    effects.extend(world.goes_on(last + 600, 1, &[used(Class::Web, DirectionName::Down, 1_000)]));
    assert!(decisions(&effects).iter().all(|it| it.moment != "near_quota"), "{effects:#?}");
}
