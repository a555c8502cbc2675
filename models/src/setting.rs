//! Settings: desired service state of one subscriber, always with an expiry (or the plan's own) and a revision.

use std::collections::BTreeMap;

use crate::telemetry;
use crate::units::Micros;

/// One piece of desired service state: `video: hd` until a time, `sd` after it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// What is in force now.
    pub value: String,
    /// When it ends by itself; `None`: it is what the plan gives, which does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Micros>,
    /// What is in force after `until`; equal to `value` where there is no end.
    pub otherwise: String,
}

impl Setting {
    /// What the plan gives: no end.
    pub fn of_plan(value: impl Into<String>) -> Self {
        let value = value.into();
        Self { otherwise: value.clone(), value, until: None }
    }

    /// The value in force at `now`.
    pub fn at(&self, now: Micros) -> &str {
        match self.until {
            Some(until) if until <= now => &self.otherwise,
            _ => &self.value,
        }
    }
}

/// All settings one subscriber is to have, by name (`video`, `qos_up`, `roam_pass`, ...), at a revision.
///
/// A full statement, not a change: putting it in force twice is putting it in force once.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Rises with each change; an element refuses a lower one than it runs.
    pub revision: u64,
    /// By setting name.
    pub values: BTreeMap<String, Setting>,
}

impl Settings {
    /// As the protocol states it, for one session.
    pub fn to_desired(&self, session: &str) -> telemetry::Desired {
        telemetry::Desired {
            session: session.to_owned(),
            revision: self.revision,
            settings: self
                .values
                .iter()
                .map(|(name, setting)| telemetry::Setting {
                    name: name.clone(),
                    value: setting.value.clone(),
                    until_us: setting.until.map_or(0, Micros::get),
                    otherwise: setting.otherwise.clone(),
                })
                .collect(),
        }
    }

    /// From the protocol; the session's id stands beside it there.
    pub fn from_desired(desired: &telemetry::Desired) -> Self {
        Self {
            revision: desired.revision,
            values: desired
                .settings
                .iter()
                .map(|setting| {
                    let until = (setting.until_us != 0).then(|| Micros::new(setting.until_us));
                    let otherwise = if until.is_some() { &setting.otherwise } else { &setting.value };
                    (
                        setting.name.clone(),
                        Setting { value: setting.value.clone(), until, otherwise: otherwise.clone() },
                    )
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_ends_at_its_expiry_and_not_before() {
        let hd = Setting { value: "hd".into(), until: Some(Micros::new(10)), otherwise: "sd".into() };
        assert_eq!(hd.at(Micros::new(9)), "hd");
        assert_eq!(hd.at(Micros::new(10)), "sd");
        assert_eq!(Setting::of_plan("sd").at(Micros::new(i64::MAX)), "sd");
    }

    #[test]
    fn settings_survive_the_protocol() {
        let settings = Settings {
            revision: 7,
            values: BTreeMap::from([
                (
                    "video".to_owned(),
                    Setting { value: "hd".into(), until: Some(Micros::new(10)), otherwise: "sd".into() },
                ),
                ("roam_pass".to_owned(), Setting::of_plan("none")),
            ]),
        };
        assert_eq!(Settings::from_desired(&settings.to_desired("s1")), settings);
    }
}
