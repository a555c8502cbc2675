//! Which classes shape a slot's packets in a direction, worked out from its rates. Sans-I/O.
//!
//! ```text
//! rates of             classes                                             packets of
//! nothing              none                                                -
//! the line             the line's                                          all classes of use
//! classes of use       one each                                            theirs; others are not shaped
//! both                 the line's, in it one each, and one for the rest    theirs; others: the rest
//! ```
//!
//! A class in a line's has a share of its rate for itself, and borrows up to its own rate what the others leave: the shares add up to the line's
//! rate, so the line's holds. (HTB lets a class send within its own rate whatever its parent's is.)

use usher_models::wire::{LANES, LINE, Rate};

/// How long packets wait at the most in a queue that knows no better, in parts of a second; and how many there is room for at the least and most.
const WAIT_SHARE: u64 = 10;
const PACKETS: (u64, u64) = (16, 10_000);
const FULL_FRAME: u64 = 1_514;

/// A class of HTB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    /// The minor number of the class it is in, if it is in one.
    pub(super) parent: Option<u16>,
    /// What it may send whatever the others do; bytes per second.
    pub(super) rate: u64,
    /// What it may send at the most; bytes per second.
    pub(super) ceiling: u64,
    /// Whether packets go to it: to a line's with others in it they do not.
    pub(super) queues: bool,
}

impl Class {
    /// Packets that may wait in it.
    pub(super) fn packets(&self) -> u32 {
        let packets = (self.ceiling / WAIT_SHARE / FULL_FRAME).clamp(PACKETS.0, PACKETS.1);
        u32::try_from(packets).unwrap_or(u32::MAX)
    }
}

/// The minor numbers of the classes that shape a slot's packets in a direction: by class of use that of the class its packets go to, then
/// that of the line's own. 0: none.
pub(super) type Minors = [u16; LANES];

/// The classes of a slot in a direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// Those that are in the line's come after it.
    classes: Vec<Planned>,
    /// By lane the place of its class among these.
    lanes: [Option<usize>; LANES],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    in_line: bool,
    queues: bool,
    rate: u64,
    ceiling: u64,
}

impl Plan {
    /// Of the rates of the classes of use, then of the line.
    pub(super) fn new(rates: &[Rate; LANES]) -> Self {
        let bytes = |rate: &Rate| (rate.bits_per_second / 8).max(1);
        let line = rates[LINE].limits().then(|| bytes(&rates[LINE]));
        let own = |lane: &usize| *lane < LINE && rates[*lane].limits();
        let own: Vec<usize> = (0..LANES).filter(own).collect();
        let mut plan = Self::default();
        if let Some(rate) = line {
            plan.classes.push(Planned { in_line: false, queues: own.is_empty(), rate, ceiling: rate });
            plan.lanes = [Some(0); LANES];
        }
        let rest = line.filter(|_| !own.is_empty() && own.len() < LINE);
        let shares = u64::try_from(own.len() + usize::from(rest.is_some())).unwrap_or(u64::MAX);
        if let Some(line) = rest {
            plan.lanes[..LINE].fill(Some(1));
            plan.classes.push(Planned {
                in_line: true,
                queues: true,
                rate: (line / shares).max(1),
                ceiling: line,
            });
        }
        for lane in own {
            let rate = bytes(&rates[lane]);
            let ceiling = line.map_or(rate, |line| line.min(rate));
            let rate = line.map_or(rate, |line| ceiling.min(line / shares).max(1));
            plan.lanes[lane] = Some(plan.classes.len());
            plan.classes.push(Planned { in_line: line.is_some(), queues: true, rate, ceiling });
        }
        plan
    }

    /// How many classes it has.
    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    /// The classes by their minor numbers, of which there are as many; the line's first.
    pub(super) fn classes(&self, minors: &[u16]) -> Vec<(u16, Class)> {
        let line = minors.first().copied();
        let class = |planned: &Planned| Class {
            parent: line.filter(|_| planned.in_line),
            rate: planned.rate,
            ceiling: planned.ceiling,
            queues: planned.queues,
        };
        minors.iter().copied().zip(self.classes.iter().map(class)).collect()
    }

    /// Where packets go, with these minor numbers for the classes.
    pub(super) fn minors(&self, minors: &[u16]) -> Minors {
        self.lanes.map(|class| class.and_then(|class| minors.get(class).copied()).unwrap_or(0))
    }

    /// The minor numbers of the classes, where packets go already as planned: then other rates are all there may be to set.
    pub(super) fn numbers(&self, found: &Minors) -> Option<Vec<u16>> {
        let number = |class| {
            let lane = self.lanes.iter().position(|lane| *lane == Some(class));
            lane.map_or(0, |lane| found[lane])
        };
        let numbers: Vec<u16> = (0..self.len()).map(number).collect();
        let distinct: std::collections::BTreeSet<&u16> = numbers.iter().collect();
        let same = self.minors(&numbers) == *found;
        (same && distinct.len() == numbers.len() && !numbers.contains(&0)).then_some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use usher_models::wire::Class as Use;

    use super::*;

    /// Rates of the line and of some classes of use, in bits per second.
    fn rates(line: u64, own: &[(Use, u64)]) -> [Rate; LANES] {
        let mut rates = [Rate::UNLIMITED; LANES];
        rates[LINE] = Rate::per_second(line, 0);
        for (class, bits) in own {
            rates[class.index()] = Rate::per_second(*bits, 0);
        }
        rates
    }

    fn numbered(plan: &Plan) -> Vec<u16> {
        (0..plan.len()).map(|class| u16::try_from(100 + class).expect("few")).collect()
    }

    #[test]
    fn nothing_limited_is_nothing_shaped() {
        let plan = Plan::new(&rates(0, &[]));
        assert_eq!((plan.len(), plan.minors(&[])), (0, [0; LANES]));
        assert_eq!(plan.numbers(&[0; LANES]), Some(vec![]));
    }

    #[test]
    fn a_limited_line_is_one_class_for_everything() {
        let plan = Plan::new(&rates(8_000_000, &[]));
        assert_eq!(plan.minors(&[7]), [7; LANES]);
        let class = Class { parent: None, rate: 1_000_000, ceiling: 1_000_000, queues: true };
        assert_eq!(plan.classes(&[7]), [(7, class)]);
    }

    #[test]
    fn a_limited_class_of_use_is_alone_and_the_others_are_free() {
        let plan = Plan::new(&rates(0, &[(Use::Video, 800_000), (Use::Bulk, 80_000)]));
        let minors = plan.minors(&[7, 8]);
        assert_eq!((minors[Use::Video.index()], minors[Use::Bulk.index()]), (7, 8));
        assert_eq!(minors.iter().filter(|minor| **minor != 0).count(), 2);
        let class = Class { parent: None, rate: 100_000, ceiling: 100_000, queues: true };
        assert_eq!(plan.classes(&[7, 8])[0], (7, class));
    }

    #[test]
    fn in_a_limited_line_each_has_a_share_and_borrows_up_to_its_own_rate() {
        let plan = Plan::new(&rates(12_000_000, &[(Use::Video, 8_000_000), (Use::Bulk, 80_000)]));
        let [line, rest, video, bulk] = plan.classes(&[7, 8, 9, 10]).try_into().expect("four");
        assert_eq!(line, (7, Class { parent: None, rate: 1_500_000, ceiling: 1_500_000, queues: false }));
        assert_eq!(rest, (8, Class { parent: Some(7), rate: 500_000, ceiling: 1_500_000, queues: true }));
        assert_eq!(video, (9, Class { parent: Some(7), rate: 500_000, ceiling: 1_000_000, queues: true }));
        assert_eq!(bulk, (10, Class { parent: Some(7), rate: 10_000, ceiling: 10_000, queues: true }));
        let minors = plan.minors(&[7, 8, 9, 10]);
        assert_eq!((minors[LINE], minors[Use::Web.index()], minors[Use::Video.index()]), (7, 8, 9));
    }

    #[test]
    fn other_numbers_than_planned_are_seen() {
        let plan = Plan::new(&rates(0, &[(Use::Video, 800_000), (Use::Bulk, 80_000)]));
        let mut found = plan.minors(&[7, 8]);
        assert_eq!(plan.numbers(&found), Some(vec![7, 8]));
        found[Use::Bulk.index()] = 7;
        assert_eq!(plan.numbers(&found), None, "two in one");
        found[Use::Bulk.index()] = 0;
        assert_eq!(plan.numbers(&found), None, "one missing");
        found = plan.minors(&[7, 8]);
        found[Use::Web.index()] = 9;
        assert_eq!(plan.numbers(&found), None, "one over");
        assert_eq!(Plan::new(&rates(0, &[])).numbers(&found), None);
    }

    #[test]
    fn a_queue_is_as_long_as_its_rate_asks_for() {
        let class = |ceiling| Class { parent: None, rate: 1, ceiling, queues: true };
        assert_eq!(class(8_000).packets(), 16, "at 64 kbit/s");
        assert_eq!(class(12_500_000).packets(), 825, "at 100 Mbit/s");
        assert_eq!(class(12_500_000_000).packets(), 10_000, "at 100 Gbit/s");
    }

    fn any_rates() -> impl Strategy<Value = [Rate; LANES]> {
        let rate = prop_oneof![Just(0), 64_000_u64..100_000_000_000];
        prop::array::uniform9(rate).prop_map(|bits| bits.map(|bits| Rate::per_second(bits, 0)))
    }

    proptest! {
        #[test]
        fn no_class_may_send_more_than_its_rates_and_a_line_no_more_than_its_own(rates in any_rates()) {
            let plan = Plan::new(&rates);
            let numbers = numbered(&plan);
            let classes: std::collections::BTreeMap<u16, Class> = plan.classes(&numbers).into_iter().collect();
            let minors = plan.minors(&numbers);
            for lane in 0..LANES {
                let limit = [rates[lane], rates[LINE]].iter().filter(|rate| rate.limits())
                    .map(|rate| rate.bits_per_second / 8).min();
                let ceiling = classes.get(&minors[lane]).map(|class| class.ceiling);
                prop_assert_eq!(ceiling, limit, "lane {}", lane);
                prop_assert!(lane == LINE || minors[lane] == 0 || classes[&minors[lane]].queues);
            }
            for (number, class) in &classes {
                prop_assert!(class.rate >= 1 && class.rate <= class.ceiling);
                let inside: Vec<&Class> = classes.values().filter(|it| it.parent == Some(*number)).collect();
                prop_assert_eq!(class.queues, inside.is_empty());
                prop_assert!(inside.iter().map(|it| it.rate).sum::<u64>() <= class.rate);
            }
        }

        #[test]
        fn the_numbers_of_a_plan_are_found_again(rates in any_rates(), others in any_rates()) {
            let plan = Plan::new(&rates);
            let minors = plan.minors(&numbered(&plan));
            prop_assert_eq!(plan.numbers(&minors), Some(numbered(&plan)));
            let other = Plan::new(&others);
            if let Some(numbers) = other.numbers(&minors) {
                prop_assert_eq!(other.minors(&numbers), minors, "same packets to same classes");
            }
        }
    }
}
