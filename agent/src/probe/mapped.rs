//! A map of the kernel's as memory: words that the programs read and write at the same time.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::Ebpf;
use aya::maps::{Map, MapData};

use super::ProbeError;

/// A mapped array. Every access is one atomic word at a byte offset, checked to be within; what is not, is not there.
pub(super) struct Mapped {
    at: NonNull<u8>,
    bytes: usize,
    /// Keeps the map.
    _map: MapData,
}

// SAFETY: the memory is shared with the kernel's programs anyway, and is only touched by atomic words.
#[expect(unsafe_code, reason = "a pointer that no other code has")]
unsafe impl Send for Mapped {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a pointer that no other code has")]
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps an array of `entries` values of `T`, which must have been made to be mapped.
    pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str, entries: u32) -> Result<Self, ProbeError> {
        let Some(Map::Array(map)) = ebpf.take_map(name) else { return Err(ProbeError::NotInObject { name }) };
        let bytes = size_of::<T>() * usize::try_from(entries).unwrap_or(usize::MAX);
        #[expect(unsafe_code, reason = "no safe wrapper maps another's memory")]
        // SAFETY: a new mapping, of an address of the kernel's choice, touches nothing of ours.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast::<u8>()) {
            Some(at) if at.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => {
                Ok(Self { at, bytes, _map: map })
            }
            _ => Err(ProbeError::kernel("map the probe's tables")(std::io::Error::last_os_error().into())),
        }
    }

    fn word<T>(&self, at: usize) -> Option<*mut T> {
        let end = at.checked_add(size_of::<T>())?;
        (end <= self.bytes && at.is_multiple_of(size_of::<T>())).then(|| {
            #[expect(unsafe_code, reason = "the one place where an offset becomes a pointer")]
            // SAFETY: within the mapping, as was just checked.
            unsafe { self.at.as_ptr().add(at) }.cast::<T>()
        })
    }

    /// The eight bytes at `at`, a multiple of eight.
    pub(super) fn u64(&self, at: usize) -> Option<&AtomicU64> {
        #[expect(unsafe_code, reason = "atomics over foreign memory")]
        // SAFETY: within the mapping and aligned; the mapping lives as long as `self`, and nobody makes plain references to it.
        self.word(at).map(|word| unsafe { AtomicU64::from_ptr(word) })
    }

    /// `count` times eight bytes from `at` on, a multiple of eight.
    pub(super) fn u64s(&self, at: usize, count: usize) -> Option<&[AtomicU64]> {
        let end = at.checked_add(count.checked_mul(size_of::<u64>())?)?;
        let first = self.word::<AtomicU64>(at).filter(|_| end <= self.bytes)?;
        #[expect(unsafe_code, reason = "atomics over foreign memory")]
        // SAFETY: the first is aligned and all are within the mapping, which lives as long as `self`; others may change what is atomic,
        // and nobody makes plain references to it.
        Some(unsafe { std::slice::from_raw_parts(first, count) })
    }

    /// The four bytes at `at`, a multiple of four.
    pub(super) fn u32(&self, at: usize) -> Option<&AtomicU32> {
        #[expect(unsafe_code, reason = "atomics over foreign memory")]
        // SAFETY: as above.
        self.word(at).map(|word| unsafe { AtomicU32::from_ptr(word) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "gives back what `take` mapped")]
        // SAFETY: this very mapping, to which no reference outlives `self`.
        let _ = unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}
