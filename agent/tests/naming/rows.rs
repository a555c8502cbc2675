//! Frames into a capture file, and the rows that `usher-agent classify` makes of it.

use std::path::Path;

use serde::Deserialize;
use usher_agent::classify_command::{self, Args, Format};

use crate::wrap::Bytes;

/// libpcap's number of Ethernet.
pub(crate) const ETHERNET: i32 = 1;

/// A frame, and microseconds since the capture began.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) at: u64,
    pub(crate) bytes: Bytes,
}

/// What a row says beside what was around the flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Row {
    pub(crate) proto: String,
    pub(crate) client: String,
    pub(crate) server: String,
    pub(crate) name: Option<String>,
    pub(crate) app: Option<String>,
    pub(crate) class: String,
    pub(crate) via: Option<String>,
    pub(crate) packets_up: u64,
    pub(crate) packets_down: u64,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) first: String,
    pub(crate) last: String,
}

impl Row {
    /// The same but for how it was counted: for packets that were sent otherwise.
    pub(crate) fn uncounted(self) -> Self {
        Self { packets_up: 0, packets_down: 0, bytes_up: 0, bytes_down: 0, ..self }
    }
}

/// The rows of a capture of these frames.
pub(crate) fn of_frames(link: i32, frames: &[Frame]) -> Vec<Row> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(262_144_u32.to_le_bytes());
    file.extend(link.to_le_bytes());
    for Frame { at, bytes } in frames {
        let seconds = u32::try_from(at / 1_000_000).unwrap();
        let micros = u32::try_from(at % 1_000_000).unwrap();
        let captured = u32::try_from(bytes.captured.len()).unwrap();
        for field in [seconds, micros, captured, u32::try_from(bytes.wire).unwrap()] {
            file.extend(field.to_le_bytes());
        }
        file.extend(&bytes.captured);
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.pcap");
    std::fs::write(&path, file).unwrap();
    of_file(&path)
}

/// The rows of a capture file.
pub(crate) fn of_file(path: &Path) -> Vec<Row> {
    let mut out = Vec::new();
    let args = Args { format: Format::Json, catalogue: None, captures: vec![path.to_owned()] };
    // A file that breaks off has the rows of what was there.
    let _ = classify_command::run(&args, &mut out);
    let mut rows: Vec<Row> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort();
    rows
}
