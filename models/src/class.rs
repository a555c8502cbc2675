//! Names of classes and directions, as they stand in config, catalogue, policy, CLI and metrics.

use std::fmt;
use std::str::FromStr;

use crate::wire::{Class, Direction};

/// A word that names no class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown class `{0}`: expected one of other, video, call, game, web, social, bulk, system")]
pub struct UnknownClass(pub String);

impl Class {
    /// The class's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Video => "video",
            Self::Call => "call",
            Self::Game => "game",
            Self::Web => "web",
            Self::Social => "social",
            Self::Bulk => "bulk",
            Self::System => "system",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|class| class.name() == word).ok_or_else(|| UnknownClass(word.to_owned()))
    }
}

impl serde::Serialize for Class {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Class {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        word.parse().map_err(serde::de::Error::custom)
    }
}

impl Direction {
    /// The direction's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
