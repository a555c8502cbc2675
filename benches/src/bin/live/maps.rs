//! The probe's pinned maps, read beside the agent and without it: the bench's own witness.

use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData};
use usher_models::wire::{
    ANONYMOUS, Cell, Class, Config, Direction, Fingerprint, Flow, FlowKey, FlowLine, FlowState, HashKeys,
    Lane, PREFIX_BITS, WAYS,
};

fn pinned(pins: &Path, pin: &str) -> Result<MapData> {
    MapData::from_pin(pins.join(pin)).with_context(|| format!("open the pinned {pin}"))
}

fn number(record: &[u8], at: usize) -> u64 {
    record.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn half(record: &[u8], at: usize) -> u32 {
    record.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn config(pins: &Path) -> Result<[u8; size_of::<Config>()]> {
    let config: Array<_, [u8; size_of::<Config>()]> = Map::Array(pinned(pins, "config")?).try_into()?;
    Ok(config.get(&0, 0)?)
}

/// The flow table.
pub(crate) struct Flows {
    table: Array<MapData, [u8; size_of::<FlowLine>()]>,
    keys: HashKeys,
    line_mask: u32,
}

impl Flows {
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        let config = config(pins)?;
        let mut keys = HashKeys::default();
        for (place, key) in keys.iter_mut().flatten().enumerate() {
            *key = number(&config, offset_of!(Config, hash_keys) + place * 8);
        }
        let line_mask = half(&config, offset_of!(Config, line_mask));
        Ok(Self { table: Map::Array(pinned(pins, "flows")?).try_into()?, keys, line_mask })
    }

    /// A flow's class, once no more samples of it are wanted.
    pub(crate) fn verdict(&self, key: &FlowKey) -> Option<Class> {
        let flow = Fingerprint::of_key(&self.keys, key);
        let first = flow.line(self.line_mask);
        [first, first ^ 1].into_iter().find_map(|line| {
            let line = self.table.get(&line, 0).ok()?;
            let mut ways = (0..WAYS).map(|way| way * size_of::<Flow>());
            let way = ways.find(|way| number(&line, way + offset_of!(Flow, fingerprint)) == flow.get())?;
            let state = FlowState(number(&line, way + offset_of!(Flow, state)));
            state.settled().then(|| state.class())
        })
    }
}

/// The key of a flow of IPv4.
pub(crate) fn key(subscriber: (Ipv4Addr, u16), remote: (Ipv4Addr, u16), protocol: u8) -> FlowKey {
    FlowKey {
        subscriber: subscriber.0.to_ipv6_mapped().octets(),
        remote: remote.0.to_ipv6_mapped().octets(),
        subscriber_port: subscriber.1,
        remote_port: remote.1,
        protocol,
        zero: [0; 3],
    }
}

/// The session table and the counters.
pub(crate) struct Usage {
    sessions: LpmTrie<MapData, [u8; 16], u32>,
    lanes: Array<MapData, [u8; size_of::<Lane>()]>,
    slots: u32,
}

impl Usage {
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        let slots = half(&config(pins)?, offset_of!(Config, slots));
        let sessions = Map::LpmTrie(pinned(pins, "sessions")?).try_into()?;
        Ok(Self { sessions, lanes: Map::Array(pinned(pins, "lanes")?).try_into()?, slots })
    }

    /// Bytes of a subscriber's address in both directions by class, held back ones included.
    pub(crate) fn of(&self, subscriber: Ipv4Addr) -> Result<[u64; Class::COUNT]> {
        let key = Key::new(PREFIX_BITS, subscriber.to_ipv6_mapped().octets());
        let slot = self.sessions.get(&key, 0).unwrap_or(ANONYMOUS);
        anyhow::ensure!(slot != ANONYMOUS, "{subscriber} is bound to no slot");
        let mut bytes = [0; Class::COUNT];
        for (class, bytes) in Class::ALL.into_iter().zip(&mut bytes) {
            for direction in Direction::BOTH {
                let place = Lane::place(self.slots, slot, class.index(), direction);
                let lane = self.lanes.get(&place, 0).context("read a slot's counters")?;
                for field in [offset_of!(Cell, bytes), offset_of!(Cell, dropped_bytes)] {
                    *bytes += number(&lane, offset_of!(Lane, cell) + field);
                }
            }
        }
        Ok(bytes)
    }
}
