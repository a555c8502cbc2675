//! The hierarchical token bucket (tc-htb(8)) over rtnetlink(7): its tree on an interface, its classes, and what queues in them.
//!
//! The library carries the messages; what is HTB's own in them (linux/pkt_sched.h, `tc_htb_opt`, `tc_htb_glob`, TCA_HTB_*, TCA_CAKE_*) is put
//! together and taken apart here. Knows no slots and keeps nothing.

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE,
    Nla as _, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage as Route;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use usher_models::wire::{Direction, Rate, tree};

use super::Leaf;
use super::lengths::Lengths;
use super::plan::Class;
use crate::probe::netlink::ask;

const KIND: &str = "htb";

// Attributes within an HTB's options.
const PARMS: u16 = 1;
const INIT: u16 = 2;
const RATE64: u16 = 6;
const CEIL64: u16 = 7;
/// The attribute that holds the options of any kind.
const OPTIONS: u16 = 2;
// An attribute within cake's options.
const CAKE_SPLIT_GSO: u16 = 17;
// Attributes within a size table.
const STAB_BASE: u16 = 1;
const STAB_DATA: u16 = 2;

/// The version of HTB's interface, the only one there is.
const VERSION: u32 = 3;
/// What `quantum` would be worked out with where a class had none: never, here; but zero is refused.
const RATE_TO_QUANTUM: u32 = 10;
/// TC_LINKLAYER_ETHERNET: lengths are what they are. Any other way the kernel asks for a table of rates.
const LINK_LAYER: u8 = 1;
/// Nanoseconds of a tick of the packet schedulers, as a shift (PSCHED_SHIFT).
const TICK_SHIFT: u32 = 6;
/// The most that may be sent at once, in nanoseconds of the rate; and never less than [`Rate::MIN_BURST_BYTES`].
const BURST_NS: u64 = 10_000_000;
/// Bytes that a class sends in its turn, where several wait for their parent's rate: a full frame, to as much as the kernel takes without a word.
const QUANTUM: (u64, u64) = (1_514, 200_000);
/// The number of the loopback interface, the same in every network namespace.
const LOOPBACK: i32 = 1;

/// The queueing discipline at the root of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// The kernel's own choice, made for want of another.
    Kernels,
    /// A tree of this direction.
    Ours,
    /// Somebody else's; its handle.
    Foreign(TcHandle),
}

/// What is at the root of an interface.
pub(super) fn root(interface: u32, direction: Direction) -> io::Result<Root> {
    let mut found = None;
    let mut message = message(interface)?;
    message.header.parent = TcHandle::ROOT;
    // Without the echo the answer is told to those who listen for changes, and to nobody else.
    let asked = ask(Route::GetQueueDiscipline(message), NLM_F_ACK | NLM_F_ECHO, |answer| {
        if let Route::NewQueueDiscipline(qdisc) = answer {
            let is_htb = qdisc.attributes.contains(&TcAttribute::Kind(KIND.to_owned()));
            found = Some((qdisc.header.handle, is_htb));
        }
    });
    match (asked, found) {
        // One that is built in is not shown.
        (Err(error), None) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Root::Kernels),
        (Err(error), _) => Err(error),
        (Ok(0), None) | (Ok(_), Some((TcHandle::UNSPEC, _))) => Ok(Root::Kernels),
        // Not understood, hence none that the kernel or this agent made.
        (Ok(_), None) => Ok(Root::Foreign(TcHandle::UNSPEC)),
        (Ok(_), Some((handle, true))) if handle == class(direction, 0) => Ok(Root::Ours),
        (Ok(_), Some((handle, _))) => Ok(Root::Foreign(handle)),
    }
}

/// Puts an empty tree at the root of an interface, where none but the kernel's own choice is. What is of no class in it passes at once.
pub(super) fn make(interface: u32, direction: Direction) -> io::Result<()> {
    let mut message = message(interface)?;
    message.header.parent = TcHandle::ROOT;
    message.header.handle = class(direction, 0);
    // Version, rate to quantum, the class of what is of none (no class has this number), debug, and one that only answers have.
    let init = [VERSION, RATE_TO_QUANTUM, 0, 0, 0].map(u32::to_ne_bytes).concat();
    message.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Options(vec![TcOption::Other(DefaultNla::new(INIT, init))]),
    ];
    tell(Route::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Says what packets count for in a tree, in place of what was said before.
pub(super) fn count_by(interface: u32, direction: Direction, lengths: &Lengths) -> io::Result<()> {
    let mut message = message(interface)?;
    message.header.parent = TcHandle::ROOT;
    message.header.handle = class(direction, 0);
    // A `tc_sizespec`: no shifts, and so no alignment; overhead, link layer, least length, largest packet (which the kernel does not read), entries.
    let mut base = vec![0; 4];
    base.extend((-i32::from(lengths.header)).to_ne_bytes());
    let entries = u32::try_from(lengths.table.len()).unwrap_or(u32::MAX);
    base.extend([u32::from(LINK_LAYER), 0, 0, entries].map(u32::to_ne_bytes).concat());
    let data = lengths.table.iter().flat_map(|bytes| bytes.to_ne_bytes()).collect();
    let mut parts = vec![DefaultNla::new(STAB_BASE, base)];
    if entries > 0 {
        parts.push(DefaultNla::new(STAB_DATA, data));
    }
    let mut table = vec![0; parts.as_slice().buffer_len()];
    parts.as_slice().emit(&mut table);
    message.attributes = vec![TcAttribute::Stab(table)];
    tell(Route::NewQueueDiscipline(message), 0)
}

/// Takes a tree off an interface, with all that waits in it. The kernel puts its own choice there.
pub(super) fn remove(interface: u32, direction: Direction) -> io::Result<()> {
    let mut message = message(interface)?;
    message.header.parent = TcHandle::ROOT;
    message.header.handle = class(direction, 0);
    tell(Route::DelQueueDiscipline(message), 0)
}

/// The classes of a tree, in no order.
pub(super) fn classes(interface: u32, direction: Direction) -> io::Result<Vec<(u16, Class)>> {
    let mut classes = Vec::new();
    let message = message(interface)?;
    ask(Route::GetTrafficClass(message), NLM_F_DUMP, |answer| {
        if let Route::NewTrafficClass(found) = answer
            && found.header.handle.major == tree(direction)
        {
            classes.push((found.header.handle.minor, read(&found)));
        }
    })?;
    Ok(classes)
}

/// Makes a class, or gives one that is there other rates. Where it is to be is for good.
pub(super) fn set(interface: u32, direction: Direction, minor: u16, of: &Class) -> io::Result<()> {
    let mut message = message(interface)?;
    message.header.handle = class(direction, minor);
    message.header.parent = class(direction, of.parent.unwrap_or(0));
    let option = |kind, value: Vec<u8>| TcOption::Other(DefaultNla::new(kind, value));
    message.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Options(vec![
            option(PARMS, parameters(of)),
            option(RATE64, of.rate.to_ne_bytes().to_vec()),
            option(CEIL64, of.ceiling.to_ne_bytes().to_vec()),
        ]),
    ];
    tell(Route::NewTrafficClass(message), NLM_F_CREATE)
}

/// Removes a class, with all that waits in it.
pub(super) fn unset(interface: u32, direction: Direction, minor: u16) -> io::Result<()> {
    let mut message = message(interface)?;
    message.header.handle = class(direction, minor);
    tell(Route::DelTrafficClass(message), 0)
}

/// Says what queues in a class, once more if its rates are others now.
pub(super) fn queue(
    interface: u32,
    direction: Direction,
    minor: u16,
    of: &Class,
    leaf: Leaf,
) -> io::Result<()> {
    let mut message = message(interface)?;
    message.header.parent = class(direction, minor);
    // The kernel has numbers for half as many only.
    message.header.handle = TcHandle { major: minor, minor: 0 };
    message.attributes = attributes(of, leaf);
    tell(Route::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// What a class's queue is.
fn attributes(of: &Class, leaf: Leaf) -> Vec<TcAttribute> {
    let mut attributes = vec![TcAttribute::Kind(leaf.name().to_owned())];
    match leaf {
        // Left alone it takes joined packets apart, and each part would count as a frame, past the tree's size table.
        Leaf::Cake => {
            let keep_whole = DefaultNla::new(CAKE_SPLIT_GSO, 0_u32.to_ne_bytes().to_vec());
            attributes.push(TcAttribute::Options(vec![TcOption::Other(keep_whole)]));
        }
        Leaf::FqCodel => {}
        Leaf::Pfifo => {
            let limit = of.packets().to_ne_bytes().to_vec();
            attributes.push(TcAttribute::Other(DefaultNla::new(OPTIONS, limit)));
        }
    }
    attributes
}

/// Whether the kernel has a queueing discipline of this kind, or a module of it. It is asked for one with options that no kind takes: one that it
/// has refuses them, and nothing is made.
pub(super) fn has(kind: &str) -> io::Result<bool> {
    let mut message = TcMessage::with_index(LOOPBACK);
    message.header.parent = TcHandle::ROOT;
    // Options of one byte, where any kind's first is a number of four or eight.
    let cut_short = |kind| TcOption::Other(DefaultNla::new(kind, vec![0]));
    message.attributes =
        vec![TcAttribute::Kind(kind.to_owned()), TcAttribute::Options([1, 2, 3].map(cut_short).to_vec())];
    match tell(Route::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        // Also where somebody has put one of his own there: then the kernel does not look at the kind.
        Err(error) => Ok(!matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EEXIST))),
        Ok(()) => Err(io::Error::other("a queueing discipline took options that none has")),
    }
}

fn message(interface: u32) -> io::Result<TcMessage> {
    let index = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(TcMessage::with_index(index))
}

fn class(direction: Direction, minor: u16) -> TcHandle {
    TcHandle { major: tree(direction), minor }
}

fn tell(request: Route, flags: u16) -> io::Result<()> {
    ask(request, NLM_F_ACK | flags, |_| {}).map(|_| ())
}

/// A `tc_htb_opt`: rate and ceiling, each a `tc_ratespec`, then bursts of both, quantum, level and priority.
fn parameters(of: &Class) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(44);
    for rate in [of.rate, of.ceiling] {
        // Cell, link layer, overhead, alignment and least length; the whole rate is in an attribute of its own.
        bytes.extend([0, LINK_LAYER, 0, 0, 0, 0, 0, 0]);
        bytes.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    }
    let quantum = (of.rate / 100).clamp(QUANTUM.0, QUANTUM.1);
    let numbers = [burst(of.rate), burst(of.ceiling), quantum, 0, 0];
    bytes.extend(numbers.iter().flat_map(|number| u32::try_from(*number).unwrap_or(u32::MAX).to_ne_bytes()));
    bytes
}

/// Ticks that sending the burst takes, at so many bytes a second.
fn burst(rate: u64) -> u64 {
    let least = Rate::MIN_BURST_BYTES.saturating_mul(1_000_000_000) / rate.max(1);
    least.max(BURST_NS) >> TICK_SHIFT
}

/// What an answer says of a class; what it does not say is zero.
fn read(message: &TcMessage) -> Class {
    let parent = message.header.parent;
    let parent = (parent != TcHandle::ROOT && parent.minor != 0).then_some(parent.minor);
    let mut found = Class { parent, rate: 0, ceiling: 0, queues: message.header.info != 0 };
    let mut whole = (None, None);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            // The library keeps options of a kind it does not know in one piece.
            let TcOption::Other(piece) = option else { continue };
            let mut bytes = vec![0; piece.value_len()];
            piece.emit_value(&mut bytes);
            for part in NlasIterator::new(bytes.as_slice()).flatten() {
                match part.kind() {
                    PARMS => (found.rate, found.ceiling) = (word(&part, 8), word(&part, 20)),
                    RATE64 => whole.0 = double(&part),
                    CEIL64 => whole.1 = double(&part),
                    _ => {}
                }
            }
        }
    }
    found.rate = whole.0.unwrap_or(found.rate);
    found.ceiling = whole.1.unwrap_or(found.ceiling);
    found
}

fn word(part: &NlaBuffer<&[u8]>, at: usize) -> u64 {
    let bytes = part.value().get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes).into())
}

fn double(part: &NlaBuffer<&[u8]>) -> Option<u64> {
    part.value().first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kernels without cake cannot be asked about.
    #[test]
    fn cake_is_told_to_keep_joined_packets_whole() {
        let class = Class { parent: None, rate: 1_000, ceiling: 1_000, queues: true };
        let attributes = attributes(&class, Leaf::Cake);
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        // TCA_KIND, filled up to four bytes; TCA_OPTIONS, in it TCA_CAKE_SPLIT_GSO: 0.
        let words = [[9_u16, 1], [12, 2], [8, 17]].map(|[length, kind]| {
            let [length, kind] = [length, kind].map(u16::to_ne_bytes);
            [length, kind].concat()
        });
        let expected = [&words[0][..], b"cake\0\0\0\0", &words[1], &words[2], &[0; 4]].concat();
        assert_eq!(bytes, expected);
    }
}
