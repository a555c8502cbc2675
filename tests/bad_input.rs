//! Bad input: one clear message that names the thing and what to do, a metric where it recurs, and nothing else changed.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use usher_tests::netconfd::{self, NetconfServer};
use usher_tests::netns::Place;
use usher_tests::report::{Mode, Report};
use usher_tests::site::{Ground, Metrics, Site, Variant};
use usher_tests::views::{Cause, text};
use usher_tests::wait::{self, Seen};
use usher_tests::{packets, process, skip, stage};

const SOON: Duration = Duration::from_secs(20);

/// A site on loopback on whose line nothing happens.
fn quiet_site(elements: impl FnOnce(&Path) -> String) -> Site {
    let place = Place::new().unwrap();
    let capture = packets::silence(place.folder()).unwrap();
    let elements = elements(place.folder());
    Site::new(Ground::Loopback(place), &Variant { capture: Some(capture), elements }).unwrap()
}

/// Runs a daemon that is to refuse; gives its exit code and what it said.
fn refusal(site: &Site, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = process::command(process::built_program(program).unwrap(), arguments);
    let output = process::output(command.current_dir(site.ground().place().folder())).unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Waits until a daemon's metric reaches `least`.
fn counted(
    what: &str,
    least: f64,
    mut metrics: impl FnMut() -> anyhow::Result<Metrics>,
    metric: (&str, &[&str]),
) {
    wait::until(what, SOON, || {
        let now = metrics()?.sum(metric.0, metric.1).unwrap_or_default();
        Ok(Seen::when(now >= least, (), now))
    })
    .unwrap();
}

#[test]
fn a_mistake_in_a_file_is_named_with_its_place_before_anything_starts() {
    const AGENT: (&str, &[&str]) = ("usher-agent", &["run", "--config", "agent.yaml"]);
    const ORCHESTRATOR: (&str, &[&str]) = ("usher-orchestrator", &["--config", "orchestrator.yaml"]);
    let cases = [
        (AGENT, "agent.yaml", ("state_dir: agent", "state_dri: agent"), ["agent.yaml:", "state_dri"]),
        (
            AGENT,
            "agent.yaml",
            ("down: 1.5 Mbit/s", "down: 1.5 MB/s"),
            ["agent.yaml:", "expected a number and a unit"],
        ),
        (AGENT, "sessions.yaml", ("10.77.0.13/32", "10.77.0.0/24"), ["sessions.yaml:", "session-a"]),
        (AGENT, "sessions.yaml", ("id: session-c", "id: session-a"), ["sessions.yaml:", "session-a"]),
        (
            ORCHESTRATOR,
            "orchestrator.yaml",
            ("state_dir:", "state_dri:"),
            ["orchestrator.yaml:2:1", "state_dri"],
        ),
        (
            ORCHESTRATOR,
            "policy.yaml",
            ("video_capped > 0.8", "video_capped >"),
            ["policy.yaml:7:", "hd_starved"],
        ),
        (
            ORCHESTRATOR,
            "policy.yaml",
            ("video_capped > 0.8", "video_capd > 0.8"),
            ["policy.yaml:7:", "`video_capped`"],
        ),
        (ORCHESTRATOR, "policy.yaml", ("mode: live", "mode: canary"), ["policy.yaml:", "canary"]),
        (ORCHESTRATOR, "profiles.yaml", ("id: sub-b", "id: sub-a"), ["profiles.yaml:", "twice"]),
        (
            ORCHESTRATOR,
            "profiles.yaml",
            ("000000002", "000000001"),
            ["profiles.yaml:", "imsi:001010000000001"],
        ),
    ];
    for ((program, arguments), file, (from, to), words) in cases {
        let site = quiet_site(|_| String::new());
        site.edit(file, |text| {
            assert!(text.contains(from), "{file} has no {from}");
            text.replacen(from, to, 1)
        })
        .unwrap();
        let (code, said) = refusal(&site, program, arguments);
        assert_eq!(code, Some(2), "{file}, {to}: {said}");
        for word in words {
            assert!(said.contains(word), "{file}, {to}: {said}");
        }
        for state in ["agent", "orchestrator"] {
            assert!(!site.file(state).exists(), "{file}, {to}: something was made");
        }
    }
}

#[test]
fn an_interface_that_is_not_there_is_named_with_those_that_are() {
    let site = quiet_site(|_| String::new());
    site.edit("agent.yaml", |text| {
        let capture = site.file("silence.pcap");
        text.replace(
            &format!("{{capture: {{file: \"{}\"}}}}", capture.display()),
            "{probe: {interface: nosuch0, pin_dir: /sys/fs/bpf/usher-bad-input}}",
        )
    })
    .unwrap();
    for arguments in [["check", "--config", "agent.yaml"], ["run", "--config", "agent.yaml"]] {
        let (code, said) = refusal(&site, "usher-agent", &arguments);
        assert!(code == Some(1) || code == Some(2), "{code:?}: {said}");
        assert!(said.contains("`nosuch0`") && said.contains("lo"), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "one message: {said}");
    }
    assert!(!Path::new("/sys/fs/bpf/usher-bad-input").exists());
}

#[test]
fn without_the_right_to_load_programs_the_agent_says_what_it_needs() {
    if !rustix::process::geteuid().is_root() {
        return skip::skipped(
            "without_the_right_to_load_programs_the_agent_says_what_it_needs",
            "not root: it starts the agent as somebody else",
        );
    }
    let site = quiet_site(|_| String::new());
    site.edit("agent.yaml", |text| {
        let capture = site.file("silence.pcap");
        text.replace(
            &format!("{{capture: {{file: \"{}\"}}}}", capture.display()),
            "{probe: {interface: lo, pin_dir: /sys/fs/bpf/usher-bad-input}}",
        )
    })
    .unwrap();
    let folder = site.ground().place().folder().to_owned();
    let agent = lend(&folder, &["usher-agent"]).join("usher-agent");
    let mut run = as_nobody(&agent, &["run", "--config", "agent.yaml"]);
    let output = process::output(run.current_dir(&folder)).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not permitted") && said.contains("CAP_BPF"), "{said}");
}

#[test]
fn a_sessions_file_that_goes_bad_changes_nothing_and_is_counted() {
    let mut site = quiet_site(|_| String::new());
    site.start_orchestrator().unwrap();
    site.start_agent().unwrap();
    let sessions = |site: &Site| site.agent_metrics()?.sum("usher_agent_sessions", &[]);
    wait::until("two sessions", SOON, || {
        let open = sessions(&site).unwrap_or_default();
        Ok(Seen::when((open - 2.0).abs() < 0.1, (), open))
    })
    .unwrap();
    let good = std::fs::read_to_string(site.file("sessions.yaml")).unwrap();
    site.edit("sessions.yaml", |text| text.replace("10.77.0.13/32", "10.77.0.0/24")).unwrap();
    counted("the bad file counted", 1.0, || site.agent_metrics(), ("usher_agent_reload_failures_total", &[]));
    assert!((sessions(&site).unwrap() - 2.0).abs() < 0.1, "both sessions are as they were");
    let said = site.agent().unwrap().printed();
    assert!(said.contains("sessions.yaml:") && said.contains("session-a"), "{said}");
    site.edit("sessions.yaml", |_| good + include_str!("demo/roamer.yaml")).unwrap();
    wait::until("three sessions, the file being good again", SOON, || {
        let open = sessions(&site)?;
        Ok(Seen::when((open - 3.0).abs() < 0.1, (), open))
    })
    .unwrap();
}

#[test]
fn a_catalogue_that_goes_bad_changes_nothing_and_is_counted() {
    let mut site = quiet_site(|_| String::new());
    let catalogue = site.file("catalogue.yaml");
    std::fs::write(&catalogue, "rules:\n- {domain: films.test, app: films, class: video}\n").unwrap();
    site.edit("agent.yaml", |text| format!("{text}catalogue: {}\n", catalogue.display())).unwrap();
    site.start_orchestrator().unwrap();
    site.start_agent().unwrap();
    let rules = |site: &Site| site.agent_metrics()?.sum("usher_agent_catalogue_rules", &[]);
    let counted_rules = |site: &Site, what: &str, expected: f64| {
        wait::until(what, SOON, || {
            let rules = rules(site).unwrap_or_default();
            Ok(Seen::when((rules - expected).abs() < 0.1, (), rules))
        })
        .unwrap();
    };
    let before = wait::until("the catalogue's rules", SOON, || {
        let rules = rules(&site).unwrap_or_default();
        Ok(Seen::when(rules > 30_000.0, rules, rules))
    })
    .unwrap();
    site.edit("catalogue.yaml", |text| text + "- {domain: '*.films.test', app: films, class: video}\n")
        .unwrap();
    counted("the bad file counted", 1.0, || site.agent_metrics(), ("usher_agent_reload_failures_total", &[]));
    assert!((rules(&site).unwrap() - before).abs() < 0.1, "the catalogue is as it was");
    let said = site.agent().unwrap().printed();
    assert!(said.contains("catalogue.yaml:3:12") && said.contains("without `*.`"), "{said}");
    site.edit("catalogue.yaml", |text| text.replace("*.films", "series")).unwrap();
    counted_rules(&site, "one rule more, the file being good again", before + 1.0);
}

#[test]
fn an_unknown_agent_is_turned_away_and_counted() {
    let mut site = quiet_site(|_| String::new());
    let pki = site.file("pki").to_string_lossy().into_owned();
    process::run(&mut site.usher(["pki", "agent", "gw-9", "--dir", &pki]).unwrap()).unwrap();
    site.edit("agent.yaml", |text| text.replace("gw-1", "gw-9")).unwrap();
    site.start_orchestrator().unwrap();
    site.start_agent().unwrap();
    counted(
        "the refusal counted",
        1.0,
        || site.orchestrator_metrics(),
        ("usher_orchestrator_uplinks_refused_total", &[]),
    );
    wait::until("the agent saying why", SOON, || {
        let said = site.agent()?.printed();
        Ok(Seen::when(said.contains("agents.allowed") || said.contains("allowed"), (), said))
    })
    .unwrap();
    let said = site.orchestrator().unwrap().printed();
    assert!(said.contains("gw-9"), "{said}");
    let batches = site.orchestrator_metrics().unwrap().sum("usher_orchestrator_batches_applied_total", &[]);
    assert!(batches.unwrap() < 0.5, "nothing of it was applied");
    assert!(site.ask(&["get", "sessions"]).unwrap()["items"].as_array().unwrap().is_empty());
}

#[test]
fn a_link_that_is_forged_cut_or_used_again_changes_nothing() {
    let mut site = quiet_site(|_| String::new());
    site.edit("sessions.yaml", |text| text + include_str!("demo/roamer.yaml")).unwrap();
    site.start_orchestrator().unwrap();
    site.start_agent().unwrap();
    let message = wait::until("a message", SOON, || {
        let first = site.outbox()?.into_iter().next();
        Ok(first.map_or_else(|| Seen::NotYet("none".to_owned()), Seen::Done))
    })
    .unwrap();
    let link = text(&message, "/link").to_owned();
    let post = |link: &str| -> u16 {
        let arguments = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", link];
        process::run(&mut process::command("curl", arguments)).unwrap().parse().unwrap()
    };
    // One character of the signature is another.
    let last = if link.ends_with('A') { 'B' } else { 'A' };
    let middle = link.len() - 8;
    let swapped = if link.as_bytes()[middle] == b'x' { "y" } else { "x" };
    let forged = format!("{}{swapped}{}", &link[..middle], &link[middle + 1..]);
    assert_eq!(post(&forged), 403);
    assert!(matches!(post(&link[..link.len() - 6]), 400 | 403));
    assert!(matches!(post(&format!("{link}{last}")), 400 | 403));
    assert!(site.push("sub-b", Cause::Tap).unwrap().is_none(), "none of them was a tap");
    assert_eq!(post(&link), 200);
    wait::until("the pass", SOON, || {
        let push = site.push("sub-b", Cause::Tap)?;
        Ok(Seen::when(push.as_ref().is_some_and(|push| push.state() == "done"), (), format!("{push:?}")))
    })
    .unwrap();
    let pushes = site.pushes("sub-b").unwrap().len();
    assert_eq!(post(&link), 200);
    assert_eq!(site.pushes("sub-b").unwrap().len(), pushes, "the second tap pushed nothing");
    let metrics = site.orchestrator_metrics().unwrap();
    let opened = |result: &str| {
        let label = format!("result=\"{result}\"");
        metrics.sum("usher_orchestrator_advice_links_total", &[&label]).unwrap_or_default()
    };
    assert!(opened("forged") >= 1.0 && opened("already") >= 1.0, "{}", metrics.text());
}

#[test]
fn a_link_whose_time_is_up_changes_nothing() {
    let mut site = quiet_site(|_| String::new());
    site.edit("policy.yaml", |text| text.replace("expire: 2h", "expire: 1s")).unwrap();
    site.edit("sessions.yaml", |text| text + include_str!("demo/roamer.yaml")).unwrap();
    site.start_orchestrator().unwrap();
    site.start_agent().unwrap();
    let message = wait::until("a message", SOON, || {
        let first = site.outbox()?.into_iter().next();
        Ok(first.map_or_else(|| Seen::NotYet("none".to_owned()), Seen::Done))
    })
    .unwrap();
    let expires: jiff::Timestamp = text(&message, "/expires").parse().unwrap();
    wait::until("the link's end", SOON, || Ok(Seen::when(jiff::Timestamp::now() > expires, (), "too early")))
        .unwrap();
    let arguments = ["-sS", "-w", "%{http_code}", "-X", "POST", text(&message, "/link")];
    let answer = process::run(&mut process::command("curl", arguments)).unwrap();
    assert!(answer.ends_with("410") && answer.contains("has ended"), "{answer}");
    assert!(site.push("sub-b", Cause::Tap).unwrap().is_none());
    counted(
        "the late tap counted",
        1.0,
        || site.orchestrator_metrics(),
        ("usher_orchestrator_advice_links_total", &["result=\"expired\""]),
    );
}

#[test]
fn a_device_with_a_changed_host_key_is_not_talked_to_and_nothing_is_left_half_done() {
    if let Some(reason) = netconfd::why_not() {
        return skip::skipped(
            "a_device_with_a_changed_host_key_is_not_talked_to_and_nothing_is_left_half_done",
            &reason,
        );
    }
    let mut device = None;
    let mut site = quiet_site(|folder| {
        let mut started = stage::device(folder, None).unwrap();
        started.change_host_key().unwrap();
        let elements = stage::elements(&started);
        device = Some(started);
        elements
    });
    let mut device: NetconfServer = device.unwrap();
    site.start_orchestrator().unwrap();
    site.start_agent().unwrap();
    let push = wait::until("a failed attempt", SOON, || {
        let push = site.push("sub-a", Cause::Plan)?;
        let failed = push.as_ref().is_some_and(|push| !text(&push.0, "/error").is_empty());
        Ok(if failed { Seen::Done(push.unwrap()) } else { Seen::NotYet(format!("{push:?}")) })
    })
    .unwrap();
    let error = text(&push.0, "/error");
    assert!(
        error.contains("bng-1") && error.contains("host key") && error.contains("known_hosts"),
        "{error}"
    );
    assert!(
        push.parts().iter().all(|(_, state)| state != "confirmed" && state != "enforced"),
        "the gateway did not go ahead alone: {:?}",
        push.parts()
    );
    // What the message said to do is what helps.
    device.know_host_key().unwrap();
    wait::until("the push, the key being known", Duration::from_mins(1), || {
        let push = site.push("sub-a", Cause::Plan)?;
        Ok(Seen::when(push.as_ref().is_some_and(|push| push.state() == "done"), (), format!("{push:?}")))
    })
    .unwrap();
    assert_eq!(device.video_quality("sub-a").unwrap().as_deref(), Some("sd"));
}

#[test]
fn an_ordinary_user_sees_the_same_loop_on_the_recording() {
    if !rustix::process::geteuid().is_root() {
        return skip::skipped(
            "an_ordinary_user_sees_the_same_loop_on_the_recording",
            "not root: it starts the demo as somebody else; whoever runs this can run `make demo`",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let programs = ["usher-demo", "usher-agent", "usher-orchestrator", "usher"];
    let demo = lend(folder.path(), &programs).join("usher-demo");
    let report = folder.path().join("report.json");
    let mut run = as_nobody(&demo, &["--report", &report.to_string_lossy()]);
    let output = process::output(run.current_dir(folder.path()).env("HOME", folder.path())).unwrap();
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}\n{said}");
    assert!(said.contains("the probe cannot be used here (not root"), "{said}");
    let told: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(told["mode"], "capture");
    assert_eq!(told["bytes"]["probe"], told["bytes"]["interface"]);
    // The shape is the one promised, whoever writes it.
    assert_eq!(
        serde_json::to_value(Report::new(Mode::Capture, true)).unwrap().as_object().unwrap().len(),
        told.as_object().unwrap().len()
    );
}

/// The user `nobody`, on Debian.
const NOBODY: u32 = 65_534;

/// Gives a folder and all in it to `nobody`, with copies of programs in it; gives where these are.
fn lend(folder: &Path, programs: &[&str]) -> PathBuf {
    let copies = folder.join("programs");
    std::fs::create_dir(&copies).unwrap();
    for program in programs {
        std::fs::copy(process::built_program(program).unwrap(), copies.join(program)).unwrap();
    }
    let mut give = process::command("chown", ["-R", "65534:65534"]);
    process::run(give.arg(folder)).unwrap();
    copies
}

/// A program, started by `nobody`.
fn as_nobody(program: &Path, arguments: &[&str]) -> Command {
    let mut command = process::command(
        "setpriv",
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"],
    );
    command.arg(program).args(arguments).stdin(Stdio::null());
    command
}
