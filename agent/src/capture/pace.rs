//! When a packet of a file is due: its time stamps moved so that the first packet is now. Time is an argument.

use std::time::Duration;

use usher_models::units::Micros;

/// How fast a file is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Each packet at its time, as when it was captured.
    #[default]
    RealTime,
    /// As fast as it is taken.
    Fast,
}

/// A silence in a file longer than this lasts this long: time stamps of merged or broken files would stop the world.
pub const MAX_SILENCE: Duration = Duration::from_mins(5);

/// Moves a file's time stamps.
#[derive(Debug, Clone)]
pub struct Pacer {
    start: Micros,
    /// The last packet's time stamp as it stands in the file, and as moved.
    last: Option<(Micros, Micros)>,
}

impl Pacer {
    /// The file's first packet is at `start`.
    pub const fn new(start: Micros) -> Self {
        Self { start, last: None }
    }

    /// A packet's time. Never before that of the packet before it, and at most [`MAX_SILENCE`] after it.
    pub fn moved(&mut self, stamp: Micros) -> Micros {
        let moved = match self.last {
            None => self.start,
            Some((last, moved)) => moved.after(stamp.since(last).min(MAX_SILENCE)),
        };
        // A stamp before its forerunner's is a packet out of order: the later one stays the measure.
        let latest = self.last.map_or(stamp, |(last, _)| last.max(stamp));
        // Unless it is out of all proportion, then the stamps start anew.
        let latest = if latest.since(stamp) > MAX_SILENCE { stamp } else { latest };
        self.last = Some((latest, moved));
        moved
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_packet_is_now_and_gaps_stay() {
        let mut pacer = Pacer::new(Micros::new(1_000_000));
        assert_eq!(pacer.moved(Micros::new(50)), Micros::new(1_000_000));
        assert_eq!(pacer.moved(Micros::new(70)), Micros::new(1_000_020));
        assert_eq!(pacer.moved(Micros::new(70)), Micros::new(1_000_020));
        assert_eq!(pacer.moved(Micros::new(60)), Micros::new(1_000_020), "out of order");
        assert_eq!(pacer.moved(Micros::new(80)), Micros::new(1_000_030));
    }

    #[test]
    fn a_leap_is_shortened_and_a_leap_back_starts_anew() {
        let mut pacer = Pacer::new(Micros::new(0));
        pacer.moved(Micros::new(0));
        let day = Micros::new(86_400_000_000);
        let silence = i64::try_from(MAX_SILENCE.as_micros()).unwrap();
        assert_eq!(pacer.moved(day), Micros::new(silence));
        assert_eq!(pacer.moved(Micros::new(5)), Micros::new(silence));
        assert_eq!(pacer.moved(Micros::new(7)), Micros::new(silence + 2));
    }

    proptest! {
        #[test]
        fn time_never_goes_back_whatever_the_stamps(stamps in proptest::collection::vec(any::<i64>(), 0..50)) {
            let mut pacer = Pacer::new(Micros::new(1));
            let mut last = Micros::new(1);
            for stamp in stamps {
                let moved = pacer.moved(Micros::new(stamp));
                prop_assert!(moved >= last && moved.since(last) <= MAX_SILENCE);
                last = moved;
            }
        }
    }
}
