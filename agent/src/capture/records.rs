//! The packets of a capture file: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), of either byte order.
//!
//! Owns the formats, in one buffer that packets are lent from: of what can be done with a packet for which nothing is looked
//! up, calling a library for each costs most. Every interface of a pcapng file has its own link type and clock. Refuses files:
//! bytes come from whatever can be read.

use std::io::{self, Read};

use usher_models::units::Micros;

/// Bytes read at a time, which a processor's own memory holds.
const BUFFER: usize = 256 * 1024;
/// Most bytes of a packet of a pcap file: libpcap's bound.
const MAX_CAPTURED: usize = 256 * 1024;
/// Most bytes of a packet's block in a pcapng file: libpcap's bound.
const MAX_BLOCK: usize = 16 * 1024 * 1024;
/// More than any frame has on the wire, segmentation offload included.
const MAX_WIRE: usize = 1024 * 1024;
/// Most interfaces of a section.
const MAX_INTERFACES: usize = 65_536;

/// A packet as captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured<'a> {
    /// Number of the link layer.
    pub link: i32,
    /// Its time stamp; one that no clock shows is held to the ends of time.
    pub seen: Micros,
    /// Bytes it had on the wire, at least those captured.
    pub wire: usize,
    /// What was captured of it.
    pub bytes: &'a [u8],
}

/// Bytes that are no packets' any more.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// The file does not begin as a capture does.
    #[error("unknown file format")]
    UnknownFormat,
    /// The file breaks off.
    #[error("truncated: the file ends in the middle of a packet or block")]
    Truncated,
    /// Nothing in the file can be read from here on.
    #[error("{0}")]
    Malformed(&'static str),
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// The packets in what `R` reads.
#[derive(Debug)]
pub struct Records<R> {
    input: Input<R>,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Pcap(Pcap),
    PcapNg(Section),
}

/// What the header of a pcap file says of all its packets.
#[derive(Debug, Clone, Copy)]
struct Pcap {
    order: Order,
    /// Ticks of the clock in a microsecond.
    ticks: u32,
    /// Bytes before each packet.
    header: usize,
    /// What stands behind the 2 in the format's version: files before 2.4 may tell a packet's two lengths the other way
    /// round.
    minor: u16,
    link: i32,
}

/// A section of a pcapng file.
#[derive(Debug)]
struct Section {
    order: Order,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link: i32,
    /// Most bytes captured of a packet; zero: any.
    snap: u32,
    /// Ticks of its clock in a second.
    ticks: u64,
    /// Seconds before its clock's zero.
    offset: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Big,
    Little,
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const PACKET: u32 = 6;

impl Order {
    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn size(self, bytes: &[u8], at: usize) -> Option<usize> {
        usize::try_from(self.u32(bytes, at)?).ok()
    }
}

impl<R: Read> Records<R> {
    /// Reads a capture's header.
    pub fn new(from: R) -> Result<Self, BadRecord> {
        let mut input = Input { from, buffer: vec![0; BUFFER], start: 0, end: 0 };
        let magic = match input.ahead(4) {
            Ok(bytes) => bytes.first_chunk::<4>().copied().ok_or(BadRecord::UnknownFormat)?,
            Err(BadRecord::Truncated) => return Err(BadRecord::UnknownFormat),
            Err(error) => return Err(error),
        };
        if u32::from_be_bytes(magic) == SECTION {
            let mut format = Section { order: Order::Little, interfaces: Vec::new() };
            format.begin(&mut input)?;
            return Ok(Self { input, format: Format::PcapNg(format) });
        }
        let mut format = Pcap::of(magic).ok_or(BadRecord::UnknownFormat)?;
        let header = input.take(24)?;
        format.minor = format.order.u16(header, 6).ok_or(BadRecord::Truncated)?;
        // The upper bits tell of frame check sequences.
        let link = format.order.u32(header, 20).ok_or(BadRecord::Truncated)? & 0x03ff_ffff;
        format.link = i32::try_from(link).unwrap_or_default();
        Ok(Self { input, format: Format::Pcap(format) })
    }

    /// The next packet; `None` at the end.
    #[inline]
    pub fn next_packet(&mut self) -> Result<Option<Captured<'_>>, BadRecord> {
        match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.input),
            Format::PcapNg(section) => section.next(&mut self.input),
        }
    }
}

impl Pcap {
    /// By the file's first bytes.
    fn of(magic: [u8; 4]) -> Option<Self> {
        let (order, magic) = match u32::from_be_bytes(magic) {
            magic @ (0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34) => (Order::Big, magic),
            other => (Order::Little, other.swap_bytes()),
        };
        let (ticks, header) = match magic {
            0xa1b2_c3d4 => (1, 16),
            0xa1b2_3c4d => (1_000, 16),
            // As some systems patched it: eight bytes more before each packet.
            0xa1b2_cd34 => (1, 24),
            _ => return None,
        };
        Some(Self { order, ticks, header, minor: 4, link: 0 })
    }

    #[inline]
    fn next<'a, R: Read>(&self, input: &'a mut Input<R>) -> Result<Option<Captured<'a>>, BadRecord> {
        if input.is_at_end()? {
            return Ok(None);
        }
        let header = input.ahead(self.header)?;
        let field = |at| self.order.u32(header, at).ok_or(BadRecord::Truncated);
        let (seconds, fraction, mut captured, mut wire) = (field(0)?, field(4)?, field(8)?, field(12)?);
        if self.minor < 3 || (self.minor == 3 && captured > wire) {
            std::mem::swap(&mut captured, &mut wire);
        }
        let captured = usize::try_from(captured).unwrap_or(usize::MAX);
        if captured > MAX_CAPTURED {
            return Err(BadRecord::Malformed("a packet is longer than any link carries"));
        }
        let micros = i64::from(seconds) * 1_000_000 + i64::from(fraction / self.ticks);
        let packet = input.take(self.header + captured)?;
        Ok(Some(Captured {
            link: self.link,
            seen: Micros::new(micros),
            wire: on_wire(wire, captured),
            bytes: packet.get(self.header..).ok_or(BadRecord::Truncated)?,
        }))
    }
}

impl Section {
    /// Reads a section's header, at which the input stands.
    fn begin<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), BadRecord> {
        let header = input.ahead(16)?;
        self.order = match header.get(8..12) {
            Some([0x1a, 0x2b, 0x3c, 0x4d]) => Order::Big,
            Some([0x4d, 0x3c, 0x2b, 0x1a]) => Order::Little,
            _ => return Err(BadRecord::UnknownFormat),
        };
        if self.order.u16(header, 12) != Some(1) {
            return Err(BadRecord::Malformed("a pcapng section is of an unknown version"));
        }
        let length = self.length(header)?;
        self.interfaces.clear();
        input.pass(length)
    }

    /// A block's length by its header.
    fn length(&self, header: &[u8]) -> Result<usize, BadRecord> {
        self.order
            .size(header, 4)
            .filter(|length| *length >= 12 && length.is_multiple_of(4))
            .ok_or(BadRecord::Malformed("a pcapng block's length is wrong"))
    }

    #[inline]
    fn next<'a, R: Read>(&mut self, input: &'a mut Input<R>) -> Result<Option<Captured<'a>>, BadRecord> {
        let (kind, length) = loop {
            if input.is_at_end()? {
                return Ok(None);
            }
            let header = input.ahead(8)?;
            match self.order.u32(header, 0).ok_or(BadRecord::Truncated)? {
                SECTION => self.begin(input)?,
                kind @ (PACKET | SIMPLE_PACKET | OLD_PACKET) => break (kind, self.length(header)?),
                INTERFACE => {
                    let length = self.length(header)?;
                    let interface = Interface::read(self.order, self.block(input, length)?)
                        .ok_or(BadRecord::Malformed("a pcapng interface is described wrongly"))?;
                    if self.interfaces.len() >= MAX_INTERFACES {
                        return Err(BadRecord::Malformed("a pcapng section has too many interfaces"));
                    }
                    self.interfaces.push(interface);
                }
                _ => {
                    let length = self.length(header)?;
                    input.pass(length)?;
                }
            }
        };
        let body = self.block(input, length)?;
        self.packet(kind, body).map(Some)
    }

    /// The body of a block, past which the input then stands.
    fn block<'a, R: Read>(&self, input: &'a mut Input<R>, length: usize) -> Result<&'a [u8], BadRecord> {
        if length > MAX_BLOCK {
            return Err(BadRecord::Malformed("a pcapng block is longer than any packet's"));
        }
        let block = input.take(length)?;
        if self.order.size(block, length - 4) != Some(length) {
            return Err(BadRecord::Malformed("a pcapng block's two lengths differ"));
        }
        Ok(&block[8..length - 4])
    }

    fn packet<'a>(&self, kind: u32, body: &'a [u8]) -> Result<Captured<'a>, BadRecord> {
        let u32 = |at| self.order.u32(body, at);
        let fields = match kind {
            PACKET => (|| Some((u32(0)?, u32(4)?, u32(8)?, u32(12)?, u32(16)?, 20)))(),
            OLD_PACKET => {
                let number = self.order.u16(body, 0).map(u32::from);
                (|| Some((number?, u32(4)?, u32(8)?, u32(12)?, u32(16)?, 20)))()
            }
            _ => u32(0).map(|wire| (0, 0, 0, self.simple(wire), wire, 4)),
        };
        let (number, high, low, captured, wire, at) =
            fields.ok_or(BadRecord::Malformed("a pcapng packet is shorter than its header"))?;
        let interface = usize::try_from(number)
            .ok()
            .and_then(|number| self.interfaces.get(number))
            .ok_or(BadRecord::Malformed("a pcapng packet is of an interface that is not described"))?;
        let bytes = usize::try_from(captured)
            .ok()
            .and_then(|captured| body.get(at..)?.get(..captured))
            .ok_or(BadRecord::Malformed("a pcapng packet is longer than its block"))?;
        Ok(Captured {
            link: interface.link,
            seen: interface.time(u64::from(high) << 32 | u64::from(low)),
            wire: on_wire(wire, bytes.len()),
            bytes,
        })
    }

    /// How much of a simple packet was captured: all but what its interface cut off.
    fn simple(&self, wire: u32) -> u32 {
        match self.interfaces.first() {
            Some(Interface { snap, .. }) if *snap > 0 => wire.min(*snap),
            _ => wire,
        }
    }
}

impl Interface {
    fn read(order: Order, body: &[u8]) -> Option<Self> {
        let mut interface =
            Self { link: order.u16(body, 0)?.into(), snap: order.u32(body, 4)?, ticks: 1_000_000, offset: 0 };
        let mut options = body.get(8..)?;
        while let (Some(kind), Some(length)) = (order.u16(options, 0), order.u16(options, 2)) {
            let value = options.get(4..)?.get(..usize::from(length))?;
            match (kind, value) {
                (0, _) => break,
                // if_tsresol
                (9, [exponent, ..]) => {
                    let base: u64 = if exponent & 0x80 == 0 { 10 } else { 2 };
                    interface.ticks = base.checked_pow(u32::from(exponent & 0x7f))?;
                }
                // if_tsoffset
                (14, _) => {
                    let halves = [order.u32(value, 0)?, order.u32(value, 4)?].map(u64::from);
                    let [high, low] = if order == Order::Big { halves } else { [halves[1], halves[0]] };
                    interface.offset = (high << 32 | low).cast_signed();
                }
                _ => {}
            }
            options = options.get(4 + value.len().next_multiple_of(4)..).unwrap_or_default();
        }
        Some(interface)
    }

    fn time(&self, stamp: u64) -> Micros {
        let micros = match self.ticks {
            1_000_000 => i128::from(stamp),
            1_000_000_000 => i128::from(stamp / 1_000),
            ticks => i128::from(stamp) * 1_000_000 / i128::from(ticks),
        };
        let micros = micros + i128::from(self.offset) * 1_000_000;
        Micros::new(i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX }))
    }
}

fn on_wire(length: u32, captured: usize) -> usize {
    usize::try_from(length).unwrap_or(MAX_WIRE).min(MAX_WIRE).max(captured)
}

/// Bytes on their way from a reader.
#[derive(Debug)]
struct Input<R> {
    from: R,
    buffer: Vec<u8>,
    /// Those in the buffer not taken yet.
    start: usize,
    end: usize,
}

impl<R: Read> Input<R> {
    /// Whether nothing comes any more.
    #[inline]
    fn is_at_end(&mut self) -> Result<bool, BadRecord> {
        Ok(self.start == self.end && self.fill(1)? == 0)
    }

    /// The next bytes, which stay.
    #[inline]
    fn ahead(&mut self, count: usize) -> Result<&[u8], BadRecord> {
        if self.end - self.start < count && self.fill(count)? < count {
            return Err(BadRecord::Truncated);
        }
        Ok(&self.buffer[self.start..self.start + count])
    }

    /// Takes the next bytes.
    #[inline]
    fn take(&mut self, count: usize) -> Result<&[u8], BadRecord> {
        self.ahead(count)?;
        self.start += count;
        Ok(&self.buffer[self.start - count..self.start])
    }

    /// Goes past the next bytes, of which there may be more than fit in memory.
    fn pass(&mut self, mut count: usize) -> Result<(), BadRecord> {
        while count > 0 {
            if self.is_at_end()? {
                return Err(BadRecord::Truncated);
            }
            let step = count.min(self.end - self.start);
            self.start += step;
            count -= step;
        }
        Ok(())
    }

    /// Reads until as many bytes are there, or all there are; says how many.
    #[cold]
    fn fill(&mut self, count: usize) -> Result<usize, BadRecord> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < count {
            self.buffer.resize(count, 0);
        }
        while self.end < count {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.end)
    }
}

#[cfg(test)]
mod tests;
