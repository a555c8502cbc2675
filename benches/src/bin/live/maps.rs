//! The probe's pinned maps, read beside the agent and without it: the bench's own witness.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, PerCpuArray};
use std::mem::offset_of;
use usher_models::wire::{ANONYMOUS, Cell, Class, Direction, Flow, FlowKey, PREFIX_BITS, SlotUsage};

/// A flow key as it lies in the map.
type KeyBytes = [u8; size_of::<FlowKey>()];

/// The flow table.
pub(crate) struct Flows(HashMap<MapData, KeyBytes, [u8; size_of::<Flow>()]>);

impl Flows {
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        let map = MapData::from_pin(pins.join("flows")).context("open the pinned flow table")?;
        Ok(Self(Map::HashMap(map).try_into()?))
    }

    /// A flow's class, once no more samples of it are wanted.
    pub(crate) fn verdict(&self, key: &KeyBytes) -> Option<Class> {
        let flow = self.0.get(key, 0).ok()?;
        let decided = flow[offset_of!(Flow, sampling)] == 0;
        decided.then(|| Class::from_u8(flow[offset_of!(Flow, class)]))
    }
}

/// The key of a flow of IPv4.
pub(crate) fn key(subscriber: (Ipv4Addr, u16), remote: (Ipv4Addr, u16), protocol: u8) -> KeyBytes {
    let mut key = [0; size_of::<FlowKey>()];
    let mut put = |at: usize, bytes: &[u8]| key[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(FlowKey, subscriber), &subscriber.0.to_ipv6_mapped().octets());
    put(offset_of!(FlowKey, remote), &remote.0.to_ipv6_mapped().octets());
    put(offset_of!(FlowKey, subscriber_port), &subscriber.1.to_ne_bytes());
    put(offset_of!(FlowKey, remote_port), &remote.1.to_ne_bytes());
    put(offset_of!(FlowKey, protocol), &[protocol]);
    key
}

/// The session table and the counters.
pub(crate) struct Usage {
    sessions: LpmTrie<MapData, [u8; 16], u32>,
    usage: PerCpuArray<MapData, [u8; size_of::<SlotUsage>()]>,
}

impl Usage {
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        let pinned =
            |pin| MapData::from_pin(pins.join(pin)).with_context(|| format!("open the pinned {pin}"));
        let (sessions, usage) = (Map::LpmTrie(pinned("sessions")?), Map::PerCpuArray(pinned("usage")?));
        Ok(Self { sessions: sessions.try_into()?, usage: usage.try_into()? })
    }

    /// Bytes of a subscriber's address in both directions by class, held back ones included.
    pub(crate) fn of(&self, subscriber: Ipv4Addr) -> Result<[u64; Class::COUNT]> {
        let key = Key::new(PREFIX_BITS, subscriber.to_ipv6_mapped().octets());
        let slot = self.sessions.get(&key, 0).unwrap_or(ANONYMOUS);
        anyhow::ensure!(slot != ANONYMOUS, "{subscriber} is bound to no slot");
        let per_cpu = self.usage.get(&slot, 0).context("read a slot's counters")?;
        Ok(Class::ALL.map(|class| {
            let cells = Direction::BOTH.map(|direction| {
                offset_of!(SlotUsage, cells)
                    + (class.index() * Direction::BOTH.len() + direction.index()) * size_of::<Cell>()
            });
            let fields = [offset_of!(Cell, bytes), offset_of!(Cell, dropped_bytes)];
            let number = |record: &[u8], at: usize| {
                record[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
            };
            per_cpu
                .iter()
                .map(|record| {
                    cells
                        .iter()
                        .flat_map(|cell| fields.map(|field| number(record, cell + field)))
                        .sum::<u64>()
                })
                .sum()
        }))
    }
}
