//! Names of code points, as they stand in config and in what people read.

use std::fmt;
use std::str::FromStr;

pub use crate::wire::Dscp;

/// Class selectors (RFC 2474, 4.2.2), assured forwarding (RFC 2597), expedited forwarding (RFC 3246), voice-admit (RFC 5865), lower
/// effort (RFC 8622) and the default; what each is for says RFC 4594. Of several names of one number the first is printed.
const NAMES: [(&str, u8); 25] = [
    ("df", 0),
    ("be", 0),
    ("cs0", 0),
    ("le", 1),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("va", 44),
    ("ef", 46),
];

/// A text that is no code point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no DSCP: expected a number from 0 to 63, or a name as in `ef`, `af41`, `cs1`, `le`, `va`, `df`"
)]
pub struct NotADscp(pub String);

impl FromStr for Dscp {
    type Err = NotADscp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = NAMES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        let number = named.map_or_else(|| text.parse().ok(), |(_, number)| Some(number));
        number.and_then(Self::new).ok_or_else(|| NotADscp(text.to_owned()))
    }
}

/// The standard's name where there is one, else the number.
impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.into_iter().find(|(_, number)| *number == self.get()) {
            Some((name, _)) => f.pad(name),
            None => f.pad(&self.get().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_point_is_read_by_name_and_number_and_printed_so_that_it_is_read_again() {
        for (text, number) in
            [("ef", 46), ("EF", 46), ("cs1", 8), ("le", 1), ("af41", 34), ("AF43", 38), ("va", 44), ("7", 7)]
        {
            assert_eq!(text.parse().ok(), Dscp::new(number), "{text}");
        }
        for dscp in (0..Dscp::COUNT).filter_map(Dscp::new) {
            assert_eq!(dscp.to_string().parse(), Ok(dscp));
        }
        for wrong in ["", "64", "-1", "af44", "0x2e", "4.6"] {
            assert!(wrong.parse::<Dscp>().is_err(), "{wrong}");
        }
    }
}
