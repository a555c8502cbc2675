//! The trees on interfaces: planted where packets leave, made to hold the classes there are, and taken off again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use usher_models::wire::{Direction, tree};

use super::htb::{self, Root};
use super::lengths::Lengths;
use super::plan::Class;
use super::{Leaf, name};
use crate::probe::ProbeError;
use crate::probe::interfaces::{Interface, Link};
use crate::probe::maps::kernel;

/// The most interfaces with a tree in a direction: each has all classes.
const MAX_TREES: usize = 16;

/// Classes that may be missing in a tree that is adopted.
const MAX_MISSING: usize = 64;

/// The setting by which forwarding gives IPv4 packets another priority.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward_update_priority";

/// A VLAN's tag is put into it below the tree.
const ETHERNET_HEADER: u8 = 14;

const CHANGING: &str = "change the classes that shape packets";

/// A tree that an agent with these pins has planted, as an empty directory among them says: `tree_down_7_pfifo`.
struct Note {
    interface: u32,
    leaf: String,
    path: PathBuf,
}

fn stem(direction: Direction) -> &'static str {
    match direction {
        Direction::Up => "tree_up_",
        Direction::Down => "tree_down_",
    }
}

fn notes(pins: &Path, direction: Direction) -> Vec<Note> {
    let entries = fs::read_dir(pins).into_iter().flatten().flatten();
    let note = |path: PathBuf| {
        let rest = path.file_name()?.to_str()?.strip_prefix(stem(direction))?;
        let (interface, leaf) = rest.split_once('_')?;
        Some(Note { interface: interface.parse().ok()?, leaf: leaf.to_owned(), path })
    };
    entries.filter_map(|entry| note(entry.path())).collect()
}

/// The trees that stand already on the interfaces by which packets of a direction leave, or what keeps them from being shaped there. Changes
/// nothing.
pub(super) fn check(
    direction: Direction,
    on: &[&Interface],
    pins: &Path,
) -> Result<BTreeSet<u32>, ProbeError> {
    let way = name(direction);
    if on.is_empty() {
        return Err(ProbeError::NothingToShapeOn { way });
    }
    if on.len() > MAX_TREES {
        return Err(ProbeError::TooManyTrees { way, interfaces: on.len(), most: MAX_TREES });
    }
    // A packet from a subscriber gets its class where it comes in.
    if direction == Direction::Up && fs::read_to_string(FORWARDING).is_ok_and(|set| set.trim() != "0") {
        return Err(ProbeError::ForwardingForgets);
    }
    let noted: BTreeSet<u32> = notes(pins, direction).into_iter().map(|note| note.interface).collect();
    let mut standing = BTreeSet::new();
    for interface in on {
        let root = htb::root(interface.index, direction).map_err(kernel("look at a queueing discipline"))?;
        let foreign = match root {
            Root::Kernels => continue,
            Root::Ours if noted.contains(&interface.index) => {
                standing.insert(interface.index);
                continue;
            }
            // Of an agent with other pins.
            Root::Ours => tree(direction),
            Root::Foreign(handle) => handle.major,
        };
        return Err(ProbeError::ForeignQdisc { interface: interface.name.clone(), handle: foreign });
    }
    Ok(standing)
}

/// Takes the trees of a direction off the interfaces that should not have one any more.
pub(super) fn uproot(
    pins: &Path,
    direction: Direction,
    keep: impl Fn(u32) -> bool,
) -> Result<(), ProbeError> {
    for note in notes(pins, direction).into_iter().filter(|note| !keep(note.interface)) {
        take_off(&note, direction)?;
    }
    Ok(())
}

/// Takes all trees of a direction off.
pub(in crate::probe) fn uproot_all(pins: &Path, direction: Direction) -> Result<(), ProbeError> {
    uproot(pins, direction, |_| false)
}

fn take_off(note: &Note, direction: Direction) -> Result<(), ProbeError> {
    let taken = match htb::root(note.interface, direction) {
        Ok(Root::Ours) => htb::remove(note.interface, direction),
        // Somebody has put another one there.
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    match taken {
        Err(error) if !is_gone(&error) => {
            return Err(kernel("take the classes that shape packets off an interface")(error));
        }
        _ => {}
    }
    fs::remove_dir(&note.path).map_err(|source| ProbeError::File {
        doing: "remove",
        path: note.path.clone(),
        source,
    })
}

/// Makes an empty tree on an interface. Somebody else's is left alone.
pub(super) fn plant(interface: u32, direction: Direction, pins: &Path, leaf: Leaf) -> Result<(), ProbeError> {
    for note in notes(pins, direction).into_iter().filter(|note| note.interface == interface) {
        take_off(&note, direction)?;
    }
    let note = pins.join(format!("{}{interface}_{}", stem(direction), leaf.name()));
    fs::create_dir(&note).map_err(|source| ProbeError::File { doing: "make", path: note, source })?;
    htb::make(interface, direction).map_err(kernel(CHANGING))
}

/// Has packets count for their IP bytes in a tree. On an interface that is gone there are none.
pub(super) fn count_ip(interface: &Interface, direction: Direction) -> Result<(), ProbeError> {
    let header = if interface.link == Link::Ethernet { ETHERNET_HEADER } else { 0 };
    match htb::count_by(interface.index, direction, &Lengths::new(header, interface.mtu)) {
        Err(error) if !is_gone(&error) => Err(kernel(CHANGING)(error)),
        _ => Ok(()),
    }
}

/// Makes a standing tree hold these classes, where it holds nearly all of them: an agent that died has left little undone. Gives what it holds
/// besides; `None`: it is too different, or its queues are of another kind.
pub(super) fn adopt(
    interface: u32,
    direction: Direction,
    classes: &BTreeMap<u16, Class>,
    (pins, leaf): (&Path, Leaf),
) -> Result<Option<Vec<(u16, Class)>>, ProbeError> {
    let noted = notes(pins, direction).into_iter().find(|note| note.interface == interface);
    if noted.is_none_or(|note| note.leaf != leaf.name()) {
        return Ok(None);
    }
    let there: BTreeMap<u16, Class> =
        htb::classes(interface, direction).map_err(kernel(CHANGING))?.into_iter().collect();
    let elsewhere = |(minor, class): (&u16, &Class)| {
        there.get(minor).is_some_and(|it| it.parent != class.parent || it.queues != class.queues)
    };
    let missing = classes.keys().filter(|minor| !there.contains_key(minor)).count();
    if missing > MAX_MISSING || classes.iter().any(elsewhere) {
        return Ok(None);
    }
    for inner in [false, true] {
        for (minor, class) in classes.iter().filter(|(_, class)| class.parent.is_some() == inner) {
            if there.get(minor) != Some(class) {
                set(interface, direction, (*minor, class), leaf).map_err(kernel(CHANGING))?;
            }
        }
    }
    Ok(Some(there.into_iter().filter(|(minor, _)| !classes.contains_key(minor)).collect()))
}

/// Makes or changes a class and what queues in it.
pub(super) fn set(
    interface: u32,
    direction: Direction,
    (minor, class): (u16, &Class),
    leaf: Leaf,
) -> io::Result<()> {
    htb::set(interface, direction, minor, class)?;
    if class.queues {
        htb::queue(interface, direction, minor, class, leaf)?;
    }
    Ok(())
}

/// Removes a class; one that is gone, with its interface or without, is no error.
pub(super) fn unset(interface: u32, direction: Direction, minor: u16) -> io::Result<()> {
    match htb::unset(interface, direction, minor) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the interface, or what was asked about, is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}
