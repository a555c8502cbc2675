//! Puts the probe on the interfaces that are to carry it, as they come and go, and tells which do not.
//!
//! [`super::interfaces`] says which those are, [`super::attach`] puts the programs on one of them.

use std::collections::BTreeSet;

use super::attach;
use super::early;
use super::environment;
use super::interfaces::{self, Choice, Interface, LeftOut};
use super::layout;
use super::maps::kernel;
use super::netlink;
use super::shaping::{self, Shaper};
use super::{Probe, ProbeConfig, ProbeError, Xdp};

/// The interfaces that a probe with these settings would be on now, or what keeps it from that.
pub fn would_be_on(settings: &ProbeConfig) -> Result<Vec<String>, ProbeError> {
    let (choice, _) = look(settings)?;
    Ok(choice.chosen.into_values().map(|interface| interface.name).collect())
}

/// What there is, and which of it is to carry the probe; all that is named must be able to.
pub(super) fn look(settings: &ProbeConfig) -> Result<(Choice, Vec<Interface>), ProbeError> {
    let present = netlink::interfaces().map_err(kernel("list the interfaces"))?;
    let choice = interfaces::choose(&settings.interfaces, &present);
    if let Some(name) = choice.missing.first() {
        let present = present.into_iter().map(|interface| interface.name).collect();
        return Err(ProbeError::NoInterface { name: name.clone(), present });
    }
    if let Some(left_out) = choice.left_out.iter().find(|left_out| left_out.named) {
        return Err(left_out.error());
    }
    if settings.xdp == Xdp::Native {
        for interface in choice.chosen.values() {
            if let Some(why) = early::refusal(interface, settings.attach) {
                return Err(ProbeError::NotInDriver { name: interface.name.clone(), why });
            }
        }
    }
    if let Some(shaping) = &settings.shaping {
        let carrying: Vec<&Interface> = choice.chosen.values().collect();
        shaping::check(&settings.pin_dir, shaping, &carrying, &present)?;
    }
    Ok((choice, present))
}

impl Probe {
    /// Puts the programs on interfaces that have come, and forgets those that are gone.
    ///
    /// What fails for one interface is tried again by the next call.
    pub fn follow_interfaces(&mut self) -> Result<Followed, ProbeError> {
        self.check_pins()?;
        let present = netlink::interfaces().map_err(kernel("list the interfaces"))?;
        let choice = interfaces::choose(&self.settings.interfaces, &present);
        self.follow(&choice, &present)
    }

    /// Notices where somebody has taken the programs off an interface (with a qdisc, or with the pins), so that the next
    /// [`Probe::follow_interfaces`] puts them there again. Asks the kernel about every interface: for now and then.
    pub fn notice_taken_off(&mut self) {
        let amiss = self.attachments.amiss(&mut self.ebpf);
        if amiss.is_empty() || self.check_pins().is_err() {
            // Without pins nothing is put anywhere: that is for the next look to say.
            return;
        }
        // Asked after the programs: on an interface that went in between there are none, and nobody has taken them off.
        let Ok(present) = netlink::interfaces() else { return };
        for (index, doubt) in amiss {
            let Some(interface) = present.iter().find(|interface| interface.index == index) else { continue };
            if let Some(error) = doubt {
                // Nothing is known against it.
                tracing::warn!(
                    interface = interface.name,
                    "it cannot be told whether the probe's programs are still on an interface: {error}"
                );
                continue;
            }
            tracing::error!(
                interface = interface.name,
                "somebody has taken the probe's programs off an interface: what passed since was not counted"
            );
            self.attachments.forget(index);
        }
    }

    /// Fails where the pins are not those of this probe any more: it outlives no agent then, and another agent may have begun.
    pub fn check_pins(&self) -> Result<(), ProbeError> {
        let directory = &self.settings.pin_dir;
        let gone = if environment::is_locked_by(directory, &self.lock) {
            let missing = layout::missing(directory, &layout::shapes(&self.settings));
            if missing.is_empty() {
                return Ok(());
            }
            layout::list(&missing)
        } else {
            "the directory".to_owned()
        };
        Err(ProbeError::PinsGone { directory: directory.clone(), gone })
    }

    /// Whether an interface should carry the programs or the classes that shape packets and does not, for it could not be done.
    pub fn interfaces_wait(&self) -> bool {
        self.without.failed > 0 || self.shaper.as_ref().is_some_and(Shaper::waits)
    }

    pub(super) fn follow(&mut self, choice: &Choice, present: &[Interface]) -> Result<Followed, ProbeError> {
        let mut followed = Followed::default();
        for (index, interface) in &choice.chosen {
            match self.attachments.on().get(index) {
                Some(before) if before.link != interface.link => self.attachments.detach(*index, present)?,
                Some(before) if before.name != interface.name => {
                    tracing::info!(
                        interface = interface.name,
                        before = before.name,
                        "an interface has another name"
                    );
                    self.attachments.rename(interface);
                    continue;
                }
                Some(_) => continue,
                None => {}
            }
            match self.attachments.attach(&mut self.ebpf, interface) {
                Ok(()) => {
                    tracing::info!(interface = interface.name, "the probe is on an interface");
                    followed.came += 1;
                }
                Err(error @ ProbeError::NotInDriver { .. }) => {
                    // Traffic control counts all of it.
                    tracing::error!(interface = interface.name, "{error}");
                    followed.came += 1;
                    followed.failed.push(Failed { index: *index, error });
                }
                Err(error) => {
                    // Half attached would be half counted.
                    self.attachments.detach(*index, present)?;
                    tracing::error!(interface = interface.name, "the probe is not on an interface: {error}");
                    followed.failed.push(Failed { index: *index, error });
                }
            }
        }
        // Also those where an agent before this one, told others, has left them.
        let on = self.attachments.on();
        let known = on.keys().copied().chain(attach::attached(&self.settings.pin_dir));
        let over: BTreeSet<u32> = known.filter(|index| !choice.chosen.contains_key(index)).collect();
        for index in over {
            let name = self.attachments.on().get(&index).map(|interface| interface.name.clone());
            self.attachments.detach(index, present)?;
            if let Some(interface) = name {
                tracing::info!(interface, "the probe is off an interface");
                followed.went += 1;
            }
        }
        let without = Without {
            missing: choice.missing.clone(),
            left_out: choice.left_out.clone(),
            failed: followed.failed.len(),
        };
        without.tell(&self.without);
        if let Some(shaper) = &mut self.shaper {
            let carrying: Vec<&Interface> = choice.chosen.values().collect();
            shaper.follow(&carrying, present, &self.maps.lanes);
        }
        followed.on = self.attachments.on().len();
        followed.in_driver = self.attachments.in_driver();
        followed.without = without.missing.len() + without.left_out.len() + without.failed;
        self.without = without;
        Ok(followed)
    }
}

/// What of the configured interfaces does not carry the programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Without {
    missing: Vec<String>,
    left_out: Vec<LeftOut>,
    failed: usize,
}

impl Without {
    /// Tells what was not so before.
    fn tell(&self, before: &Self) {
        for interface in self.missing.iter().filter(|name| !before.missing.contains(name)) {
            tracing::warn!(interface, "a configured interface is gone: the probe waits for it");
        }
        for left_out in self.left_out.iter().filter(|left_out| !before.left_out.contains(left_out)) {
            tracing::warn!(interface = left_out.name, "an interface is left out: {}", left_out.error());
        }
    }
}

/// What became of the interfaces.
#[derive(Debug, Default)]
pub struct Followed {
    /// Interfaces that carry the programs now.
    pub on: usize,
    /// Those of them on which what subscribers send is met in the driver.
    pub in_driver: usize,
    /// How many have come.
    pub came: usize,
    /// How many have gone.
    pub went: usize,
    /// What could not be attached, and why.
    pub failed: Vec<Failed>,
    /// Configured or matching interfaces that do not carry the programs: missing, left out or failed.
    pub without: usize,
}

/// An interface that could not be attached to.
#[derive(Debug)]
pub struct Failed {
    pub(super) index: u32,
    /// Why.
    pub error: ProbeError,
}
