//! Rates kept by classes of HTB: what trees there are and what becomes of them, and what comes through.

mod trees;
mod wire;

use std::process::Command;

use usher_agent::probe::Probe;
use usher_models::wire::{Direction, Enforcement, Rate};

const MEGABIT: u64 = 1_000_000;

fn limited(lane: usize, direction: Direction, bits_per_second: u64) -> Enforcement {
    Enforcement::default().with_rate(lane, direction, Rate::per_second(bits_per_second, 0))
}

/// Puts enforcement in force, and waits for its classes if this second's time for making such is used up.
fn set(probe: &mut Probe, slot: u32, enforcement: &Enforcement) {
    probe.enforce(slot, enforcement).expect("sets");
    settle(probe);
}

/// Lets some seconds pass, if something waits for that.
fn settle(probe: &mut Probe) {
    for _ in 0..10 {
        if probe.shaped().is_some_and(|shaped| shaped.policed != [0, 0]) {
            probe.shape_on();
        }
    }
}

fn tc(words: &[&str]) -> String {
    let shown = Command::new("tc").args(words).output().expect("tc runs");
    assert!(shown.status.success(), "tc {words:?}: {}", String::from_utf8_lossy(&shown.stderr));
    String::from_utf8(shown.stdout).expect("text")
}

fn root(interface: &str) -> String {
    let shown = tc(&["qdisc", "show", "dev", interface]);
    shown.lines().find(|line| line.contains(" root ")).unwrap_or_default().to_owned()
}

fn has_tree(interface: &str) -> bool {
    root(interface).contains("htb")
}

/// The classes of an interface as `5554:1 root 8Mbit 8Mbit pfifo`, in the order of their numbers.
fn classes(interface: &str) -> Vec<String> {
    let queues = tc(&["qdisc", "show", "dev", interface]);
    let shown = tc(&["class", "show", "dev", interface]);
    let mut classes: Vec<(u16, String)> = shown
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let after = |word: &str| {
                words.iter().position(|other| *other == word).and_then(|at| words.get(at + 1)).copied()
            };
            let class = after("htb").expect("of HTB");
            let queue = queues.lines().find(|queue| queue.contains(&format!(" parent {class} ")));
            let queue = queue.and_then(|queue| queue.split(' ').nth(1)).unwrap_or("-");
            let rates = [after("rate"), after("ceil")].map(|rate| rate.expect("a rate"));
            let minor = class.split(':').nth(1).and_then(|minor| u16::from_str_radix(minor, 16).ok());
            let place = after("parent").unwrap_or("root");
            (minor.expect("a number"), format!("{class} {place} {} {} {queue}", rates[0], rates[1]))
        })
        .collect();
    classes.sort_unstable();
    classes.into_iter().map(|(_, class)| class).collect()
}
