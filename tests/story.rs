//! The demo's story, told as a test.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use anyhow::Result;
use usher_tests::report::{Mode, Report};
use usher_tests::scenario::{Point, Story};
use usher_tests::site::Site;
use usher_tests::{skip, stage};

/// Tells the story with the probe; `None` where it cannot be told here.
fn tell(name: &str, disturb: &mut dyn FnMut(Point, &mut Site) -> Result<()>) -> Option<Story> {
    if let Some(reason) = skip::why_no_probe() {
        skip::skipped(name, &reason);
        return None;
    }
    let mut story = stage::in_lab(Report::new(Mode::Probe, true)).unwrap();
    if let Err(error) = story.play(disturb) {
        panic!("{error:#}\n{}", story.site.last_words());
    }
    assert!(story.report.held());
    Some(story)
}

/// Whatever happened in between: one message, one decision a moment, and no more pushes than changes of mind.
fn assert_nothing_happened_twice(story: &Story) {
    let site = &story.site;
    assert_eq!(site.outbox().unwrap().len(), 1, "one message");
    for (subscriber, decisions, pushes) in [("sub-a", 1, 3), ("sub-b", 1, 3), ("sub-c", 1, 1)] {
        let chosen = site.decisions(subscriber).unwrap();
        let named: Vec<_> =
            chosen.iter().map(|decision| (&decision["moment"], &decision["episode"])).collect();
        assert!(named.len() >= decisions, "{subscriber}: {named:?}");
        let mut once = named.clone();
        once.sort_by_key(|(moment, episode)| (moment.to_string(), episode.to_string()));
        once.dedup();
        assert_eq!(once.len(), named.len(), "{subscriber} was decided about twice: {named:?}");
        let done = site.pushes(subscriber).unwrap();
        let revisions: Vec<_> = done.iter().map(|push| (push.revision(), push.state().to_owned())).collect();
        assert_eq!(done.len(), pushes, "{subscriber}: {revisions:?}");
        assert!(done.iter().all(|push| push.state() == "done"), "{subscriber}: {revisions:?}");
    }
}

#[test]
fn the_loop_closes_on_real_packets() {
    let Some(mut story) = tell("the_loop_closes_on_real_packets", &mut |_, _| Ok(())) else { return };
    assert_nothing_happened_twice(&story);
    story.site.stop().unwrap();
}

#[test]
fn killing_the_agent_loses_no_byte_and_repeats_nothing() {
    let mut killed = 0;
    let story = tell("killing_the_agent_loses_no_byte_and_repeats_nothing", &mut |_, site| {
        killed += 1;
        site.replace_agent()
    });
    let Some(story) = story else { return };
    assert_eq!(killed, 7);
    assert_nothing_happened_twice(&story);
}

#[test]
fn killing_the_orchestrator_loses_no_byte_and_repeats_nothing() {
    let mut killed = 0;
    let story = tell("killing_the_orchestrator_loses_no_byte_and_repeats_nothing", &mut |_, site| {
        killed += 1;
        site.replace_orchestrator()
    });
    let Some(story) = story else { return };
    assert_eq!(killed, 7);
    assert_nothing_happened_twice(&story);
}

#[test]
fn without_the_probe_the_loop_closes_on_the_recording() {
    let mut story = stage::on_loopback(Report::new(Mode::Capture, true)).unwrap();
    if let Err(error) = story.play(&mut |_, _| Ok(())) {
        panic!("{error:#}\n{}", story.site.last_words());
    }
    assert_nothing_happened_twice(&story);
    story.site.stop().unwrap();
}
