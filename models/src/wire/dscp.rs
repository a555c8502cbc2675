//! Differentiated services code points (RFC 2474), and headers that carry them.
//!
//! Headers are words as they lie in memory. What is rewritten is the code point alone: the two bits of explicit congestion
//! notification beside it (RFC 3168, 5) stay, and an IPv4 header's checksum is kept right by the difference (RFC 1624).

/// A code point: 0 to 63. Its names are in `models::dscp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dscp(u8);

impl Dscp {
    /// How many there are.
    pub const COUNT: u8 = 64;

    /// The code point of a number; `None` above 63.
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The code point of six bits, the others left out.
    #[inline]
    pub const fn of_bits(bits: u32) -> Self {
        Self((bits & 63) as u8)
    }

    /// The first three words of an IPv4 header (RFC 791, 3.1) with this code point; `None` where they have it already.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
    pub const fn in_ipv4(self, [first, second, third]: [u32; 3]) -> Option<[u32; 3]> {
        let [version, service, length_high, length_low] = first.to_ne_bytes();
        if service >> 2 == self.0 {
            return None;
        }
        let marked = self.0 << 2 | service & 3;
        let [ttl, protocol, high, low] = third.to_ne_bytes();
        let checksum = u16::from_be_bytes([high, low]);
        let before = u16::from_be_bytes([version, service]);
        let after = u16::from_be_bytes([version, marked]);
        let [high, low] = adjusted(checksum, before, after).to_be_bytes();
        Some([
            u32::from_ne_bytes([version, marked, length_high, length_low]),
            second,
            u32::from_ne_bytes([ttl, protocol, high, low]),
        ])
    }

    /// The first word of an IPv6 header (RFC 8200, 3) with this code point; `None` where it has it already.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
    pub const fn in_ipv6(self, first: u32) -> Option<u32> {
        let word = u32::from_be(first);
        if word >> 22 & 63 == self.0 as u32 {
            return None;
        }
        Some((word & !(63 << 22) | (self.0 as u32) << 22).to_be())
    }
}

/// A checksum after 16 bits of what it covers went from `before` to `after`: HC' = ~(~HC + ~m + m') (RFC 1624, 3).
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
#[expect(clippy::cast_possible_truncation, reason = "folded into 16 bits")]
const fn adjusted(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = !checksum as u32 + !before as u32 + after as u32;
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sum of a header as a receiver makes it (RFC 1071): 0xffff where it is right.
    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).expect("folded")
    }

    fn words(bytes: &[u8]) -> [u32; 3] {
        std::array::from_fn(|word| {
            u32::from_ne_bytes(bytes[word * 4..word * 4 + 4].try_into().expect("four"))
        })
    }

    proptest! {
        #[test]
        fn an_ipv4_header_stays_right_and_nothing_but_the_code_point_changes(
            mut header in prop::collection::vec(any::<u8>(), 20..=60), mark in 0..Dscp::COUNT,
        ) {
            header.truncate(header.len() & !3);
            header[0] = 0x40 | u8::try_from(header.len() / 4).expect("short");
            header[10..12].fill(0);
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            prop_assert_eq!(sum(&header), 0xffff);

            let mark = Dscp::new(mark).expect("in range");
            let marked = mark.in_ipv4(words(&header));
            prop_assert_eq!(marked.is_none(), header[1] >> 2 == mark.get());
            let Some(marked) = marked else { return Ok(()) };
            let mut after = header.clone();
            after[..12].copy_from_slice(&marked.map(u32::to_ne_bytes).concat());
            prop_assert_eq!(sum(&after), 0xffff);
            prop_assert_eq!(after[1], mark.get() << 2 | header[1] & 3);
            after[1] = header[1];
            after[10..12].copy_from_slice(&header[10..12]);
            prop_assert_eq!(after, header);
            prop_assert_eq!(mark.in_ipv4(marked), None);
        }

        #[test]
        fn a_wrong_checksum_stays_as_wrong_as_it_was(
            header: [u8; 12], mark in 0..Dscp::COUNT,
        ) {
            // Neither repaired, which would hide what happened to the packet before, nor made to look right.
            let mark = Dscp::new(mark).expect("in range");
            let Some(marked) = mark.in_ipv4(words(&header)) else { return Ok(()) };
            let before = u32::from(sum(&header));
            let after = u32::from(sum(&marked.map(u32::to_ne_bytes).concat()));
            prop_assert_eq!(before % 0xffff, after % 0xffff);
        }

        #[test]
        fn an_ipv6_header_keeps_its_congestion_bits_and_flow_label(word: u32, mark in 0..Dscp::COUNT) {
            let mark = Dscp::new(mark).expect("in range");
            let host = u32::from_be(word);
            match mark.in_ipv6(word) {
                None => prop_assert_eq!(host >> 22 & 63, u32::from(mark.get())),
                Some(marked) => {
                    let marked = u32::from_be(marked);
                    prop_assert_eq!(marked >> 22 & 63, u32::from(mark.get()));
                    prop_assert_eq!(marked & !(63 << 22), host & !(63 << 22));
                }
            }
        }
    }
}
