//! Capture files as they come: plain or packed by gzip, by name or on standard input.
//!
//! Owns the unpacking, on a thread of its own and through a pipe, for libpcap takes names and not bytes. Refuses other packings.

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use flate2::bufread::MultiGzDecoder;
use pcap::{Capture, Offline};

use super::source::{CaptureError, message};

/// What a file packed by gzip begins with (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Bytes unpacked at a time.
const CHUNK: usize = 64 * 1024;
/// Bytes of a packet's header in a pcap file.
const PACKET_HEADER: u64 = 16;
/// The name of standard input.
pub const STDIN: &str = "-";

/// A capture file that is being read.
pub struct CaptureFile {
    path: PathBuf,
    packets: Capture<Offline>,
    size: Option<u64>,
    /// Bytes of packets taken.
    taken: u64,
    unpacking: Option<Arc<Unpacking>>,
}

/// What the unpacking thread tells.
#[derive(Debug, Default)]
struct Unpacking {
    /// Packed bytes read.
    read: AtomicU64,
    /// Why it ended early.
    failed: Mutex<Option<String>>,
}

impl CaptureFile {
    /// Opens a file, plain or packed.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let failed = |message: String| CaptureError::File { path: path.to_owned(), message };
        // libpcap's own message for a missing file names neither reason nor path in a stable way.
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
        if metadata.is_dir() {
            return Err(failed("is a directory".to_owned()));
        }
        if !metadata.is_file() {
            // Of a pipe nothing can be looked at and left.
            return Self::unpack(path, file, None);
        }
        let mut start = Vec::new();
        (&file).take(GZIP.len() as u64).read_to_end(&mut start).map_err(|error| failed(error.to_string()))?;
        if start == GZIP {
            return Self::unpack(path, io::Cursor::new(GZIP).chain(file), Some(metadata.len()));
        }
        let packets = Capture::from_file(path).map_err(|error| not_a_capture(path, message(&error)))?;
        Ok(Self { path: path.to_owned(), packets, size: Some(metadata.len()), taken: 0, unpacking: None })
    }

    /// Reads standard input, plain or packed.
    pub fn stdin() -> Result<Self, CaptureError> {
        Self::unpack(Path::new(STDIN), io::stdin(), None)
    }

    /// libpcap's number of the link layer.
    pub fn link(&self) -> i32 {
        self.packets.get_datalink().0
    }

    /// The next packet; `None` at the file's end.
    pub fn next_packet(&mut self) -> Result<Option<pcap::Packet<'_>>, CaptureError> {
        let error = match self.packets.next_packet() {
            Ok(packet) => {
                self.taken += PACKET_HEADER + u64::from(packet.header.caplen);
                return Ok(Some(packet));
            }
            Err(pcap::Error::NoMorePackets) => None,
            Err(error) => Some(message(&error)),
        };
        let failed = self.unpacking.as_ref().and_then(|unpacking| unpacking.failed());
        match failed.or(error) {
            Some(message) => {
                let from = format!("capture {}", self.path.display());
                Err(CaptureError::Broken { from, message })
            }
            None => Ok(None),
        }
    }

    /// Bytes as they lie on the disk; `None` where nobody knows before the end.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// How many of them have been read, about.
    pub fn read(&self) -> u64 {
        match &self.unpacking {
            Some(unpacking) => unpacking.read.load(Ordering::Relaxed),
            None => self.taken,
        }
    }

    fn unpack(
        path: &Path,
        from: impl Read + Send + 'static,
        size: Option<u64>,
    ) -> Result<Self, CaptureError> {
        let failed =
            |error: io::Error| CaptureError::File { path: path.to_owned(), message: error.to_string() };
        let (near, far) = io::pipe().map_err(failed)?;
        let unpacking = Arc::new(Unpacking::default());
        let theirs = Arc::clone(&unpacking);
        std::thread::Builder::new()
            .name("unpack".to_owned())
            .spawn(move || theirs.run(from, far))
            .map_err(|error| CaptureError::Thread(error.to_string()))?;
        // It opens the pipe's end anew; ours is closed on return, so that the thread ends with the reading.
        let packets = Capture::from_file(format!("/proc/self/fd/{}", near.as_raw_fd()))
            .map_err(|error| not_a_capture(path, unpacking.failed().unwrap_or_else(|| message(&error))))?;
        Ok(Self { path: path.to_owned(), packets, size, taken: 0, unpacking: Some(unpacking) })
    }
}

impl Unpacking {
    fn failed(&self) -> Option<String> {
        self.failed.lock().ok()?.clone()
    }

    /// Must tell why it failed before the pipe closes: the reader asks when it finds the end.
    fn run(&self, from: impl Read, mut to: io::PipeWriter) {
        if let Err(error) = self.copy(from, &mut to)
            && error.kind() != io::ErrorKind::BrokenPipe
            && let Ok(mut failed) = self.failed.lock()
        {
            *failed = Some(format!("unpack: {error}"));
        }
    }

    fn copy(&self, mut from: impl Read, to: &mut io::PipeWriter) -> io::Result<()> {
        let mut start = Vec::new();
        from.by_ref().take(GZIP.len() as u64).read_to_end(&mut start)?;
        let packed = start == GZIP;
        let counted = Counted { from: io::Cursor::new(start).chain(from), read: &self.read };
        let mut bytes: Box<dyn Read + '_> = if packed {
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(CHUNK, counted)))
        } else {
            Box::new(counted)
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            match bytes.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(length) => to.write_all(&chunk[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Counts what is read.
struct Counted<'a, R> {
    from: R,
    read: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

fn not_a_capture(path: &Path, message: String) -> CaptureError {
    CaptureError::NotACapture { path: path.to_owned(), message }
}
