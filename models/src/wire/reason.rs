//! Why the probe did less with a packet than it does with others.

/// Why. Each has a [`Tally`] per direction; the numbers are places in that map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Neither IPv4 nor IPv6 (ARP, LLDP, ...). Passed; in no usage.
    NotIp = 0,
    /// Ends within its link-layer header. Passed; in no usage.
    TruncatedLink = 1,
    /// Carries more VLAN tags than are looked through. Passed; in no usage.
    TooManyTags = 2,
    /// The IP header contradicts itself: version, header length, total length. Passed; in no usage.
    BadIp = 3,
    /// Ends before its IP header or its IP length says. Passed; in no usage.
    TruncatedIp = 4,
    /// More IPv6 extension headers than are looked through, or one cut short. Counted and enforced, with ports 0.
    Extensions = 5,
    /// The TCP or UDP header is cut short or contradicts itself. Counted and enforced, with ports 0.
    BadTransport = 6,
    /// The flow table is full. Counted and enforced as [`super::Class::Other`].
    FlowTableFull = 7,
    /// The ring of first bytes is full, or the packet could not be read into it. Counted and enforced; no sample.
    SampleLost = 8,
    /// The session table names a slot outside the usage map. Counted and enforced as anonymous.
    NoSuchSlot = 9,
    /// The bucket was so contended that the packet was charged without being held back. Counted.
    BucketContended = 10,
    /// The subscriber has had its share of the ring of first bytes. Counted and enforced; no sample.
    SampleRationed = 11,
    /// All records of quality where the slot and class could have one are others'. Counted and enforced; not measured.
    QualityFull = 12,
    /// The packet's header could not be written, or a checksum around it could not be kept right. Counted; its code point stays.
    Unmarked = 13,
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = 14;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotIp,
        Self::TruncatedLink,
        Self::TooManyTags,
        Self::BadIp,
        Self::TruncatedIp,
        Self::Extensions,
        Self::BadTransport,
        Self::FlowTableFull,
        Self::SampleLost,
        Self::NoSuchSlot,
        Self::BucketContended,
        Self::SampleRationed,
        Self::QualityFull,
        Self::Unmarked,
    ];

    /// Its place in arrays by reason.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::TruncatedLink => "truncated_link",
            Self::TooManyTags => "too_many_tags",
            Self::BadIp => "bad_ip",
            Self::TruncatedIp => "truncated_ip",
            Self::Extensions => "extensions",
            Self::BadTransport => "bad_transport",
            Self::FlowTableFull => "flow_table_full",
            Self::SampleLost => "sample_lost",
            Self::NoSuchSlot => "no_such_slot",
            Self::BucketContended => "bucket_contended",
            Self::SampleRationed => "sample_rationed",
            Self::QualityFull => "quality_full",
            Self::Unmarked => "unmarked",
        }
    }

    /// Whether the packet is in no usage: its bytes are in this reason's [`Tally`] and nowhere else.
    pub const fn outside_usage(self) -> bool {
        matches!(
            self,
            Self::NotIp | Self::TruncatedLink | Self::TooManyTags | Self::BadIp | Self::TruncatedIp
        )
    }
}

/// Packets of one reason and direction. Only ever rises, for as long as the maps live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Frames.
    pub packets: u64,
    /// Their bytes; of the whole frame where [`Reason::outside_usage`].
    pub bytes: u64,
}

const _: () = assert!(size_of::<Tally>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_at_the_place_of_its_number_and_named_once() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert_eq!(Reason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
    }
}
