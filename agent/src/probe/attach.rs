//! The programs and where they hang: on each interface TCX links, pinned, where the kernel has them (6.6), else filters of a clsact qdisc; and
//! before them, where that is wanted and can be, [`super::early`]'s in the driver.
//!
//! A pin is named by the interface's number, which is its own for as long as it is there, whatever its name becomes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;
use usher_models::wire::Direction;

use super::early::{Early, Xdp};
use super::interfaces::{Interface, Link};
use super::maps::{kernel, remove};
use super::{ProbeConfig, ProbeError, interfaces, netlink, tcx};

/// Which hook of the kernel to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attach {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// Filters of a clsact qdisc, on any kernel.
    Clsact,
}

impl Attach {
    /// Whether TCX is used.
    pub(super) fn has_tcx(self) -> bool {
        let kernel_has = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
        self == Self::Auto && kernel_has
    }
}

/// The programs that every probe has in the kernel, so that what is loaded is known to be taken. Those for frames without a link-layer
/// header are loaded for the first interface that has such: the verifier takes seconds of a slow CPU.
pub(super) const PROGRAMS: [&str; 3] = ["usher_up", "usher_down", MEASURE];

/// What the others call with a packet that is to be measured.
pub(super) const MEASURE: &str = "usher_measure";

/// The program for frames of a kind in a direction.
pub(super) const fn program_name(link: Link, direction: Direction) -> &'static str {
    match (link, direction) {
        (Link::Ip, Direction::Up) => "usher_ip_up",
        (Link::Ip, Direction::Down) => "usher_ip_down",
        (_, Direction::Up) => "usher_up",
        (_, Direction::Down) => "usher_down",
    }
}

/// What comes in at a subscriber-facing interface goes up.
const fn hook(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Up => TcAttachType::Ingress,
        Direction::Down => TcAttachType::Egress,
    }
}

/// The pin of a link, `link_up_7` on interface 7. A filter keeps itself; its program is pinned so as to say that it is there.
fn pin(directory: &Path, kind: Kind, direction: Direction, index: u32) -> PathBuf {
    let kind = match kind {
        Kind::Link => "link",
        Kind::Filter => "filter",
    };
    let way = match direction {
        Direction::Up => "up",
        Direction::Down => "down",
    };
    directory.join(format!("{kind}_{way}_{index}"))
}

#[derive(Clone, Copy)]
enum Kind {
    Link,
    Filter,
}

const KINDS: [Kind; 2] = [Kind::Link, Kind::Filter];

/// The pin of the link to the program in the driver of an interface.
fn early_pin(directory: &Path, index: u32) -> PathBuf {
    directory.join(format!("xdp_up_{index}"))
}

/// The interfaces on which programs of this directory hang.
pub(super) fn attached(directory: &Path) -> BTreeSet<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let index = |name: &str| {
        let (stem, index) = name.rsplit_once('_')?;
        let is_ours = matches!(stem, "link_up" | "link_down" | "filter_up" | "filter_down" | "xdp_up");
        if is_ours { index.parse().ok() } else { None }
    };
    entries.filter_map(|entry| entry.file_name().to_str().and_then(index)).collect()
}

/// Our filter's place in a clsact qdisc: fixed, so that the next agent finds it.
const PRIORITY: u16 = 0x5553;
const HANDLE: TcHandle = TcHandle::new(0, 1);
/// The same as the kernel shows it.
const HANDLE_NUMBER: u32 = 1;

/// A program of the object.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, ProbeError> {
    let program = ebpf.program_mut(name).ok_or(ProbeError::NotInObject { name })?;
    program.try_into().map_err(kernel("open a program"))
}

/// What is done where the kernel is asked what hangs on an interface.
pub(super) const ASKING: &str = "ask for the programs of an interface";

/// How often a program is handed to the verifier at the most: it stops wherever a signal reaches the thread (EAGAIN), were it only the one
/// to read a file again.
const MOST_LOADS: usize = 10;

/// Hands a program to the kernel's verifier, once.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), ProbeError> {
    let program = program(ebpf, name)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    verified(|| program.load())
}

/// Loads a program, again where the verifier was stopped.
pub(super) fn verified(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProbeError> {
    let stopped = |loaded: &Result<(), ProgramError>| match loaded {
        Err(ProgramError::LoadError { io_error, .. }) => io_error.kind() == ErrorKind::WouldBlock,
        _ => false,
    };
    let mut loaded = load();
    for _ in 1..MOST_LOADS {
        if !stopped(&loaded) {
            break;
        }
        loaded = load();
    }
    loaded.map_err(kernel("load the probe's programs"))
}

/// The interfaces that carry the programs.
pub(super) struct Attachments {
    pins: PathBuf,
    tcx: bool,
    early: Early,
    on: BTreeMap<u32, Interface>,
}

impl Attachments {
    /// None yet.
    pub(super) fn new(pins: &Path, attach: Attach, xdp: Xdp) -> Self {
        let early = Early::new(xdp, attach);
        Self { pins: pins.to_owned(), tcx: attach.has_tcx(), early, on: BTreeMap::new() }
    }

    /// Those that carry them, by index.
    pub(super) fn on(&self) -> &BTreeMap<u32, Interface> {
        &self.on
    }

    /// How many of them have a program in the driver.
    pub(super) fn in_driver(&self) -> usize {
        self.early.on.len()
    }

    /// Hangs the programs where an interface's packets are. A pinned link of a former agent gets the new program in one step: no packet
    /// is seen by both or by none.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, interface: &Interface) -> Result<(), ProbeError> {
        for direction in Direction::BOTH {
            let name = program_name(interface.link, direction);
            load(ebpf, name)?;
            let program = program(ebpf, name)?;
            let [link, filter] = KINDS.map(|kind| pin(&self.pins, kind, direction, interface.index));
            // A former agent may have been told to use the other hook; a packet must not be counted twice.
            if self.tcx {
                take_off_filter(interface, direction);
                remove(&filter)?;
                if !adopt_link(program, interface, direction, &link)? {
                    remove(&link)?;
                    attach_link(program, &interface.name, direction, &link)?;
                }
            } else {
                remove(&link)?;
                remove(&filter)?;
                program.pin(&filter).map_err(kernel("pin the probe's programs"))?;
                attach_filter(program, interface, direction)?;
            }
        }
        self.on.insert(interface.index, interface.clone());
        // After those that know what to make of its word, whether it comes or goes.
        self.early.attach(ebpf, interface, &early_pin(&self.pins, interface.index))
    }

    /// Takes the programs off an interface that should not carry them any more, or forgets one that is gone.
    pub(super) fn detach(&mut self, index: u32, present: &[Interface]) -> Result<(), ProbeError> {
        self.early.detach(index, &early_pin(&self.pins, index))?;
        if let Some(interface) = present.iter().find(|interface| interface.index == index) {
            take_off_filters(interface);
        }
        for direction in Direction::BOTH {
            for kind in KINDS {
                // A link's last reference is its pin.
                remove(&pin(&self.pins, kind, direction, index))?;
            }
        }
        self.on.remove(&index);
        Ok(())
    }

    /// The interfaces on which not all programs are where they were put, or it cannot be told: then with the reason. Among them may be
    /// some that are gone.
    pub(super) fn amiss(&self, ebpf: &mut Ebpf) -> Vec<(u32, Option<ProbeError>)> {
        let amiss = |interface: &Interface| match self.stands(ebpf, interface) {
            Ok(true) => None,
            Ok(false) => Some((interface.index, None)),
            Err(error) => Some((interface.index, Some(error))),
        };
        self.on.values().filter_map(amiss).collect()
    }

    /// Whether all programs are where they were put.
    fn stands(&self, ebpf: &mut Ebpf, interface: &Interface) -> Result<bool, ProbeError> {
        for direction in Direction::BOTH {
            let hangs = if self.tcx {
                hangs(program(ebpf, program_name(interface.link, direction))?, interface.index, direction)?
            } else {
                netlink::has_filter(interface.index, direction, (PRIORITY, HANDLE_NUMBER))
                    .map_err(kernel(ASKING))?
            };
            if !hangs {
                return Ok(false);
            }
        }
        self.early.stands(ebpf, interface.index)
    }

    /// Forgets that an interface carries the programs.
    pub(super) fn forget(&mut self, index: u32) {
        self.on.remove(&index);
    }

    /// Notes an interface's new name.
    pub(super) fn rename(&mut self, interface: &Interface) {
        self.on.insert(interface.index, interface.clone());
    }
}

/// Takes the programs off all interfaces, whichever way they hang.
pub(super) fn detach_all(settings: &ProbeConfig) -> Result<(), ProbeError> {
    let present = netlink::interfaces().map_err(kernel("list the interfaces"))?;
    let mut attachments = Attachments::new(&settings.pin_dir, settings.attach, settings.xdp);
    let mut indices = attached(&settings.pin_dir);
    // Filters of the time before these were pinned.
    indices.extend(interfaces::choose(&settings.interfaces, &present).chosen.into_keys());
    indices.into_iter().try_for_each(|index| attachments.detach(index, &present))
}

/// Puts the program into a pinned link; false where that is not there, or hangs on nothing or elsewhere. Where that cannot be told it is an
/// error: to make the link anew would leave a gap in counting.
fn adopt_link(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
    pin: &Path,
) -> Result<bool, ProbeError> {
    let link = PinnedLink::from_pin(pin).map(FdLink::from).and_then(SchedClassifierLink::try_from);
    let Ok(link) = link else { return Ok(false) };
    let adopted = match program.attach_to_link(link) {
        Ok(id) => {
            // Only our descriptor of it goes: the pin keeps the link.
            drop(program.take_link(id).map_err(kernel("adopt a pinned link"))?);
            hangs(program, interface.index, direction)?
        }
        Err(_) => false,
    };
    if !adopted {
        tracing::info!(
            interface = interface.name,
            pin = %pin.display(),
            "a pinned link is of an interface that is gone: attaching anew"
        );
    }
    Ok(adopted)
}

/// Whether the program is on this interface of this network namespace: another one may use the same number.
fn hangs(program: &SchedClassifier, interface: u32, direction: Direction) -> Result<bool, ProbeError> {
    let ours = program.info().map_err(kernel(ASKING))?.id();
    Ok(tcx::programs(interface, direction).map_err(kernel(ASKING))?.contains(&ours))
}

fn attach_link(
    program: &mut SchedClassifier,
    interface: &str,
    direction: Direction,
    pin: &Path,
) -> Result<(), ProbeError> {
    let doing = "attach the probe's programs";
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, hook(direction), order).map_err(kernel(doing))?;
    let link = program.take_link(id).map_err(kernel(doing))?;
    let link = FdLink::try_from(link).map_err(kernel(doing))?;
    link.pin(pin).map_err(kernel("pin the probe's links"))?;
    Ok(())
}

fn attach_filter(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
) -> Result<(), ProbeError> {
    let doing = "attach the probe's programs";
    let (name, hook) = (interface.name.as_str(), hook(direction));
    let ours = SchedClassifierLink::attached(name, hook, PRIORITY, HANDLE, None)
        .map_err(ProgramError::from)
        .map_err(kernel(doing))?;
    // Replaces the filter of a former agent, if there is one.
    let id = if let Ok(id) = program.attach_to_link(ours) {
        id
    } else {
        // Refused where the interface has the qdisc already.
        let _ = tc::qdisc_add_clsact(name);
        let place = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach_with_options(name, hook, TcAttachOptions::Netlink(place)).map_err(kernel(doing))?
    };
    // Dropped, it would detach: the filter stays when the agent goes.
    std::mem::forget(program.take_link(id).map_err(kernel(doing))?);
    Ok(())
}

/// Takes our filter of a direction off an interface; how many there were.
fn take_off_filter(interface: &Interface, direction: Direction) -> usize {
    // Where there is no such filter, or no such interface any more, there is nothing to take off.
    let names = [Link::Ethernet, Link::Ip].map(|link| program_name(link, direction));
    let taken_off = |name: &&str| tc::qdisc_detach_program(&interface.name, hook(direction), name).is_ok();
    names.iter().filter(|name| taken_off(name)).count()
}

/// Takes our filters off an interface, and the qdisc they were in if nothing else is in it.
fn take_off_filters(interface: &Interface) {
    let taken: usize =
        Direction::BOTH.into_iter().map(|direction| take_off_filter(interface, direction)).sum();
    if taken > 0
        && let Err(error) = netlink::remove_empty_clsact(interface.index)
    {
        tracing::info!(interface = interface.name, "the clsact qdisc stays: {error}");
    }
}
