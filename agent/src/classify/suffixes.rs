//! Rules by domain in one compact index: their text in one piece, and one hash table of numbers into it.
//!
//! A rule costs its domain's bytes and at most 24 more. Owns the search for the longest domain that a name ends in, in one
//! pass over the name from its end. Refuses to know what a rule's value means, and more text than 4 GiB.

/// Rules by domain. A value is the caller's.
#[derive(Debug, Clone, Default)]
pub(super) struct Suffixes {
    text: String,
    rules: Vec<Rule>,
    /// Rule numbers from 1 on; 0 is free. Their count is a power of two, and at most three in four are taken.
    slots: Vec<u32>,
    /// Labels of the longest domain: suffixes of more need no look-up.
    most_labels: usize,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    at: u32,
    value: u32,
    length: u8,
    /// Whether it holds for its domain alone, not for the names below.
    exact: bool,
}

/// Of a text's bytes from the last to the first, so that the hash of a suffix leads to that of a longer one.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn of(text: &str) -> Self {
        text.bytes().rev().fold(Self::EMPTY, Self::then)
    }

    /// FNV-1a's step.
    fn then(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    fn slot(self, exact: bool, count: usize) -> usize {
        let mixed = (self.0 ^ u64::from(exact)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mixed >> 32).unwrap_or_default() & (count - 1)
    }
}

impl Suffixes {
    /// How many rules there are.
    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Memory in use.
    pub(super) fn held(&self) -> usize {
        self.text.capacity()
            + self.rules.capacity() * size_of::<Rule>()
            + self.slots.capacity() * size_of::<u32>()
    }

    /// Makes room for as many rules more.
    pub(super) fn reserve(&mut self, rules: usize, text: usize) {
        self.rules.reserve_exact(rules);
        self.text.reserve_exact(text);
        self.grow(self.rules.len() + rules);
    }

    /// Gives `domain`, at most 255 bytes of a canonical name, a value. A value for all names below a domain is also that of
    /// the domain itself, whatever an earlier exact rule said.
    pub(super) fn insert(&mut self, domain: &str, exact: bool, value: u32) {
        let hash = Hash::of(domain);
        if !exact && let Some(number) = self.find(domain, hash, true) {
            self.rules[number].value = value;
        }
        if let Some(number) = self.find(domain, hash, false).filter(|_| !exact) {
            self.rules[number].value = value;
            return;
        }
        if exact && let Some(number) = self.find(domain, hash, true) {
            self.rules[number].value = value;
            return;
        }
        let (Ok(at), Ok(length)) = (u32::try_from(self.text.len()), u8::try_from(domain.len())) else {
            return;
        };
        self.text.push_str(domain);
        self.rules.push(Rule { at, value, length, exact });
        self.most_labels = self.most_labels.max(labels(domain));
        if self.slots.len() * 3 < self.rules.len() * 4 {
            self.grow(self.rules.len());
        } else {
            self.place(self.rules.len() - 1, hash);
        }
    }

    /// The value of the longest domain that `name`, a canonical one, ends in.
    pub(super) fn look_up(&self, name: &str) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let bytes = name.as_bytes();
        let mut hash = Hash::EMPTY;
        let mut longest = None;
        let mut label = 0;
        for (at, byte) in bytes.iter().enumerate().rev() {
            hash = hash.then(*byte);
            if at > 0 && bytes[at - 1] != b'.' {
                continue;
            }
            label += 1;
            if label > self.most_labels {
                break;
            }
            let found = |exact| self.find(&name[at..], hash, exact);
            longest = if at == 0 { found(true) } else { None }.or_else(|| found(false)).or(longest);
        }
        Some(self.rules[longest?].value)
    }

    fn domain(&self, rule: Rule) -> &str {
        let at = rule.at as usize;
        self.text.get(at..at + usize::from(rule.length)).unwrap_or_default()
    }

    fn find(&self, domain: &str, hash: Hash, exact: bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = hash.slot(exact, self.slots.len());
        loop {
            let number = (self.slots[slot] as usize).checked_sub(1)?;
            let rule = self.rules[number];
            if rule.exact == exact && self.domain(rule) == domain {
                return Some(number);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    /// Room in the table for as many rules in all; all are placed anew.
    fn grow(&mut self, rules: usize) {
        let count = (rules * 4 / 3 + 1).next_power_of_two();
        if count <= self.slots.len() {
            return;
        }
        self.slots = vec![0; count];
        for number in 0..self.rules.len() {
            self.place(number, Hash::of(self.domain(self.rules[number])));
        }
    }

    fn place(&mut self, number: usize, hash: Hash) {
        let mut slot = hash.slot(self.rules[number].exact, self.slots.len());
        while self.slots[slot] != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = u32::try_from(number + 1).unwrap_or_default();
    }
}

fn labels(domain: &str) -> usize {
    1 + domain.bytes().filter(|byte| *byte == b'.').count()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rule_for_the_domain_alone_beats_the_one_for_all_below() {
        let mut suffixes = Suffixes::default();
        assert_eq!(suffixes.look_up("a.test"), None);
        suffixes.insert("a.test", false, 1);
        suffixes.insert("www.a.test", true, 2);
        suffixes.insert("www.a.test", false, 3);
        assert_eq!(
            suffixes.look_up("www.a.test"),
            Some(3),
            "a later rule for all below holds for the domain too"
        );
        suffixes.insert("www.a.test", true, 4);
        let found = ["a.test", "b.a.test", "www.a.test", "x.www.a.test", "ba.test", "test"]
            .map(|name| suffixes.look_up(name));
        assert_eq!(found, [Some(1), Some(1), Some(4), Some(3), None, None]);
    }

    #[test]
    fn a_million_rules_fit() {
        let began = Instant::now();
        let mut suffixes = Suffixes::default();
        suffixes.reserve(1_000_000, 27_000_000);
        for number in 0..1_000_000_u32 {
            suffixes.insert(&format!("host-{number}.example.test"), false, number);
        }
        println!("1000000 rules: {} bytes, made in {:?}", suffixes.held(), began.elapsed());
        assert!(suffixes.held() < 60_000_000, "{}", suffixes.held());
        assert_eq!(suffixes.look_up("www.host-999999.example.test"), Some(999_999));
    }

    proptest! {
        #[test]
        fn the_longest_fitting_domain_is_found(
            rules in proptest::collection::vec(("[ab]{1,2}(\\.[ab]){0,3}", any::<bool>(), 0_u32..100), 0..60),
            names in proptest::collection::vec("[ab]{1,2}(\\.[ab]){0,5}", 1..40),
        ) {
            let mut suffixes = Suffixes::default();
            let mut below: HashMap<&str, u32> = HashMap::new();
            let mut alone: HashMap<&str, u32> = HashMap::new();
            for (domain, exact, value) in &rules {
                suffixes.insert(domain, *exact, *value);
                if *exact {
                    alone.insert(domain, *value);
                } else {
                    below.insert(domain, *value);
                    alone.remove(&**domain);
                }
            }
            for name in &names {
                let suffixes_of = std::iter::successors(Some(&**name), |rest| rest.split_once('.').map(|(_, rest)| rest));
                let expected = alone.get(&**name).copied().or_else(|| suffixes_of.clone().find_map(|suffix| below.get(suffix).copied()));
                prop_assert_eq!(suffixes.look_up(name), expected, "{}", name);
            }
        }
    }
}
