//! The server name in the first packets of a QUIC connection (RFC 9000, RFC 9001, RFC 9369).
//!
//! Owns the way from a client's datagrams to its ClientHello, which [`super::tls`] reads: Initial packets are opened with
//! the keys that their own connection id gives, and their CRYPTO frames put together over packets and datagrams. Refuses
//! everything after them. Bounded in datagrams, packets that do not open, and bytes.
//!
//! ```text
//! datagram -> packet (coalesced, long headers) -> keys (tag) -> crypto (frames, gathered) -> tls: server name
//!          -> google (before the standard) -----------------------------------------------> server name
//! ```

mod crypto;
mod google;
mod keys;
mod packet;

use usher_models::wire::Direction;

use self::crypto::Gathered;
use self::keys::ClientKeys;
use self::packet::Long;
use super::Via;
use super::in_progress::Step;
use super::tls::{self, Hello};

/// Most datagrams of both directions that are waited through for a name.
const MAX_DATAGRAMS: u8 = 32;
/// Most datagrams without a long header: the handshake they follow is over.
const MAX_SHORT: u8 = 4;
/// Most Initial packets that no key opened.
const MAX_FAILURES: u8 = 8;
/// Shortest datagram in which a client's Initial comes (RFC 9000, 14.1). Asked only of versions that are not known, so that
/// other protocols cost no key derivation.
const MIN_UNKNOWN: usize = 1_200;

/// A QUIC connection of which the client's hello must still come.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    client: Option<Client>,
    datagrams: u8,
    short: u8,
    failures: u8,
}

/// The side that spoke Initials first.
#[derive(Debug)]
struct Client {
    direction: Direction,
    keys: ClientKeys,
    gathered: Gathered,
}

/// Whether a datagram may be one of QUIC's first.
pub(crate) fn may_begin(datagram: &[u8]) -> bool {
    if google::is_clear(datagram) {
        return true;
    }
    let Some((long, _)) = Long::split(datagram) else { return false };
    long.version == 0 || keys::is_known(long.version) || datagram.len() >= MIN_UNKNOWN
}

impl Connection {
    /// Bytes of the network in memory.
    pub(crate) fn held(&self) -> usize {
        self.client.as_ref().map_or(0, |client| client.gathered.held())
    }

    /// Takes a datagram in.
    pub(crate) fn datagram(&mut self, direction: Direction, datagram: &[u8]) -> Step {
        self.datagrams += 1;
        let mut rest = datagram;
        if google::is_clear(datagram) {
            match step(google::read(datagram), true) {
                Step::More => {}
                step => return step,
            }
        } else if !datagram.first().is_some_and(|first| packet::is_long(*first)) {
            self.short += 1;
        }
        // The server's packets need keys that the client's give, and name nothing.
        let from_server = self.client.as_ref().is_some_and(|client| client.direction != direction);
        while !from_server && let Some((long, more)) = Long::split(rest) {
            match self.packet(direction, &long, datagram.len()) {
                Step::More => rest = more,
                step => return step,
            }
        }
        if self.datagrams >= MAX_DATAGRAMS || self.short >= MAX_SHORT || self.failures >= MAX_FAILURES {
            return Step::Nothing;
        }
        Step::More
    }

    fn packet(&mut self, direction: Direction, long: &Long<'_>, datagram: usize) -> Step {
        let Some(number_at) = long.number_at else { return Step::More };
        if let Some(client) = &mut self.client
            && let Some(frames) = client.keys.open(long.bytes, number_at)
        {
            return client.frames(long.version, &frames);
        }
        if self.failures >= MAX_FAILURES || (!keys::is_known(long.version) && datagram < MIN_UNKNOWN) {
            return Step::More;
        }
        // A first Initial; or one after a Retry, or of another connection on the same ports: each has an id, and so keys, of
        // its own, and begins from the first byte again.
        for scheme in long.schemes() {
            let Some(keys) = ClientKeys::derive(scheme, long.connection_id) else { continue };
            if let Some(frames) = keys.open(long.bytes, number_at) {
                let client = Client { direction, keys, gathered: Gathered::default() };
                return self.client.insert(client).frames(long.version, &frames);
            }
        }
        // Of an unknown version every scheme was tried: what is no QUIC at all may not cost that often.
        self.failures += if keys::is_known(long.version) { 1 } else { MAX_FAILURES / 2 };
        Step::More
    }
}

impl Client {
    fn frames(&mut self, version: u32, payload: &[u8]) -> Step {
        if version == google::Q050 {
            return step(google::read(payload), true);
        }
        let within = self.gathered.put_frames(payload);
        step(tls::read_handshake(self.gathered.beginning()), within)
    }
}

/// What a hello read so far leads to; `within` the bounds or not.
fn step(hello: Hello, within: bool) -> Step {
    match hello {
        Hello::Name(name) => Step::Name(name, Via::Sni),
        Hello::Nameless | Hello::NotTls => Step::Nothing,
        Hello::Partial if within => Step::More,
        Hello::Partial => Step::TooMuch,
    }
}

#[cfg(test)]
pub(super) mod tests;
