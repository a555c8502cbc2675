//! What a packet counts for in a tree: its IP bytes, as usage counts them. Sans-I/O.
//!
//! Left alone HTB counts frames, with their link-layer header. A size table (tc-stab(8)) tells it otherwise; but the kernel asks that for the
//! length of a joined packet as it is, whose segments have their headers on the wire only. Of how many it is made the table takes from
//! its length: a joined packet is of full ones, for the rest of it is the last.

/// Headers of IPv4 and TCP with time stamps, what most joined packets have once and their segments had each. With any others full segments
/// count right to 2 %. Smaller ones count for too little, as there are more of them than the length tells: of 524 bytes of payload 1.06 times the rate
/// passes, of 100 bytes 1.46 times.
const HEADERS: usize = 52;
/// Segments of a joined packet that the table tells apart, and its entries at the most: an attribute of rtnetlink has no more than 64 KiB.
const SEGMENTS: usize = 8;
const ENTRIES: usize = 32_000;
/// The smallest packets that any link carries whole (RFC 791, section 3.2): of what is said to carry less nothing is known.
const LEAST_MTU: usize = 576;

/// How an interface's packets are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lengths {
    /// Bytes of a frame before its IP header.
    pub(super) header: u8,
    /// By the length of a packet what it counts for; empty: that.
    pub(super) table: Vec<u16>,
}

impl Lengths {
    /// Of an interface that carries packets of so many bytes.
    pub(super) fn new(header: u8, mtu: u32) -> Self {
        let mtu = usize::try_from(mtu).unwrap_or(usize::MAX);
        let payload = mtu.saturating_sub(HEADERS);
        let segments = SEGMENTS.min(ENTRIES / payload.max(1));
        // None is joined where one fills the table.
        if mtu < LEAST_MTU || segments < 2 {
            return Self { header, table: Vec::new() };
        }
        let counted = |bytes: usize| {
            // A little over is no segment more: those without time stamps are a little longer.
            let segments = bytes.saturating_sub(HEADERS + payload / 8).div_ceil(payload).max(1);
            u16::try_from(bytes + (segments - 1) * HEADERS).unwrap_or(u16::MAX)
        };
        let mut table: Vec<u16> = (0..segments * payload).map(counted).collect();
        // Of a longer packet the kernel takes the last one as often as the table fits, and then the rest, which has the headers.
        if let (Some(last), Ok(whole)) = (table.last_mut(), u16::try_from(segments * mtu)) {
            *last = whole;
        }
        Self { header, table }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Lengths {
        /// What the kernel has a packet of so many IP bytes count for (`__qdisc_calculate_pkt_len`).
        fn counted(&self, ip_bytes: usize) -> usize {
            let at = |slot: usize| usize::from(self.table[slot]);
            let entries = self.table.len();
            match ip_bytes {
                bytes if entries == 0 => bytes,
                bytes if bytes < entries => at(bytes),
                bytes => at(entries - 1) * (bytes / entries) + at(bytes % entries),
            }
        }
    }

    #[test]
    fn a_packet_of_one_counts_for_its_ip_bytes() {
        for mtu in [576, 1_280, 1_500, 9_000, 16_000] {
            let lengths = Lengths::new(14, mtu);
            let off =
                (1..=usize::try_from(mtu).expect("fits")).find(|bytes| lengths.counted(*bytes) != *bytes);
            assert_eq!((lengths.table.is_empty(), off), (false, None), "{mtu}");
        }
    }

    #[test]
    fn where_little_or_nothing_is_joined_lengths_are_what_they_are() {
        for mtu in [0, 575, 17_000, 65_536, u32::MAX] {
            assert_eq!(Lengths::new(0, mtu), Lengths { header: 0, table: Vec::new() }, "{mtu}");
        }
    }

    #[test]
    fn joined_small_segments_count_for_less_than_they_had() {
        let lengths = Lengths::new(14, 1_500);
        for (payload, percent) in [(1_448, 100), (524, 106), (100, 146)] {
            let on_the_wire = 40 * (HEADERS + payload);
            let counted = lengths.counted(HEADERS + 40 * payload);
            assert_eq!((on_the_wire * 100 + counted / 2) / counted, percent, "{counted} for {on_the_wire}");
        }
    }

    /// IPv4 and IPv6, with and without time stamps, in packets of nearly what the link carries: what the kernel joins of a transfer.
    #[test]
    fn joined_packets_count_for_what_their_segments_had() {
        for mtu in [1_400_usize, 1_500, 9_000] {
            let lengths = Lengths::new(14, u32::try_from(mtu).expect("small"));
            for (headers, shorter) in
                [40, 52, 60, 72].into_iter().flat_map(|it| (0..40).map(move |by| (it, by)))
            {
                let payload = mtu - shorter - headers;
                for segments in 1..=(65_535 - headers) / payload {
                    let on_the_wire = segments * (headers + payload);
                    let counted = lengths.counted(headers + segments * payload);
                    let off = counted.abs_diff(on_the_wire);
                    assert!(off * 50 <= on_the_wire, "{counted} for {on_the_wire}: {segments} x {payload}");
                }
            }
        }
    }
}
