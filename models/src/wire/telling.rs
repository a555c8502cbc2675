//! Which packets of a flow the classifier is shown: the same ones from the probe, a live capture and a file.
//!
//! Of TCP and UDP those with payload, and of TCP those as well that begin or end a connection: they say where the client's bytes
//! begin and that no more will come. Of other protocols all. A connection has a budget of them, a new one on the same ports a new
//! budget; DNS has no end, for its answers name the flows to come.

/// The flags of a TCP segment (RFC 9293, 3.1), as the header's 14th byte has them; none for other protocols.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more bytes will come from the sender.
    pub const FIN: Self = Self(0x01);
    /// The connection begins.
    pub const SYN: Self = Self(0x02);
    /// The connection is no more.
    pub const RST: Self = Self(0x04);
    /// The acknowledgement number means something.
    pub const ACK: Self = Self(0x10);

    /// Whether any of `flags` is set.
    #[inline]
    pub const fn any(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Whether a client opens a connection.
    #[inline]
    pub const fn open(self) -> bool {
        self.any(Self::SYN) && !self.any(Self::ACK)
    }

    /// Whether either side will say no more.
    #[inline]
    pub const fn end(self) -> bool {
        self.any(Self(Self::FIN.0 | Self::RST.0))
    }
}

/// Whether a packet of TCP or UDP tells the classifier anything.
#[inline]
pub const fn tells(flags: TcpFlags, has_payload: bool) -> bool {
    has_payload || flags.any(TcpFlags::SYN) || flags.end()
}

/// The port of DNS (RFC 1035, 4.2).
const DOMAIN: u16 = 53;

/// Whether a flow between these ports is shown without end.
#[inline]
pub const fn tells_without_end(ports: [u16; 2]) -> bool {
    ports[0] == DOMAIN || ports[1] == DOMAIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_and_the_ends_of_a_connection_tell_something() {
        let acknowledgement = TcpFlags::ACK;
        let with = |flags: TcpFlags| TcpFlags(flags.0 | TcpFlags::ACK.0);
        assert!(!tells(acknowledgement, false));
        assert!(!tells(TcpFlags::default(), false), "an empty datagram");
        assert!(tells(acknowledgement, true));
        assert!(tells(TcpFlags::default(), true));
        for flags in [TcpFlags::SYN, TcpFlags::FIN, TcpFlags::RST] {
            assert!(tells(flags, false) && tells(with(flags), false), "{flags:?}");
        }
        assert!(TcpFlags::SYN.open() && !with(TcpFlags::SYN).open() && !TcpFlags::RST.open());
        assert!(with(TcpFlags::FIN).end() && TcpFlags::RST.end() && !with(TcpFlags::SYN).end());
    }
}
