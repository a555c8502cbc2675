//! The program in the driver (XDP), where the driver runs programs: it meets what subscribers send before the kernel has made a packet of it,
//! and before the programs of traffic control, which count what it has not.
//!
//! Refuses to be where it could not count exactly: that is where the frames that a program sees are not those on the wire (generic XDP, which
//! comes after the kernel has joined packets and does not see of how many; interfaces of user space, which hand in joined ones), and where
//! somebody else's program stands between it and ours, and may lose the word that one leaves to the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{Xdp as Program, XdpLink, XdpMode};
use serde::Deserialize;
use usher_models::wire::Direction;

use super::attach::{self, ASKING, Attach};
use super::error::errno;
use super::interfaces::{Interface, Link};
use super::maps::{REST_XDP, kernel, remove};
use super::{ProbeError, netlink, tcx};

/// Whether what subscribers send is met in the driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Xdp {
    /// Nowhere.
    #[default]
    Off,
    /// Where the driver runs programs and they count exactly, else by traffic control.
    Auto,
    /// On every interface that carries the probe: one that cannot is an error, at the start or in the log, and left to traffic control.
    Native,
}

/// The program that counts.
pub(super) const EARLY: &str = "usher_xdp";
/// What is there before it.
const WAIT: &str = "usher_xdp_wait";
/// What it calls with a packet that is to be measured.
const MEASURE: &str = "usher_measure_xdp";

/// How long what was sent before a program was in the driver may take to arrive there.
const ON_THE_WAY: Duration = Duration::from_millis(20);

/// The programs of the driver.
pub(super) struct Early {
    wanted: Xdp,
    attach: Attach,
    /// Measuring ends with it. `None`: not loaded yet.
    rest: Option<ProgramArray<MapData>>,
    /// The interfaces in whose driver a program is.
    pub(super) on: BTreeSet<u32>,
}

impl Early {
    pub(super) fn new(wanted: Xdp, attach: Attach) -> Self {
        Self { wanted, attach, rest: None, on: BTreeSet::new() }
    }

    /// Takes the program out of the driver of an interface, or forgets one that is gone.
    pub(super) fn detach(&mut self, index: u32, pin: &Path) -> Result<(), ProbeError> {
        self.on.remove(&index);
        // The link's last reference is its pin.
        remove(pin)
    }

    /// Hangs the program into the driver of an interface on which those of traffic control hang already, if it is wanted there. A pinned link
    /// of a former agent gets the new program in one step.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        interface: &Interface,
        pin: &Path,
    ) -> Result<(), ProbeError> {
        if self.wanted == Xdp::Off {
            return remove(pin);
        }
        self.on.remove(&interface.index);
        let against = match refusal(interface, self.attach) {
            Some(why) => Some(why),
            None => stranger_before(ebpf, interface)?,
        };
        let done = match against {
            Some(why) => Err(why),
            None => self.hang(ebpf, interface, pin).map_err(|error| reason(&error)),
        };
        let Err(why) = done else {
            self.on.insert(interface.index);
            tracing::info!(interface = interface.name, "what subscribers send is met in the driver");
            return Ok(());
        };
        remove(pin)?;
        if self.wanted == Xdp::Native {
            return Err(ProbeError::NotInDriver { name: interface.name.clone(), why });
        }
        tracing::info!(interface = interface.name, "not in the driver: {why}");
        Ok(())
    }

    /// Whether the program is still where it was put.
    pub(super) fn stands(&self, ebpf: &mut Ebpf, index: u32) -> Result<bool, ProbeError> {
        if !self.on.contains(&index) {
            return Ok(true);
        }
        let ours = program(ebpf, EARLY)?.info().map_err(kernel(ASKING))?.id();
        Ok(netlink::program_in_driver(index).map_err(kernel(ASKING))? == Some(ours))
    }

    fn hang(&mut self, ebpf: &mut Ebpf, interface: &Interface, pin: &Path) -> Result<(), ProbeError> {
        self.load(ebpf)?;
        if adopt(program(ebpf, EARLY)?, interface, pin)? {
            return Ok(());
        }
        remove(pin)?;
        let doing = "attach the probe's program in the driver";
        let wait = program(ebpf, WAIT)?;
        let id = wait.attach_to_if_index(interface.index, XdpMode::Driver).map_err(kernel(doing))?;
        // Dropped, as by every error from here on, it would detach.
        let link = wait.take_link(id).map_err(kernel(doing))?;
        thread::sleep(ON_THE_WAY);
        let early = program(ebpf, EARLY)?;
        let id = early.attach_to_link(link).map_err(kernel(doing))?;
        let link = early.take_link(id).map_err(kernel(doing))?;
        let link = FdLink::try_from(link).map_err(kernel(doing))?;
        link.pin(pin).map_err(kernel("pin the probe's links"))?;
        Ok(())
    }

    /// Hands the programs to the kernel's verifier, once.
    fn load(&mut self, ebpf: &mut Ebpf) -> Result<(), ProbeError> {
        if self.rest.is_some() {
            return Ok(());
        }
        for name in [EARLY, WAIT, MEASURE] {
            let program = program(ebpf, name)?;
            attach::verified(|| program.load())?;
        }
        let rest = ebpf.take_map(REST_XDP).ok_or(ProbeError::NotInObject { name: REST_XDP })?;
        let mut rest = ProgramArray::try_from(rest).map_err(kernel("open the probe's maps"))?;
        let measure = program(ebpf, MEASURE)?.fd().map_err(kernel("open a program"))?;
        rest.set(0, measure, 0).map_err(kernel("let packets be measured"))?;
        self.rest = Some(rest);
        Ok(())
    }
}

/// Why the program must not be in the driver of an interface, if anything is against it that can be known without trying.
pub(super) fn refusal(interface: &Interface, attach: Attach) -> Option<String> {
    if interface.link != Link::Ethernet {
        Some("its packets have no Ethernet header".to_owned())
    } else if !interface.frames_of_the_wire {
        Some("a program there would not see the frames as they were on the wire; it can on the interfaces of network hardware and on a veth".to_owned())
    } else if !attach.has_tcx() {
        Some("the programs of traffic control, which go on with what it leaves to them, are to be first there, for which it takes TCX (Linux 6.6)".to_owned())
    } else {
        None
    }
}

/// What a failed attempt says about the driver.
fn reason(error: &ProbeError) -> String {
    let of_the_kernel = match error {
        ProbeError::Kernel { source, .. } => errno(source.as_ref()),
        _ => None,
    };
    match of_the_kernel {
        Some(libc::EOPNOTSUPP) => "it runs no programs (native XDP)".to_owned(),
        Some(libc::EBUSY | libc::EEXIST) => {
            "somebody else's XDP program is there; take it off (`ip link set dev INTERFACE xdp off`)"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, ProbeError> {
    let program = ebpf.program_mut(name).ok_or(ProbeError::NotInObject { name })?;
    program.try_into().map_err(kernel("open a program"))
}

/// Why not where traffic control runs somebody else's program before ours on what comes in: it may lose the word.
fn stranger_before(ebpf: &mut Ebpf, interface: &Interface) -> Result<Option<String>, ProbeError> {
    let ours = attach::program(ebpf, attach::program_name(interface.link, Direction::Up))?;
    let ours = ours.info().map_err(kernel(ASKING))?.id();
    let programs = tcx::programs(interface.index, Direction::Up).map_err(kernel(ASKING))?;
    let stranger = programs.first().filter(|first| **first != ours);
    Ok(stranger.map(|stranger| {
        format!(
            "traffic control runs program {stranger} there before the probe's (`bpftool prog show id {stranger}` tells more), and is to run that one first; attach it after the agent's start"
        )
    }))
}

/// Puts the program into a pinned link; false where that is not there, or hangs on nothing or elsewhere.
fn adopt(program: &mut Program, interface: &Interface, pin: &Path) -> Result<bool, ProbeError> {
    let link = PinnedLink::from_pin(pin).map(FdLink::from).and_then(XdpLink::try_from);
    let Ok(link) = link else { return Ok(false) };
    let Ok(id) = program.attach_to_link(link) else { return Ok(false) };
    // Only our descriptor of it goes: the pin keeps the link.
    drop(program.take_link(id).map_err(kernel("adopt a pinned link"))?);
    let ours = program.info().map_err(kernel(ASKING))?.id();
    Ok(netlink::program_in_driver(interface.index).map_err(kernel(ASKING))? == Some(ours))
}
