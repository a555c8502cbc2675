//! Trips and the plan that suits, beside a slow, obvious account of the same months: everything that was ever told is kept,
//! and all of it is gone through anew for every question.

#![expect(clippy::cast_precision_loss, reason = "times and amounts of a test are small")]

use proptest::prelude::*;

use super::*;

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;
const MINUTE: i64 = HOUR / 60;
const NAMES: [&str; 2] = ["a", "b"];
/// Two networks of one country, and two of others; the first is home.
const NETWORKS: [&str; 5] = ["00101", "26201", "26202", "23201", "31026"];
/// Bytes, odd enough to be met by no sum.
const QUOTA: f64 = 1_234_500_007.0;

const POLICY: &str = "version: 1
moments:
  far: {when: \"sub.trips > 90.0 || sub.trip_share > 90.0 || sub.trip_ahead && sub.trips > 90.0\", rearm: 1d}
  dear: {when: \"sub.fit_saves > 9000.0\", rearm: 1d}
actions:
  hint: {at: [far, dear], say: \"Well.\", value: 9.0, cost: 0.0}
policy: {contact: {budget: 1/1d}}
guard: {mode: plan}
";
const PROFILES: &str = "plans:
  large: {settings: {video: sd}, numbers: {price: 30.0, down_bps: 1.0e8}}
  middle: {settings: {video: sd}, numbers: {price: 18.0, quota: 4.0e9, down_bps: 1.0e8}}
  small: {settings: {video: sd}, numbers: {price: 10.0, quota: 1234500007.0, over_price: 3.0, down_bps: 1.0e8}}
  slow: {settings: {video: sd}, numbers: {price: 1.0, down_bps: 1.0e7}}
  fine: {settings: {video: hd}, numbers: {price: 2.0, down_bps: 1.0e8}}
countries: {}
subscribers:
  - {id: a, keys: ['imsi:1'], plan: large, bill_day: 22}
  - {id: b, keys: ['imsi:2'], plan: small, time_zone: Asia/Tokyo}
";

#[derive(Debug, Clone)]
enum Event {
    /// The gateway tells of so many hours, in which both used so many megabytes an hour.
    Tells { hours: i64, megabytes: [u64; 2] },
    /// It tells nothing of so many minutes.
    Gap(i64),
    /// Somebody is served by this network from now on; by none.
    Goes { who: usize, network: Option<usize> },
    /// Away to a network for so many hours, home for so many days.
    Journey { who: usize, network: usize, away: i64, home: i64, megabytes: u64 },
    /// The engine is written out, and read back.
    Restarts,
}

fn event() -> impl Strategy<Value = Event> {
    let network = prop_oneof![1 => Just(None), 8 => (0..NETWORKS.len()).prop_map(Some)];
    let home = prop_oneof![4 => Just(10_i64), 2 => 9_i64..12, 1 => Just(1_i64), 1 => 20_i64..40];
    let away = prop_oneof![4 => Just(30_i64), 1 => 1_i64..80];
    prop_oneof![
        6 => (1_i64..60, [0_u64..8, 0_u64..8])
            .prop_map(|(hours, megabytes)| Event::Tells { hours, megabytes }),
        1 => (1_i64..600).prop_map(Event::Gap),
        3 => (0_usize..2, network).prop_map(|(who, network)| Event::Goes { who, network }),
        6 => (0_usize..2, 1..NETWORKS.len(), away, home, 0_u64..4).prop_map(|(who, network, away, home, megabytes)| {
            Event::Journey { who, network, away, home, megabytes }
        }),
        1 => Just(Event::Restarts),
    ]
}

/// All that was ever told.
#[derive(Default)]
struct Account {
    now: i64,
    told: Vec<(i64, i64)>,
    /// Start, end, bytes.
    used: [Vec<(i64, i64, f64)>; 2],
    /// Since when somebody is served where; and how much had been used by then.
    places: [Vec<(i64, Option<usize>, f64)>; 2],
    seen_first: [Option<i64>; 2],
}

struct Trip {
    country: &'static str,
    from: i64,
    to: i64,
    bytes: f64,
}

impl Account {
    fn country(network: Option<usize>) -> Option<&'static str> {
        network.filter(|network| *network > 0).map(|network| &NETWORKS[network][..3])
    }

    /// Trips, oldest first, and which of them lasts.
    fn trips(&self, who: usize) -> (Vec<Trip>, Option<usize>) {
        let all: f64 = self.used[who].iter().map(|used| used.2).sum();
        let mut trips: Vec<Trip> = Vec::new();
        let places = &self.places[who];
        for (index, (from, network, used)) in places.iter().enumerate() {
            let Some(country) = Self::country(*network) else { continue };
            // While it lasts nothing is known but that it began.
            let (to, until) = places.get(index + 1).map_or((*from, *used), |next| (next.0, next.2));
            let same = trips.iter().rposition(|trip| trip.country == country);
            match same.filter(|same| from - trips[*same].to < 3 * DAY) {
                Some(same) => {
                    trips[same].to = to;
                    trips[same].bytes += until - used;
                }
                None => trips.push(Trip { country, from: *from, to, bytes: until - used }),
            }
            // One that is forgotten is not gone on with.
            if trips.len() > 8 {
                trips.remove(0);
            }
        }
        assert!(trips.iter().map(|trip| trip.bytes).sum::<f64>() <= all);
        let lasts = places.last().and_then(|place| Self::country(place.1));
        let lasts = lasts.and_then(|country| trips.iter().rposition(|trip| trip.country == country));
        (trips, lasts)
    }

    fn share(&self, who: usize) -> Option<f64> {
        let (mut trips, lasts) = self.trips(who);
        lasts.map(|lasts| trips.remove(lasts));
        let last = trips.pop().filter(|trip| trip.to - trip.from >= DAY)?;
        let a_day = |trip: &Trip| trip.bytes / ((trip.to - trip.from) as f64 / DAY as f64);
        let earlier: Vec<f64> = trips.iter().filter(|trip| trip.to - trip.from >= DAY).map(a_day).collect();
        let usual = earlier.iter().sum::<f64>() / earlier.len() as f64;
        (earlier.len() >= 2 && usual > 0.0).then(|| a_day(&last) / usual)
    }

    fn is_ahead(&self, who: usize) -> bool {
        let (trips, lasts) = self.trips(who);
        let apart: Vec<i64> = trips.windows(2).map(|pair| pair[1].from - pair[0].from).collect();
        if lasts.is_some() || apart.len() < 3 {
            return false;
        }
        let mean = apart.iter().sum::<i64>() / i64::try_from(apart.len()).unwrap();
        let is_regular = apart.iter().all(|one| (one - mean).abs() <= mean / 4);
        let due = trips[trips.len() - 1].from + mean;
        let lead = (7 * DAY).min(mean / 4);
        is_regular && due - lead <= self.now && self.now < due + lead
    }

    fn is_told(&self, who: usize, from: i64, to: i64) -> bool {
        let told: i64 = self.told.iter().map(|told| (told.1.min(to) - told.0.max(from)).max(0)).sum();
        let is_open = self.places[who].last().is_some_and(|place| place.1.is_some());
        let seen = self.seen_first[who].is_some_and(|first| first <= from);
        let known = self.told.first().is_some_and(|first| first.0 <= from);
        is_open && seen && known && (to - from - told) * 100 <= to - from
    }

    /// What the cheapest plan that suits would save; by hand for these plans.
    fn saves(&self, who: usize) -> Option<f64> {
        let boundary = (self.told.last()?.1 - 5_000_000).div_euclid(MINUTE) * MINUTE;
        let mut months = Vec::new();
        let mut end = bill(who, boundary - 1);
        while months.len() < 3 {
            let start = bill(who, end - 1);
            if !self.is_told(who, start, end) {
                break;
            }
            let inside = |(from, to, bytes): &(i64, i64, f64)| {
                bytes * ((*to).min(end) - (*from).max(start)).max(0) as f64 / (to - from) as f64
            };
            months.push(self.used[who].iter().map(inside).sum::<f64>());
            end = start;
        }
        if months.len() < 2 {
            return None;
        }
        let most = months.iter().copied().fold(0.0, f64::max);
        let others = [("middle", 18.0, 4e9), ("small", 10.0, QUOTA), ("large", 30.0, f64::INFINITY)];
        let beyond: f64 = months.iter().map(|used| ((used - QUOTA).max(0.0) / 1e9).ceil()).sum();
        let pays = if who == 0 { 30.0 } else { 10.0 + 3.0 * beyond / months.len() as f64 };
        let cheapest = others.iter().filter(|(_, _, quota)| most <= *quota).map(|other| other.1);
        Some((pays - cheapest.fold(f64::INFINITY, f64::min)).max(0.0))
    }
}

/// The billing day's midnight at or before a time: the 22nd, UTC; the 1st, in Tokyo, which knows no summer time.
fn bill(who: usize, time: i64) -> i64 {
    let (day, ahead) = [(22, 0), (1, 9 * HOUR)][who];
    let local = jiff::Timestamp::from_microsecond(time + ahead).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
    let mut date = local.date();
    while date.day() != day {
        date = date.yesterday().unwrap();
    }
    date.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_microsecond() - ahead
}

struct Both {
    engine: Engine,
    account: Account,
    /// Told to.
    at: i64,
}

impl Both {
    fn new() -> Self {
        let policy = Policy::parse("policy.yaml", POLICY).unwrap_or_else(|errors| panic!("{errors}"));
        let directory =
            Directory::parse("profiles.yaml", PROFILES).unwrap_or_else(|errors| panic!("{errors}"));
        let engine = Engine::new(policy, &directory).unwrap_or_else(|errors| panic!("{errors}"));
        let at = NOON * 1_000_000;
        Self { engine, account: Account { now: at, ..Account::default() }, at }
    }

    fn observe(&mut self, end: i64, sessions: Vec<SessionSeen>, usage: Vec<UsageSeen>) {
        let (start, agent) = (Micros::new(self.at), "gw".to_owned());
        self.at = end;
        self.account.now = end + 500_000;
        let observed = Observed {
            agent,
            start,
            end: Micros::new(end),
            sessions,
            usage,
            named: Vec::new(),
            apps: Vec::new(),
        };
        let effects = self.engine.step(Micros::new(self.account.now), Input::Observed(observed));
        assert_eq!(decisions(&effects), Vec::<&Decision>::new());
    }

    fn tells(&mut self, mut hours: i64, megabytes: [u64; 2]) {
        while hours > 0 {
            // A batch is no longer than event time may jump.
            let some = hours.min(12);
            self.tells_at_once(some, megabytes);
            hours -= some;
        }
    }

    fn tells_at_once(&mut self, hours: i64, megabytes: [u64; 2]) {
        let (start, end) = (self.at, self.at + hours * HOUR);
        let mut usage = Vec::new();
        for (who, megabytes) in megabytes.into_iter().enumerate() {
            // So many whole bytes a minute.
            let bytes = hours.unsigned_abs() * megabytes * 600_000 * 2;
            let is_open = self.account.places[who].last().is_some_and(|place| place.1.is_some());
            if bytes > 0 && is_open {
                let seen = UsageSeen { line: Line(u32::try_from(who).unwrap()), ..video("a", None, bytes) };
                usage.push(seen);
                self.account.used[who].push((start, end, bytes as f64));
            }
        }
        self.account.told.push((start, end));
        self.observe(end, Vec::new(), usage);
    }

    fn goes(&mut self, who: usize, network: Option<usize>) {
        let places = &self.account.places[who];
        let before = places.last().and_then(|place| place.1);
        if before == network {
            return;
        }
        let seen = match (network, before) {
            (Some(network), _) => session(NAMES[who], true, NETWORKS[network]),
            (None, before) => session(NAMES[who], false, NETWORKS[before.unwrap_or_default()]),
        };
        self.observe(self.at, vec![seen], Vec::new());
        let used = self.account.used[who].iter().map(|used| used.2).sum();
        self.account.places[who].push((self.account.now, network, used));
        self.account.seen_first[who].get_or_insert(self.at);
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Tells { hours, megabytes } => self.tells(*hours, *megabytes),
            Event::Gap(minutes) => self.at += minutes * MINUTE,
            Event::Goes { who, network } => self.goes(*who, *network),
            Event::Journey { who, network, away, home, megabytes } => {
                self.goes(*who, Some(*network));
                self.tells(*away, [*megabytes; 2]);
                self.goes(*who, Some(0));
                for _ in 0..*home {
                    self.tells(1, [24, 48]);
                    self.tells(23, [0, 0]);
                }
            }
            Event::Restarts => {
                let mut file = Vec::new();
                self.engine.snapshot(0).write(&mut file).unwrap();
                self.engine = Engine::from_snapshot(&file[..]).unwrap().0;
            }
        }
    }
}

#[test]
fn whoever_uses_nothing_is_told_of_too() {
    let mut both = Both::new();
    both.goes(0, Some(0));
    both.tells(24 * 64, [0, 0]);
    assert_eq!(both.account.saves(0), Some(20.0));
    assert_eq!(both.engine.facts_of(&id("a"), Micros::new(both.at))["sub.fit_saves"], Some(20.0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn trips_and_the_plan_that_suits_are_what_a_slow_account_of_everything_says(
        events in proptest::collection::vec(event(), 1..20),
    ) {
        let mut both = Both::new();
        for who in 0..2 {
            both.goes(who, Some(0));
        }
        for event in &events {
            both.happens(event);
            let Both { engine, account, at } = &mut both;
            for (who, name) in NAMES.iter().enumerate() {
                let facts = engine.facts_of(&id(name), Micros::new(*at));
                let (trips, lasts) = account.trips(who);
                let over = (trips.len() - usize::from(lasts.is_some())) as f64;
                prop_assert_eq!(facts["sub.trips"], Some(over), "{} after {:?}", name, event);
                prop_assert_eq!(facts["sub.trip_ahead"], Some(f64::from(u8::from(account.is_ahead(who)))));
                for (found, expected) in [
                    (facts["sub.trip_share"], account.share(who)),
                    (facts["sub.fit_saves"], account.saves(who)),
                ] {
                    let same = match (found, expected) {
                        (Some(found), Some(expected)) => (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
                        (found, expected) => found == expected,
                    };
                    prop_assert!(same, "{:?}, not {:?}, of {} after {:?}", found, expected, name, event);
                }
            }
        }
    }
}
