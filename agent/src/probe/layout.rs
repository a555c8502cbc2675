//! Whether pinned maps may be adopted: their layout and their sizes, and what of an older layout is taken along.
//!
//! A map of another layout is never misread. What must not be lost, counters and sessions, is adopted as it is if its records have not
//! changed since; the rest is made anew while the old programs still run, and the new ones take over in one step. Where that cannot
//! be, the pins are left alone and the error names both layouts.

use std::fs;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{MapData, MapInfo};
use usher_models::wire::{
    AppLane, Config, Direction, FlowDetails, FlowLine, LAYOUT, Lane, Quality, Reason, SLOT_LANES, SlotUsage,
    Tally, WAYS,
};

use super::attach::attached;
use super::maps::{
    ANONYMOUS_USAGE, APPS, CONFIG, DETAILS, FLOWS, LANES, QUALITY, RATIONS, SAMPLES, SESSIONS, TALLIES,
    kernel, quality_records, remove,
};
use super::{ProbeConfig, ProbeError};
use crate::usage::apps::lanes;

/// A pinned map: its name in the object, its pin, and its sizes.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) pin: &'static str,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) entries: u32,
    /// The first layout in which its records were as they are now.
    since: u32,
    /// Whether what is in it must not be lost.
    precious: bool,
}

/// All pinned maps; `config` first, for the others mean nothing without it.
pub(super) fn shapes(settings: &ProbeConfig) -> [Shape; 11] {
    let shape = |name, pin, key, value, entries, since| {
        let precious = matches!(pin, "sessions" | "lanes" | "anonymous");
        Shape { name, pin, key, value, entries, since, precious }
    };
    let reasons = u32::try_from(Reason::COUNT * Direction::BOTH.len()).unwrap_or(u32::MAX);
    let slots = settings.max_subscribers.max(1);
    let lines = FlowLine::lines(settings.max_flows);
    let ways = u32::try_from(WAYS).unwrap_or(u32::MAX);
    let slot_lanes = u32::try_from(SLOT_LANES).unwrap_or(u32::MAX);
    [
        shape(CONFIG, "config", 4, size_of::<Config>(), 1, 5),
        shape(SESSIONS, "sessions", size_of::<Key<[u8; 16]>>(), 4, settings.max_prefixes, 1),
        shape(FLOWS, "flows", 4, size_of::<FlowLine>(), lines, 2),
        shape(DETAILS, "details", 4, size_of::<FlowDetails>(), lines.saturating_mul(ways), 2),
        shape(RATIONS, "rations", 4, 8, slots, 1),
        shape(LANES, "lanes", 4, size_of::<Lane>(), slots.saturating_mul(slot_lanes), 2),
        shape(APPS, "apps", 4, size_of::<AppLane>(), lanes(settings.max_apps), 5),
        shape(ANONYMOUS_USAGE, "anonymous", 4, size_of::<SlotUsage>(), 1, 2),
        shape(TALLIES, "tallies", 4, size_of::<Tally>(), reasons, 4),
        shape(QUALITY, "quality", 4, size_of::<Quality>(), quality_records(settings.max_measured), 3),
        shape(SAMPLES, "samples", 0, 0, ring_bytes(settings.ring_bytes), 1),
    ]
}

/// The nearest size the kernel takes for a ring: a power of two of pages.
fn ring_bytes(wanted: u32) -> u32 {
    // The largest page of any architecture.
    wanted.clamp(1 << 16, 1 << 30).next_power_of_two()
}

/// The pins of the links of layout 2, on the one interface whose number was in the config.
const FORMER_LINKS: [&str; 2] = ["link_up", "link_down"];

/// Where the config of an older layout is kept until the new programs have taken over.
fn former_config(directory: &Path) -> PathBuf {
    directory.join("config_former")
}

/// Makes the directory of the pins ready for this agent's maps: refuses what it would misread, clears what a start that never finished left
/// behind. `Some`: the config to go on with, of maps of an older layout; [`finish`] then ends the migration. Done again after
/// an agent that died meanwhile, it does the same.
pub(super) fn prepare(settings: &ProbeConfig) -> Result<Option<Config>, ProbeError> {
    let directory = &settings.pin_dir;
    let shapes = shapes(settings);
    let pin = directory.join(shapes[0].pin);
    let ours = pinned_config(&pin)?.filter(|config| layout(config) != 0);
    let former = match &ours {
        Some(config) if layout(config) == LAYOUT => {
            let missing = missing(directory, &shapes);
            if !missing.is_empty() {
                return begin_anew(directory, &missing).map(|()| None);
            }
            check_sizes(directory, &shapes)?;
            return Ok(None);
        }
        Some(config) => config.clone(),
        None => match pinned_config(&former_config(directory))? {
            Some(config) => config,
            // Config is written before anything is attached: without it nothing was ever counted, unless somebody removed it.
            None if attached(directory).is_empty() => return remove_pins(directory).map(|()| None),
            None => return begin_anew(directory, &missing(directory, &shapes)).map(|()| None),
        },
    };
    let pinned = layout(&former);
    let refused = || ProbeError::OtherLayout {
        directory: directory.clone(),
        pinned,
        ours: LAYOUT,
        differences: differences(directory, &shapes),
    };
    let config = taken_along(&former).ok_or_else(refused)?;
    for shape in shapes.iter().filter(|shape| shape.precious) {
        if shape.since > pinned {
            return Err(refused());
        }
    }
    let precious = || shapes.iter().filter(|shape| shape.precious);
    let missing = missing(directory, precious());
    if !missing.is_empty() {
        return begin_anew(directory, &missing).map(|()| None);
    }
    for shape in precious() {
        check_size(directory, shape)?;
    }
    tracing::info!(
        pinned,
        ours = LAYOUT,
        "maps of an older layout: counters, sessions and enforcement are taken along"
    );
    if ours.is_some() {
        rename(&pin, &former_config(directory))?;
    }
    for shape in shapes.iter().skip(1) {
        if shape.since > pinned || check_size(directory, shape).is_err() {
            remove(&directory.join(shape.pin))?;
        }
    }
    if pinned == 2 {
        for way in FORMER_LINKS {
            let link = directory.join(way);
            if link.exists() {
                rename(&link, &directory.join(format!("{way}_{}", word(&former, 24))))?;
            }
        }
    }
    Ok(Some(config))
}

/// The new programs have taken over: what was kept of an older layout is of no use any more.
pub(super) fn finish(directory: &Path) -> Result<(), ProbeError> {
    remove(&former_config(directory))
}

/// What of an older config goes on: the life of the counters, and what flows are found by. `None` for a layout that is not known, or
/// whose counters were others.
fn taken_along(former: &[u8]) -> Option<Config> {
    // layout, bypass, epoch, generation, sample_packets, sample_bytes, interface, line_mask, boot, no_link_layer, slots, sample_rate,
    // hash_keys
    const LAYOUT_2_BYTES: usize = 32 + 16 + 8 + 24 + 160;
    // As now, up to `turn`.
    const LAYOUT_4_BYTES: usize = offset_of!(Config, app_mask);
    // Up to `boot` the fields that go on lie where they lay.
    let keys = match (layout(former), former.len()) {
        (2, LAYOUT_2_BYTES) => former.get(80..)?,
        (3 | 4, LAYOUT_4_BYTES) => former.get(offset_of!(Config, hash_keys)..)?,
        _ => return None,
    };
    let mut config = Config {
        layout: LAYOUT,
        bypass: word(former, 4),
        epoch: word(former, 8),
        generation: word(former, 12),
        line_mask: word(former, 28),
        boot: former.get(32..48)?.try_into().ok()?,
        ..Config::default()
    };
    let keys = keys.chunks_exact(8).filter_map(|key| key.try_into().ok().map(u64::from_ne_bytes));
    for (ours, theirs) in config.hash_keys.iter_mut().flatten().zip(keys) {
        *ours = theirs;
    }
    Some(config)
}

fn layout(config: &[u8]) -> u32 {
    word(config, 0)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

fn check_sizes(directory: &Path, shapes: &[Shape]) -> Result<(), ProbeError> {
    shapes.iter().try_for_each(|shape| check_size(directory, shape))
}

fn check_size(directory: &Path, shape: &Shape) -> Result<(), ProbeError> {
    let pin = directory.join(shape.pin);
    let info = MapInfo::from_pin(&pin).map_err(kernel("look at a pinned map"))?;
    let sizes = [
        ("keys of", info.key_size(), shape.key),
        ("values of", info.value_size(), shape.value),
        ("entries:", info.max_entries(), usize::try_from(shape.entries).unwrap_or(usize::MAX)),
    ];
    for (what, pinned, ours) in sizes {
        let ours = u32::try_from(ours).unwrap_or(u32::MAX);
        if pinned != ours {
            return Err(ProbeError::OtherSize { pin, what, pinned, ours });
        }
    }
    Ok(())
}

/// How the pinned maps differ from this agent's, in words.
fn differences(directory: &Path, shapes: &[Shape]) -> Vec<String> {
    let mut differences = Vec::new();
    for shape in shapes {
        let ours = format!("{} of {} + {} bytes", shape.entries, shape.key, shape.value);
        let pinned = match MapInfo::from_pin(directory.join(shape.pin)) {
            Ok(info) => {
                format!("{} of {} + {} bytes", info.max_entries(), info.key_size(), info.value_size())
            }
            Err(_) => "none".to_owned(),
        };
        if pinned != ours {
            differences.push(format!("{}: {pinned} there, {ours} here", shape.pin));
        }
    }
    differences
}

/// A pinned config, of whatever layout; its number is in the first four bytes. `None` where there is no pin.
fn pinned_config(pin: &Path) -> Result<Option<Vec<u8>>, ProbeError> {
    let doing = "read the pinned config";
    if !pin.try_exists().map_err(kernel(doing))? {
        return Ok(None);
    }
    let map = MapData::from_pin(pin).map_err(kernel(doing))?;
    let size = map.info().map_err(kernel(doing))?.value_size();
    first_value(&map, usize::try_from(size).unwrap_or(0)).map(Some).map_err(kernel(doing))
}

/// The arguments of BPF_MAP_LOOKUP_ELEM (linux/bpf.h, union bpf_attr).
#[repr(C)]
struct LookUp {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The value of key 0, of a size that no record of ours may have.
fn first_value(map: &MapData, bytes: usize) -> io::Result<Vec<u8>> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    let key = 0_u32;
    // The kernel writes in eights.
    let mut value = vec![0_u8; bytes.next_multiple_of(8)];
    let arguments = LookUp {
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        zero: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "the library reads values of sizes known beforehand only")]
    // SAFETY: key and value outlive the call and are as large as the map's, of which the caller has asked the kernel; an array's value
    // takes no more than its size, rounded up to eight.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw const arguments, size_of::<LookUp>())
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(bytes);
    Ok(value)
}

/// Which of these maps have no pin.
pub(super) fn missing<'a>(
    directory: &Path,
    shapes: impl IntoIterator<Item = &'a Shape>,
) -> Vec<&'static str> {
    let pins = shapes.into_iter().map(|shape| shape.pin);
    // Where it cannot be told, nothing is known against it.
    pins.filter(|pin| matches!(directory.join(pin).try_exists(), Ok(false))).collect()
}

/// Pins as they are told to people.
pub(super) fn list(pins: &[&str]) -> String {
    pins.iter().map(|pin| format!("`{pin}`")).collect::<Vec<_>>().join(", ")
}

/// Clears what is left of pins of which somebody has removed some: what the rest says cannot be relied on. To refuse it would leave a gateway
/// without an agent, and save nothing. The links stay, and so do the programs until the new ones take over, in one step.
fn begin_anew(directory: &Path, missing: &[&str]) -> Result<(), ProbeError> {
    tracing::error!(
        directory = %directory.display(),
        missing = list(missing),
        "somebody has removed pins of the probe, whose counters begin anew: what no agent had read of the old ones is lost"
    );
    remove_pins(directory)
}

/// Removes the pins of the maps, and those that agents of other layouts have left.
pub(super) fn remove_pins(directory: &Path) -> Result<(), ProbeError> {
    for link in FORMER_LINKS {
        remove(&directory.join(link))?;
    }
    for shape in shapes(&ProbeConfig::new("")) {
        remove(&directory.join(shape.pin))?;
    }
    finish(directory)
}

fn rename(from: &Path, to: &Path) -> Result<(), ProbeError> {
    fs::rename(from, to).map_err(|source| ProbeError::File { doing: "rename", path: from.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_a_size_the_kernel_takes() {
        assert_eq!(ring_bytes(4 << 20), 4 << 20);
        assert_eq!(ring_bytes((4 << 20) + 1), 8 << 20);
        assert!(ring_bytes(0) >= 4_096);
    }

    #[test]
    fn of_an_older_config_the_life_of_the_counters_goes_on() {
        let mut former = vec![0; 240];
        for (at, word) in [(0, 2_u32), (4, 1), (8, 77), (12, 9)] {
            former[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        former[32..48].copy_from_slice(&[5; 16]);
        former[232..].copy_from_slice(&0x1234_u64.to_ne_bytes());
        let config = taken_along(&former).expect("known");
        assert_eq!((config.layout, config.bypass, config.epoch, config.generation), (LAYOUT, 1, 77, 9));
        assert_eq!((config.boot, config.hash_keys[1][9]), ([5; 16], 0x1234));
        former.pop();
        assert!(taken_along(&former).is_none(), "of another size");

        let mut next = vec![0; offset_of!(Config, app_mask)];
        next[..64].copy_from_slice(&former[..64]);
        next[0..4].copy_from_slice(&3_u32.to_ne_bytes());
        let first_key = offset_of!(Config, hash_keys);
        next[first_key..first_key + 8].copy_from_slice(&0x5678_u64.to_ne_bytes());
        let config = taken_along(&next).expect("known");
        assert_eq!((config.layout, config.bypass, config.epoch, config.generation), (LAYOUT, 1, 77, 9));
        assert_eq!((config.boot, config.hash_keys[0][0]), ([5; 16], 0x5678));
        assert!(taken_along(&[1; 240]).is_none(), "of an unknown layout");
        assert!(taken_along(&[]).is_none());
    }
}
