//! The client's handshake bytes, gathered from the CRYPTO frames (RFC 9000, 19.6) of its Initial packets.
//!
//! Clients cut a ClientHello into many small frames and send them in no order. Owns the frames an Initial may carry and the
//! gathering, bounded in bytes and pieces. Refuses to let a later frame change bytes that an earlier one brought.

use super::packet::Cursor;

/// Most bytes of a handshake that are gathered.
pub(super) const MAX_BYTES: usize = 16 * 1024;
/// Most pieces with gaps between them.
const MAX_PIECES: usize = 64;
/// Most frames of one packet that are looked at, runs of padding not counted.
const MAX_FRAMES: usize = 256;

/// Bytes of a stream from its first on, with gaps.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    bytes: Vec<u8>,
    /// What is there: from and to, in order, apart from each other.
    pieces: Vec<(usize, usize)>,
}

impl Gathered {
    /// The bytes up to the first gap.
    pub(super) fn beginning(&self) -> &[u8] {
        match self.pieces.first() {
            Some(&(0, to)) => self.bytes.get(..to).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Memory in use by bytes of the network.
    pub(super) fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Takes a piece in; false where it lies beyond the bounds.
    pub(super) fn put(&mut self, offset: u64, data: &[u8]) -> bool {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(to) = from.checked_add(data.len()).filter(|to| *to <= MAX_BYTES) else { return false };
        if data.is_empty() {
            return true;
        }
        // The pieces that touch the new one become one piece with it.
        let first = self.pieces.partition_point(|(_, end)| *end < from);
        let after = self.pieces.partition_point(|(start, _)| *start <= to);
        if first == after && self.pieces.len() >= MAX_PIECES {
            return false;
        }
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        let mut whole = (from, to);
        let mut new_from = from;
        for &(start, end) in self.pieces.get(first..after).unwrap_or_default() {
            copy(&mut self.bytes, from, data, new_from, start);
            new_from = new_from.max(end);
            whole = (whole.0.min(start), whole.1.max(end));
        }
        copy(&mut self.bytes, from, data, new_from, to);
        self.pieces.splice(first..after, [whole]);
        true
    }

    /// Takes the CRYPTO frames of an Initial's payload in; false where there is more than the bounds allow.
    pub(super) fn put_frames(&mut self, payload: &[u8]) -> bool {
        let mut within = true;
        let mut cursor = Cursor::of(payload);
        let mut frames = 0;
        while let Some(kind) = cursor.octet() {
            if kind == 0 {
                continue;
            }
            frames += 1;
            if frames > MAX_FRAMES || !self.put_frame(kind, &mut cursor, &mut within).is_some_and(|more| more)
            {
                break;
            }
        }
        within
    }

    /// One frame after its type; whether others may follow it. `None`: it is cut short.
    fn put_frame(&mut self, kind: u8, cursor: &mut Cursor<'_>, within: &mut bool) -> Option<bool> {
        match kind {
            // PING
            1 => Some(true),
            // ACK, with counts of congestion marks
            2 | 3 => {
                cursor.varint()?;
                cursor.varint()?;
                let ranges = cursor.varint()?;
                cursor.varint()?;
                for _ in 0..ranges.saturating_mul(2).saturating_add(if kind == 3 { 3 } else { 0 }) {
                    cursor.varint()?;
                }
                Some(true)
            }
            // CRYPTO; and Google's, as T050 numbers it
            6 | 8 => {
                let offset = cursor.varint()?;
                let length = usize::try_from(cursor.varint()?).ok()?;
                let data = cursor.take(length)?;
                *within &= self.put(offset, data);
                Some(true)
            }
            // CONNECTION_CLOSE, or nothing that belongs into an Initial
            _ => Some(false),
        }
    }
}

/// Copies what of `data`, which belongs at `at`, lies between `from` and `to`.
fn copy(bytes: &mut [u8], at: usize, data: &[u8], from: usize, to: usize) {
    let to = to.min(at + data.len());
    if from < to
        && let (Some(target), Some(source)) = (bytes.get_mut(from..to), data.get(from - at..to - at))
    {
        target.copy_from_slice(source);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_that_came_first_stay() {
        let mut gathered = Gathered::default();
        assert!(gathered.put(2, b"cd"));
        assert!(gathered.put(6, b"gh"));
        assert_eq!(gathered.beginning(), b"");
        assert!(gathered.put(0, b"abXXefXXi"));
        assert_eq!(gathered.beginning(), b"abcdefghi");
    }

    #[test]
    fn what_lies_beyond_the_bounds_is_refused() {
        let mut gathered = Gathered::default();
        assert!(!gathered.put(MAX_BYTES as u64, b"a"));
        assert!(!gathered.put(u64::MAX, b"a"));
        for piece in 0..MAX_PIECES {
            assert!(gathered.put(piece as u64 * 2 + 1, b"a"));
        }
        assert!(!gathered.put(1_000, b"a"));
        assert!(gathered.put(0, b"a"), "a piece that joins others needs no room");
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_are_true_and_bounded(
            cuts in proptest::collection::vec((0_usize..20_000, 0_usize..3_000), 0..200),
        ) {
            let truth: Vec<u8> = (0..23_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut gathered = Gathered::default();
            for (from, length) in cuts {
                gathered.put(from as u64, &truth[from..from + length]);
                prop_assert!(gathered.held() <= MAX_BYTES && gathered.pieces.len() <= MAX_PIECES);
                prop_assert_eq!(gathered.beginning(), &truth[..gathered.beginning().len()]);
                prop_assert!(gathered.pieces.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }

        #[test]
        fn any_payload_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..1_500)) {
            Gathered::default().put_frames(&payload);
        }
    }
}
