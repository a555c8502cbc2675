//! Gives packets that pass the code point that their subscriber's class is to have. Called only where nothing bypasses enforcement.
//!
//! Of packets in packets two are marked: the one that counts, which is the subscriber's, and the outermost, whose code point is the only
//! one that routers see on the way (RFC 2983, 3.1: uniform). What lies between them keeps its own.

use usher_models::wire::{Direction, Dscp, Reason};

use crate::kernel::{self, Covered, Hook};
use crate::parse::UDP;
use crate::walk::{GRE, MAX_PACKETS};

/// Marks a packet whose IP header is at `ip_at` and that lies in `around` others. Called by [`Hook::mark`].
#[inline(always)]
pub fn mark(frame: &impl Hook, ip_at: u32, around: u32, dscp: Dscp, direction: Direction) {
    let mut marked = set(frame, ip_at, around, dscp);
    if around > 0
        && let Some(outermost) = kernel::found(0)
    {
        marked &= set(frame, outermost.ip_at, 0, dscp);
    }
    if !marked {
        kernel::tally(Reason::Unmarked, direction, frame.length());
    }
}

/// Puts a code point into the IP header at `at`, unless it is there already; false where it could not be put there.
#[inline(always)]
fn set(frame: &impl Hook, at: u32, around: u32, dscp: Dscp) -> bool {
    let Some(words @ [first, ..]) = frame.load::<3>(at) else { return false };
    if first.to_ne_bytes()[0] >> 4 == 4 {
        // The header's own checksum takes up the difference: no other one sees any.
        return dscp.in_ipv4(words).is_none_or(|marked| frame.store(at, &marked, Covered::Balanced));
    }
    let Some(marked) = dscp.in_ipv6(first) else { return true };
    match checksum_around(frame, around) {
        Around::None => frame.store(at, &[marked], Covered::Changed),
        Around::Unknown => false,
        Around::At(checksum) => {
            frame.adjust(checksum, first, marked) && frame.store(at, &[marked], Covered::Balanced)
        }
    }
}

/// The checksum that covers what is in a packet, IP headers of IPv6 included.
enum Around {
    None,
    /// Of UDP, at that place. Once that is right, those further out are.
    At(u32),
    /// One that is not kept here.
    Unknown,
}

#[inline(always)]
fn checksum_around(frame: &impl Hook, around: u32) -> Around {
    for outward in 1..MAX_PACKETS {
        let Some(place) = around.checked_sub(outward) else { break };
        let Some(tunnel) = kernel::found(place) else { break };
        let after = tunnel.ip_at + tunnel.header_bytes;
        if tunnel.protocol == UDP {
            // The second half of the word that ends the header; zero where the sender made none (RFC 768).
            let Some([_, checksum]) = frame.load_halves(after - 4) else { return Around::Unknown };
            if checksum != 0 {
                return Around::At(after - 2);
            }
        } else if tunnel.protocol == GRE {
            // The first bit says that there is one (RFC 2784, 2.1).
            match frame.load_halves(after) {
                Some([flags, _]) if u16::from_be(flags) & 0x8000 == 0 => {}
                _ => return Around::Unknown,
            }
        }
    }
    Around::None
}
