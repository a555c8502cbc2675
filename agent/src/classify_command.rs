//! `usher-agent classify`: what the flows of capture files are, one row a flow.
//!
//! Owns the way of a file's packets through the same table and the same classifier as the daemon's, without sessions: the
//! side that opened a flow is its client. Refuses live interfaces and configuration.

mod rows;
mod shared;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use usher_models::units::Micros;
use usher_models::wire::FlowKey;

use self::rows::Lines;
use self::shared::Shared;
use crate::capture::file::{CaptureFile, STDIN};
use crate::capture::flow::Flow;
use crate::capture::source::CaptureError;
use crate::capture::table::{Table, TableLimits};
use crate::catalogue::{self, LoadError};
use crate::classify::{Classifier, Observation};
use crate::dataplane::Sample;

/// How often, in the capture's time, flows that take too long are concluded.
const TICK: Duration = Duration::from_secs(1);

/// Packets between two looks at how far the file is read.
const PROGRESS: u32 = 8_192;

const EXAMPLES: &str = "\
Examples:
  usher-agent classify evening.pcap.gz                       a table of its flows
  usher-agent classify --format csv *.pcapng >flows.csv      all flows of several captures
  tcpdump -i eth0 -c 10000 -w - | usher-agent classify -     packets as they come
  usher-agent classify -f json day.pcap | jq -r 'select(.app == null) | .name'   what the catalogue lacks";

/// Arguments of the sub-command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Form of the output: a table to read, or one JSON object or CSV line a flow
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Catalogue that adds to the built-in one
    #[arg(long, value_name = "FILE")]
    pub catalogue: Option<PathBuf>,
    /// Capture files, pcap or pcapng, packed by gzip or not; `-` is standard input
    #[arg(required = true, value_name = "CAPTURE")]
    pub captures: Vec<PathBuf>,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table a capture.
    Table,
    /// One JSON object a line.
    Json,
    /// A header, then one line a flow.
    Csv,
}

/// Why the flows could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// A capture file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] LoadError),
    /// The output.
    #[error("write the list of flows: {0}")]
    Write(#[from] io::Error),
}

/// Lists the flows of all captures, in the order given. A capture that breaks off is listed as far as it goes; then its
/// error is returned, after the other captures. A reader that wants no more lines (a closed pipe) is no error.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), ClassifyError> {
    match list_all(args, out) {
        Err(ClassifyError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn list_all(args: &Args, out: &mut dyn Write) -> Result<(), ClassifyError> {
    let catalogue = catalogue::load(args.catalogue.as_deref())?;
    let mut lines = Lines::new(args.format, out);
    lines.begin();
    let mut broken = None;
    for path in &args.captures {
        let mut listing = Listing::new(path, Classifier::new(catalogue.clone()));
        if let Err(error) = listing.read(path, &mut lines) {
            match error {
                ClassifyError::Capture(error) => broken = broken.or(Some(error)),
                other => return Err(other),
            }
        }
    }
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// One capture on its way through table and classifier.
struct Listing {
    capture: String,
    table: Table,
    classifier: Classifier,
    shared: Shared,
}

impl Listing {
    fn new(path: &Path, classifier: Classifier) -> Self {
        let capture = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let table = Table::new(TableLimits { keeps_given_up: true, ..TableLimits::default() });
        Self { capture, table, classifier, shared: Shared::default() }
    }

    fn read(&mut self, path: &Path, lines: &mut Lines<'_>) -> Result<(), ClassifyError> {
        let mut file = if path == Path::new(STDIN) { CaptureFile::stdin() } else { CaptureFile::open(path) }?;
        let bar = progress_bar(&self.capture, file.size());
        let mut packets = 0_u32;
        let mut ticked: Option<Micros> = None;
        let mut ended = Ok(());
        loop {
            packets = packets.wrapping_add(1);
            if packets.is_multiple_of(PROGRESS) {
                bar.set_position(file.read());
            }
            let packet = match file.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(error) => {
                    ended = Err(error);
                    break;
                }
            };
            let now = packet.seen;
            if let Some(sample) = self.table.frame(packet.link, packet.bytes, packet.wire, now) {
                let observation = self.classifier.observe(&sample);
                self.note(&sample.flow, observation);
            }
            // Where captures were put together, time may go back as well.
            if ticked.is_none_or(|ticked| now.since(ticked).max(ticked.since(now)) > TICK) {
                ticked = Some(now);
                let overdue = self.table.overdue_fragments(now);
                self.observe_late(&overdue);
                let expired = self.classifier.expire(now);
                for concluded in expired {
                    self.note(&concluded.flow, concluded.observation);
                }
            }
            // Memory stays bounded on captures of any length, and no flow goes unlisted for it.
            if self.table.has_given_up() {
                list(&self.capture, self.table.take_given_up().iter(), lines)?;
            }
        }
        bar.finish_and_clear();
        let rest = self.table.rest_of_fragments();
        self.observe_late(&rest);
        for concluded in self.classifier.finish() {
            self.note(&concluded.flow, concluded.observation);
        }
        list(&self.capture, self.table.take_given_up().iter(), lines)?;
        list(&self.capture, self.table.iter(), lines)?;
        lines.end_of_capture()?;
        Ok(ended?)
    }

    /// What fragments that waited in vain still show.
    fn observe_late(&mut self, samples: &[Sample<'_>]) {
        for sample in samples {
            let observation = self.classifier.observe(sample);
            self.note(&sample.flow, observation);
        }
    }

    fn note(&mut self, flow: &FlowKey, observation: Observation) {
        if let Some((class, sampling)) = observation.instruction() {
            self.table.name_flow(flow, class, sampling);
        }
        if let Observation::Named(verdict) | Observation::Upgraded(verdict) = observation {
            let verdict = self.shared.share(verdict);
            self.table.keep_verdict(flow, verdict);
        }
    }
}

/// Lists flows by the time of their first packet.
fn list<'a>(
    capture: &str,
    flows: impl Iterator<Item = &'a Flow>,
    lines: &mut Lines<'_>,
) -> Result<(), ClassifyError> {
    let mut flows: Vec<&Flow> = flows.collect();
    // They come almost in order, which a stable sort makes use of.
    flows.sort_by(|one, other| one.first.cmp(&other.first).then_with(|| one.order().cmp(&other.order())));
    for flow in flows {
        lines.row(capture, flow)?;
    }
    Ok(())
}

/// On standard error, where that is a terminal; of what has no size, only how much was read.
fn progress_bar(capture: &str, size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => {
            (ProgressBar::new(size), "{msg} [{wide_bar:.green}] {bytes} of {total_bytes}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} read, {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(capture.to_owned()).with_finish(ProgressFinish::AndClear)
}

#[cfg(test)]
mod tests;
