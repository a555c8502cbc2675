//! Capture files as they come: plain or packed by gzip, by name or on standard input.
//!
//! Owns the unpacking and how far the file is read; [`super::records`] knows the formats. Refuses other packings.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

pub use super::records::Captured;
use super::records::{BadRecord, Records};
use super::source::CaptureError;

/// What a file packed by gzip begins with (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Packed bytes read at a time.
const CHUNK: usize = 64 * 1024;
/// The name of standard input.
pub const STDIN: &str = "-";

/// A capture file that is being read.
pub struct CaptureFile {
    path: PathBuf,
    records: Records<Box<dyn Read + Send>>,
    size: Option<u64>,
    /// Bytes read, packed or not.
    read: Arc<AtomicU64>,
}

impl CaptureFile {
    /// Opens a file, plain or packed.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let failed =
            |error: io::Error| CaptureError::File { path: path.to_owned(), message: error.to_string() };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        // Of a pipe nobody knows the size before the end.
        Self::of(path, file, metadata.is_file().then_some(metadata.len()))
    }

    /// Reads standard input, plain or packed.
    pub fn stdin() -> Result<Self, CaptureError> {
        Self::of(Path::new(STDIN), io::stdin(), None)
    }

    fn of(path: &Path, from: impl Read + Send + 'static, size: Option<u64>) -> Result<Self, CaptureError> {
        let refused = |error: BadRecord| CaptureError::NotACapture {
            path: path.to_owned(),
            message: error.to_string(),
        };
        let read = Arc::new(AtomicU64::new(0));
        let mut from = Counted { from, read: Arc::clone(&read) };
        let mut start = Vec::new();
        let begun = from.by_ref().take(GZIP.len() as u64).read_to_end(&mut start);
        begun.map_err(|error| refused(error.into()))?;
        let packed = start == GZIP;
        let from = io::Cursor::new(start).chain(from);
        let bytes: Box<dyn Read + Send> = if packed {
            Box::new(Unpacked(MultiGzDecoder::new(BufReader::with_capacity(CHUNK, from))))
        } else {
            Box::new(from)
        };
        let records = Records::new(bytes).map_err(refused)?;
        Ok(Self { path: path.to_owned(), records, size, read })
    }

    /// The next packet; `None` at the file's end.
    #[inline]
    pub fn next_packet(&mut self) -> Result<Option<Captured<'_>>, CaptureError> {
        let path = &self.path;
        self.records.next_packet().map_err(|error| {
            let from = format!("capture {}", path.display());
            CaptureError::Broken { from, message: error.to_string() }
        })
    }

    /// Bytes as they lie on the disk; `None` where nobody knows before the end.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// How many of them have been read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for CaptureFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Names what failed: a reader of what is unpacked cannot tell by the reason alone.
struct Unpacked<R>(R);

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| io::Error::new(error.kind(), format!("unpack: {error}")))
    }
}

/// Counts what is read.
struct Counted<R> {
    from: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}
