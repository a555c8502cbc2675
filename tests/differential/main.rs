//! The names that `usher-agent classify` and tshark find in the same generated capture: the same, or the difference explained.
//!
//! Hellos and keys are rustls's; everything around them is written here. tshark is another reading of the same standards by
//! other people: what both find is most likely what is there. Beside it, the probe's parser against the agent's (`parser`).

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

mod cases;
mod hellos;
mod live;
mod parser;
mod talk;
mod wrap;

#[path = "../../ebpf/src/parse.rs"]
#[expect(
    clippy::inline_always,
    dead_code,
    unreachable_pub,
    reason = "the probe's file, held to the kernel's needs, of which not all is compared"
)]
mod parse;
#[path = "../../ebpf/src/walk.rs"]
#[expect(
    clippy::inline_always,
    clippy::unnecessary_wraps,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "the probe's file, held to the kernel's needs"
)]
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use usher_tests::{process, skip};

use self::cases::{Case, FIRST_PORT, Tshark};

/// By the client's port, of which every case has its own.
type Names = BTreeMap<u16, BTreeSet<String>>;

#[test]
fn usher_and_tshark_find_the_same_names() {
    if !process::installed("tshark") {
        skip::skipped(
            "usher_and_tshark_find_the_same_names",
            "tshark is not installed (scripts/install.sh installs it)",
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let capture = folder.path().join("generated.pcap");
    let cases = cases::all();
    std::fs::write(&capture, wrap::recording(&cases)).unwrap();
    let (ours, theirs) = (usher(&capture), tshark(&capture));

    let mut wrong = Vec::new();
    for (port, case) in (FIRST_PORT..).zip(&cases) {
        let Case { what, wrap, name, tshark, .. } = case;
        let expected = BTreeSet::from([name.clone()]);
        let (ours, theirs) = (found(&ours, port), found(&theirs, port));
        if ours != expected {
            wrong.push(format!("{what} in {wrap:?}: usher finds {ours:?}, not {expected:?}"));
        }
        match tshark {
            Tshark::Same if theirs.contains(name) => {}
            Tshark::Same => {
                wrong.push(format!("{what} in {wrap:?}: tshark finds {theirs:?}, not {expected:?}"));
            }
            Tshark::Blind(why) if theirs.is_empty() => {
                process::say(&format!("tshark is blind here: {what}: {why}"));
            }
            // A later tshark may see more; then it must see the same.
            Tshark::Blind(_) if theirs.contains(name) => {}
            Tshark::Blind(why) => wrong.push(format!("{what}: tshark finds {theirs:?}, though {why}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn found(names: &Names, port: u16) -> BTreeSet<String> {
    names.get(&port).cloned().unwrap_or_default()
}

fn usher(capture: &Path) -> Names {
    let mut names = Names::new();
    let program = process::built_program("usher-agent").unwrap();
    let arguments = ["classify", "--format", "json", capture.to_str().unwrap()];
    for line in process::run(&mut process::command(program, arguments)).unwrap().lines() {
        let flow: Value = serde_json::from_str(line).unwrap();
        let client: std::net::SocketAddr = flow["client"].as_str().unwrap().parse().unwrap();
        if let Some(name) = flow["name"].as_str() {
            names.entry(client.port()).or_default().insert(name.to_owned());
        }
    }
    names
}

fn tshark(capture: &Path) -> Names {
    const NAMES: [&str; 4] =
        ["tls.handshake.extensions_server_name", "http.host", "http.request.uri", "dns.qry.name"];
    const PORTS: [&str; 4] = ["tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport"];
    let mut arguments = vec!["-n", "-r", capture.to_str().unwrap(), "-T", "fields", "-E", "aggregator= "];
    // Off by default, for it costs memory.
    arguments.extend(["-o", "tcp.reassemble_out_of_order:TRUE"]);
    for field in PORTS.iter().chain(&NAMES) {
        arguments.extend(["-e", *field]);
    }
    let mut names = Names::new();
    for line in process::run(&mut process::command("tshark", arguments)).unwrap().lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (ports, found) = fields.split_at(PORTS.len());
        // The outer ports of a tunnel are below those of the cases.
        let port = ports.iter().flat_map(|field| field.split(' ')).filter_map(|port| port.parse().ok());
        let Some(port) = port.max().filter(|port| *port >= FIRST_PORT) else { continue };
        for name in found.iter().flat_map(|field| field.split(' ')).filter(|name| !name.is_empty()) {
            names.entry(port).or_default().insert(name.to_ascii_lowercase());
        }
    }
    names
}
