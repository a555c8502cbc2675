//! What settings mean to the data plane: setting values in, [`Enforcement`] out. Sans-I/O.
//!
//! The operator's `service:` section says, for each setting and value, which rate it puts on which class, or which gate
//! it puts before a roaming subscriber, and which code point its packets are given. Refuses what it does not know: a push with an
//! unknown setting changes nothing.
//!
//! Rules, where several settings meet:
//! - the lowest rate on a class and direction holds;
//! - a class's own code point holds before the whole line's; of several for the same the highest number does;
//! - an effect with a gate is about roaming: it holds only while the session roams, and it replaces the agent's own
//!   `roaming` gate; of several the strictest holds.

use std::collections::BTreeMap;
use std::fmt;

use usher_models::dscp::Dscp;
use usher_models::setting::Settings;
use usher_models::units::{BitsPerSecond, Micros};
use usher_models::wire::{Enforcement, Gate, LANES, LINE, Rate};
use usher_models::{Class, Direction};

/// A gate as it stands in config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateName {
    /// Traffic passes.
    Pass,
    /// The whole line is held to the rates beside it.
    Limit,
    /// Nothing passes.
    Block,
}

impl From<GateName> for Gate {
    fn from(gate: GateName) -> Self {
        match gate {
            GateName::Pass => Self::Pass,
            GateName::Limit => Self::Limit,
            GateName::Block => Self::Block,
        }
    }
}

/// The code points that packets let through are given, by direction: one for both, or `{up: ..., down: ...}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks([Option<Dscp>; 2]);

impl Marks {
    /// The same code point both ways.
    pub const fn both(dscp: Dscp) -> Self {
        Self([Some(dscp); 2])
    }

    /// Whether any direction has one.
    pub fn any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    /// Of two code points the one with the higher number.
    fn higher(self, other: Self) -> Self {
        Self([self.0[0].max(other.0[0]), self.0[1].max(other.0[1])])
    }
}

impl<'de> serde::Deserialize<'de> for Marks {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadMarks)
    }
}

/// A code point by direction, as it stands in config.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct MarksByDirection {
    up: Option<OneMark>,
    down: Option<OneMark>,
}

/// A code point as it stands in config: a name or a number.
struct OneMark(Dscp);

impl<'de> serde::Deserialize<'de> for OneMark {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadMark).map(Self)
    }
}

/// Reads one code point.
struct ReadMark;

impl serde::de::Visitor<'_> for ReadMark {
    type Value = Dscp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a DSCP: a number from 0 to 63, or a name as in `ef`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Dscp, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Dscp, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Dscp, E> {
        self.visit_str(&number.to_string())
    }
}

/// Reads one for both directions, or one for each.
struct ReadMarks;

impl<'de> serde::de::Visitor<'de> for ReadMarks {
    type Value = Marks;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a DSCP (a number from 0 to 63, or a name as in `ef`), or `{up: ..., down: ...}`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Marks, E> {
        ReadMark.visit_str(text).map(Marks::both)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Marks, E> {
        ReadMark.visit_u64(number).map(Marks::both)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Marks, E> {
        ReadMark.visit_i64(number).map(Marks::both)
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Marks, A::Error> {
        let written = serde::de::value::MapAccessDeserializer::new(map);
        let MarksByDirection { up, down } = serde::Deserialize::deserialize(written)?;
        Ok(Marks([up, down].map(|mark| mark.map(|OneMark(dscp)| dscp))))
    }
}

/// What one value of one setting does to packets: a rate or a code point on a class or on the whole line, or a gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// The class that rates and code points are for; absent: the whole line.
    pub class: Option<Class>,
    /// Holds only while the session roams, and then instead of the agent's `roaming` gate.
    pub gate: Option<GateName>,
    /// From the subscriber; absent: no limit.
    pub up: Option<BitsPerSecond>,
    /// To the subscriber; absent: no limit.
    pub down: Option<BitsPerSecond>,
    /// The code points of packets let through; absent: those they come with.
    #[serde(default)]
    pub dscp: Marks,
}

impl Effect {
    /// Lowest rate the probe's buckets hold to 2 %.
    pub const LOWEST: BitsPerSecond = BitsPerSecond(64_000);
    /// Highest rate the probe's buckets hold to 2 %.
    pub const HIGHEST: BitsPerSecond = BitsPerSecond(100_000_000_000);

    /// A roaming gate that lets everything through: what a config without a `roaming:` section means.
    pub const PASS: Self =
        Self { class: None, gate: Some(GateName::Pass), up: None, down: None, dscp: Marks([None; 2]) };

    /// Whether the parts go together; says what was expected where they do not.
    pub fn check(&self) -> Result<(), String> {
        for rate in [self.up, self.down].into_iter().flatten() {
            if rate < Self::LOWEST || rate > Self::HIGHEST {
                return Err(format!(
                    "rate {rate} is out of range: expected {} to {}",
                    Self::LOWEST,
                    Self::HIGHEST
                ));
            }
        }
        let rates = self.up.is_some() || self.down.is_some();
        match self.gate {
            Some(_) if self.class.is_some() => {
                Err("`gate` is for the whole line: expected no `class` beside it".to_owned())
            }
            Some(GateName::Limit) if !rates => {
                Err("`gate: limit` without a rate: expected `up` or `down` beside it".to_owned())
            }
            Some(GateName::Pass | GateName::Block) if rates => {
                Err("a rate beside `gate: pass` or `gate: block` means nothing: expected `gate: limit`"
                    .to_owned())
            }
            Some(GateName::Block) if self.dscp.any() => {
                Err("`dscp` beside `gate: block` means nothing, for nothing passes".to_owned())
            }
            None if self.class.is_some() && !rates && !self.dscp.any() => {
                Err("a class alone: expected `up`, `down` or `dscp` beside it, or `{}` for no effect"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    fn rate(&self, direction: Direction) -> Option<BitsPerSecond> {
        match direction {
            Direction::Up => self.up,
            Direction::Down => self.down,
        }
    }
}

/// The operator's `service:` and `roaming:` sections, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    settings: BTreeMap<String, BTreeMap<String, Effect>>,
    roaming: Effect,
}

/// Settings this gateway cannot put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// No such setting.
    #[error("unknown setting `{name}`: this gateway knows {}", List(.known))]
    Setting {
        /// As asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No such value.
    #[error("unknown value `{value}` of setting `{name}`: this gateway knows {}", List(.known))]
    Value {
        /// The setting.
        name: String,
        /// As asked for.
        value: String,
        /// What there is.
        known: Vec<String>,
    },
}

struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.0.join(", ")) }
    }
}

impl Service {
    /// From parts that passed [`Effect::check`].
    pub fn new(settings: BTreeMap<String, BTreeMap<String, Effect>>, roaming: Effect) -> Self {
        Self { settings, roaming }
    }

    /// How many settings and values it knows.
    pub fn len(&self) -> (usize, usize) {
        (self.settings.len(), self.settings.values().map(BTreeMap::len).sum())
    }

    /// Whether every name and value, also those that come after an expiry, is known.
    pub fn check(&self, settings: &Settings) -> Result<(), ServiceError> {
        for (name, setting) in &settings.values {
            self.effect(name, &setting.value)?;
            self.effect(name, &setting.otherwise)?;
        }
        Ok(())
    }

    /// What the probe is to do at `now` with a session of these settings.
    pub fn enforcement(
        &self,
        settings: &Settings,
        roaming: bool,
        now: Micros,
    ) -> Result<Enforcement, ServiceError> {
        let mut lanes: [[Option<BitsPerSecond>; 2]; LANES] = [[None; 2]; LANES];
        let mut marks = [Marks::default(); LANES];
        let mut gate: Option<Effect> = None;
        for (name, setting) in &settings.values {
            let effect = self.effect(name, setting.at(now))?;
            if effect.gate.is_some() {
                gate = Some(gate.map_or(*effect, |other| stricter(other, *effect)));
            } else {
                narrow(&mut lanes, effect);
                mark(&mut marks, effect);
            }
        }
        let mut in_force = Gate::Pass;
        if roaming {
            let effect = gate.unwrap_or(self.roaming);
            in_force = effect.gate.map_or(Gate::Pass, Gate::from);
            narrow(&mut lanes, &effect);
            mark(&mut marks, &effect);
        }
        let rates = lanes.map(|limits| limits.map(|limit| limit.map_or(Rate::UNLIMITED, rate_of)));
        let of_line = marks[LINE].0;
        let marks = Class::ALL.map(|class| {
            let of_class = marks[class.index()].0;
            Direction::BOTH.map(|direction| of_class[direction.index()].or(of_line[direction.index()]))
        });
        Ok(Enforcement { gate: in_force, rates, marks })
    }

    /// [`Service::enforcement`] of those settings that are known. For settings kept from before the configuration changed:
    /// forwarding goes first, so what is not known any more holds nothing back.
    pub fn enforcement_of_known(&self, settings: &Settings, roaming: bool, now: Micros) -> Enforcement {
        let mut known = settings.clone();
        known.values.retain(|name, setting| self.effect(name, setting.at(now)).is_ok());
        self.enforcement(&known, roaming, now).unwrap_or_default()
    }

    /// When the next of these settings ends by itself, after `now`.
    pub fn next_expiry(settings: &Settings, now: Micros) -> Option<Micros> {
        settings.values.values().filter_map(|setting| setting.until).filter(|until| *until > now).min()
    }

    fn effect(&self, name: &str, value: &str) -> Result<&Effect, ServiceError> {
        let values = self.settings.get(name).ok_or_else(|| ServiceError::Setting {
            name: name.to_owned(),
            known: self.settings.keys().cloned().collect(),
        })?;
        values.get(value).ok_or_else(|| ServiceError::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            known: values.keys().cloned().collect(),
        })
    }
}

/// Of two gates the one that lets less through; of two of the same the lower rates.
fn stricter(one: Effect, other: Effect) -> Effect {
    match one.gate.cmp(&other.gate) {
        std::cmp::Ordering::Greater => one,
        std::cmp::Ordering::Less => other,
        std::cmp::Ordering::Equal => {
            let (up, down) = (lower(one.up, other.up), lower(one.down, other.down));
            Effect { up, down, dscp: one.dscp.higher(other.dscp), ..one }
        }
    }
}

fn narrow(lanes: &mut [[Option<BitsPerSecond>; 2]; LANES], effect: &Effect) {
    let lane = &mut lanes[effect.class.map_or(LINE, Class::index)];
    for direction in Direction::BOTH {
        let limit = &mut lane[direction.index()];
        *limit = lower(*limit, effect.rate(direction));
    }
}

fn mark(marks: &mut [Marks; LANES], effect: &Effect) {
    let marks = &mut marks[effect.class.map_or(LINE, Class::index)];
    *marks = marks.higher(effect.dscp);
}

fn lower(one: Option<BitsPerSecond>, other: Option<BitsPerSecond>) -> Option<BitsPerSecond> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The bucket of a rate: as much burst as TCP needs to fill a policed link, and never less than a few full packets.
pub fn rate_of(limit: BitsPerSecond) -> Rate {
    /// A fifth of a second of the rate.
    const BURST_SHARE: u64 = 5;
    const LEAST_BURST: u64 = 16 * 1_514;
    Rate::per_second(limit.0, (limit.0 / 8 / BURST_SHARE).max(LEAST_BURST))
}

#[cfg(test)]
mod tests {
    use usher_models::setting::Setting;

    use super::*;

    const SD: BitsPerSecond = BitsPerSecond(1_500_000);
    const HD: BitsPerSecond = BitsPerSecond(8_000_000);
    const SLOW: BitsPerSecond = BitsPerSecond(256_000);

    fn class(class: Class, down: BitsPerSecond) -> Effect {
        Effect { class: Some(class), down: Some(down), ..Effect::default() }
    }

    fn service() -> Service {
        let limit =
            Effect { gate: Some(GateName::Limit), up: Some(SLOW), down: Some(SLOW), ..Effect::default() };
        Service::new(
            BTreeMap::from([
                (
                    "video".to_owned(),
                    BTreeMap::from([
                        ("sd".to_owned(), class(Class::Video, SD)),
                        ("hd".to_owned(), class(Class::Video, HD)),
                    ]),
                ),
                ("saver".to_owned(), BTreeMap::from([("on".to_owned(), class(Class::Video, SLOW))])),
                (
                    "roam_pass".to_owned(),
                    BTreeMap::from([("none".to_owned(), limit), ("day".to_owned(), Effect::PASS)]),
                ),
            ]),
            limit,
        )
    }

    fn settings(values: &[(&str, Setting)]) -> Settings {
        let values = values.iter().map(|(name, setting)| ((*name).to_owned(), setting.clone())).collect();
        Settings { revision: 1, values }
    }

    fn down(enforcement: &Enforcement, lane: usize) -> u64 {
        enforcement.rates[lane][Direction::Down.index()].bits_per_second
    }

    const NOW: Micros = Micros::new(1_000);

    #[test]
    fn a_setting_puts_its_rate_on_its_class_until_it_ends() {
        let hd = Setting { value: "hd".into(), until: Some(Micros::new(5_000)), otherwise: "sd".into() };
        let settings = settings(&[("video", hd)]);
        let service = service();
        let before = service.enforcement(&settings, false, NOW).unwrap();
        assert_eq!(down(&before, Class::Video.index()), HD.0);
        assert_eq!(down(&before, Class::Web.index()), 0);
        assert_eq!(Service::next_expiry(&settings, NOW), Some(Micros::new(5_000)));
        let after = service.enforcement(&settings, false, Micros::new(5_000)).unwrap();
        assert_eq!(down(&after, Class::Video.index()), SD.0);
        assert_eq!(Service::next_expiry(&settings, Micros::new(5_000)), None);
    }

    #[test]
    fn a_roamer_without_word_from_the_orchestrator_is_held_to_the_roaming_gate() {
        let service = service();
        let roaming = service.enforcement(&Settings::default(), true, NOW).unwrap();
        assert_eq!((roaming.gate, down(&roaming, LINE)), (Gate::Limit, SLOW.0));
        let home = service.enforcement(&Settings::default(), false, NOW).unwrap();
        assert_eq!(home, Enforcement::default());
    }

    #[test]
    fn a_pass_opens_the_gate_while_roaming_and_does_nothing_at_home() {
        let service = service();
        let day = settings(&[("roam_pass", Setting::of_plan("day"))]);
        assert_eq!(service.enforcement(&day, true, NOW).unwrap(), Enforcement::default());
        let none = settings(&[("roam_pass", Setting::of_plan("none"))]);
        assert_eq!(service.enforcement(&none, true, NOW).unwrap().gate, Gate::Limit);
        assert_eq!(service.enforcement(&none, false, NOW).unwrap(), Enforcement::default());
    }

    #[test]
    fn the_strictest_of_several_gates_holds_with_the_lowest_rates_of_two_limits() {
        let gate = |gate, down| Effect { gate: Some(gate), down, ..Effect::default() };
        let value = |effect| BTreeMap::from([("on".to_owned(), effect)]);
        let service = Service::new(
            BTreeMap::from([
                ("day".to_owned(), value(Effect::PASS)),
                ("slow".to_owned(), value(gate(GateName::Limit, Some(SLOW)))),
                ("less_slow".to_owned(), value(gate(GateName::Limit, Some(SD)))),
                ("bill_shock".to_owned(), value(gate(GateName::Block, None))),
            ]),
            gate(GateName::Block, None),
        );
        let with = |names: &[&str]| {
            let on: Vec<_> = names.iter().map(|name| (*name, Setting::of_plan("on"))).collect();
            service.enforcement(&settings(&on), true, NOW).unwrap()
        };
        assert_eq!(with(&[]).gate, Gate::Block, "of the agent's own");
        assert_eq!(with(&["day"]), Enforcement::default());
        let limited = with(&["day", "less_slow", "slow"]);
        assert_eq!((limited.gate, down(&limited, LINE)), (Gate::Limit, SLOW.0));
        let blocked = with(&["slow", "bill_shock", "day"]);
        assert_eq!((blocked.gate, down(&blocked, LINE)), (Gate::Block, 0));
    }

    #[test]
    fn the_lowest_of_several_rates_holds() {
        let both = settings(&[("video", Setting::of_plan("hd")), ("saver", Setting::of_plan("on"))]);
        let enforcement = service().enforcement(&both, false, NOW).unwrap();
        assert_eq!(down(&enforcement, Class::Video.index()), SLOW.0);
    }

    fn dscp(name: &str) -> Dscp {
        name.parse().unwrap()
    }

    #[test]
    fn a_code_point_is_of_its_class_before_that_of_the_line_and_the_highest_of_several() {
        let value = |effect| BTreeMap::from([("on".to_owned(), effect)]);
        let of = |class, dscp| Effect { class, dscp, ..Effect::default() };
        let down_only = Marks([None, Some(dscp("af41"))]);
        let service = Service::new(
            BTreeMap::from([
                ("calls".to_owned(), value(of(Some(Class::Call), Marks::both(dscp("ef"))))),
                ("more".to_owned(), value(of(Some(Class::Call), Marks::both(dscp("va"))))),
                ("films".to_owned(), value(of(Some(Class::Video), down_only))),
                ("line".to_owned(), value(of(None, Marks::both(dscp("cs1"))))),
            ]),
            Effect { gate: Some(GateName::Pass), ..of(None, Marks::both(dscp("le"))) },
        );
        let names = ["calls", "more", "films"].map(|name| (name, Setting::of_plan("on")));
        let apart = service.enforcement(&settings(&names), false, NOW).unwrap();
        assert_eq!(apart.marks[Class::Call.index()], [Some(dscp("ef")); 2]);
        assert_eq!(apart.marks[Class::Video.index()], [None, Some(dscp("af41"))]);
        assert_eq!(apart.marks[Class::Web.index()], [None; 2]);
        let together = [("films", Setting::of_plan("on")), ("line", Setting::of_plan("on"))];
        let together = service.enforcement(&settings(&together), false, NOW).unwrap();
        assert_eq!(together.marks[Class::Video.index()], [Some(dscp("cs1")), Some(dscp("af41"))]);
        assert_eq!(together.marks[Class::Web.index()], [Some(dscp("cs1")); 2]);
        let abroad = service.enforcement(&Settings::default(), true, NOW).unwrap();
        assert_eq!(abroad.marks, [[Some(dscp("le")); 2]; Class::COUNT]);
    }

    #[test]
    fn code_points_are_written_by_name_or_number_for_both_directions_or_for_each() {
        let read = |text: &str| serde_saphyr::from_str::<Effect>(text).map(|effect| effect.dscp);
        let ef = dscp("ef");
        for (text, marks) in [
            ("{class: call, dscp: ef}", Marks::both(ef)),
            ("{class: call, dscp: 46}", Marks::both(ef)),
            ("{class: call, dscp: '46'}", Marks::both(ef)),
            ("{class: call, dscp: {up: ef}}", Marks([Some(ef), None])),
            ("{class: call, dscp: {up: 46, down: le}}", Marks([Some(ef), Some(dscp("le"))])),
        ] {
            assert_eq!(read(text).unwrap(), marks, "{text}");
        }
        for wrong in ["64", "-1", "fast", "1.5", "{both: ef}", "{up: {up: ef}}", "[ef]"] {
            assert!(read(&format!("{{class: call, dscp: {wrong}}}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name_with_what_is_known() {
        let service = service();
        let error = service.check(&settings(&[("vidoe", Setting::of_plan("hd"))])).unwrap_err();
        assert_eq!(error.to_string(), "unknown setting `vidoe`: this gateway knows roam_pass, saver, video");
        let until = Some(Micros::new(9));
        let later = Setting { value: "hd".into(), until, otherwise: "uhd".into() };
        let error = service.check(&settings(&[("video", later)])).unwrap_err();
        assert_eq!(error.to_string(), "unknown value `uhd` of setting `video`: this gateway knows hd, sd");
    }

    #[test]
    fn parts_that_do_not_go_together_are_refused() {
        let fast = Some(BitsPerSecond(1_000_000));
        for wrong in [
            Effect { gate: Some(GateName::Limit), ..Effect::default() },
            Effect { gate: Some(GateName::Pass), up: fast, ..Effect::default() },
            Effect { gate: Some(GateName::Block), class: Some(Class::Web), ..Effect::default() },
            Effect { class: Some(Class::Web), ..Effect::default() },
            Effect { up: Some(BitsPerSecond(1)), ..Effect::default() },
            Effect { gate: Some(GateName::Block), dscp: Marks::both(dscp("ef")), ..Effect::default() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        assert!(Effect::default().check().is_ok());
    }
}
