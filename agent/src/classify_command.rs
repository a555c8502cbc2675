//! `usher-agent classify`: what the flows of capture files are, one row a flow.
//!
//! Owns the way of a file's packets through the same table and the same classifier as the daemon's, without sessions: the
//! side that opened a flow is its client. Refuses live interfaces and configuration.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use comfy_table::{CellAlignment, Table as Sheet, presets};
use foldhash::quality::RandomState;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use serde::Serialize;
use usher_models::Class;
use usher_models::units::{Bytes, Micros};
use usher_models::wire::{Direction, FlowKey};

use crate::capture::file::{CaptureFile, STDIN};
use crate::capture::frame::Layer;
use crate::capture::source::{self, CaptureError};
use crate::capture::table::{Flow, Table, TableLimits};
use crate::catalogue::{self, LoadError};
use crate::classify::{Classifier, Observation, Verdict, packet};
use crate::dataplane::Sample;

/// How often, in the capture's time, flows that take too long are concluded.
const TICK: Duration = Duration::from_secs(1);

/// Packets between two looks at how far the file is read.
const PROGRESS: u32 = 8_192;

/// Bytes of lines that are written at once.
const OUT_BUFFER: usize = 64 * 1024;

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

/// A flow as it is listed; the fields are the JSON object's and the CSV columns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// File name of the capture.
    pub capture: String,
    /// `tcp`, `udp`, ..., or the IP protocol's number.
    pub proto: String,
    /// Who opened the flow: address and port, 0 where the protocol has none.
    pub client: SocketAddr,
    /// The other end.
    pub server: SocketAddr,
    /// Tags and tunnels around the flow's first packet, outermost first.
    pub encap: Vec<String>,
    /// The app's id.
    pub app: Option<String>,
    /// The class; `other` without a verdict.
    pub class: Class,
    /// The host name; of a DNS flow, the first name asked for.
    pub name: Option<String>,
    /// What the verdict rests on.
    pub via: Option<&'static str>,
    /// How sure it is, 0 to 1.
    pub confidence: Option<f64>,
    /// Innermost IP bytes from the client.
    pub bytes_up: u64,
    /// Innermost IP bytes to the client.
    pub bytes_down: u64,
    /// Packets from the client.
    pub packets_up: u64,
    /// Packets to the client.
    pub packets_down: u64,
    /// First packet, RFC 3339.
    pub first: String,
    /// Last packet, RFC 3339.
    pub last: String,
}

/// Lists the flows of all captures, in the order given. A capture that breaks off is listed as far as it goes; then its
/// error is returned, after the other captures. A reader that wants no more lines (a closed pipe) is no error.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), ClassifyError> {
    // A terminal's own buffer goes out with every line.
    match list_all(args, &mut BufWriter::with_capacity(OUT_BUFFER, out)) {
        Err(ClassifyError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn list_all(args: &Args, out: &mut dyn Write) -> Result<(), ClassifyError> {
    let catalogue = catalogue::load(args.catalogue.as_deref())?;
    let mut lines = Lines::new(args.format, out);
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
    lines.out.flush()?;
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// One capture on its way through table and classifier.
struct Listing {
    capture: String,
    table: Table,
    classifier: Classifier,
    verdicts: HashMap<FlowKey, Verdict, RandomState>,
}

impl Listing {
    fn new(path: &Path, classifier: Classifier) -> Self {
        let capture = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let table = Table::new(TableLimits::default());
        Self { capture, table, classifier, verdicts: HashMap::default() }
    }

    fn read(&mut self, path: &Path, lines: &mut Lines<'_>) -> Result<(), ClassifyError> {
        let mut file = if path == Path::new(STDIN) { CaptureFile::stdin() } else { CaptureFile::open(path) }?;
        let link = file.link();
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
            let now = source::stamp(packet.header);
            if let Some(sample) = self.table.frame(link, packet.data, source::wire(&packet), now) {
                let observation = self.classifier.observe(&sample);
                self.note(&sample.flow, observation);
            }
            if ticked.is_none_or(|ticked| now.since(ticked) > TICK) {
                ticked = Some(now);
                let overdue = self.table.overdue_fragments(now);
                self.observe_late(&overdue);
                let expired = self.classifier.expire(now);
                for concluded in expired {
                    self.note(&concluded.flow, concluded.observation);
                }
                // Memory stays bounded on captures of any length: what has long been silent is listed early.
                if self.table.is_full() {
                    let idle = self.table.sweep(now);
                    self.list(idle, lines)?;
                }
            }
        }
        bar.finish_and_clear();
        let rest = self.table.rest_of_fragments();
        self.observe_late(&rest);
        for concluded in self.classifier.finish() {
            self.note(&concluded.flow, concluded.observation);
        }
        let left =
            std::mem::replace(&mut self.table, Table::new(TableLimits::default())).into_flows().collect();
        self.list(left, lines)?;
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
        if let Observation::Named(verdict) = observation {
            self.verdicts.insert(*flow, verdict);
        }
    }

    fn list(&mut self, mut flows: Vec<Flow>, lines: &mut Lines<'_>) -> Result<(), ClassifyError> {
        flows
            .sort_by_key(|flow| (flow.first, flow.key.subscriber, flow.key.subscriber_port, flow.key.remote));
        for flow in flows {
            let verdict = self.verdicts.remove(&flow.key);
            lines.row(Row::of(&self.capture, &flow, verdict))?;
        }
        Ok(())
    }
}

impl Row {
    fn of(capture: &str, flow: &Flow, verdict: Option<Verdict>) -> Self {
        let key = &flow.key;
        let up = flow.traffic[Direction::Up.index()];
        let down = flow.traffic[Direction::Down.index()];
        Self {
            capture: capture.to_owned(),
            proto: protocol(key.protocol),
            client: SocketAddr::new(packet::address(key.subscriber), key.subscriber_port),
            server: SocketAddr::new(packet::address(key.remote), key.remote_port),
            encap: flow.layers.iter().map(|layer: Layer| layer.to_string()).collect(),
            app: verdict.as_ref().and_then(|verdict| verdict.app.as_deref()).map(str::to_owned),
            class: verdict.as_ref().map_or(Class::Other, |verdict| verdict.class),
            via: verdict.as_ref().map(|verdict| verdict.via.name()),
            confidence: verdict.as_ref().map(|verdict| verdict.confidence),
            name: verdict.and_then(|verdict| verdict.name).map(String::from),
            bytes_up: up.bytes,
            bytes_down: down.bytes,
            packets_up: up.packets,
            packets_down: down.packets,
            first: time(flow.first),
            last: time(flow.last),
        }
    }
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

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        packet::TCP => "tcp".to_owned(),
        packet::UDP => "udp".to_owned(),
        47 => "gre".to_owned(),
        50 => "esp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// RFC 3339, as exact as the stamp.
fn time(at: Micros) -> String {
    jiff::Timestamp::from_microsecond(at.get()).map_or_else(|_| at.to_string(), |time| time.to_string())
}

/// Rows on their way out.
struct Lines<'a> {
    format: Format,
    out: &'a mut dyn Write,
    sheet: Option<Sheet>,
    header_written: bool,
}

impl<'a> Lines<'a> {
    fn new(format: Format, out: &'a mut dyn Write) -> Self {
        Self { format, out, sheet: None, header_written: false }
    }

    fn row(&mut self, row: Row) -> io::Result<()> {
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut *self.out, &row)?;
                self.out.write_all(b"\n")
            }
            Format::Csv => self.csv(&row),
            Format::Table => {
                let sheet = self.sheet.get_or_insert_with(|| new_sheet(&row.capture));
                sheet.add_row([
                    row.proto,
                    row.client.to_string(),
                    row.server.to_string(),
                    row.encap.join(" "),
                    row.app.unwrap_or_default(),
                    row.class.to_string(),
                    row.via.unwrap_or_default().to_owned(),
                    row.name.unwrap_or_default(),
                    Bytes(row.bytes_up).to_string(),
                    Bytes(row.bytes_down).to_string(),
                ]);
                Ok(())
            }
        }
    }

    fn csv(&mut self, row: &Row) -> io::Result<()> {
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(&mut *self.out);
        if !self.header_written {
            self.header_written = true;
            writer.write_record([
                "capture",
                "proto",
                "client",
                "server",
                "encap",
                "app",
                "class",
                "name",
                "via",
                "confidence",
                "bytes_up",
                "bytes_down",
                "packets_up",
                "packets_down",
                "first",
                "last",
            ])?;
        }
        let optional = |value: Option<&str>| value.unwrap_or_default().to_owned();
        writer.write_record([
            row.capture.clone(),
            row.proto.clone(),
            row.client.to_string(),
            row.server.to_string(),
            row.encap.join(" "),
            optional(row.app.as_deref()),
            row.class.to_string(),
            optional(row.name.as_deref()),
            optional(row.via),
            row.confidence.map_or_else(String::new, |confidence| confidence.to_string()),
            row.bytes_up.to_string(),
            row.bytes_down.to_string(),
            row.packets_up.to_string(),
            row.packets_down.to_string(),
            row.first.clone(),
            row.last.clone(),
        ])?;
        writer.flush()
    }

    fn end_of_capture(&mut self) -> io::Result<()> {
        match self.sheet.take() {
            Some(sheet) => writeln!(self.out, "{}", sheet.trim_fmt()),
            None => Ok(()),
        }
    }
}

fn new_sheet(capture: &str) -> Sheet {
    let mut sheet = Sheet::new();
    sheet.load_style(presets::NOTHING);
    sheet.set_header([capture, "client", "server", "encap", "app", "class", "via", "name", "up", "down"]);
    for column in [8, 9] {
        if let Some(column) = sheet.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    sheet
}

#[cfg(test)]
mod tests;
