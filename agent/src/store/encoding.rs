//! How things stand in the store's tables.

use redb::{ReadableTable, StorageError};
use usher_models::wire::{Cell, Class, Direction, SlotUsage};

use super::StoreError;

/// Counters of a slot: a bit for each cell that is not zero, then those cells. Little endian.
pub(super) fn encode(usage: &SlotUsage) -> Vec<u8> {
    let mut present = 0_u16;
    let mut bytes = vec![0; 2];
    for (bit, cell) in usage.cells.iter().flatten().enumerate() {
        if *cell != Cell::default() {
            present |= 1 << bit;
            for counter in [cell.bytes, cell.packets, cell.dropped_bytes, cell.dropped_packets] {
                bytes.extend(counter.to_le_bytes());
            }
        }
    }
    bytes[..2].copy_from_slice(&present.to_le_bytes());
    bytes
}

/// The reverse of [`encode`]; `None`: the entry is damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<SlotUsage> {
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

const _: () = assert!(Class::COUNT * Direction::BOTH.len() == u16::BITS as usize);

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

    proptest! {
        #[test]
        fn counters_survive_the_file(cells in proptest::collection::vec((0..16_usize, any::<[u64; 4]>()), 0..8)) {
            let mut usage = SlotUsage::default();
            for (at, [bytes, packets, dropped_bytes, dropped_packets]) in cells {
                usage.cells[at / 2][at % 2] = Cell { bytes, packets, dropped_bytes, dropped_packets };
            }
            prop_assert_eq!(decode(&encode(&usage)), Some(usage));
        }

        #[test]
        fn reading_damaged_counters_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes);
        }
    }
}
