//! Frames of any link type through the capture's table and the classifier, as `usher-agent classify` drives them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_agent::capture::table::{Table, TableLimits};
use usher_agent::classify::{Catalogue, Classifier, Limits};
use usher_models::units::Micros;

const LINK_TYPES: [i32; 16] = [1, 0, 9, 12, 101, 113, 228, 276, 50, 51, 104, 105, 108, 127, 166, 204];

// Input: a byte that picks the link type, then frames, each after two bytes: its length and by how much it was cut.
fuzz_target!(|data: &[u8]| {
    let Some((link, mut rest)) = data.split_first() else { return };
    let link = LINK_TYPES[usize::from(*link) % LINK_TYPES.len()];
    let limits = Limits { streams: 4, stream_bytes: 8_192, told: 4, ..Limits::default() };
    let mut table = Table::new(TableLimits { flows: 8, ..TableLimits::default() });
    let mut classifier = Classifier::with_limits(Catalogue::empty(), limits);
    let mut now = Micros::new(0);
    while let Some(([length, cut], more)) = rest.split_first_chunk::<2>() {
        let (frame, more) = more.split_at(usize::from(*length).min(more.len()));
        rest = more;
        now = now.after(std::time::Duration::from_millis(300));
        if let Some(sample) = table.frame(link, frame, frame.len() + usize::from(*cut), now) {
            let observation = classifier.observe(&sample);
            if let Some((class, sampling)) = observation.instruction() {
                table.name_flow(&sample.flow, class, sampling);
                table.count_for_app(&sample.flow, sample.slot, sampling.then_some("streams"));
            }
        }
        for sample in table.overdue_fragments(now) {
            classifier.observe(&sample);
        }
        classifier.expire(now);
        assert!(classifier.held()[0].1 <= 4 && classifier.held()[1].1 <= 8_192);
        assert!(table.flows() <= 8);
    }
    for sample in table.rest_of_fragments() {
        classifier.observe(&sample);
    }
});
