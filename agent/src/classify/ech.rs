//! The name under which an encrypted hello travels (RFC 9849, 4): that of the configuration its server publishes.
//!
//! Owns one configuration list. Refuses keys and ciphers: nothing is decrypted. A client that only pretends to encrypt
//! (GREASE) shows the true name, and no server publishes that as another's cover, so nothing needs to tell the two apart.

use super::name;

/// The only version in use (RFC 9849, 4).
const VERSION: [u8; 2] = [0xfe, 0x0d];

/// The public name of the first configuration that can be read.
pub(super) fn public_name(list: &[u8]) -> Option<Box<str>> {
    let mut list = vector(list, 2)?.0;
    while let Some((version, rest)) = list.split_first_chunk::<2>() {
        let (contents, rest) = vector(rest, 2)?;
        if *version == VERSION {
            return of_contents(contents);
        }
        list = rest;
    }
    None
}

fn of_contents(contents: &[u8]) -> Option<Box<str>> {
    let rest = contents.get(3..)?; // config_id, kem_id
    let rest = vector(rest, 2)?.1; // public_key
    let rest = vector(rest, 2)?.1; // cipher_suites
    name::canonical(vector(rest.get(1..)?, 1)?.0) // after maximum_name_length
}

/// A vector after its length of `octets` bytes, and what follows it.
fn vector(bytes: &[u8], octets: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(octets)?;
    rest.split_at_checked(length.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet)))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list of one configuration under `name`, after one of a version of the future.
    pub(in crate::classify) fn list(name: &str) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        let contents =
            [&[7, 0, 0x20, 0, 2, 1, 2, 0, 4, 0, 1, 0, 1, 0, length][..], name.as_bytes(), &[0, 0]].concat();
        let length = u8::try_from(contents.len()).unwrap();
        let configs = [&[0xfe, 0x0e, 0, 1, 9][..], &VERSION, &[0, length], &contents].concat();
        [&[0, u8::try_from(configs.len()).unwrap()][..], &configs].concat()
    }

    #[test]
    fn the_public_name_is_read() {
        assert_eq!(public_name(&list("Cover.Example")).as_deref(), Some("cover.example"));
        assert_eq!(public_name(&[0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0_usize..60) {
            public_name(&bytes);
            let list = list("cover.example");
            public_name(&list[..cut.min(list.len())]);
        }
    }
}
