//! Values as text, appended to one buffer: of millions of flows, an allocation a value would cost more than naming them.
//!
//! Owns addresses and times as the standard library and jiff write them, only faster; JSON strings (RFC 8259, 7) and CSV
//! fields (RFC 4180, 2).

use std::fmt::Display;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use usher_models::units::Micros;

const MICROS_A_SECOND: i64 = 1_000_000;

/// Text that grows.
#[derive(Debug, Default)]
pub(super) struct Text {
    bytes: Vec<u8>,
    /// The last second written, and how: rows come in the order of their times.
    second: Option<(i64, String)>,
}

impl Text {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn display(&mut self, value: &impl Display) {
        // A vector takes all that is written.
        let _ = write!(self.bytes, "{value}");
    }

    pub(super) fn number(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Address and port, an IPv6 address in brackets and in its canonical form (RFC 5952).
    pub(super) fn endpoint(&mut self, endpoint: SocketAddr) {
        match endpoint.ip() {
            IpAddr::V4(address) => {
                for (number, octet) in address.octets().into_iter().enumerate() {
                    self.put(if number == 0 { b"" } else { b"." });
                    self.number(u64::from(octet));
                }
            }
            IpAddr::V6(address) => {
                self.put(b"[");
                self.display(&address);
                self.put(b"]");
            }
        }
        self.put(b":");
        self.number(u64::from(endpoint.port()));
    }

    /// RFC 3339, as exact as the stamp; a bare number where no calendar goes.
    pub(super) fn time(&mut self, at: Micros) {
        let (second, micros) = (at.get().div_euclid(MICROS_A_SECOND), at.get().rem_euclid(MICROS_A_SECOND));
        if self.second.as_ref().is_none_or(|(last, _)| *last != second) {
            self.second = jiff::Timestamp::from_second(second).ok().map(|time| (second, time.to_string()));
        }
        let Some((_, written)) = &self.second else { return self.display(&at) };
        self.bytes.extend_from_slice(written.trim_end_matches('Z').as_bytes());
        if micros > 0 {
            let digits = (micros + MICROS_A_SECOND).unsigned_abs();
            let mut buffer = itoa::Buffer::new();
            let fraction = buffer.format(digits)[1..].trim_end_matches('0');
            self.put(b".");
            self.put(fraction.as_bytes());
        }
        self.put(b"Z");
    }

    pub(super) fn json_string(&mut self, text: &str) {
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(is_plain) {
            self.put(b"\"");
            self.put(text.as_bytes());
            self.put(b"\"");
        } else {
            // A string is always JSON, and a vector takes all that is written.
            let _ = serde_json::to_writer(&mut self.bytes, text);
        }
    }

    pub(super) fn csv_string(&mut self, text: &str) {
        if text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n')) {
            self.put(b"\"");
            self.put(text.replace('"', "\"\"").as_bytes());
            self.put(b"\"");
        } else {
            self.put(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Text)) -> String {
        let mut text = Text::default();
        write(&mut text);
        String::from_utf8(text.bytes).unwrap()
    }

    #[test]
    fn a_field_with_a_separator_is_quoted() {
        for (field, expected) in [("plain", "plain"), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("", "")] {
            assert_eq!(written(|text| text.csv_string(field)), expected);
        }
    }

    #[test]
    fn a_time_no_calendar_has_is_a_number() {
        let at = Micros::new(i64::MAX);
        assert_eq!(written(|text| text.time(at)), at.to_string());
    }

    proptest! {
        #[test]
        fn values_are_written_as_the_libraries_write_them(
            addresses in (any::<[u8; 4]>(), any::<[u8; 16]>(), any::<u16>()),
            times in proptest::collection::vec(-3_000_000_000_000_000_i64..4_000_000_000_000_000, 1..5),
            string in any::<String>(),
            number in any::<u64>(),
        ) {
            for address in [IpAddr::from(addresses.0), IpAddr::from(addresses.1)] {
                let endpoint = SocketAddr::new(address, addresses.2);
                prop_assert_eq!(written(|text| text.endpoint(endpoint)), endpoint.to_string());
            }
            for time in times.iter().flat_map(|time| [*time, time - time % 1_000]) {
                let expected = jiff::Timestamp::from_microsecond(time).unwrap().to_string();
                prop_assert_eq!(written(|text| text.time(Micros::new(time))), expected);
            }
            prop_assert_eq!(written(|text| text.json_string(&string)), serde_json::to_string(&string).unwrap());
            prop_assert_eq!(written(|text| text.number(number)), number.to_string());
        }

        #[test]
        fn any_field_is_read_back_from_csv(field in any::<String>(), next in any::<String>()) {
            let line = written(|text| {
                text.csv_string(&field);
                text.put(b",");
                text.csv_string(&next);
                text.put(b"\n");
            });
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
            let record = reader.records().next().unwrap().unwrap();
            prop_assert_eq!((&record[0], &record[1]), (&*field, &*next));
        }
    }
}
