//! The programs and where they hang: TCX links, pinned, where the kernel has them (6.6), else filters of a clsact qdisc.

use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;

use super::maps::{kernel, remove};
use super::{ProbeConfig, ProbeError};

/// Which hook of the kernel to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attach {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// Filters of a clsact qdisc, on any kernel.
    Clsact,
}

pub(super) const UP: &str = "usher_up";
pub(super) const DOWN: &str = "usher_down";

/// What the two others call with a packet that is to be measured.
pub(super) const MEASURE: &str = "usher_measure";

/// All programs of the object.
pub(super) const PROGRAMS: [&str; 3] = [UP, DOWN, MEASURE];
/// The pins of the links, in the order of [`HOOKS`].
pub(super) const LINKS: [&str; 2] = ["link_up", "link_down"];
/// Which program hangs where.
const HOOKS: [(&str, TcAttachType); 2] = [(UP, TcAttachType::Ingress), (DOWN, TcAttachType::Egress)];

/// Our filter's place in a clsact qdisc: fixed, so that the next agent finds it.
const PRIORITY: u16 = 0x5553;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// A program of the object.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, ProbeError> {
    let program = ebpf.program_mut(name).ok_or(ProbeError::NotInObject { name })?;
    program.try_into().map_err(kernel("open a program"))
}

/// Hands a program to the kernel's verifier.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), ProbeError> {
    program(ebpf, name)?.load().map_err(kernel("load the probe's programs"))
}

/// Hangs the programs where the packets are. A pinned link of a former agent gets the new program in one step: no packet
/// is seen by both or by none.
///
/// `same_interface` says whether the pinned links, if there are any, should be on this interface.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    settings: &ProbeConfig,
    same_interface: bool,
) -> Result<(), ProbeError> {
    let has_tcx = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
    let tcx = settings.attach == Attach::Auto && has_tcx;
    for ((name, hook), link) in HOOKS.into_iter().zip(LINKS) {
        let program = program(ebpf, name)?;
        let pin = settings.pin_dir.join(link);
        if tcx {
            // A former agent may have been told to use clsact; a packet must not be counted twice.
            let _ = tc::qdisc_detach_program(&settings.interface, hook, name);
            if !(same_interface && adopt_link(program, &settings.interface, hook, &pin)) {
                remove(&pin)?;
                attach_link(program, &settings.interface, hook, &pin)?;
            }
        } else {
            remove(&pin)?;
            attach_filter(program, &settings.interface, hook)?;
        }
    }
    Ok(())
}

/// Puts the program into a pinned link; false where that is not there, or hangs on nothing or elsewhere.
fn adopt_link(program: &mut SchedClassifier, interface: &str, hook: TcAttachType, pin: &Path) -> bool {
    let link = PinnedLink::from_pin(pin).map(FdLink::from).and_then(SchedClassifierLink::try_from);
    let Ok(link) = link else { return false };
    let adopted = match program.attach_to_link(link) {
        // Only our descriptor of it goes: the pin keeps the link.
        Ok(id) => program.take_link(id).is_ok() && hangs(program, interface, hook),
        Err(_) => false,
    };
    if !adopted {
        tracing::info!(interface, pin = %pin.display(), "a pinned link is of an interface that is gone: attaching anew");
    }
    adopted
}

/// Whether the program is on this interface, as seen from this network namespace: another one may use the same number.
fn hangs(program: &SchedClassifier, interface: &str, hook: TcAttachType) -> bool {
    let Ok(id) = program.info().map(|info| info.id()) else { return false };
    SchedClassifier::query_tcx(interface, hook)
        .is_ok_and(|(_, programs)| programs.iter().any(|other| other.id() == id))
}

fn attach_link(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    pin: &Path,
) -> Result<(), ProbeError> {
    let doing = "attach the probe's programs";
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, hook, order).map_err(kernel(doing))?;
    let link = program.take_link(id).map_err(kernel(doing))?;
    let link = FdLink::try_from(link).map_err(kernel(doing))?;
    link.pin(pin).map_err(kernel("pin the probe's links"))?;
    Ok(())
}

fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
) -> Result<(), ProbeError> {
    let doing = "attach the probe's programs";
    let ours = SchedClassifierLink::attached(interface, hook, PRIORITY, HANDLE, None)
        .map_err(ProgramError::from)
        .map_err(kernel(doing))?;
    // Replaces the filter of a former agent, if there is one.
    let id = if let Ok(id) = program.attach_to_link(ours) {
        id
    } else {
        // Refused where the interface has the qdisc already.
        let _ = tc::qdisc_add_clsact(interface);
        let place = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program
            .attach_with_options(interface, hook, TcAttachOptions::Netlink(place))
            .map_err(kernel(doing))?
    };
    // Dropped, it would detach: the filter stays when the agent goes.
    std::mem::forget(program.take_link(id).map_err(kernel(doing))?);
    Ok(())
}

/// Takes the programs off the interface, whichever way they hang.
pub(super) fn detach(settings: &ProbeConfig) -> Result<(), ProbeError> {
    for ((name, hook), link) in HOOKS.into_iter().zip(LINKS) {
        // The link's last reference is its pin.
        remove(&settings.pin_dir.join(link))?;
        // Where there is no such filter, or no such interface any more, there is nothing to take off.
        let _ = tc::qdisc_detach_program(&settings.interface, hook, name);
    }
    Ok(())
}
