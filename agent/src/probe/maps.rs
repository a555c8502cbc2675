//! The probe's maps: their names, how they are loaded, and typed access.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapData, MapError, PerCpuArray, ProgramArray};
use aya::{Ebpf, EbpfLoader, Pod};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use usher_models::units::Micros;
use usher_models::wire::{
    ANONYMOUS, Config, Direction, FlowLine, PREFIX_BITS, QUALITY_WAYS, Reason, SlotUsage, Tally,
};

use super::apps::AppLanes;
use super::attach::{self, MEASURE};
use super::error::errno;
use super::lanes::Lanes;
use super::layout::shapes;
use super::quality::Qualities;
use super::table::FlowTable;
use super::{ProbeConfig, ProbeError};

pub(super) const CONFIG: &str = "usher_config";
pub(super) const SESSIONS: &str = "usher_sessions";
pub(super) const FLOWS: &str = "usher_flows";
pub(super) const DETAILS: &str = "usher_details";
pub(super) const LANES: &str = "usher_lanes";
pub(super) const APPS: &str = "usher_apps";
pub(super) const ANONYMOUS_USAGE: &str = "usher_anonymous";
pub(super) const RATIONS: &str = "usher_rations";
pub(super) const TALLIES: &str = "usher_tallies";
pub(super) const QUALITY: &str = "usher_quality";
/// Not pinned: it belongs to the programs that were loaded with it.
const REST: &str = "usher_rest";
pub(super) const REST_XDP: &str = "usher_rest_xdp";
pub(super) const SAMPLES: &str = "usher_samples";

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

/// Records of quality there are where so many are wanted: a power of two, and a group at the least.
pub(super) fn quality_records(wanted: u32) -> u32 {
    wanted.clamp(QUALITY_WAYS, 1 << 22).next_power_of_two()
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
    pub(super) apps: Arc<AppLanes>,
    pub(super) qualities: Qualities,
    /// Measuring ends with it.
    _rest: ProgramArray<MapData>,
}

/// The flow table, whose flows are found as the config says.
pub(super) fn flow_table(
    ebpf: &mut Ebpf,
    settings: &ProbeConfig,
    config: &Config,
    apps: Arc<AppLanes>,
) -> Result<FlowTable, ProbeError> {
    FlowTable::take(ebpf, [FLOWS, DETAILS], FlowLine::lines(settings.max_flows), config, apps)
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf, settings: &ProbeConfig) -> Result<Self, ProbeError> {
        let lanes = Lanes::take(ebpf, LANES, settings.max_subscribers.max(1))?;
        let apps = Arc::new(AppLanes::take(ebpf, APPS, settings.max_apps)?);
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
            apps,
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
        let is_full = |error: &MapError| matches!(errno(error), Some(libc::ENOSPC | libc::E2BIG));
        let mut bound = self.sessions.insert(&key, slot, 0);
        // A full trie of an older kernel has no room even for a prefix that it holds.
        if bound.as_ref().is_err_and(is_full) && self.sessions.remove(&key).is_ok() {
            bound = self.sessions.insert(&key, slot, 0);
        }
        bound.map_err(|error| {
            if is_full(&error) {
                ProbeError::SessionsFull { prefix, limit }
            } else {
                kernel("bind a prefix")(error)
            }
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

    /// Packets counted by one reason, both ways.
    pub(super) fn packets(&self, reason: Reason) -> Result<u64, ProbeError> {
        let tallies = self.tallies()?;
        Ok(tallies.iter().filter(|(other, ..)| *other == reason).map(|(.., tally)| tally.packets).sum())
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
}
