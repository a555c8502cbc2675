//! Opens what frames are read from, and reads it on a thread of its own into a bounded channel.
//!
//! A file waits for the reader of the channel; of an interface, libpcap drops and counts what nobody takes in time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use pcap::{Activated, Active};
use tokio::sync::mpsc;
use usher_models::units::Micros;

use super::file::{CaptureFile, Captured};
use super::pace::{Pace, Pacer};

/// Frames that wait to be taken.
const WAITING_FRAMES: usize = 4_096;
/// Bytes of a frame that are kept; its length is kept whole.
pub(super) const KEPT_BYTES: usize = 4_608;
/// How long a live read waits before it looks whether it should stop.
const LIVE_TIMEOUT_MS: i32 = 100;
/// Kernel memory for frames of an interface that wait to be read.
const LIVE_BUFFER: i32 = 16 * 1024 * 1024;

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A network interface, by name; needs CAP_NET_RAW.
    Interface(String),
    /// A capture file, pcap or pcapng.
    File {
        /// Its path.
        path: PathBuf,
        /// How fast it is read.
        pace: Pace,
    },
}

/// A source that cannot be opened or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CaptureError {
    /// No such interface.
    #[error("open interface `{name}`: no such interface; there are: {}", known.join(", "))]
    NoInterface {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// The process may not capture.
    #[error(
        "open interface `{name}`: not permitted; run as root or give the process CAP_NET_RAW (setcap cap_net_raw+ep, or AmbientCapabilities= in the unit)"
    )]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// The interface is there, but cannot be captured on.
    #[error("open interface `{name}`: {message}")]
    Interface {
        /// The interface.
        name: String,
        /// What libpcap says.
        message: String,
    },
    /// The file cannot be read.
    #[error("open capture {path}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// The file is no capture.
    #[error("open capture {path}: not a pcap or pcapng file, packed by gzip or not ({message})", path = path.display())]
    NotACapture {
        /// The file.
        path: PathBuf,
        /// What libpcap says.
        message: String,
    },
    /// The source broke off.
    #[error("read {from}: {message}")]
    Broken {
        /// The interface or file.
        from: String,
        /// What libpcap says.
        message: String,
    },
    /// The reading thread could not be started.
    #[error("start the capture's thread: {0}")]
    Thread(String),
}

/// A frame as captured.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) link: i32,
    pub(super) seen: Micros,
    pub(super) wire: usize,
    pub(super) bytes: Vec<u8>,
}

/// What the reading thread knows and nobody else.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Frames the kernel or the interface dropped before they were read.
    pub(super) dropped: AtomicU64,
    /// Why the source ended before its end.
    pub(super) broken: std::sync::Mutex<Option<CaptureError>>,
}

/// The near end of a source that is being read. Dropping it ends the reading.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) frames: mpsc::Receiver<Frame>,
    pub(super) health: Arc<Health>,
    /// Its dropping wakes a reader that waits for a packet's time.
    _stop: Sender<()>,
}

impl Reading {
    /// Opens the source and starts to read it; a file's first packet is now.
    pub(super) fn start(source: &Source) -> Result<Self, CaptureError> {
        let (to, frames) = mpsc::channel(WAITING_FRAMES);
        let (stop, stopped) = channel();
        let health = Arc::new(Health::default());
        let reader = Reader { to, stopped, health: Arc::clone(&health), from: source.to_string() };
        let builder = std::thread::Builder::new().name("capture".to_owned());
        let started = match source {
            Source::Interface(name) => {
                let capture = open_interface(name)?;
                builder.spawn(move || reader.live(capture))
            }
            Source::File { path, pace } => {
                let (capture, pace) = (CaptureFile::open(path)?, *pace);
                builder.spawn(move || reader.file(capture, pace))
            }
        };
        started.map_err(|error| CaptureError::Thread(error.to_string()))?;
        Ok(Self { frames, health, _stop: stop })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "interface `{name}`"),
            Self::File { path, .. } => write!(f, "capture {}", path.display()),
        }
    }
}

fn open_interface(name: &str) -> Result<pcap::Capture<Active>, CaptureError> {
    let known = interfaces();
    if name != "any" && !known.iter().any(|known| known == name) {
        return Err(CaptureError::NoInterface { name: name.to_owned(), known });
    }
    let failed = |error: pcap::Error| {
        let message = message(&error);
        let lower = message.to_lowercase();
        if lower.contains("permi") {
            CaptureError::NotPermitted { name: name.to_owned() }
        } else {
            CaptureError::Interface { name: name.to_owned(), message }
        }
    };
    pcap::Capture::from_device(name)
        .map_err(failed)?
        .snaplen(i32::try_from(KEPT_BYTES).unwrap_or(i32::MAX))
        .promisc(true)
        .immediate_mode(true)
        .timeout(LIVE_TIMEOUT_MS)
        .buffer_size(LIVE_BUFFER)
        .open()
        .map_err(failed)
}

fn interfaces() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// libpcap's words without the crate's prefix.
pub(super) fn message(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The far end, on its own thread.
struct Reader {
    to: mpsc::Sender<Frame>,
    stopped: Receiver<()>,
    health: Arc<Health>,
    from: String,
}

impl Reader {
    fn live(self, mut capture: pcap::Capture<Active>) {
        let link = capture.get_datalink().0;
        let mut asked = Instant::now();
        while !self.to.is_closed() {
            match capture.next_packet() {
                Ok(packet) => {
                    let seconds = packet.header.ts.tv_sec.saturating_mul(1_000_000);
                    let packet = Captured {
                        link,
                        seen: Micros::new(seconds.saturating_add(packet.header.ts.tv_usec)),
                        wire: usize::try_from(packet.header.len).unwrap_or_default().max(packet.data.len()),
                        bytes: packet.data,
                    };
                    if !self.send(&packet) {
                        return;
                    }
                }
                Err(pcap::Error::TimeoutExpired) => {}
                Err(error) => {
                    let message = message(&error);
                    return self.broke(CaptureError::Broken { from: self.from.clone(), message });
                }
            }
            if asked.elapsed() > Duration::from_secs(1) {
                asked = Instant::now();
                self.count_drops(&mut capture);
            }
        }
    }

    fn file(self, mut capture: CaptureFile, pace: Pace) {
        let mut pacer = Pacer::new(Micros::now());
        loop {
            let packet = match capture.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return,
                Err(error) => return self.broke(error),
            };
            let due = pacer.moved(packet.seen);
            if pace == Pace::RealTime && !self.wait_until(due) {
                return;
            }
            if !self.send(&Captured { seen: due, ..packet }) {
                return;
            }
        }
    }

    /// Whether to go on.
    fn wait_until(&self, due: Micros) -> bool {
        loop {
            let left = due.since(Micros::now());
            if left.is_zero() {
                return true;
            }
            if self.stopped.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
                return false;
            }
        }
    }

    /// Whether to go on.
    fn send(&self, packet: &Captured<'_>) -> bool {
        let Captured { link, seen, wire, bytes } = *packet;
        let bytes = bytes.get(..KEPT_BYTES).unwrap_or(bytes).to_vec();
        self.to.blocking_send(Frame { link, seen, wire, bytes }).is_ok()
    }

    fn count_drops<T: Activated>(&self, capture: &mut pcap::Capture<T>) {
        if let Ok(stats) = capture.stats() {
            let dropped = u64::from(stats.dropped) + u64::from(stats.if_dropped);
            self.health.dropped.store(dropped, Ordering::Relaxed);
        }
    }

    fn broke(&self, error: CaptureError) {
        tracing::warn!(%error, "the capture broke off");
        if let Ok(mut broken) = self.health.broken.lock() {
            *broken = Some(error);
        }
    }
}
