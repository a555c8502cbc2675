//! Sessions files, good and bad, in both forms.

use proptest::prelude::*;

use super::*;

const GOOD: &str = "\
sessions:
  - id: a-1
    keys: [imsi:001010000000001, msisdn:33600000001]
    prefixes: [10.0.0.2/32, 2001:db8:1::/64]
    plmn: \"00101\"
    rat: nr
    time_zone: Europe/Paris
  - id: b-1
    keys: [imsi:001010000000002]
    prefixes: [10.0.0.3]
    plmn: \"20801\"
  - {id: c-1, keys: [user:c@isp.example], prefixes: [10.1.0.0/24]}
";

const SAME_AS_CSV: &str = "\
id,plmn,keys,prefixes,rat,time_zone
# subscribers of the lab
a-1,00101,imsi:001010000000001 msisdn:33600000001,10.0.0.2/32;2001:db8:1::/64,nr,Europe/Paris
b-1,20801,imsi:001010000000002,10.0.0.3,,

c-1,,\"user:c@isp.example\",10.1.0.0/24,,
";

fn home() -> Vec<String> {
    vec!["00101".to_owned()]
}

fn yaml(text: &str) -> Result<Sessions, SessionsError> {
    Sessions::from_yaml("s.yaml", text, &home())
}

fn csv(text: &str) -> Result<Sessions, SessionsError> {
    Sessions::from_csv("s.csv", text, &home())
}

#[test]
fn a_file_gives_its_sessions() {
    let sessions = yaml(GOOD).unwrap();
    assert_eq!(sessions.len(), 3);
    let a = sessions.get("a-1").unwrap();
    assert_eq!(a.keys, ["imsi:001010000000001", "msisdn:33600000001"]);
    assert_eq!(a.prefixes, ["10.0.0.2/32".parse().unwrap(), "2001:db8:1::/64".parse::<IpNet>().unwrap()]);
    assert_eq!((a.plmn.as_deref(), a.rat.as_deref()), (Some("00101"), Some("nr")));
    assert_eq!(a.time_zone.as_deref(), Some("Europe/Paris"));
    let b = sessions.get("b-1").unwrap();
    assert_eq!(b.prefixes, ["10.0.0.3/32".parse::<IpNet>().unwrap()], "an address is a prefix of itself");
}

#[test]
fn csv_says_the_same_as_yaml() {
    assert_eq!(csv(SAME_AS_CSV).unwrap(), yaml(GOOD).unwrap());
    let with_crlf = SAME_AS_CSV.replace('\n', "\r\n");
    assert_eq!(csv(&with_crlf).unwrap(), yaml(GOOD).unwrap());
}

#[test]
fn a_plmn_without_quotes_keeps_its_zeros() {
    let text = "sessions: [{id: a, keys: [imsi:1], prefixes: [10.0.0.2], plmn: 00101}]";
    assert_eq!(yaml(text).unwrap().get("a").unwrap().plmn.as_deref(), Some("00101"));
}

#[test]
fn roaming_is_a_known_network_that_is_not_home() {
    let sessions = yaml(GOOD).unwrap();
    let roaming = |id: &str| sessions.get(id).unwrap().roaming;
    assert_eq!((roaming("a-1"), roaming("b-1"), roaming("c-1")), (false, true, false));
}

#[test]
fn the_form_is_told_by_the_files_name() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("s.yaml", GOOD), ("s.yml", GOOD), ("s.csv", SAME_AS_CSV)] {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        assert_eq!(Sessions::load(&path, &home()).unwrap().len(), 3, "{name}");
    }
    for (name, expected) in [("s.txt", ".yaml, .yml or .csv"), ("none.yaml", "No such file")] {
        let message = Sessions::load(&directory.path().join(name), &home()).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
}

#[test]
fn an_empty_list_of_sessions_is_good() {
    assert!(yaml("sessions: []").unwrap().is_empty());
    assert!(csv("id,keys,prefixes\n").unwrap().is_empty());
}

#[test]
fn every_error_says_where_and_what_was_expected() {
    for (text, place, expected) in [
        ("sessions:\n- {id: a, keys: [imsi:1], prefixes: [10.0.0.0/33]}", "s.yaml:2:38:", "2001:db8:1::/64"),
        (
            "sessions:\n- {id: a, keys: [imsi:1], prefixes: [10.0.0.2/24]}",
            "s.yaml:2:38:",
            "write `10.0.0.0/24`",
        ),
        (
            "sessions:\n- {id: a, keys: [imsi:1], prefixes: ['::ffff:10.0.0.2/128']}",
            "s.yaml:2:38:",
            "IPv4 prefix",
        ),
        (
            "sessions:\n- {id: a, keys: [imsi:1], prefixes: ['::/0']}",
            "s.yaml:2:38:",
            "`2000::/3` or narrower",
        ),
        ("sessions:\n- {id: a, keys: [imsi:1], prefixes: []}", "s.yaml:2:8:", "no prefix"),
        ("sessions:\n- {id: a, keys: [], prefixes: [10.0.0.2]}", "s.yaml:2:8:", "no key"),
        ("sessions:\n- {id: a, keys: [imsi], prefixes: [10.0.0.2]}", "s.yaml:2:18:", "kind:value"),
        ("sessions:\n- {id: 'a b', keys: [imsi:1], prefixes: [10.0.0.2]}", "s.yaml:2:8:", "session id"),
        (
            "sessions:\n- {id: a, keys: [imsi:1], prefixes: [10.0.0.2], plmn: '1'}",
            "s.yaml:2:",
            "five or six digits",
        ),
        (
            "sessions:\n- {id: a, keys: [imsi:1], prefixes: [10.0.0.2], rat: 'a b'}",
            "s.yaml:2:",
            "radio access",
        ),
        ("sessions:\n- {id: a, keys: [imsi:1], prefix: [10.0.0.2]}", "s.yaml:2:", "prefix"),
        ("sessions:\n- {id: a, prefixes: [10.0.0.2]}", "s.yaml:2:", "keys"),
        ("sessions: {}", "s.yaml:1:", ""),
        ("", "s.yaml", ""),
    ] {
        let message = yaml(text).unwrap_err().to_string();
        assert!(message.starts_with(place) && message.contains(expected), "{text:?} gave: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn errors_in_csv_have_line_and_column_too() {
    for (text, place, expected) in [
        ("", "s.csv:1:1:", "names the columns"),
        ("id,keys\n", "s.csv:1:1:", "missing column `prefixes`"),
        ("id,keys,prefixes,color\n", "s.csv:1:18:", "unknown column `color`"),
        ("id,keys,prefixes,id\n", "s.csv:1:18:", "twice"),
        ("id,keys,prefixes\na,imsi:1\n", "s.csv:2:1:", "expected 3"),
        ("id,keys,prefixes\na,imsi:1,10.0.0.2\nb,imsi:2,nowhere\n", "s.csv:3:10:", "not a prefix"),
        ("id,keys,prefixes\n\n# note\na,imsi:1,nowhere\n", "s.csv:4:10:", "not a prefix"),
        ("id,keys,prefixes\n\"a\",\"imsi:1\",nowhere\n", "s.csv:2:14:", "not a prefix"),
        ("id,keys,prefixes\r\na,imsi:1,nowhere\r\n", "s.csv:2:10:", "not a prefix"),
        ("id,keys,prefixes\n,imsi:1,10.0.0.2\n", "s.csv:2:1:", "not a session id"),
    ] {
        let message = csv(text).unwrap_err().to_string();
        assert!(message.starts_with(place) && message.contains(expected), "{text:?} gave: {message}");
    }
}

#[test]
fn a_duplicate_id_names_both_places() {
    let text = "sessions:\n\
                - {id: a, keys: [imsi:1], prefixes: [10.0.0.2]}\n\
                - {id: b, keys: [imsi:2], prefixes: [10.0.0.3]}\n\
                - {id: a, keys: [imsi:3], prefixes: [10.0.0.4]}\n";
    let message = yaml(text).unwrap_err().to_string();
    assert!(message.starts_with("s.yaml:4:8:") && message.contains("at s.yaml:2:8:"), "{message}");
}

#[test]
fn overlapping_prefixes_of_two_sessions_name_both_places() {
    let text = "sessions:\n\
                - {id: a, keys: [imsi:1], prefixes: [10.0.1.2/32, 10.0.0.7/32]}\n\
                - {id: b, keys: [imsi:2], prefixes: [10.0.2.0/24]}\n\
                - {id: c, keys: [imsi:3], prefixes: [10.0.0.0/24]}\n";
    let message = yaml(text).unwrap_err().to_string();
    assert!(message.starts_with("s.yaml:4:38: prefix 10.0.0.0/24 of session `c`"), "{message}");
    assert!(message.contains("10.0.0.7/32 of session `a` at s.yaml:2:51"), "{message}");
}

#[test]
fn prefixes_of_one_session_may_overlap() {
    let text = "sessions: [{id: a, keys: [imsi:1], prefixes: [10.0.0.0/24, 10.0.0.2/32, 10.0.0.2]}]";
    assert_eq!(yaml(text).unwrap().get("a").unwrap().prefixes.len(), 2);
}

#[test]
fn what_changed_between_two_readings() {
    let old = yaml(GOOD).unwrap();
    assert!(diff(&old, &old).is_empty());
    let new = yaml(
        "sessions:\n\
         - {id: b-1, keys: [imsi:001010000000002], prefixes: [10.0.0.3], plmn: \"00101\"}\n\
         - {id: c-1, keys: [user:c@isp.example], prefixes: [10.1.0.0/24]}\n\
         - {id: d-1, keys: [imsi:4], prefixes: [10.0.0.2]}\n",
    )
    .unwrap();
    let changes = diff(&old, &new);
    let ids = |sessions: &[Session]| sessions.iter().map(|session| session.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&changes.opened), ["d-1"]);
    assert_eq!(ids(&changes.closed), ["a-1"]);
    assert_eq!(changes.changed.len(), 1);
    let (before, after) = &changes.changed[0];
    assert_eq!((before.id.as_str(), before.roaming, after.roaming), ("b-1", true, false));
    assert_eq!(diff(&Sessions::default(), &new).opened.len(), 3);
    assert_eq!(diff(&new, &Sessions::default()).closed.len(), 3);
}

proptest! {
    #[test]
    fn any_text_is_sessions_or_an_error(text in "[ -~\n\"]{0,200}") {
        let _ = yaml(&text);
        let _ = csv(&text);
        let _ = csv(&format!("id,keys,prefixes\n{text}"));
    }

    #[test]
    fn overlaps_are_found_as_by_comparing_all_with_all(
        prefixes in proptest::collection::vec((0_u32..64, 26_u8..=32), 1..12),
    ) {
        let prefixes: Vec<IpNet> = prefixes
            .into_iter()
            .map(|(address, length)| {
                let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 | address);
                IpNet::new(address.into(), length).unwrap().trunc()
            })
            .collect();
        let rows = prefixes.iter().enumerate().map(|(number, prefix)| format!("s{number},imsi:{number},{prefix}"));
        let text = std::iter::once("id,keys,prefixes".to_owned()).chain(rows).collect::<Vec<_>>().join("\n");
        let overlap = prefixes.iter().enumerate().any(|(number, one)| {
            prefixes[number + 1..].iter().any(|other| one.contains(other) || other.contains(one))
        });
        match csv(&text) {
            Ok(_) => prop_assert!(!overlap),
            Err(SessionsError::Overlap(found)) => {
                prop_assert!(overlap);
                let apart = !found.prefix.contains(&found.other_prefix) && !found.other_prefix.contains(&found.prefix);
                prop_assert!(!apart && found.place.line > found.other.line);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
