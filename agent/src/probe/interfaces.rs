//! Which interfaces carry the probe: the configured names and patterns against those there are.
//!
//! Sans-I/O: [`super::netlink`] says what there is. Of interfaces on top of each other (a bond or bridge and its ports, a VLAN and what it
//! is on, a tunnel and what it goes out by) only one carries the probe, for a packet passes all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::ProbeError;

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    /// The kernel's number for it: of this one for as long as it is there, whatever its name.
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) link: Link,
    /// The largest packet it carries, in bytes from the IP header on; 0: the kernel did not say.
    pub(super) mtu: u32,
    /// The bond, bridge or team it is a port of.
    pub(super) master: Option<u32>,
    /// The interface it is made on: that of a VLAN's tags or a tunnel's packets.
    pub(super) over: Option<u32>,
    /// Whether a program in its driver sees what comes in as it was on the wire, all of it and nothing else: so do network hardware and a
    /// veth. Interfaces of user space hand in joined packets, and the program of a bond is run by its ports.
    pub(super) frames_of_the_wire: bool,
}

/// What an interface's frames begin with, by its ARPHRD number (linux/if_arp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// An Ethernet header.
    Ethernet,
    /// An IP header.
    Ip,
    /// Something that the probe does not read.
    Unknown(u16),
}

/// ARPHRD numbers of interfaces whose frames begin with an IP header when programs see them: PPP, raw IP, tunnels of IP in IP and GRE,
/// and those of user space (TUN) and of WireGuard, which have none.
const IP: [u16; 8] = [
    libc::ARPHRD_PPP,
    519,
    libc::ARPHRD_TUNNEL,
    libc::ARPHRD_TUNNEL6,
    libc::ARPHRD_SIT,
    libc::ARPHRD_IPGRE,
    823,
    libc::ARPHRD_NONE,
];

impl Link {
    pub(super) fn of(arphrd: u16) -> Self {
        match arphrd {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Self::Ethernet,
            other if IP.contains(&other) => Self::Ip,
            other => Self::Unknown(other),
        }
    }
}

/// An interface's name, or names with `*` for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Of a name or pattern as configured.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether it is a name: an interface that must be there.
    pub fn is_name(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether an interface of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, tail)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut rest) = name.strip_prefix(head) else { return false };
        // Each part at its first place leaves the most for those after it; the last one is at the end.
        let mut parts = tail.split('*').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        true
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to carry the probe now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// By index.
    pub(super) chosen: BTreeMap<u32, Interface>,
    /// Configured names that no interface has.
    pub(super) missing: Vec<String>,
    /// Matching interfaces that cannot or must not carry it, and why.
    pub(super) left_out: Vec<LeftOut>,
}

/// An interface that matches and is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) name: String,
    /// Whether it is configured by its name.
    pub(super) named: bool,
    pub(super) why: Why,
}

/// Why an interface is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Its frames are of another kind; the ARPHRD number.
    UnknownLink(u16),
    /// Its packets pass another interface that carries the probe.
    SamePackets(String),
}

impl LeftOut {
    /// The same as what keeps an agent from starting.
    pub(super) fn error(&self) -> ProbeError {
        let name = self.name.clone();
        match &self.why {
            Why::UnknownLink(link_type) => ProbeError::UnknownLink { name, link_type: *link_type },
            Why::SamePackets(other) => ProbeError::CountedTwice { name, other: other.clone() },
        }
    }
}

/// Chooses among the interfaces there are: those configured by name first, then those of a pattern, in the order of their numbers.
pub(super) fn choose(patterns: &[Pattern], present: &[Interface]) -> Choice {
    let mut choice = Choice::default();
    let by_name = patterns.iter().filter(|pattern| pattern.is_name());
    let mut wanted: Vec<(&Interface, bool)> = Vec::new();
    for pattern in by_name {
        match present.iter().find(|interface| pattern.matches(&interface.name)) {
            Some(interface) if wanted.iter().any(|(other, _)| other.index == interface.index) => {}
            Some(interface) => wanted.push((interface, true)),
            None => choice.missing.push(pattern.to_string()),
        }
    }
    let named: BTreeSet<u32> = wanted.iter().map(|(interface, _)| interface.index).collect();
    let mut others: Vec<_> = present
        .iter()
        .filter(|interface| !named.contains(&interface.index))
        .filter(|interface| patterns.iter().any(|pattern| pattern.matches(&interface.name)))
        .collect();
    others.sort_unstable_by_key(|interface| interface.index);
    wanted.extend(others.into_iter().map(|interface| (interface, false)));

    let stacks = Stacks::new(present);
    // All interfaces above or below a chosen one, and which that is.
    let mut taken: BTreeMap<u32, u32> = BTreeMap::new();
    for (interface, named) in wanted {
        let why = match interface.link {
            Link::Unknown(link_type) => Some(Why::UnknownLink(link_type)),
            _ => taken
                .get(&interface.index)
                .and_then(|other| choice.chosen.get(other).map(|other| Why::SamePackets(other.name.clone()))),
        };
        if let Some(why) = why {
            choice.left_out.push(LeftOut { name: interface.name.clone(), named, why });
            continue;
        }
        for index in stacks.with(interface.index) {
            taken.entry(index).or_insert(interface.index);
        }
        choice.chosen.insert(interface.index, interface.clone());
    }
    choice
}

/// Which interface is on which.
struct Stacks {
    above: BTreeMap<u32, Vec<u32>>,
    below: BTreeMap<u32, Vec<u32>>,
}

impl Stacks {
    fn new(present: &[Interface]) -> Self {
        let mut stacks = Self { above: BTreeMap::new(), below: BTreeMap::new() };
        for interface in present {
            let pairs = [
                interface.master.map(|on| (interface.index, on)),
                interface.over.map(|under| (under, interface.index)),
            ];
            for (lower, upper) in pairs.into_iter().flatten() {
                stacks.above.entry(lower).or_default().push(upper);
                stacks.below.entry(upper).or_default().push(lower);
            }
        }
        stacks
    }

    /// Those whose packets pass this one, or whose way this one's packets take.
    fn with(&self, index: u32) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for edges in [&self.above, &self.below] {
            let mut next = vec![index];
            while let Some(index) = next.pop() {
                for other in edges.get(&index).into_iter().flatten() {
                    if found.insert(*other) {
                        next.push(*other);
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            link: Link::Ethernet,
            mtu: 1_500,
            master: None,
            over: None,
            frames_of_the_wire: true,
        }
    }

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().copied().map(Pattern::new).collect()
    }

    fn chosen(choice: &Choice) -> Vec<&str> {
        choice.chosen.values().map(|interface| interface.name.as_str()).collect()
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, meant) in [
            ("eth1", "eth1", true),
            ("eth1", "eth10", false),
            ("ppp*", "ppp0", true),
            ("ppp*", "ppp", true),
            ("ppp*", "xppp0", false),
            ("eth1.*", "eth1.100", true),
            ("eth1.*", "eth1", false),
            ("*.100", "bond0.100", true),
            ("e*1*0", "eth1.100", true),
            ("e*1*0", "eth2.0", false),
            ("a*a", "a", false),
            ("a*b*b", "ab", false),
            ("*", "anything", true),
            ("**", "anything", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), meant, "{pattern} {name}");
        }
    }

    #[test]
    fn names_must_be_there_and_patterns_need_not() {
        let present = [interface(1, "lo"), interface(2, "eth1"), interface(7, "ppp1"), interface(5, "ppp0")];
        let choice = choose(&patterns(&["eth1", "eth9", "ppp*", "gre*"]), &present);
        assert_eq!(chosen(&choice), ["eth1", "ppp0", "ppp1"]);
        assert_eq!(choice.missing, ["eth9"]);
        assert_eq!(choice.left_out, []);
        let twice = choose(&patterns(&["eth1", "eth1", "eth*"]), &present);
        assert_eq!(chosen(&twice), ["eth1"]);
        assert_eq!(twice.left_out, []);
    }

    #[test]
    fn of_interfaces_on_each_other_one_carries_the_probe() {
        // eth1 and eth2 in a bond, a VLAN on the bond, another on a third port.
        let present = [
            Interface { master: Some(4), ..interface(2, "eth1") },
            Interface { master: Some(4), ..interface(3, "eth2") },
            interface(4, "bond0"),
            Interface { over: Some(4), ..interface(5, "bond0.100") },
            interface(6, "eth3"),
            Interface { over: Some(6), ..interface(7, "eth3.5") },
            Interface { over: Some(6), ..interface(8, "eth3.6") },
        ];
        let left = |choice: &Choice| -> Vec<(String, bool, Why)> {
            choice.left_out.iter().map(|out| (out.name.clone(), out.named, out.why.clone())).collect()
        };
        let same = |name: &str| Why::SamePackets(name.to_owned());
        let choice = choose(&patterns(&["eth1", "bond0"]), &present);
        assert_eq!(chosen(&choice), ["eth1"]);
        assert_eq!(left(&choice), [("bond0".to_owned(), true, same("eth1"))]);
        let choice = choose(&patterns(&["bond0.100", "eth*"]), &present);
        assert_eq!(chosen(&choice), ["bond0.100", "eth3"]);
        assert_eq!(left(&choice)[0], ("eth1".to_owned(), false, same("bond0.100")), "two layers down");
        assert_eq!(left(&choice)[2], ("eth3.5".to_owned(), false, same("eth3")));
        let choice = choose(&patterns(&["eth3.*", "eth1", "eth2"]), &present);
        assert_eq!(
            chosen(&choice),
            ["eth1", "eth2", "eth3.5", "eth3.6"],
            "side by side is not on each other"
        );
        assert_eq!(left(&choice), []);
    }

    #[test]
    fn an_interface_of_other_frames_is_left_out() {
        let present = [Interface { link: Link::of(772), ..interface(1, "lo") }, {
            Interface { link: Link::of(32), ..interface(2, "ib0") }
        }];
        let choice = choose(&patterns(&["lo", "ib*"]), &present);
        assert_eq!(chosen(&choice), ["lo"]);
        assert_eq!(choice.left_out[0].why, Why::UnknownLink(32));
        assert!(choice.left_out[0].error().to_string().contains("ib0"));
        assert_eq!(Link::of(512), Link::Ip);
    }
}
