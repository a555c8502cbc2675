//! IP packets that come in fragments (RFC 791, 3.2; RFC 8200, 4.5): put together, or counted for what they are.
//!
//! A fragment shows neither ports nor what it carries, unless it is the first; and the first may come last. So fragments wait
//! for each other, and then count all at once, as the packets they were sent in, for the flow of the packet they make up. Those
//! that wait in vain count for as much of it as came. Owns the waiting, bounded in datagrams, bytes, pieces and time.
//!
//! What overlaps must agree: of a datagram whose fragments contradict each other (RFC 5722) nothing is looked at but the ports
//! that came first. Neither can a fragment change bytes that were there, nor two hosts be shown different ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use usher_models::units::Micros;

use super::frame::{self, Found, Layers, Packets};
use crate::classify::aged::Aged;

/// IPv6's next header of a fragment header.
const FRAGMENT: u8 = 44;
/// Most extension headers before a fragment header.
const MAX_EXTENSIONS: usize = 8;
/// Octets of a transport's header that show its ports.
const PORTS: usize = 4;

/// Bounds of [`Fragments`].
#[derive(Debug, Clone, Copy)]
pub struct FragmentLimits {
    /// Datagrams that wait for fragments.
    pub datagrams: usize,
    /// Their bytes, all together.
    pub bytes: usize,
    /// Pieces of one with gaps between them.
    pub pieces: usize,
    /// How long a datagram waits after its first fragment.
    pub age: Duration,
}

impl Default for FragmentLimits {
    fn default() -> Self {
        Self { datagrams: 4_096, bytes: 8 * 1024 * 1024, pieces: 512, age: Duration::from_secs(30) }
    }
}

/// Which part of its packet a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    number: u32,
    /// Where in the packet's payload it begins.
    offset: usize,
    /// Whether others follow it.
    more: bool,
    /// Octets before its payload.
    header: usize,
    /// Octets of IPv6 before the fragment header, and where the field stands that says that it follows.
    v6: Option<(usize, usize)>,
    /// Protocol of the payload, in IPv6 by the fragment's own word.
    protocol: u8,
}

impl Fragment {
    /// Reads a fragment's headers; `None` for whole packets, and for IPv6 fragments that are whole (RFC 6946).
    pub fn of(ip: &[u8]) -> Option<Self> {
        match ip.first()? >> 4 {
            4 => {
                let place = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]);
                let fragment = Self {
                    number: u32::from(u16::from_be_bytes([ip[4], ip[5]])),
                    offset: usize::from(place & 0x1fff) * 8,
                    more: place & 0x2000 != 0,
                    header: usize::from(ip[0] & 0x0f) * 4,
                    v6: None,
                    protocol: *ip.get(9)?,
                };
                fragment.is_part().then_some(fragment)
            }
            6 => Self::of_v6(ip),
            _ => None,
        }
    }

    fn of_v6(ip: &[u8]) -> Option<Self> {
        let (mut field, mut at) = (6, 40);
        for _ in 0..MAX_EXTENSIONS {
            match *ip.get(field)? {
                FRAGMENT => {
                    let &[protocol, _, high, low, ref number @ ..] =
                        ip.get(at..at + 8)?.first_chunk::<8>()?;
                    let place = u16::from_be_bytes([high, low]);
                    let fragment = Self {
                        number: u32::from_be_bytes(*number),
                        offset: usize::from(place & !7),
                        more: place & 1 != 0,
                        header: at + 8,
                        v6: Some((at, field)),
                        protocol,
                    };
                    return fragment.is_part().then_some(fragment);
                }
                // Hop by hop, routing, destination options: those that may stand before it.
                0 | 43 | 60 => {
                    field = at;
                    at += (usize::from(*ip.get(at + 1)?) + 1) * 8;
                }
                _ => return None,
            }
        }
        None
    }

    fn is_part(self) -> bool {
        self.more || self.offset != 0
    }
}

/// Which datagram a fragment is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Id {
    source: IpAddr,
    destination: IpAddr,
    number: u32,
    /// Told apart by in IPv4 alone.
    protocol: u8,
}

/// A packet as it is after the waiting: whole, or as much as came.
#[derive(Debug)]
pub struct Gathered {
    ip: Vec<u8>,
    wire: usize,
    layers: Layers,
    /// Fragments it was sent in, or those of them that came.
    pub packets: u64,
    /// Their bytes, each with its own IP header.
    pub bytes: u64,
    /// When the last of them came.
    pub seen: Micros,
}

impl Gathered {
    /// The packet, and those in it.
    pub fn packets(&self) -> Packets<'_> {
        frame::packets_in(&self.ip, self.wire, self.layers)
    }

    /// Whether a packet of [`Self::packets`] is the gathered one, and not one in it.
    pub fn is(&self, found: &Found<'_>) -> bool {
        found.ip.len() == self.ip.len()
    }
}

/// What a fragment led to.
#[derive(Debug, Default)]
pub struct Taken {
    /// The packet it was the last fragment of.
    pub whole: Option<Gathered>,
    /// Those that had to go for lack of room.
    pub given_up: Vec<Gathered>,
}

/// Datagrams that wait for fragments.
#[derive(Debug)]
pub struct Fragments {
    limits: FragmentLimits,
    waiting: Aged<Id, Datagram>,
    bytes: usize,
    evicted: u64,
    expired: u64,
    contradicted: u64,
    repeated: u64,
}

#[derive(Debug)]
struct Datagram {
    began: Micros,
    seen: Micros,
    layers: Layers,
    /// A fragment's; the first's, as a whole packet's would be, if it came.
    header: Vec<u8>,
    /// What the first fragment shows of the ports, if it came, or the first of the packet before with the same number.
    ports: Option<Box<[u8]>>,
    /// By where they begin; none overlaps another.
    pieces: BTreeMap<usize, Piece>,
    /// Octets of the payload that came.
    covered: usize,
    /// Octets of all of it, once known.
    end: Option<usize>,
    /// Whether fragments contradicted each other.
    spoilt: bool,
    /// Whether the packet before with the same number was a tunnel's, and so what it carried has been counted.
    carried: bool,
    held: usize,
    packets: u64,
    sent: u64,
}

/// Payload without a gap.
#[derive(Debug)]
struct Piece {
    to: usize,
    /// As much of it as was captured, from its beginning.
    bytes: Vec<u8>,
}

impl Fragments {
    /// Nothing waits.
    pub fn new(limits: FragmentLimits) -> Self {
        Self {
            limits,
            waiting: Aged::new(limits.datagrams),
            bytes: 0,
            evicted: 0,
            expired: 0,
            contradicted: 0,
            repeated: 0,
        }
    }

    /// Takes a fragment in.
    pub fn take(&mut self, found: &Found<'_>, fragment: Fragment, seen: Micros) -> Taken {
        let id = Id {
            source: found.packet.source,
            destination: found.packet.destination,
            number: fragment.number,
            protocol: if fragment.v6.is_some() { 0 } else { fragment.protocol },
        };
        let mut taken = Taken::default();
        if self.waiting.get(&id).is_none_or(|datagram| seen.since(datagram.began) > self.limits.age) {
            if let Some(datagram) = self.waiting.remove(&id) {
                self.let_expire(datagram, &mut taken.given_up);
            }
            if let Some((_, datagram)) = self.waiting.insert(id, Datagram::new(found.layers, seen)) {
                self.evict(datagram, &mut taken.given_up);
            }
        }
        let Some(datagram) = self.waiting.get_mut(&id) else { return taken };
        let held = datagram.held;
        let was_spoilt = datagram.spoilt;
        datagram.take(found, fragment, seen, self.limits.pieces);
        self.contradicted += u64::from(datagram.spoilt && !was_spoilt);
        if datagram.is_whole() {
            // What comes once more, as where packets are captured twice, still knows its ports.
            let after = datagram.after(seen);
            taken.whole = std::mem::replace(datagram, after).gathered();
            datagram.carried = taken.whole.as_ref().is_some_and(|whole| whole.packets().nth(1).is_some());
        }
        self.bytes = self.bytes - held + datagram.held;
        while self.bytes > self.limits.bytes {
            let Some((_, datagram)) = self.waiting.pop_oldest() else { break };
            self.evict(datagram, &mut taken.given_up);
        }
        taken
    }

    /// Datagrams that have waited too long.
    pub fn overdue(&mut self, now: Micros) -> Vec<Gathered> {
        let mut overdue = Vec::new();
        while self.waiting.oldest().is_some_and(|(_, datagram)| now.since(datagram.began) > self.limits.age) {
            let Some((_, datagram)) = self.waiting.pop_oldest() else { break };
            self.let_expire(datagram, &mut overdue);
        }
        overdue
    }

    /// All that wait: no more fragments will come.
    pub fn rest(&mut self) -> Vec<Gathered> {
        let mut rest = Vec::new();
        while let Some((_, datagram)) = self.waiting.pop_oldest() {
            self.let_expire(datagram, &mut rest);
        }
        rest
    }

    /// How often each bound took effect, by reason.
    pub fn counters(&self) -> [(&'static str, u64); 4] {
        [
            ("fragments_evicted", self.evicted),
            ("fragments_expired", self.expired),
            ("fragments_contradictory", self.contradicted),
            ("fragments_repeated", self.repeated),
        ]
    }

    fn let_expire(&mut self, datagram: Datagram, expired: &mut Vec<Gathered>) {
        self.bytes -= datagram.held;
        self.expired += u64::from(datagram.is_begun());
        self.give_up(datagram, expired);
    }

    fn evict(&mut self, datagram: Datagram, evicted: &mut Vec<Gathered>) {
        self.bytes -= datagram.held;
        self.evicted += u64::from(datagram.is_begun());
        self.give_up(datagram, evicted);
    }

    /// Fragments of a tunnel's packet that came once more than it took are nobody's.
    fn give_up(&mut self, datagram: Datagram, given_up: &mut Vec<Gathered>) {
        if datagram.carried {
            self.repeated += datagram.packets;
        } else {
            given_up.extend(datagram.gathered());
        }
    }
}

impl Datagram {
    fn new(layers: Layers, seen: Micros) -> Self {
        Self {
            began: seen,
            seen,
            layers,
            header: Vec::new(),
            ports: None,
            pieces: BTreeMap::new(),
            covered: 0,
            end: None,
            spoilt: false,
            carried: false,
            held: 0,
            packets: 0,
            sent: 0,
        }
    }

    /// What remains when it is whole: whose it was.
    fn after(&self, seen: Micros) -> Self {
        let header = self.header.clone();
        Self { held: header.len(), header, ports: self.ports.clone(), ..Self::new(self.layers, seen) }
    }

    /// Whether a fragment came that has not been counted.
    fn is_begun(&self) -> bool {
        self.packets > 0
    }

    fn is_whole(&self) -> bool {
        self.end == Some(self.covered) && !self.spoilt
    }

    fn take(&mut self, found: &Found<'_>, fragment: Fragment, seen: Micros, most_pieces: usize) {
        self.seen = self.seen.max(seen);
        self.packets += 1;
        self.sent += found.bytes();
        let length = usize::try_from(found.bytes()).unwrap_or(0).saturating_sub(fragment.header);
        let captured = found.ip.get(fragment.header..).unwrap_or_default();
        let captured = captured.get(..length).unwrap_or(captured);
        let is_first = fragment.offset == 0 && !self.pieces.contains_key(&0) && !self.spoilt;
        if is_first || self.header.is_empty() {
            self.held -= self.header.len();
            self.header = found.ip.get(..fragment.header).unwrap_or(found.ip).to_vec();
            self.held += self.header.len();
        }
        if is_first || (fragment.offset == 0 && self.ports.is_none()) {
            make_whole(&mut self.header, &fragment);
            self.ports = Some(captured.get(..PORTS).unwrap_or(captured).into());
            self.layers = found.layers;
        }
        if !self.spoilt && !self.put(fragment, captured, length, most_pieces) {
            self.spoilt = true;
            self.held = self.header.len();
            self.pieces = BTreeMap::new();
        }
    }

    /// Puts a fragment in its place; false if it contradicts what is there, or no packet can be so.
    fn put(&mut self, fragment: Fragment, captured: &[u8], length: usize, most_pieces: usize) -> bool {
        let (from, to) = (fragment.offset, fragment.offset + length);
        let furthest = self.pieces.last_key_value().map_or(0, |(_, piece)| piece.to);
        let end = if fragment.more { self.end } else { Some(to) };
        let fits =
            self.end.is_none_or(|known| end == Some(known)) && end.is_none_or(|end| to.max(furthest) <= end);
        let is_even = !fragment.more || length.is_multiple_of(8);
        if length == 0 || !fits || !is_even || to > usize::from(u16::MAX) {
            return false;
        }
        let mut gaps = Vec::new();
        let mut at = from;
        let begin = self.pieces.range(..=from).next_back().map_or(from, |(start, _)| *start);
        for (&start, piece) in self.pieces.range(begin..to).filter(|(_, piece)| piece.to > from) {
            let shared = start.max(from)..(start + piece.bytes.len()).min(from + captured.len());
            if !shared.is_empty()
                && piece.bytes.get(shared.start - start..shared.end - start)
                    != captured.get(shared.start - from..shared.end - from)
            {
                return false;
            }
            if at < start {
                gaps.push((at, start));
            }
            at = at.max(piece.to);
        }
        if at < to {
            gaps.push((at, to));
        }
        self.end = end;
        for (start, stop) in gaps {
            let new = captured.get(start - from..).unwrap_or_default();
            self.fill(start, stop, new.get(..stop - start).unwrap_or(new));
        }
        self.pieces.len() <= most_pieces
    }

    /// Fills a gap, or a part of one.
    fn fill(&mut self, from: usize, to: usize, captured: &[u8]) {
        self.covered += to - from;
        self.held += captured.len();
        if let Some((start, before)) = self.pieces.range_mut(..from).next_back()
            && before.to == from
            && before.bytes.len() == from - start
        {
            before.bytes.extend_from_slice(captured);
            before.to = to;
        } else {
            self.held += size_of::<Piece>();
            self.pieces.insert(from, Piece { to, bytes: captured.to_vec() });
        }
    }

    /// The packet, as far as it is there; `None` if every fragment was counted before.
    fn gathered(self) -> Option<Gathered> {
        if !self.is_begun() {
            return None;
        }
        let mut payload = Vec::new();
        for (start, piece) in &self.pieces {
            if *start != payload.len() {
                break;
            }
            payload.extend_from_slice(&piece.bytes);
        }
        if let Some(ports) = self.ports.as_ref().filter(|_| payload.is_empty()) {
            payload.extend_from_slice(ports);
        }
        let furthest = self.pieces.last_key_value().map_or(0, |(_, piece)| piece.to);
        let wire = self.header.len() + self.end.unwrap_or(furthest).max(payload.len());
        let mut ip = self.header;
        if self.ports.is_some() {
            set_length(&mut ip, wire);
            ip.append(&mut payload);
        }
        Some(Gathered {
            ip,
            wire,
            layers: self.layers,
            packets: self.packets,
            bytes: self.sent,
            seen: self.seen,
        })
    }
}

/// Takes out of a first fragment's headers that it is one.
fn make_whole(header: &mut Vec<u8>, fragment: &Fragment) {
    match fragment.v6 {
        None => {
            if let Some(place) = header.get_mut(6..8) {
                place.fill(0);
            }
        }
        Some((at, field)) => {
            if let Some(next) = header.get_mut(field) {
                *next = fragment.protocol;
            }
            header.truncate(at);
        }
    }
}

/// Writes how long a packet is: nothing, as in jumbograms, where the field is too small.
fn set_length(header: &mut [u8], wire: usize) {
    let (at, length) = match header.first().map(|first| first >> 4) {
        Some(4) => (2, wire),
        _ => (4, wire.saturating_sub(40)),
    };
    if let Some(field) = header.get_mut(at..at + 2) {
        field.copy_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
