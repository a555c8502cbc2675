//! Keys of QUIC Initial packets (RFC 9001, 5.2), which anybody who sees the client's first packet can derive.
//!
//! Owns the salts of the standard versions, of the drafts still seen and of Google's last own ones. Refuses all later keys:
//! those are the endpoints' secret.

use std::fmt;

use aws_lc_rs::aead::quic::{AES_128 as AES_128_MASK, HeaderProtectionKey};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

/// How a version derives its Initial keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    salt: [u8; 20],
    /// Before `key`, `iv` and `hp` in the labels.
    prefix: &'static [u8],
    /// The long packet type of an Initial.
    pub(super) initial_type: u8,
}

impl Scheme {
    /// `salt` is in hexadecimal digits.
    const fn new(salt: &str, prefix: &'static [u8], initial_type: u8) -> Self {
        let digits = salt.as_bytes();
        assert!(digits.len() == 40, "a salt has 20 octets");
        let mut octets = [0; 20];
        let mut at = 0;
        while at < octets.len() {
            octets[at] = digit(digits[2 * at]) << 4 | digit(digits[2 * at + 1]);
            at += 1;
        }
        Self { salt: octets, prefix, initial_type }
    }
}

const fn digit(text: u8) -> u8 {
    match text {
        b'0'..=b'9' => text - b'0',
        b'a'..=b'f' => text - b'a' + 10,
        _ => panic!("not a hexadecimal digit"),
    }
}

/// RFC 9001.
const V1: Scheme = Scheme::new("38762cf7f55934b34d179ae6a4c80cadccbb7f0a", b"quic ", 0);
/// RFC 9369.
const V2: Scheme = Scheme::new("0dede3def700a6db819381be6e269dcbf9bd2ed9", b"quicv2 ", 1);
/// draft-ietf-quic-v2-01 to -07, which servers still offer.
const V2_DRAFT: Scheme = Scheme::new("a707c203a59b47184a1d62ca570406ea7ae3e5d3", b"quicv2 ", 1);
/// draft-ietf-quic-tls-29 to -32.
const DRAFT_29: Scheme = Scheme::new("afbfec289993d24c9e9786f19c6111e04390a899", b"quic ", 0);
/// draft-ietf-quic-tls-23 to -28, and most of the versions of mvfst.
const DRAFT_23: Scheme = Scheme::new("c3eef712c72ebb5a11a7d2432bb46365bef9f502", b"quic ", 0);
/// draft-ietf-quic-tls-21 and -22, and mvfst's first.
const DRAFT_21: Scheme = Scheme::new("7fbcdb0e7c66bbe9193a96cd21519ebd7a02644a", b"quic ", 0);
/// Google's Q050.
const Q050: Scheme = Scheme::new("504574efd066fe2f9d945cfcdbd3a7f0d3b56b45", b"quic ", 0);
/// Google's T050.
const T050: Scheme = Scheme::new("7ff579e5acd072915580304c43a2367c60488310", b"quic ", 0);
/// Google's T051.
const T051: Scheme = Scheme::new("7a4edef4e7ccee5fa4506c19124fc8ccda6e033d", b"quic ", 0);

/// The schemes a version may follow: its own; or, of a version that is not known (a vendor's, or one that forces version
/// negotiation, RFC 9368), any of the IETF's, likeliest first. The packet's tag tells which holds.
pub(super) fn schemes(version: u32) -> &'static [&'static Scheme] {
    match version {
        // draft-33 and -34 have the standard's.
        0x0000_0001 | 0xff00_0021 | 0xff00_0022 => &[&V1],
        0x6b33_43cf => &[&V2],
        0x709a_50c4 => &[&V2_DRAFT],
        0xff00_001d..=0xff00_0020 => &[&DRAFT_29],
        0xff00_0017..=0xff00_001c => &[&DRAFT_23],
        0xff00_0015 | 0xff00_0016 => &[&DRAFT_21],
        0x5130_3530 => &[&Q050],
        0x5430_3530 => &[&T050],
        0x5430_3531 => &[&T051],
        // mvfst
        0xface_b000..=0xface_b0ff => &[&DRAFT_23, &DRAFT_21, &DRAFT_29, &V1],
        _ => &[&V1, &V2, &DRAFT_29, &DRAFT_23, &DRAFT_21],
    }
}

/// Whether a version is one whose scheme is certain.
pub(super) fn is_known(version: u32) -> bool {
    schemes(version).len() == 1
}

/// What opens the Initial packets of one connection's client.
pub(super) struct ClientKeys {
    packet: LessSafeKey,
    iv: [u8; NONCE_LEN],
    header: HeaderProtectionKey,
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeys")
    }
}

/// Length of an expanded secret.
#[derive(Debug, Clone, Copy)]
struct Octets(usize);

impl KeyType for Octets {
    fn len(&self) -> usize {
        self.0
    }
}

impl ClientKeys {
    /// The keys that go with the destination connection id of a client's first packet.
    pub(super) fn derive(scheme: &Scheme, connection_id: &[u8]) -> Option<Self> {
        let initial = Salt::new(HKDF_SHA256, &scheme.salt).extract(connection_id);
        let client: [u8; 32] = expand(&initial, b"", b"client in")?;
        let client = Prk::new_less_safe(HKDF_SHA256, &client);
        let key: [u8; 16] = expand(&client, scheme.prefix, b"key")?;
        let mask: [u8; 16] = expand(&client, scheme.prefix, b"hp")?;
        Some(Self {
            packet: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?),
            iv: expand(&client, scheme.prefix, b"iv")?,
            header: HeaderProtectionKey::new(&AES_128_MASK, &mask).ok()?,
        })
    }

    /// The frames of `packet`, whose packet number stands at `number_at`; `None` where the tag is not by these keys.
    pub(super) fn open(&self, packet: &[u8], number_at: usize) -> Option<Vec<u8>> {
        let sample = packet.get(number_at + 4..number_at + 20)?;
        let mask = self.header.new_mask(sample).ok()?;
        let first = packet.first()? ^ (mask[0] & 0x0f);
        let number_length = usize::from(first & 3) + 1;
        let (header, payload) = packet.split_at_checked(number_at + number_length)?;
        let mut header = header.to_vec();
        *header.first_mut()? = first;
        let mut number = 0_u64;
        for (byte, mask) in header.get_mut(number_at..)?.iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
            number = number << 8 | u64::from(*byte);
        }
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
            *byte ^= number;
        }
        let mut payload = payload.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.packet.open_in_place(nonce, Aad::from(&header), &mut payload).ok()?;
        payload.truncate(payload.len() - MAX_TAG_LEN);
        Some(payload)
    }
}

/// HKDF-Expand-Label (RFC 8446, 7.1) with an empty context.
fn expand<const LENGTH: usize>(secret: &Prk, prefix: &[u8], name: &[u8]) -> Option<[u8; LENGTH]> {
    let label = u8::try_from(6 + prefix.len() + name.len()).ok()?;
    let [high, low] = u16::try_from(LENGTH).ok()?.to_be_bytes();
    let mut out = [0; LENGTH];
    secret
        .expand(&[&[high, low, label], b"tls13 ", prefix, name, &[0]], Octets(LENGTH))
        .ok()?
        .fill(&mut out)
        .ok()?;
    Some(out)
}
