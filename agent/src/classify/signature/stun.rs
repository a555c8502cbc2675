//! STUN and TURN (RFC 8489, RFC 8656): calls, and by some of their attributes whose.

use super::{Signature, Whose, of};
use usher_models::Class;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const REALM: u16 = 0x0014;
const ALTERNATE_DOMAIN: u16 = 0x8003;
/// Of one app each, by what follows the last `.` before it or the name itself.
const REALMS: [(&[u8], &str); 5] = [
    (b"signal.org", "signal"),
    (b"turner.facebook", "messenger"),
    (b"zoom.us", "zoom"),
    (b"discord.gg", "discord"),
    (b"telegram.org", "telegram"),
];

const STUN: Signature = Signature { app: "stun", class: Class::Call, whose: Whose::Many };

/// What a datagram, or a message over TCP, is of.
pub(super) fn read(bytes: &[u8]) -> Option<Signature> {
    let (header, rest) = bytes.split_first_chunk::<20>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let attributes = rest.get(..length)?;
    if header[0] & 0xc0 != 0 {
        return None;
    }
    if header[4..8] == COOKIE {
        return Some(Attributes(attributes).find_map(|(kind, value)| app(kind, value)).unwrap_or(STUN));
    }
    // Before the cookie (RFC 3489, 11.1): the lengths must agree to the last byte, of kinds that existed then.
    let is_classic =
        rest.len() == length && matches!(header[..2], [0 | 1, 1] | [1, 0x11 | 2 | 0x12] | [0, 2]);
    if !is_classic {
        return None;
    }
    // What one app's own client asks with, in an attribute of its own.
    let counts = |kind, value: &[u8]| kind == 0x0101 && value == b"1234567890123456789\0";
    let mut walk = Attributes(attributes);
    let known =
        walk.by_ref().all(|(kind, value)| matches!(kind, 1..=0x0b | 0x8020..=0x8022) || counts(kind, value));
    if !known || !walk.0.is_empty() {
        return None;
    }
    let counts = Attributes(attributes).any(|(kind, value)| counts(kind, value));
    Some(if counts { of("zoom", Class::Call) } else { STUN })
}

/// Data on a TURN channel (RFC 8656, 12.4), between the ports of relays, for two bytes and a length prove little.
pub(super) fn is_channel(bytes: &[u8]) -> bool {
    matches!(bytes, [0x40..=0x4f, _, high, low, rest @ ..]
    if {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        length > 0 && (rest.len() == length || rest.len() == length.next_multiple_of(4))
    })
}

fn app(kind: u16, value: &[u8]) -> Option<Signature> {
    match kind {
        0x4000..=0x4007 => Some(of("whatsapp", Class::Call)),
        // MS-TURN, MS-ICE2: version, sequence number, service quality, implementation
        0x8006 | 0x8008 | 0x8055 | 0x8070 => Some(of("teams", Class::Call)),
        REALM | ALTERNATE_DOMAIN => REALMS
            .iter()
            .find(|(realm, _)| {
                let before = value.strip_suffix(*realm);
                before.is_some_and(|before| before.last().is_none_or(|last| *last == b'.'))
            })
            .map(|(_, app)| of(app, Class::Call)),
        _ => None,
    }
}

/// Attributes one after the other, each padded to four bytes (RFC 8489, 14).
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[k0, k1, l0, l1], rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..length)?;
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([k0, k1]), value))
    }
}
