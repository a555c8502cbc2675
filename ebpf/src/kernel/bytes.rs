//! Bytes of a frame that are at hand: as they lie in memory, without the kernel's help.

use super::believed;

/// The furthest a header is looked for. No bound of the parser's reaches it; the verifier wants to see one.
const FURTHEST: u32 = 0x3fff;

/// The same place, if it is not beyond [`FURTHEST`]. Verifiers before Linux 6.10 do not see that it is not where the compiler compares one number
/// and adds to another that goes with it.
#[inline(always)]
pub(super) fn bounded(at: u32) -> Option<u32> {
    if at > FURTHEST {
        return None;
    }
    let mut place = at as usize;
    believed(&mut place, FURTHEST as usize);
    Some(place as u32)
}

/// Words at `at` of a frame whose bytes at hand lie from `data` to `end`; `None` where they are not all among those.
#[inline(always)]
pub(super) fn words<const N: usize>(data: usize, end: usize, at: u32) -> Option<[u32; N]> {
    let from = data + at as usize;
    if from + N * 4 <= end {
        // SAFETY: `from` to `from + 4 N` is within what is at hand, as the verifier checks again. IP headers are at even addresses
        // only, but the kernel takes word reads there on every architecture that runs BPF at speed.
        return Some(unsafe { *(from as *const [u32; N]) });
    }
    None
}
