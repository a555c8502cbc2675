//! The beginning of a TCP stream, put together from its segments: lost order, overlaps and repeats allowed, all bounded.

/// Most bytes of a stream's beginning that are looked at. A ClientHello with two post-quantum key shares and an encrypted
/// inner hello stays below 5,000.
pub(crate) const MAX_BYTES: usize = 16 * 1024;
/// Most segments a stream may bring, repeats included.
pub(crate) const MAX_SEGMENTS: u8 = 32;
/// Most segments that may wait for one before them.
const MAX_AHEAD: usize = 12;
/// Most segments of nothing but a few zeros that are remembered.
const MAX_ZEROS: usize = 4;

/// A stream that went past its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMuch;

/// Bytes of one direction of a TCP connection from its first on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beginning {
    /// Sequence number of the first byte.
    start: u32,
    /// What is there without a gap.
    bytes: Vec<u8>,
    /// What waits for bytes before it, by sequence number.
    ahead: Vec<(u32, Box<[u8]>)>,
    /// Where a few zeros were said to stand, and how many: the stream's own, or what keeps a connection alive.
    zeros: Vec<(u32, u8)>,
    segments: u8,
}

impl Beginning {
    /// A stream whose first byte has sequence number `start`.
    pub(crate) fn at(start: u32) -> Self {
        Self { start, ..Self::default() }
    }

    /// Sequence number of the first byte.
    pub(crate) fn start(&self) -> u32 {
        self.start
    }

    /// The bytes from the first on, up to the first gap.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory in use by bytes of the network.
    pub(crate) fn held(&self) -> usize {
        self.bytes.len() + self.ahead.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// Moves the beginning to an earlier byte; what was there waits for the bytes before it.
    pub(crate) fn begin_earlier(&mut self, start: u32) {
        let bytes = std::mem::take(&mut self.bytes);
        if !bytes.is_empty() {
            self.ahead.push((self.start, bytes.into_boxed_slice()));
        }
        self.start = start;
    }

    /// Begins anew with a segment that shows that it is the first; what lies behind it joins it.
    pub(crate) fn begin_with(&mut self, sequence: u32, segment: &[u8]) -> Result<(), TooMuch> {
        let bytes = std::mem::take(&mut self.bytes);
        let end = sequence.wrapping_add(u32::try_from(segment.len()).unwrap_or(u32::MAX));
        let behind = usize::try_from(end.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        if let Some(rest) = bytes.get(behind..).filter(|rest| !rest.is_empty()) {
            self.ahead.push((end, rest.into()));
        }
        self.start = sequence;
        self.push(sequence, segment)
    }

    /// Takes a segment in. Bytes that came first stay, whatever a later segment says they were.
    pub(crate) fn push(&mut self, sequence: u32, segment: &[u8]) -> Result<(), TooMuch> {
        if self.segments >= MAX_SEGMENTS {
            return Err(TooMuch);
        }
        self.segments += 1;
        if self.take(sequence, segment) {
            self.join();
        } else if self.gap(sequence) < MAX_BYTES && !self.is_waiting(sequence, segment) {
            let room = MAX_BYTES.saturating_sub(self.held());
            if self.ahead.len() >= MAX_AHEAD || room == 0 {
                return Err(TooMuch);
            }
            self.ahead.push((sequence, segment[..segment.len().min(room)].into()));
            self.join();
        }
        Ok(())
    }

    /// A segment of nothing but `count` zeros came. They are believed only where they close a gap.
    pub(crate) fn push_zeros(&mut self, sequence: u32, count: u8) {
        if self.zeros.len() < MAX_ZEROS && !self.zeros.contains(&(sequence, count)) {
            self.zeros.push((sequence, count));
            self.join();
        }
    }

    /// Appends what waited and has no gap before it any more.
    fn join(&mut self) {
        while let Some(next) = self.ahead.iter().position(|(sequence, _)| self.joins(*sequence)) {
            let (sequence, segment) = self.ahead.swap_remove(next);
            let zeros = self.gap(sequence);
            self.bytes.resize(self.bytes.len() + zeros, 0);
            self.take(sequence, &segment);
        }
    }

    /// Whether there is no gap before `sequence`, or only one that zeros fill.
    fn joins(&self, sequence: u32) -> bool {
        let gap = self.gap(sequence);
        let fill = |&(from, count): &(u32, u8)| {
            let known =
                usize::try_from(from.wrapping_sub(self.start)).ok().and_then(|at| self.bytes.get(at..));
            known.is_some_and(|known| known.iter().all(|byte| *byte == 0))
                && sequence.wrapping_sub(from) <= u32::from(count)
        };
        gap == 0 || (self.bytes.len() + gap <= MAX_BYTES && self.zeros.iter().any(fill))
    }

    /// Bytes missing before `sequence`; zero where it joins what is there, or lies in or before it.
    fn gap(&self, sequence: u32) -> usize {
        let offset = sequence.wrapping_sub(self.start).cast_signed();
        usize::try_from(offset).map_or(0, |offset| offset.saturating_sub(self.bytes.len()))
    }

    fn is_waiting(&self, sequence: u32, segment: &[u8]) -> bool {
        self.ahead.iter().any(|(other, bytes)| *other == sequence && bytes.len() >= segment.len())
    }

    /// Appends what a segment adds, if it leaves no gap; whether it left none.
    fn take(&mut self, sequence: u32, segment: &[u8]) -> bool {
        if self.gap(sequence) > 0 {
            return false;
        }
        let end = self.start.wrapping_add(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        let known = usize::try_from(end.wrapping_sub(sequence)).unwrap_or(usize::MAX);
        if let Some(new) = segment.get(known..) {
            let room = MAX_BYTES - self.bytes.len().min(MAX_BYTES);
            self.bytes.extend_from_slice(&new[..new.len().min(room)]);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repeat_or_an_overlap_adds_only_what_is_new() {
        let mut stream = Beginning::at(u32::MAX - 1);
        stream.push(u32::MAX - 1, b"abcd").unwrap();
        stream.push(u32::MAX - 1, b"abcd").unwrap();
        stream.push(0, b"XXef").unwrap();
        stream.push(u32::MAX - 2, b"?").unwrap();
        assert_eq!(stream.bytes(), b"abcdef");
    }

    #[test]
    fn a_gap_waits_and_is_filled() {
        let mut stream = Beginning::at(100);
        stream.push(106, b"gh").unwrap();
        stream.push(103, b"def").unwrap();
        assert_eq!(stream.bytes(), b"");
        stream.push(100, b"abc").unwrap();
        assert_eq!(stream.bytes(), b"abcdefgh");
    }

    #[test]
    fn zeros_are_believed_where_they_close_a_gap() {
        let mut stream = Beginning::at(100);
        stream.push_zeros(100, 6);
        stream.push(100, b"abc").unwrap();
        assert_eq!(stream.bytes(), b"abc", "they kept the connection alive");
        stream.push_zeros(103, 2);
        stream.push(106, b"g").unwrap();
        assert_eq!(stream.bytes(), b"abc", "they do not fill all of it");
        stream.push_zeros(103, 3);
        assert_eq!(stream.bytes(), b"abc\0\0\0g");
    }

    #[test]
    fn an_earlier_beginning_keeps_what_is_there() {
        let mut stream = Beginning::at(103);
        stream.push(103, b"def").unwrap();
        stream.begin_earlier(100);
        assert_eq!(stream.bytes(), b"");
        stream.push(100, b"abc").unwrap();
        assert_eq!(stream.bytes(), b"abcdef");
    }

    #[test]
    fn a_new_beginning_keeps_what_lies_behind_it() {
        let mut stream = Beginning::at(100);
        stream.push(103, b"def").unwrap();
        stream.push(100, b"?").unwrap();
        stream.push(101, b"bc").unwrap();
        assert_eq!(stream.bytes(), b"?bcdef");
        stream.begin_with(100, b"abc").unwrap();
        assert_eq!(stream.bytes(), b"abcdef");
    }

    proptest! {
        #[test]
        fn whatever_comes_the_memory_is_bounded(
            segments in proptest::collection::vec((any::<u32>(), 0_usize..70_000), 0..60),
            start in any::<u32>(),
        ) {
            let mut stream = Beginning::at(start);
            for (sequence, length) in segments {
                let _ = stream.push(sequence, &vec![0; length]);
                prop_assert!(stream.held() <= MAX_BYTES * 2);
            }
        }

        #[test]
        fn near_segments_in_any_order_stay_bounded_and_true(
            start in any::<u32>(),
            cuts in proptest::collection::vec((0_usize..5_000, 0_usize..3_000), 0..40),
        ) {
            let truth: Vec<u8> = (0..20_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut stream = Beginning::at(start);
            for (from, length) in cuts {
                let sequence = start.wrapping_add(u32::try_from(from).unwrap());
                let _ = stream.push(sequence, &truth[from..from + length]);
                prop_assert!(stream.held() <= MAX_BYTES * 2);
                prop_assert_eq!(stream.bytes(), &truth[..stream.bytes().len()]);
            }
        }
    }
}
