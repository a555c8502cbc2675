//! Signed links: they name a decision and an end, and nobody can make one up. Nothing about the person is in them.
//!
//! A token is base64url (RFC 4648 section 5, no padding) of `form (1) | expiry, µs, big endian (8) | decision id | MAC (16)`.
//! The MAC is keyed BLAKE3, cut to 128 bits so that the link fits a short message; it covers everything before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use usher_models::units::Micros;

use crate::engine::io::DecisionId;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + 8;
/// A decision id is a hash in hex; this leaves room for any hash.
const ID_BYTES_MAX: usize = 128;
/// Longest token that can be authentic; anything longer is not even decoded.
const TOKEN_CHARS_MAX: usize = (HEAD_BYTES + ID_BYTES_MAX + MAC_BYTES).div_ceil(3) * 4;

/// The decision id is lower-case hex, carried as bytes.
const FORM_HEX: u8 = 1;
/// The decision id is carried as it is.
const FORM_TEXT: u8 = 2;

/// Why a link opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Made up, or changed on the way.
    #[error("the link's signature does not match")]
    Forged,
    /// Authentic, but its time is up.
    #[error("the link ended at {at}")]
    Expired {
        /// The decision it names.
        decision: DecisionId,
        /// When it ended.
        at: Micros,
    },
    /// Not a token at all, most often a link that was cut off.
    #[error("the link is incomplete")]
    Malformed,
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be made or read.
    #[error("cannot use the link key {path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Someone else may have read it.
    #[error(
        "the link key {path} can be read by others (mode {mode:o}): `chmod 600` it, or remove it to have a new one made, which ends every link sent so far"
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error(
        "the link key {path} holds {found} bytes instead of {KEY_BYTES}: restore it, or remove it to have a new one made, which ends every link sent so far"
    )]
    Length {
        /// The key file.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// The system has no randomness to give.
    #[error("no randomness for a new link key")]
    NoRandomness,
}

/// Signs links and opens them.
pub struct Links {
    key: [u8; KEY_BYTES],
    public_url: String,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}

impl Links {
    /// Links below `public_url` (`https://usher.example`), with the key in `state_dir/link.key`, made on first use.
    pub fn open_or_create(state_dir: &Path, public_url: &str) -> Result<Self, KeyError> {
        let path = state_dir.join("link.key");
        let key = match read_key(&path)? {
            Some(key) => key,
            None => make_key(state_dir, &path)?,
        };
        Ok(Self::with_key(key, public_url))
    }

    /// Links below `public_url`, with this key.
    pub fn with_key(key: [u8; KEY_BYTES], public_url: &str) -> Self {
        Self { key, public_url: public_url.trim_end_matches('/').to_owned() }
    }

    /// The link a message carries: `{public_url}/t/{token}`. The same decision and end always give the same link.
    pub fn sign(&self, decision: &DecisionId, expires: Micros) -> String {
        format!("{}/t/{}", self.public_url, self.token(decision, expires))
    }

    /// The token alone.
    pub fn token(&self, decision: &DecisionId, expires: Micros) -> String {
        let (form, id) = match from_hex(&decision.0) {
            Some(bytes) => (FORM_HEX, bytes),
            None => (FORM_TEXT, decision.0.as_bytes().to_vec()),
        };
        let mut body = Vec::with_capacity(HEAD_BYTES + id.len() + MAC_BYTES);
        body.push(form);
        body.extend_from_slice(&expires.get().to_be_bytes());
        body.extend_from_slice(&id);
        let mac = self.mac(&body);
        body.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(body)
    }

    /// Which decision an authentic link that has not ended names.
    pub fn open(&self, token: &str, now: Micros) -> Result<DecisionId, LinkError> {
        if token.len() > TOKEN_CHARS_MAX {
            return Err(LinkError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| LinkError::Malformed)?;
        let (body, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(LinkError::Malformed)?;
        let (&form, rest) = body.split_first().ok_or(LinkError::Malformed)?;
        let (expires, id) = rest.split_first_chunk::<8>().ok_or(LinkError::Malformed)?;
        if id.is_empty() {
            return Err(LinkError::Malformed);
        }
        if !same(mac, &self.mac(body)) {
            return Err(LinkError::Forged);
        }
        let decision = match form {
            FORM_HEX => DecisionId(to_hex(id)),
            FORM_TEXT => DecisionId(String::from_utf8(id.to_vec()).map_err(|_| LinkError::Malformed)?),
            _ => return Err(LinkError::Malformed),
        };
        let at = Micros::new(i64::from_be_bytes(*expires));
        if at <= now {
            return Err(LinkError::Expired { decision, at });
        }
        Ok(decision)
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&blake3::keyed_hash(&self.key, body).as_bytes()[..MAC_BYTES]);
        mac
    }
}

/// Compares in constant time, by the comparison that `blake3::Hash` guarantees to be.
fn same(a: &[u8; MAC_BYTES], b: &[u8; MAC_BYTES]) -> bool {
    let widen = |mac: &[u8; MAC_BYTES]| {
        let mut wide = [0; blake3::OUT_LEN];
        wide[..MAC_BYTES].copy_from_slice(mac);
        blake3::Hash::from_bytes(wide)
    };
    widen(a) == widen(b)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0'))
        .collect()
}

fn read_key(path: &Path) -> Result<Option<[u8; KEY_BYTES]>, KeyError> {
    let io_error = |source| KeyError::Io { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let metadata = file.metadata().map_err(io_error)?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    if metadata.len() != KEY_BYTES as u64 {
        return Err(KeyError::Length { path: path.to_owned(), found: metadata.len() });
    }
    let mut key = [0; KEY_BYTES];
    file.read_exact(&mut key).map_err(io_error)?;
    Ok(Some(key))
}

/// Makes the key under another name and links it into place: a crash leaves no half key, and of two that start together
/// both end with the one key that came first.
fn make_key(state_dir: &Path, path: &Path) -> Result<[u8; KEY_BYTES], KeyError> {
    let io_error = |source| KeyError::Io { path: path.to_owned(), source };
    let mut key = [0; KEY_BYTES];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut key)
        .map_err(|_| KeyError::NoRandomness)?;
    let fresh = state_dir.join(format!(".link.key.{}", uuid::Uuid::new_v4()));
    let made = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(&key)?;
        file.sync_all()?;
        match fs::hard_link(&fresh, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }?;
        File::open(state_dir)?.sync_all()
    })();
    let removed = fs::remove_file(&fresh);
    made.map_err(io_error)?;
    removed.map_err(io_error)?;
    read_key(path)?.ok_or_else(|| io_error(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: Micros = Micros::new(1_000_000);
    const BEFORE: Micros = Micros::new(999_999);

    fn links() -> Links {
        Links::with_key([7; KEY_BYTES], "https://usher.example/")
    }

    fn id() -> DecisionId {
        DecisionId("00ff3fa9c1d2e4b5a6978899aabbccdd".into())
    }

    #[test]
    fn a_link_opens_until_its_end_and_not_at_it() {
        let token = links().token(&id(), END);
        assert_eq!(links().open(&token, BEFORE), Ok(id()));
        assert_eq!(links().open(&token, END), Err(LinkError::Expired { decision: id(), at: END }));
        assert_eq!(links().sign(&id(), END), format!("https://usher.example/t/{token}"));
    }

    #[test]
    fn a_link_fits_a_short_message_with_room_for_words() {
        assert!(links().token(&id(), END).len() <= 56);
    }

    #[test]
    fn another_key_opens_nothing() {
        let token = Links::with_key([8; KEY_BYTES], "").token(&id(), END);
        assert_eq!(links().open(&token, BEFORE), Err(LinkError::Forged));
    }

    #[test]
    fn every_single_bit_counts() {
        let bytes = URL_SAFE_NO_PAD.decode(links().token(&id(), END)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let token = URL_SAFE_NO_PAD.encode(changed);
            assert_eq!(links().open(&token, BEFORE), Err(LinkError::Forged), "bit {bit}");
        }
    }

    #[test]
    fn no_other_spelling_of_a_token_opens() {
        let token = links().token(&id(), END);
        for at in 0..token.len() {
            for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=.".chars() {
                let mut changed: Vec<char> = token.chars().collect();
                if changed[at] == other {
                    continue;
                }
                changed[at] = other;
                let changed: String = changed.into_iter().collect();
                assert!(links().open(&changed, BEFORE).is_err(), "{changed}");
            }
        }
        assert!(links().open(&format!("{token}="), BEFORE).is_err());
    }

    #[test]
    fn a_cut_off_link_is_incomplete_or_forged() {
        let token = links().token(&id(), END);
        for length in 0..token.len() {
            assert!(matches!(
                links().open(&token[..length], BEFORE),
                Err(LinkError::Malformed | LinkError::Forged)
            ));
        }
        assert_eq!(links().open("", BEFORE), Err(LinkError::Malformed));
        assert_eq!(links().open(&"A".repeat(100_000), BEFORE), Err(LinkError::Malformed));
    }

    #[test]
    fn the_key_is_made_once_private_and_kept() {
        let state = tempfile::tempdir().unwrap();
        let first = Links::open_or_create(state.path(), "u").unwrap();
        let again = Links::open_or_create(state.path(), "u").unwrap();
        assert_eq!(first.key, again.key);
        assert_ne!(first.key, [0; KEY_BYTES]);
        assert_eq!(fs::metadata(state.path().join("link.key")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "nothing else is left behind");
        assert!(!format!("{first:?}").contains("key"), "a key never gets into a log");
    }

    #[test]
    fn a_key_others_can_read_or_of_the_wrong_length_is_refused_with_the_remedy() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("link.key");
        fs::write(&path, [1; KEY_BYTES]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Links::open_or_create(state.path(), "u").unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o644, .. }), "{error}");
        fs::write(&path, b"short").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Links::open_or_create(state.path(), "u").unwrap_err();
        assert!(error.to_string().contains("5 bytes instead of 32"), "{error}");
    }

    proptest! {
        #[test]
        fn opening_any_text_never_panics(token in ".*", now in any::<i64>()) {
            prop_assert!(links().open(&token, Micros::new(now)).is_err());
        }

        #[test]
        fn opening_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256), now in any::<i64>()) {
            prop_assert!(links().open(&URL_SAFE_NO_PAD.encode(bytes), Micros::new(now)).is_err());
        }

        #[test]
        fn every_id_survives_its_link(id in "[0-9a-f]{2,64}|[ -~]{1,64}", end in 1..i64::MAX) {
            let decision = DecisionId(id);
            let token = links().token(&decision, Micros::new(end));
            prop_assert_eq!(links().open(&token, Micros::new(end - 1)), Ok(decision));
        }
    }
}
