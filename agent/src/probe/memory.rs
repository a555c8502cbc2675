//! What the probe's maps cost, limit by limit: the kernel's own account of each map (map_mem_usage of its kind), as arithmetic.

use usher_models::wire::MAX_FIRST_BYTES;

use super::ProbeConfig;
use super::layout::shapes;

/// What a limit costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// What is limited.
    pub what: &'static str,
    /// How many of it there may be.
    pub limit: u64,
    /// Bytes of kernel memory, once all of it is in use.
    pub bytes: u64,
}

/// Bytes of a node of the session trie besides its key and value, and how many a prefix has at the most: its own, and one where it parts
/// from another.
const TRIE_NODE: u64 = 40;
const NODES_A_PREFIX: u64 = 2;
/// An element of a hash map besides key and value, and its bucket.
const HASH_ELEMENT: u64 = 64;

/// The addresses that each CPU remembers the sessions of, and what one takes.
const RECENT: (u64, u64) = (65_536, 16);
/// Packets whose fragments are told apart, and key and value of one.
const FRAGMENTS: (u64, u64) = (8_192, 44);
/// What a CPU needs to take packets apart.
const SCRATCH: u64 = 72 + MAX_FIRST_BYTES as u64 + 4 * 80 + 112;

/// What a probe of these sizes costs on a machine with so many CPUs, in the order in which people set them.
pub fn memory(settings: &ProbeConfig, cpus: u64) -> Vec<Cost> {
    let (mut flows, mut subscribers, mut prefixes, mut ring, mut measured, mut apps) = (0, 0, 0, 0, 0, 0);
    let mut fixed = cpus * SCRATCH;
    for shape in shapes(settings) {
        let value = (shape.value as u64).next_multiple_of(8);
        let all = u64::from(shape.entries) * value;
        match shape.pin {
            "flows" | "details" => flows += all,
            "lanes" | "rations" => subscribers += all,
            "sessions" => {
                let node = TRIE_NODE + shape.key as u64 - 4 + value;
                prefixes += u64::from(shape.entries) * NODES_A_PREFIX * node.next_power_of_two();
            }
            "quality" => measured += all,
            "apps" => apps += all,
            "samples" => ring += u64::from(shape.entries),
            "anonymous" | "tallies" => fixed += all * cpus,
            _ => fixed += all,
        }
    }
    let cost = |what, limit: u64, bytes| Cost { what, limit, bytes };
    vec![
        cost("flows", u64::from(settings.max_flows), flows),
        cost("subscribers", u64::from(settings.max_subscribers.saturating_sub(1)), subscribers),
        cost("prefixes", u64::from(settings.max_prefixes), prefixes),
        cost("classes of sessions measured at one time", u64::from(settings.max_measured), measured),
        cost("apps of subscribers at one time", u64::from(settings.max_apps), apps),
        cost("bytes of samples", ring, ring),
        cost("addresses a CPU", RECENT.0, RECENT.0 * RECENT.1 * cpus),
        cost("fragmented packets", FRAGMENTS.0, FRAGMENTS.0 * (FRAGMENTS.1 + HASH_ELEMENT)),
        cost("CPUs", cpus, fixed),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(max_flows: u32, max_subscribers: u32, cpus: u64) -> Vec<u64> {
        let settings = ProbeConfig { max_flows, max_subscribers, ..ProbeConfig::new("eth0") };
        memory(&settings, cpus).into_iter().map(|cost| cost.bytes).collect()
    }

    #[test]
    fn each_limit_costs_what_it_holds() {
        let small = of(65_536, 1_000, 2);
        let flows = of(131_072, 1_000, 2);
        assert_eq!(flows[0], 2 * small[0]);
        assert_eq!(flows[1..], small[1..]);
        let subscribers = of(65_536, 201_000, 2);
        assert_eq!(subscribers[1] - small[1], 200_000 * (18 * 64 + 8));
        let cpus = of(65_536, 1_000, 64);
        assert_eq!(cpus[..6], small[..6], "counters do not grow with CPUs");
        assert_eq!(cpus[6], 64 << 20);
    }

    #[test]
    fn a_limit_says_of_what_it_is() {
        let settings = ProbeConfig { max_measured: 77, max_apps: 78, ..ProbeConfig::new("eth0") };
        let said = memory(&settings, 2);
        let what = |limit: u64| said.iter().find(|cost| cost.limit == limit).map(|cost| cost.what);
        assert_eq!(what(77), Some("classes of sessions measured at one time"));
        assert_eq!(what(78), Some("apps of subscribers at one time"));
    }
}
