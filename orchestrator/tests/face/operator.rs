//! The operator's CLI against a real API: the built `usher`, a real socket or TLS, a real ledger.

use serde_json::Value;
use tokio::runtime::Runtime;
use usher_orchestrator::{api, pki};

use crate::site::{Site, TOKEN, code, private, text, usher};

#[test]
fn every_listing_prints_a_table_json_and_yaml() {
    let site = Site::new(false);
    for (kind, seen, items) in [
        ("subscribers", "line-a", 3),
        ("sessions", "10.0.0.2/32", 2),
        ("settings", "hd", 1),
        ("agents", "connected", 2),
        ("elements", "192.0.2.9:830", 2),
        ("usage", "1.5 MB", 2),
        ("decisions", "policy.consent", 3),
        ("messages", "You're in Testland.", 1),
    ] {
        let table = site.says(&["get", kind]);
        assert!(table.contains(seen), "{kind}:\n{table}");
        assert!(!table.contains('\u{1b}'), "no colours where nobody looks: {table:?}");
        assert_eq!(site.json(&["get", kind])["items"].as_array().unwrap().len(), items, "{kind}");
        assert!(site.says(&["get", kind, "-o", "yaml"]).starts_with("items:"), "{kind}");
    }
    assert!(site.says(&["get", "usage"]).contains("(anonymous)"));
}

#[test]
fn listings_are_narrowed_and_paged() {
    let site = Site::new(false);
    let sessions = site.json(&["get", "sessions", "--subscriber", "line-b"]);
    assert_eq!(sessions["items"][0]["roaming"], true);
    let first = site.json(&["get", "subscribers", "--limit", "2"]);
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let next = first["next"].as_str().unwrap();
    let rest = site.json(&["get", "subscribers", "--limit", "2", "--after", next]);
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let usage = site.json(&["get", "usage", "--limit", "1"]);
    let rest = site.json(&["get", "usage", "--after", usage["next"].as_str().unwrap()]);
    assert_eq!(rest["items"][0]["subscriber"], "line-a");
    let sessions = site.json(&["get", "sessions", "--limit", "1"]);
    let rest = site.json(&["get", "sessions", "--after", sessions["next"].as_str().unwrap()]);
    assert_eq!(rest["items"][0]["session"], "s2");
}

#[test]
fn one_thing_is_described_whole_even_with_an_awkward_name() {
    let site = Site::new(false);
    let sheet = site.says(&["describe", "subscriber", "line-a"]);
    for part in ["Plan:", "basic", "10.0.0.2/32", "streams", "1.4 MB", "hd_starved", "1.5 MB"] {
        assert!(sheet.contains(part), "{part} in\n{sheet}");
    }
    assert!(site.says(&["describe", "subscriber", "line c/ü"]).contains("service no, advice no"));
    assert!(site.says(&["describe", "agent", "gw-2"]).contains("none"));
    assert!(site.says(&["describe", "element", "netconf:bng-1"]).contains("confirmed"));
    assert!(site.says(&["describe", "decision", "aa01"]).contains("score 1.6 = propensity 0.8"));
}

#[test]
fn a_push_shows_each_elements_steps_and_changes() {
    let site = Site::new(false);
    assert!(site.says(&["push", "list", "--state", "done"]).contains("video=hd"));
    assert!(site.says(&["push", "list", "--state", "failed"]).contains("no pushes"));
    let sheet = site.says(&["push", "show", &site.push]);
    for part in [
        "decision aa01",
        "netconf:bng-1",
        "- qos/video: sd-profile",
        "+ qos/video: hd-profile",
        "Enforced:   120 ms after",
        "done",
    ] {
        assert!(sheet.contains(part), "{part} in\n{sheet}");
    }
    assert_eq!(site.says(&["describe", "push", &site.push]), sheet);
}

#[test]
fn explain_says_what_was_done_and_why_nothing_was_and_changes_nothing() {
    let site = Site::new(false);
    let ledger =
        || ["ledger.sqlite", "ledger.sqlite-wal"].map(|name| std::fs::read(site.file(name)).unwrap());
    let before = ledger();
    let done = site.says(&["explain", "line-a"]);
    for part in [
        "hd_evening was chosen; push",
        "is done",
        "video_capped = 0.97",
        "plan.video = sd",
        "call_qoo unknown",
    ] {
        assert!(done.contains(part), "{part} in\n{done}");
    }
    let said = site.says(&["explain", "line-b"]);
    assert!(said.contains("has not been tapped"), "{said}");
    let nothing = site.says(&["explain", "line c/ü"]);
    for part in [
        "nothing was done, because hd_evening was stopped by policy.consent (no consent to `service`)",
        "No session is open",
    ] {
        assert!(nothing.contains(part), "{part} in\n{nothing}");
    }
    let earlier = site.json(&["explain", "line-a", "--at", "2020-01-01T00:00:00Z"]);
    assert_eq!(earlier["decisions"].as_array().unwrap().len(), 0);
    assert!(earlier["summary"][0].as_str().unwrap().contains("No moment has fired"));
    assert!(ledger() == before, "not a byte of the ledger has changed");
}

#[test]
fn the_kill_switch_stops_and_resumes_and_says_so() {
    let site = Site::new(false);
    assert!(site.says(&["status"]).contains("running"));
    assert!(site.says(&["stop"]).starts_with("Stopped"));
    assert!(site.says(&["stop"]).contains("already"));
    assert_eq!(site.json(&["status"])["stopped"], true);
    assert!(site.says(&["status"]).contains("STOPPED"));
    assert!(site.says(&["explain", "line-a"]).contains("Usher is stopped"));
    assert_eq!(site.json(&["resume"]), serde_json::json!({"stopped": false, "changed": true}));
}

#[test]
fn a_relayed_stop_ends_what_waits_and_a_key_names_the_person() {
    let site = Site::new(false);
    // Ids as long as this one have this IMSI.
    let said = site.says(&["consent", "withdraw", "line-b"]);
    assert!(said.starts_with("line-b: consent to messages is withdrawn"), "{said}");
    let by_key = site.says(&["consent", "give", "imsi:001016"]);
    assert!(by_key.starts_with("line-a: messages may be sent again"), "{by_key}");
    assert!(site.says(&["complaint", "line-a"]).contains("taken down"));
}

#[test]
fn exit_codes_tell_scripts_what_happened() {
    let site = Site::new(false);
    for (arguments, expected, message) in [
        (&["describe", "subscriber", "nobody"][..], 3, "no subscriber `nobody`"),
        (&["push", "show", "x"], 3, "no push `x`"),
        (&["explain", "nobody"], 3, "no subscriber"),
        (&["get", "agents", "--subscriber", "line-a"], 2, "no filter `subscriber`"),
        (&["get", "sessions", "--after", "x"], 2, "`next` of the page before"),
        (&["get", "planets"], 2, "possible values"),
        (&["explain", "line-a", "--at", "yesterday"], 2, "--at"),
    ] {
        let output = site.usher(arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    let gone = usher().args(["--socket", "/nowhere/usher.sock", "status"]).output().unwrap();
    assert_eq!(code(&gone), 5);
    assert!(text(&gone.stderr).contains("is usher-orchestrator running?"), "{}", text(&gone.stderr));
}

#[test]
fn from_afar_only_the_right_token_opens_and_only_the_right_authority_is_trusted() {
    let site = Site::new(true);
    let good = site.afar(Some(&format!("{TOKEN}\n")));
    assert_eq!(code(&good), 0, "{}", text(&good.stderr));
    for wrong in ["", "0123456789abcdef0123456789abcdef-evil", &TOKEN[..30]] {
        let refused = site.afar(Some(wrong));
        assert_eq!(code(&refused), 4, "{}", text(&refused.stderr));
        assert!(refused.stdout.is_empty());
    }
    assert_eq!(site.metrics.refused.get(), 3);
    assert_eq!(code(&site.afar(None)), 2, "without a token nothing is even asked");
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), &["127.0.0.1".into()], &[]).unwrap();
    std::fs::copy(other.path().join("ca.pem"), site.file("pki/ca.pem")).unwrap();
    let stranger = site.afar(Some(TOKEN));
    assert_eq!(code(&stranger), 5, "{}", text(&stranger.stderr));
}

#[test]
fn a_token_file_that_others_can_read_or_that_can_be_guessed_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    pki::init(folder.path(), &["127.0.0.1".into()], &[]).unwrap();
    let (certificate, key) = (folder.path().join("server.pem"), folder.path().join("server.key"));
    let token_file = folder.path().join("token");
    let runtime = Runtime::new().unwrap();
    let bind = || {
        let remote = api::Remote {
            address: "127.0.0.1:0".parse().unwrap(),
            certificate: &certificate,
            key: &key,
            token_file: &token_file,
        };
        runtime
            .block_on(api::bind(&folder.path().join("s"), Some(remote)))
            .map(drop)
            .map_err(|e| e.to_string())
    };
    private(&token_file, TOKEN);
    assert_eq!(bind(), Ok(()));
    std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(bind().unwrap_err().contains("others can read it"));
    private(&token_file, "hunter2");
    assert!(bind().unwrap_err().contains("at least 32"));
}

#[test]
fn lint_needs_no_orchestrator_and_shows_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, "version: 1\nfacts:\n  lateness: soon\n").unwrap();
    let lint = |more: &[&str]| usher().arg("lint").arg(&policy).args(more).output().unwrap();
    let output = lint(&[]);
    assert_eq!(code(&output), 4);
    let shown = text(&output.stdout);
    assert!(shown.contains(":3:13") && shown.contains("lateness: soon"), "{shown}");
    let output = lint(&["-o", "json"]);
    assert_eq!(code(&output), 4);
    let lint_json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(lint_json["ok"], false);
    let places = lint_json["mistakes"].as_array().unwrap();
    assert!(places.iter().any(|one| one["line"] == 3 && one["column"] == 13), "{places:?}");
    // A warning is shown, and fails only who asks for it.
    let idle = "version: 1\nmoments:\n  never: {when: \"sub.cycle_left > 2.0\", rearm: 1h}\nactions:\n  \
                hd: {at: [never], set: {video: hd, for: 1h}, value: 1.0, cost: 0.0}\nguard: {mode: live}\n";
    std::fs::write(&policy, idle).unwrap();
    let output = lint(&[]);
    let shown = text(&output.stdout);
    assert_eq!(code(&output), 0, "{shown}");
    assert!(shown.contains(":3:17: `never` can never fire") && shown.contains("1 warning"), "{shown}");
    assert!(shown.contains("no mistakes"), "{shown}");
    assert_eq!(code(&lint(&["--strict"])), 4);
    let lint_json: Value = serde_json::from_slice(&lint(&["-o", "json"]).stdout).unwrap();
    assert_eq!((&lint_json["ok"], &lint_json["mistakes"][0]["severity"]), (&true.into(), &"warning".into()));
    // What the law refuses is a mistake, named with the law.
    let unasked =
        idle.replace("version: 1", "version: 1\njurisdiction: eu").replace("video: hd", "video: sd");
    std::fs::write(&policy, unasked).unwrap();
    let output = lint(&[]);
    assert_eq!(code(&output), 4);
    assert!(
        text(&output.stdout).contains("Regulation (EU) 2015/2120, article 3(3)"),
        "{}",
        text(&output.stdout)
    );
    let missing = usher().args(["lint", "/nowhere.yaml"]).output().unwrap();
    assert_eq!(code(&missing), 1);
}

#[test]
fn certificates_are_made_once_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki").to_string_lossy().into_owned();
    let init = || usher().args(["pki", "init", "--dir", &dir, "--agent", "gw-1"]).output().unwrap();
    let made = init();
    assert_eq!(code(&made), 0, "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("agent-gw-1.pem"), "{}", text(&made.stdout));
    assert_eq!(code(&init()), 4);
    let more = usher().args(["pki", "agent", "gw-2", "--dir", &dir]).output().unwrap();
    assert_eq!(code(&more), 0, "{}", text(&more.stderr));
    assert_eq!(code(&usher().args(["pki", "agent", "Gw 3", "--dir", &dir]).output().unwrap()), 2);
}

#[test]
fn completion_and_help_are_there_for_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = usher().args(["completion", shell]).output().unwrap();
        assert_eq!(code(&script), 0);
        assert!(text(&script.stdout).contains("explain"), "{shell}");
    }
    for command in [
        &["status"][..],
        &["get"],
        &["describe"],
        &["explain"],
        &["lint"],
        &["push"],
        &["push", "list"],
        &["push", "show"],
        &["stop"],
        &["resume"],
        &["consent"],
        &["consent", "withdraw"],
        &["consent", "give"],
        &["complaint"],
        &["pki"],
        &["pki", "init"],
        &["pki", "agent"],
        &["completion"],
    ] {
        let help = usher().args(command).arg("--help").output().unwrap();
        assert_eq!(code(&help), 0);
        assert!(text(&help.stdout).contains("Example"), "{command:?}:\n{}", text(&help.stdout));
    }
    assert!(text(&usher().arg("--help").output().unwrap().stdout).contains("Exit codes:"));
}
