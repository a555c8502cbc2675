//! How things stand in the store's tables.

use prost::encoding::{decode_varint, encode_varint};
use redb::{ReadableTable, StorageError};
use usher_models::wire::{Cell, SlotUsage};

use super::StoreError;
use crate::usage::{CELLS, Moved, PAGE, cells};

/// A page of slots: each slot's place on it, a bit for each of its counters that is not zero, then the numbers of those. All of them
/// base 128 varints, as protobuf has them.
pub(super) fn encode_page(slots: impl Iterator<Item = (u32, SlotUsage)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (slot, usage) in slots {
        let present = usage.cells.iter().flatten().enumerate().filter(|(_, cell)| **cell != Cell::default());
        encode_varint(u64::from(slot % PAGE), &mut bytes);
        encode_varint(present.clone().fold(0, |present, (bit, _)| present | 1 << bit), &mut bytes);
        for (_, cell) in present {
            for counter in [cell.bytes, cell.packets, cell.dropped_bytes, cell.dropped_packets] {
                encode_varint(counter, &mut bytes);
            }
        }
    }
    bytes
}

/// The reverse of [`encode_page`], for the page of that number; `None`: the entry is damaged.
pub(super) fn decode_page(page: u32, mut bytes: &[u8], to: &mut Vec<Moved>) -> Option<()> {
    let first = page.checked_mul(PAGE)?;
    while !bytes.is_empty() {
        let within = u32::try_from(decode_varint(&mut bytes).ok()?).ok()?;
        let slot = first.checked_add(within).filter(|_| within < PAGE)?;
        let present = decode_varint(&mut bytes).ok()?;
        for (_, (class, direction)) in cells().enumerate().filter(|(bit, _)| present & (1 << bit) != 0) {
            let mut counter = || decode_varint(&mut bytes).ok();
            let now = Cell {
                bytes: counter()?,
                packets: counter()?,
                dropped_bytes: counter()?,
                dropped_packets: counter()?,
            };
            to.push(Moved { slot, class, direction, now });
        }
    }
    Some(())
}

/// A page of lanes of apps: each lane's place on it, then its bytes up and down; varints likewise.
pub(super) fn encode_app_page(lanes: impl Iterator<Item = (u32, [u64; 2])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (lane, [up, down]) in lanes {
        for number in [u64::from(lane % PAGE), up, down] {
            encode_varint(number, &mut bytes);
        }
    }
    bytes
}

/// The reverse of [`encode_app_page`]; `None`: the entry is damaged.
pub(super) fn decode_app_page(page: u32, mut bytes: &[u8], to: &mut Vec<(u32, [u64; 2])>) -> Option<()> {
    let first = page.checked_mul(PAGE)?;
    while !bytes.is_empty() {
        let mut number = || decode_varint(&mut bytes).ok();
        let within = u32::try_from(number()?).ok().filter(|within| *within < PAGE)?;
        to.push((first.checked_add(within)?, [number()?, number()?]));
    }
    Some(())
}

/// Counters of a slot as a row of layout 1: a bit for each cell that is not zero, then those cells. Little endian. `None`: the entry
/// is damaged.
pub(super) fn decode_row(bytes: &[u8]) -> Option<SlotUsage> {
    let (present, mut rest) = bytes.split_first_chunk::<2>()?;
    let present = u16::from_le_bytes(*present);
    let mut counter = || {
        let (counter, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        Some(u64::from_le_bytes(*counter))
    };
    let mut usage = SlotUsage::default();
    for (bit, cell) in usage.cells.iter_mut().flatten().enumerate() {
        if present & (1 << bit) != 0 {
            *cell = Cell {
                bytes: counter()?,
                packets: counter()?,
                dropped_bytes: counter()?,
                dropped_packets: counter()?,
            };
        }
    }
    rest.is_empty().then_some(usage)
}

const _: () = assert!(CELLS == u16::BITS as usize);

/// A value of fixed length; `None`: not there.
pub(super) fn number<const N: usize>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<Option<[u8; N]>, StoreError> {
    let Some(value) = table.get(name)? else { return Ok(None) };
    value.value().try_into().map(Some).map_err(|_| StoreError::broken("meta", name))
}

/// All of a table of JSON values.
pub(super) fn all<T: serde::de::DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<Vec<(String, T)>, StoreError> {
    let entries = table.iter()?;
    let read = |entry: Result<_, StorageError>| {
        let (key, value): (redb::AccessGuard<'_, &'static str>, redb::AccessGuard<'_, &'static [u8]>) =
            entry?;
        let value =
            serde_json::from_slice(value.value()).map_err(|_| StoreError::broken(name, key.value()))?;
        Ok((key.value().to_owned(), value))
    };
    entries.map(read).collect()
}

/// A value as it stands in the tables of JSON.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::broken("(new entry)", error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::usage::Baseline;
    use crate::usage::apps::AppMoved;

    proptest! {
        #[test]
        fn bytes_by_app_survive_the_file(
            before in proptest::collection::btree_map(1..3 * PAGE, any::<[u64; 2]>(), 0..40),
            after in proptest::collection::btree_map(1..3 * PAGE, any::<[u64; 2]>(), 0..40),
        ) {
            let moved = |bytes: &std::collections::BTreeMap<u32, [u64; 2]>| -> Vec<AppMoved> {
                bytes.iter().map(|(lane, now)| AppMoved { lane: *lane, slot: 1, app: "a".into(), now: *now }).collect()
            };
            let mut pages = std::collections::BTreeMap::new();
            let mut baseline = Baseline::default();
            for bytes in [&before, &after] {
                for (page, lanes) in baseline.app_pages(&moved(bytes)) {
                    pages.insert(page, encode_app_page(lanes));
                }
                for (lane, now) in bytes {
                    baseline.set_app(*lane, *now);
                }
            }
            let mut read = Vec::new();
            for (page, bytes) in &pages {
                decode_app_page(*page, bytes, &mut read).unwrap();
            }
            let mut expected = before;
            expected.extend(after);
            expected.retain(|_, bytes| *bytes != [0; 2]);
            prop_assert_eq!(read, expected.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn counters_survive_the_file(
            page in 0..1_000_u32, counters in proptest::collection::btree_map((0..PAGE, 0..CELLS), any::<[u64; 4]>(), 0..40),
        ) {
            let mut moved = Vec::new();
            for ((slot, at), [bytes, packets, dropped_bytes, dropped_packets]) in counters {
                let (class, direction) = cells().nth(at).unwrap();
                let now = Cell { bytes, packets, dropped_bytes, dropped_packets };
                moved.push(Moved { slot: page * PAGE + slot, class, direction, now });
            }
            moved.retain(|moved| moved.now != Cell::default());
            let mut read = Vec::new();
            for (page, slots) in Baseline::default().pages(&moved) {
                decode_page(page, &encode_page(slots), &mut read).unwrap();
            }
            prop_assert_eq!(read, moved);
        }

        #[test]
        fn reading_damaged_counters_never_panics(page: u32, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode_page(page, &bytes, &mut Vec::new());
            let _ = decode_app_page(page, &bytes, &mut Vec::new());
            let _ = decode_row(&bytes);
        }
    }
}
