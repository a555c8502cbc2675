use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::layout::HEADER;
use super::*;

const LISTS: &str = include_str!("../../../catalogue/domains.txt");
const OVERLAY: &str = include_str!("../../../catalogue/overlay.txt");

fn catalogue(text: &str) -> Catalogue {
    let mut catalogue = Catalogue::empty();
    catalogue.extend("test.yaml", text).unwrap();
    catalogue
}

fn error(text: &str) -> String {
    Catalogue::empty().extend("test.yaml", text).unwrap_err().to_string()
}

fn app<'a>(catalogue: &'a Catalogue, name: &str) -> Option<&'a str> {
    catalogue.look_up(name).map(|entry| &*entry.app)
}

#[test]
fn the_built_in_catalogue_is_well_formed_small_and_complete() {
    let catalogue = Catalogue::built_in();
    assert!(catalogue.held() < 3_000_000, "{}", catalogue.held());
    let mut rules = BTreeMap::new();
    for text in [LISTS, OVERLAY] {
        let mut of_file = BTreeMap::new();
        let mut owner = None;
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            if let Some(header) = line.strip_prefix(':') {
                let (app, class) = header.split_once(' ').unwrap();
                owner = Some((app, class.parse::<Class>().unwrap()));
            } else {
                of_file.insert(line, owner.unwrap());
            }
        }
        rules.retain(|rule: &&str, _| {
            rule.strip_prefix('=').is_none_or(|domain| !of_file.contains_key(domain))
        });
        rules.extend(of_file);
    }
    assert!(rules.len() > 35_000);
    for (rule, owner) in rules.into_iter().filter(|(rule, _)| !rule.contains('/')) {
        let found = catalogue.explain(rule.strip_prefix('=').unwrap_or(rule)).unwrap();
        let is_of_rule = found.alone == rule.starts_with('=');
        let found = (&*found.entry.app, found.entry.class);
        assert!(found == owner || !is_of_rule, "{rule} is of {found:?}, not {owner:?}");
    }
    assert_eq!(app(&catalogue, "rr3---sn-4g5e6nez.googlevideo.com"), Some("youtube"));
    assert!(catalogue.look_up_address([91, 108, 8, 1].into()).is_some());
}

#[test]
fn suffixes_match_at_label_boundaries_and_the_longest_wins() {
    let catalogue = catalogue(
        "rules:\n\
         - {domain: example.com, app: pages, class: web}\n\
         - {domain: Video.Example.COM, app: films, class: video}\n\
         - {domain: test, app: tests, class: other}\n",
    );
    for (name, expected) in [
        ("example.com", Some("pages")),
        ("www.example.com", Some("pages")),
        ("video.example.com", Some("films")),
        ("a.b.c.video.example.com", Some("films")),
        ("notexample.com", None),
        ("myvideo.example.com", Some("pages")),
        ("com", None),
        ("example.com.evil", None),
        ("a.test", Some("tests")),
        ("", None),
    ] {
        assert_eq!(app(&catalogue, name), expected, "{name}");
    }
    assert_eq!(Catalogue::empty().look_up("example.com"), None);
}

#[test]
fn a_rule_for_a_name_alone_beats_the_one_for_all_below() {
    let text = "rules:\n\
                - {host: www.a.test, app: alone, class: web}\n\
                - {domain: www.a.test, app: below, class: web}\n\
                - {domains: [a.test, b.test], hosts: [c.test], app: wide, class: web}\n";
    let mut catalogue = catalogue(text);
    let apps = |catalogue: &Catalogue| {
        ["www.a.test", "x.www.a.test", "a.test", "x.b.test", "c.test", "x.c.test"]
            .map(|name| app(catalogue, name).map(str::to_owned).unwrap_or_default())
    };
    assert_eq!(apps(&catalogue), ["alone", "below", "wide", "wide", "wide", ""]);
    // A later file's rule for all below holds for the name too.
    catalogue.extend("own.yaml", "rules: [{domain: www.a.test, app: mine, class: web}]").unwrap();
    assert_eq!(apps(&catalogue), ["mine", "mine", "wide", "wide", "wide", ""]);
    catalogue.extend("own.yaml", "rules: [{host: a.test, app: mine, class: web}]").unwrap();
    assert_eq!(apps(&catalogue), ["mine", "mine", "mine", "wide", "wide", ""]);
}

#[test]
fn an_operators_file_has_the_last_word_over_the_built_in_one() {
    let mut catalogue = Catalogue::built_in();
    catalogue.extend("own.yaml", "rules: [{domain: streams.example, app: mine, class: bulk}]").unwrap();
    assert_eq!(catalogue.look_up("seg.streams.example").unwrap().class, Class::Bulk);
    let why = catalogue.explain("seg.streams.example").unwrap();
    assert_eq!((why.domain, why.alone, why.source), ("streams.example", false, "own.yaml"));
    assert_eq!(catalogue.explain("www.pages.example").unwrap().source, "built-in catalogue");
}

#[test]
fn the_longest_prefix_of_an_address_wins_and_a_later_file_over_an_earlier() {
    let text = "prefixes:\n\
                - {prefix: 192.0.2.0/24, app: wide, class: web}\n\
                - {prefix: 192.0.2.64/26, app: narrow, class: video}\n\
                - {prefix: '2001:db8::/32', app: six, class: call}\n";
    let mut catalogue = catalogue(text);
    assert_eq!(catalogue.len(), 3);
    catalogue.extend("own.yaml", "prefixes: [{prefix: 192.0.2.9/24, app: mine, class: web}]").unwrap();
    let app = |address: &str| catalogue.look_up_address(address.parse().unwrap()).map(|entry| &*entry.app);
    assert_eq!(app("192.0.2.1"), Some("mine"));
    assert_eq!(app("192.0.2.65"), Some("narrow"));
    assert_eq!(app("2001:db8::1"), Some("six"));
    assert_eq!(app("198.51.100.1"), None);
}

#[test]
fn a_domain_or_prefix_with_two_rules_is_refused_naming_both_lines() {
    let message = error(
        "rules:\n\
         - {domain: a.example, app: a, class: web}\n\
         - {domain: b.example, app: a, class: web}\n\
         - {domain: A.example., app: a, class: video}\n",
    );
    assert!(message.starts_with("test.yaml:4:12:") && message.contains("test.yaml:2:12"), "{message}");
    let message = error(
        "prefixes:\n\
         - {prefix: 192.0.2.0/24, app: a, class: web}\n\
         - {prefix: 192.0.2.1/24, app: b, class: web}\n",
    );
    assert!(message.starts_with("test.yaml:3:12:") && message.contains("test.yaml:2:12"), "{message}");
}

#[test]
fn every_error_says_where_and_what_was_expected() {
    for (text, place, expected) in [
        ("rules:\n- {domain: a.example, app: a, class: films}\n", "test.yaml:2:", "video"),
        ("rules:\n- {domain: a.example, app: a, kind: web}\n", "test.yaml:2:", "kind"),
        ("rules:\n- {domain: a.example, app: a}\n", "test.yaml:2:", "class"),
        ("rules:\n- {app: a, class: web}\n", "test.yaml:2:9", "`host`"),
        ("rules:\n- {domain: '*.a.example', app: a, class: web}\n", "test.yaml:2:12", "without `*.`"),
        ("rules:\n- {domain: a.example, app: My App, class: web}\n", "test.yaml:2:28", "my-video"),
        ("prefixes:\n- {prefix: a.b, app: a, class: web}\n", "test.yaml:2:", "IP"),
        ("prefixes:\n- {prefix: 192.0.2.0/24, app: A, class: web}\n", "test.yaml:2:31", "my-video"),
        ("rules: 7\n", "test.yaml:1:", "sequence"),
        ("rule: []\n", "test.yaml:1:", "rules"),
        ("rules: [\n", "test.yaml:", ""),
    ] {
        let message = error(text);
        assert!(message.starts_with(place) && message.contains(expected), "{text:?} gave: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    for (text, expected) in [
        ("a.test\n", "test.txt:1:1: no app yet: expected `:APP CLASS`"),
        (":Films video\n", "test.txt:1:2: `Films` is not an app id"),
        (":films\n", "test.txt:1:8: unknown class ``: expected video"),
        (":films films\n", "test.txt:1:8: unknown class `films`"),
        (":films video\n\n*.a.test\n", "test.txt:3:1: `*.a.test` is not a domain"),
        (":films video\n192.0.2.0/33\n", "test.txt:2:1: `192.0.2.0/33` is not a prefix"),
        (":films video\na.test\n=a.test\nA.test\n", "test.txt:4:1: `A.test` has a rule already"),
    ] {
        let message = Catalogue::compile("test.txt", text, Form::List).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_refused_file_changes_nothing() {
    let mut catalogue = Catalogue::built_in();
    let before = catalogue.len();
    let text = "rules: [{domain: new.example, app: a, class: web}, {domain: '', app: a, class: web}]";
    assert!(catalogue.extend("own.yaml", text).is_err());
    let compiled = Catalogue::compile("own.txt", ":a web\nnew.example\n", Form::List).unwrap();
    assert!(catalogue.extend_compiled("own", compiled[..compiled.len() - 1].to_vec()).is_err());
    assert_eq!(catalogue.len(), before);
    assert_eq!(catalogue.look_up("new.example"), None);
    catalogue.extend_compiled("own", compiled).unwrap();
    assert_eq!(app(&catalogue, "new.example"), Some("a"));
}

#[test]
fn every_size_of_a_catalogue_finds_its_rules() {
    let mut text = ":hosts bulk\n".to_owned();
    for count in 0..300 {
        let catalogue = Catalogue::compile("test.txt", &text, Form::List).unwrap();
        let index = Index::read(catalogue).unwrap();
        assert_eq!(index.domains(), count);
        for number in 0..count {
            let domain = format!("host-{number}.test");
            assert!(index.find(domain.as_bytes(), Hash::of(domain.as_bytes()), true).is_some());
        }
        writeln!(text, "host-{count}.test").unwrap();
    }
}

#[test]
fn a_million_rules_fit() {
    let mut builder = Builder::new();
    let entry = builder.entry("hosts", "bulk").unwrap();
    for number in 0..1_000_000 {
        builder.domain(&format!("host-{number}.example.test"), false, entry).unwrap();
    }
    let bytes = builder.finish();
    assert!(bytes.len() < 60_000_000, "{}", bytes.len());
    let mut catalogue = Catalogue::empty();
    catalogue.extend_compiled("million", bytes).unwrap();
    assert_eq!(app(&catalogue, "www.host-999999.example.test"), Some("hosts"));
    assert_eq!(app(&catalogue, "host-1000000.example.test"), None);
}

#[test]
fn a_damaged_file_is_refused_and_says_what_to_do() {
    let bytes = Catalogue::compile("a", ":a web\na.test\n192.0.2.0/24\n", Form::List).unwrap();
    for length in 0..bytes.len() {
        assert!(Index::read(bytes[..length].to_vec()).is_err(), "{length}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Index::read(flipped).is_err(), "bit {bit}");
    }
    let message = Catalogue::empty().extend_compiled("own", bytes[..60].to_vec()).unwrap_err().to_string();
    assert!(message.starts_with("own: ") && message.contains("catalogue compile"), "{message}");
}

/// Rules as pairs of kind and domain; a small alphabet, so that they overlap.
type Rules = BTreeMap<(String, bool), u16>;

fn rules() -> impl Strategy<Value = Rules> {
    let domain = "[ab]{1,2}(\\.[ab]){0,3}";
    proptest::collection::btree_map((domain, any::<bool>()), 0_u16..100, 0..60)
}

fn put(catalogue: &mut Catalogue, rules: &Rules) {
    let mut builder = Builder::new();
    for ((domain, exact), value) in rules {
        let entry = builder.entry(&format!("app-{value}"), "web").unwrap();
        builder.domain(domain, *exact, entry).unwrap();
    }
    catalogue.extend_compiled("test", builder.finish()).unwrap();
}

/// The slow and obvious way: of all suffixes from the longest on, the last file's rule; one for the name alone first.
fn expected(files: &[Rules], name: &str) -> Option<String> {
    let suffixes = std::iter::successors(Some(name), |rest| rest.split_once('.').map(|(_, rest)| rest));
    let of_file = |suffix: &str, file: &Rules| {
        let rule = |exact| file.get(&(suffix.to_owned(), exact)).copied();
        let alone = if suffix == name { rule(true) } else { None };
        alone.or_else(|| rule(false))
    };
    let mut found = suffixes.filter_map(|suffix| files.iter().rev().find_map(|file| of_file(suffix, file)));
    found.next().map(|value| format!("app-{value}"))
}

fn networks() -> impl Strategy<Value = Vec<(IpNet, u16)>> {
    let v4 = (0_u32..64, 24_u8..=32)
        .prop_map(|(low, length)| IpNet::new(Ipv4Addr::from(0xc000_0200 | low << 2).into(), length).unwrap());
    let v6 = (any::<u8>(), 0_u8..=128).prop_map(|(low, length)| {
        IpNet::new(Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(low) << 60).into(), length).unwrap()
    });
    let edge = (any::<bool>(), 0_u8..=32).prop_map(|(top, length)| {
        IpNet::new(Ipv4Addr::from(if top { u32::MAX } else { 0 }).into(), length).unwrap()
    });
    proptest::collection::vec((prop_oneof![v4, v6, edge], 0_u16..100), 0..30)
}

proptest! {
    #[test]
    fn look_ups_agree_with_a_walk_over_all_rules(
        files in proptest::collection::vec(rules(), 1..4),
        names in proptest::collection::vec("[ab]{1,2}(\\.[ab]){0,5}", 1..40),
    ) {
        let mut catalogue = Catalogue::empty();
        for rules in &files {
            put(&mut catalogue, rules);
        }
        for name in &names {
            let found = app(&catalogue, name).map(str::to_owned);
            prop_assert_eq!(found, expected(&files, name), "{}", name);
        }
    }

    #[test]
    fn files_compiled_into_one_say_what_they_say_one_over_the_other(
        files in proptest::collection::vec(rules(), 1..4),
        names in proptest::collection::vec("[ab]{1,2}(\\.[ab]){0,5}", 1..40),
    ) {
        let mut builder = Builder::new();
        for rules in &files {
            builder.next_file();
            for ((domain, exact), value) in rules {
                let entry = builder.entry(&format!("app-{value}"), "web").unwrap();
                builder.domain(domain, *exact, entry).unwrap();
            }
        }
        let mut catalogue = Catalogue::empty();
        catalogue.extend_compiled("test", builder.finish()).unwrap();
        for name in &names {
            let found = app(&catalogue, name).map(str::to_owned);
            prop_assert_eq!(found, expected(&files, name), "{}", name);
        }
    }

    #[test]
    fn addresses_agree_with_a_walk_over_all_prefixes(
        networks in networks(),
        low in any::<u8>(),
        v6 in any::<bool>(),
    ) {
        let mut builder = Builder::new();
        let mut distinct: BTreeMap<IpNet, u16> = BTreeMap::new();
        for (network, value) in networks {
            if distinct.insert(network.trunc(), value).is_some() {
                builder.next_file();
            }
            let entry = builder.entry(&format!("app-{value}"), "web").unwrap();
            builder.prefix(network.addr(), network.prefix_len(), entry).unwrap();
        }
        let mut catalogue = Catalogue::empty();
        catalogue.extend_compiled("test", builder.finish()).unwrap();
        let address: IpAddr = if v6 {
            Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(low) << 60).into()
        } else {
            Ipv4Addr::from(0xc000_0200 | u32::from(low)).into()
        };
        let six = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let bits = |network: &IpNet| u32::from(network.prefix_len()) + if network.addr().is_ipv4() { 96 } else { 0 };
        let covers = |network: &&IpNet| {
            bits(network) == 0 || (six(network.addr()) ^ six(address)) >> (128 - bits(network)) == 0
        };
        let longest = distinct.keys().filter(covers).max_by_key(|network| bits(network));
        let expected = longest.map(|network| format!("app-{}", distinct[network]));
        let found = catalogue.look_up_address(address).map(|entry| entry.app.to_string());
        prop_assert_eq!(found, expected);
    }

    /// As if somebody had made the checksum fit.
    #[test]
    fn a_forged_file_is_refused_or_harmless(
        rules in rules(),
        forged in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        names in proptest::collection::vec("[ab]{1,2}(\\.[ab]){0,5}", 1..20),
        addresses in proptest::collection::vec(any::<u32>(), 1..5),
    ) {
        let mut builder = Builder::new();
        let entry = builder.entry("a", "web").unwrap();
        for (domain, exact) in rules.keys() {
            builder.domain(domain, *exact, entry).unwrap();
        }
        builder.prefix(Ipv4Addr::new(192, 0, 2, 0).into(), 24, entry).unwrap();
        let mut bytes = builder.finish();
        for (at, byte) in forged {
            let at = 16 + at.index(bytes.len() - 16);
            bytes[at] = byte;
        }
        let sum = layout::checksum(&bytes[16..]);
        bytes[8..16].copy_from_slice(&sum.to_le_bytes());
        let mut catalogue = Catalogue::empty();
        if catalogue.extend_compiled("test", bytes).is_ok() {
            for name in &names {
                let _ = catalogue.explain(name);
            }
            for address in addresses {
                let _ = catalogue.look_up_address(Ipv4Addr::from(address).into());
            }
        }
    }

    #[test]
    fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Index::read(bytes.clone()).is_err());
        let mut meant = layout::MAGIC.to_vec();
        meant.extend(bytes);
        meant.resize(meant.len().max(HEADER), 0);
        prop_assert!(Index::read(meant).is_err());
    }
}
