//! The probe's maps: their names and sizes, whether pinned ones may be adopted, and typed access.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, ProgramArray};
use aya::{Ebpf, EbpfLoader, Pod};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use usher_models::units::Micros;
use usher_models::wire::{
    ANONYMOUS, Config, Direction, FlowDetails, FlowLine, LAYOUT, Lane, PREFIX_BITS, QUALITY_WAYS, Quality,
    Reason, SLOT_LANES, SlotUsage, Tally, WAYS,
};

use super::attach::{self, LINKS, MEASURE};
use super::error::errno;
use super::lanes::Lanes;
use super::quality::Qualities;
use super::table::FlowTable;
use super::{ProbeConfig, ProbeError};

const CONFIG: &str = "usher_config";
const SESSIONS: &str = "usher_sessions";
const FLOWS: &str = "usher_flows";
const DETAILS: &str = "usher_details";
const LANES: &str = "usher_lanes";
const ANONYMOUS_USAGE: &str = "usher_anonymous";
const RATIONS: &str = "usher_rations";
const TALLIES: &str = "usher_tallies";
const QUALITY: &str = "usher_quality";
/// Not pinned: it belongs to the programs that were loaded with it.
const REST: &str = "usher_rest";
pub(super) const SAMPLES: &str = "usher_samples";

/// Sizes that the config had, and the layout of the maps beside it.
const FORMER_LAYOUTS: [(u32, u32); 2] = [(72, 1), (240, 2)];

/// The compiled programs, as `scripts/probe.sh` left them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/usher-probe.o");

/// A record both sides know, as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Record<T>(T);

macro_rules! record {
    ($($record:ty),+) => {$(
        // SAFETY: `#[repr(transparent)]` over a `#[repr(C)]` record of `models::wire`: without padding, valid for any bit
        // pattern, 'static, and asserted in size there.
        #[expect(unsafe_code, reason = "aya reads and writes records as bytes")]
        unsafe impl Pod for Record<$record> {}
    )+};
}

record!(Config, SlotUsage, Tally);

/// A pinned map: its name in the object, its pin, and its sizes.
struct Shape {
    name: &'static str,
    pin: &'static str,
    key: usize,
    value: usize,
    entries: u32,
}

/// All pinned maps; `config` first, for the others mean nothing without it.
fn shapes(settings: &ProbeConfig) -> [Shape; 10] {
    let shape = |name, pin, key, value, entries| Shape { name, pin, key, value, entries };
    let reasons = u32::try_from(Reason::COUNT * Direction::BOTH.len()).unwrap_or(u32::MAX);
    let slots = settings.max_subscribers.max(1);
    let lines = FlowLine::lines(settings.max_flows);
    let ways = u32::try_from(WAYS).unwrap_or(u32::MAX);
    let slot_lanes = u32::try_from(SLOT_LANES).unwrap_or(u32::MAX);
    [
        shape(CONFIG, "config", 4, size_of::<Config>(), 1),
        shape(SESSIONS, "sessions", size_of::<Key<[u8; 16]>>(), 4, settings.max_prefixes),
        shape(FLOWS, "flows", 4, size_of::<FlowLine>(), lines),
        shape(DETAILS, "details", 4, size_of::<FlowDetails>(), lines.saturating_mul(ways)),
        shape(RATIONS, "rations", 4, 8, slots),
        shape(LANES, "lanes", 4, size_of::<Lane>(), slots.saturating_mul(slot_lanes)),
        shape(ANONYMOUS_USAGE, "anonymous", 4, size_of::<SlotUsage>(), 1),
        shape(TALLIES, "tallies", 4, size_of::<Tally>(), reasons),
        shape(QUALITY, "quality", 4, size_of::<Quality>(), quality_records(settings.max_measured)),
        shape(SAMPLES, "samples", 0, 0, ring_bytes(settings.ring_bytes)),
    ]
}

/// Records of quality there are where so many are wanted: a power of two, and a group at the least.
pub(super) fn quality_records(wanted: u32) -> u32 {
    wanted.clamp(QUALITY_WAYS, 1 << 22).next_power_of_two()
}

/// The nearest size the kernel takes for a ring: a power of two of pages.
fn ring_bytes(wanted: u32) -> u32 {
    // The largest page of any architecture.
    wanted.clamp(1 << 16, 1 << 30).next_power_of_two()
}

/// Refuses pins that this agent would misread; clears what a start that never finished left behind.
pub(super) fn check_pins(settings: &ProbeConfig) -> Result<(), ProbeError> {
    let directory = &settings.pin_dir;
    let shapes = shapes(settings);
    let layout = pinned_layout(&directory.join(shapes[0].pin))?;
    if let Some(pinned) = layout.filter(|layout| *layout != 0 && *layout != LAYOUT) {
        return Err(ProbeError::OtherLayout { directory: directory.clone(), pinned, ours: LAYOUT });
    }
    if layout.is_none_or(|layout| layout == 0) {
        // Config is written before anything is attached: without it nothing was ever counted, unless somebody removed it.
        if LINKS.iter().any(|link| directory.join(link).exists()) {
            return Err(ProbeError::Incomplete { directory: directory.clone() });
        }
        return remove_pins(directory);
    }
    for shape in &shapes {
        let pin = directory.join(shape.pin);
        if !pin.exists() {
            return Err(ProbeError::Incomplete { directory: directory.clone() });
        }
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
    }
    Ok(())
}

/// The layout a pinned config says, which is its first four bytes whatever its size; `None` where there is no pin.
fn pinned_layout(pin: &Path) -> Result<Option<u32>, ProbeError> {
    if !pin.exists() {
        return Ok(None);
    }
    let size = MapInfo::from_pin(pin).map_err(kernel("look at a pinned map"))?.value_size();
    if let Some((_, layout)) = FORMER_LAYOUTS.into_iter().find(|(former, _)| *former == size) {
        return Ok(Some(layout));
    }
    let doing = "read the pinned config";
    if usize::try_from(size) != Ok(size_of::<Config>()) {
        // Another layout for certain, and one whose number cannot be read with this one's record: its size tells it.
        let directory = pin.parent().unwrap_or(pin).to_owned();
        tracing::warn!(?directory, size, ours = size_of::<Config>(), "the pinned config has another size");
        return Err(ProbeError::OtherSize {
            pin: pin.to_owned(),
            what: "values of",
            pinned: size,
            ours: u32::try_from(size_of::<Config>()).unwrap_or(u32::MAX),
        });
    }
    let map = Map::Array(MapData::from_pin(pin).map_err(kernel(doing))?);
    let config = Array::<_, Record<Config>>::try_from(&map).map_err(kernel(doing))?;
    let Record(config) = config.get(&0, 0).map_err(kernel(doing))?;
    Ok(Some(config.layout))
}

/// Removes the pins of the maps.
pub(super) fn remove_pins(directory: &Path) -> Result<(), ProbeError> {
    for shape in shapes(&ProbeConfig::new("")) {
        remove(&directory.join(shape.pin))?;
    }
    Ok(())
}

/// Removes a pin; one that is not there is no error.
pub(super) fn remove(pin: &Path) -> Result<(), ProbeError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ProbeError::File { doing: "remove", path: pin.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Opens the object with its maps: pinned ones adopted, missing ones made and pinned.
pub(super) fn load(settings: &ProbeConfig) -> Result<Ebpf, ProbeError> {
    let shapes = shapes(settings);
    let pins: Vec<PathBuf> = shapes.iter().map(|shape| settings.pin_dir.join(shape.pin)).collect();
    let mut loader = EbpfLoader::new();
    for (shape, pin) in shapes.iter().zip(&pins) {
        loader.map_max_entries(shape.name, shape.entries).map_pin_path(shape.name, pin.as_path());
    }
    loader.load(OBJECT).map_err(kernel("load the probe's maps"))
}

/// Wraps an error of aya's.
pub(super) fn kernel<E: std::error::Error + Send + Sync + 'static>(
    doing: &'static str,
) -> impl FnOnce(E) -> ProbeError {
    move |error| ProbeError::kernel(doing)(Box::new(error))
}

/// The maps the agent reads and writes.
pub(super) struct Maps {
    config: Array<MapData, Record<Config>>,
    sessions: LpmTrie<MapData, [u8; 16], u32>,
    anonymous: PerCpuArray<MapData, Record<SlotUsage>>,
    tallies: PerCpuArray<MapData, Record<Tally>>,
    pub(super) lanes: Lanes,
    pub(super) qualities: Qualities,
    /// Measuring ends with it.
    _rest: ProgramArray<MapData>,
}

/// The flow table, whose flows are found as the config says.
pub(super) fn flow_table(
    ebpf: &mut Ebpf,
    settings: &ProbeConfig,
    config: &Config,
) -> Result<FlowTable, ProbeError> {
    FlowTable::take(ebpf, [FLOWS, DETAILS], FlowLine::lines(settings.max_flows), config.hash_keys)
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf, settings: &ProbeConfig) -> Result<Self, ProbeError> {
        let lanes = Lanes::take(ebpf, LANES, settings.max_subscribers.max(1))?;
        let records = quality_records(settings.max_measured);
        let qualities = Qualities::take(ebpf, QUALITY, records, Micros::now())?;
        let rest = ebpf.take_map(REST).ok_or(ProbeError::NotInObject { name: REST })?;
        let mut rest = ProgramArray::try_from(rest).map_err(kernel("open the probe's maps"))?;
        let measure = attach::program(ebpf, MEASURE)?;
        let measure = measure.fd().map_err(kernel("open a program"))?;
        rest.set(0, measure, 0).map_err(kernel("let packets be measured"))?;
        let mut take = |name| ebpf.take_map(name).ok_or(ProbeError::NotInObject { name });
        let doing = "open the probe's maps";
        Ok(Self {
            config: take(CONFIG)?.try_into().map_err(kernel(doing))?,
            sessions: take(SESSIONS)?.try_into().map_err(kernel(doing))?,
            anonymous: take(ANONYMOUS_USAGE)?.try_into().map_err(kernel(doing))?,
            tallies: take(TALLIES)?.try_into().map_err(kernel(doing))?,
            lanes,
            qualities,
            _rest: rest,
        })
    }

    pub(super) fn config(&self) -> Result<Config, ProbeError> {
        self.config.get(&0, 0).map(|Record(config)| config).map_err(kernel("read the probe's config"))
    }

    pub(super) fn set_config(&mut self, config: &Config) -> Result<(), ProbeError> {
        self.config.set(0, Record(*config), 0).map_err(kernel("write the probe's config"))
    }

    /// The counters of a slot; nobody's are kept by CPU.
    pub(super) fn usage(&self, slot: u32) -> Result<SlotUsage, ProbeError> {
        if slot != ANONYMOUS {
            return self.lanes.usage(slot);
        }
        let per_cpu = self.anonymous.get(&0, 0).map_err(kernel("read the counters of the anonymous"))?;
        let mut sum = SlotUsage::default();
        for Record(part) in per_cpu.iter() {
            for (cells, more) in sum.cells.iter_mut().flatten().zip(part.cells.iter().flatten()) {
                cells.bytes += more.bytes;
                cells.packets += more.packets;
                cells.dropped_bytes += more.dropped_bytes;
                cells.dropped_packets += more.dropped_packets;
            }
        }
        Ok(sum)
    }

    pub(super) fn bind(&mut self, prefix: IpNet, slot: u32, limit: u32) -> Result<(), ProbeError> {
        let key = session_key(prefix)?;
        self.sessions.insert(&key, slot, 0).map_err(|error| match errno(&error) {
            Some(libc::ENOSPC | libc::E2BIG) => ProbeError::SessionsFull { prefix, limit },
            _ => kernel("bind a prefix")(error),
        })
    }

    pub(super) fn unbind(&mut self, prefix: IpNet) -> Result<(), ProbeError> {
        match self.sessions.remove(&session_key(prefix)?) {
            Err(error) if !absent(&error) => Err(kernel("unbind a prefix")(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn bindings(&self) -> Result<Vec<(IpNet, u32)>, ProbeError> {
        let mut bindings = Vec::new();
        for entry in &self.sessions {
            let (key, slot) = entry.map_err(kernel("list the bound prefixes"))?;
            bindings.extend(session_prefix(&key).map(|prefix| (prefix, slot)));
        }
        Ok(bindings)
    }

    pub(super) fn tallies(&self) -> Result<Vec<(Reason, Direction, Tally)>, ProbeError> {
        let mut tallies = Vec::with_capacity(Reason::COUNT * 2);
        for reason in Reason::ALL {
            for direction in Direction::BOTH {
                let place = u32::try_from(reason.index() * 2 + direction.index()).unwrap_or(u32::MAX);
                let per_cpu = self.tallies.get(&place, 0).map_err(kernel("read the tallies"))?;
                let mut sum = Tally::default();
                for Record(part) in per_cpu.iter() {
                    sum.packets += part.packets;
                    sum.bytes += part.bytes;
                }
                tallies.push((reason, direction, sum));
            }
        }
        Ok(tallies)
    }
}

/// Whether a map said that it has no such key.
fn absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || errno(error) == Some(libc::ENOENT)
}

/// A prefix as the session table has it.
fn session_key(prefix: IpNet) -> Result<Key<[u8; 16]>, ProbeError> {
    match prefix.trunc() {
        IpNet::V4(net) => {
            let bits = PREFIX_BITS - 32 + u32::from(net.prefix_len());
            Ok(Key::new(bits, net.network().to_ipv6_mapped().octets()))
        }
        IpNet::V6(net) => {
            // The table is one for both families: a prefix around ::ffff:0:0/96 would take every IPv4 address.
            if net.contains(&Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)) {
                return Err(ProbeError::PrefixTooWide { prefix });
            }
            Ok(Key::new(u32::from(net.prefix_len()), net.network().octets()))
        }
    }
}

/// The prefix of a key of the session table; `None` for one this agent would not have written.
fn session_prefix(key: &Key<[u8; 16]>) -> Option<IpNet> {
    let bits = u8::try_from(key.prefix_len()).ok()?;
    let address = Ipv6Addr::from(key.data());
    match (address.to_canonical(), bits.checked_sub(96)) {
        (IpAddr::V4(address), Some(bits)) => Ipv4Net::new(address, bits).ok().map(IpNet::V4),
        _ => Ipv6Net::new(address, bits).ok().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_prefix_survives_the_session_table(v4: bool, bytes: [u8; 16], bits in 0_u8..=128) {
            let prefix = if v4 {
                IpNet::new([bytes[0], bytes[1], bytes[2], bytes[3]].into(), bits % 33)
            } else {
                IpNet::new(bytes.into(), bits)
            };
            let prefix = prefix.expect("in range").trunc();
            prop_assume!(!prefix.contains(&IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0))));
            let key = session_key(prefix).expect("not too wide");
            prop_assert_eq!(session_prefix(&key), Some(prefix));
        }
    }

    #[test]
    fn a_prefix_that_would_take_ipv4_along_is_refused() {
        for wide in ["::/0", "::/80", "::ffff:0.0.0.0/96"] {
            let error = session_key(wide.parse().expect("a prefix")).err().expect("too wide");
            assert!(error.to_string().contains(wide), "{error}");
        }
        assert!(session_key("0.0.0.0/0".parse().expect("a prefix")).is_ok());
        assert!(session_key("2000::/3".parse().expect("a prefix")).is_ok());
    }

    #[test]
    fn a_ring_has_a_size_the_kernel_takes() {
        assert_eq!(ring_bytes(4 << 20), 4 << 20);
        assert_eq!(ring_bytes((4 << 20) + 1), 8 << 20);
        assert!(ring_bytes(0) >= 4_096);
    }
}
