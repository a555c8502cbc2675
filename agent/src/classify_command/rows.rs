//! Flows as they are listed: a JSON object, a CSV line or a line of a table each.
//!
//! Owns the columns and their order; of how a value is written, [`super::text`] knows.

use std::io::{self, Write};
use std::net::SocketAddr;

use comfy_table::{CellAlignment, Table as Sheet, presets};
use usher_models::Class;
use usher_models::units::{Bytes, Micros};
use usher_models::wire::Direction;

use super::Format;
use super::text::Text;
use crate::capture::flow::Flow;
use crate::classify::{Confidence, packet};

/// Bytes of lines that are written at once.
const OUT_BUFFER: usize = 64 * 1024;

/// What a flow is listed by: the JSON object's fields and the CSV columns, in this order.
const COLUMNS: [&str; 16] = [
    "capture",
    "proto",
    "client",
    "server",
    "encap",
    "app",
    "class",
    "name",
    "via",
    "confidence",
    "bytes_up",
    "bytes_down",
    "packets_up",
    "packets_down",
    "first",
    "last",
];

/// The value of a column.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    /// `null`, or nothing in CSV.
    Unknown,
    Protocol(u8),
    /// Port 0 where the protocol has none.
    Endpoint(SocketAddr),
    /// Tags and tunnels around the flow's first packet, outermost first.
    Layers(&'a Flow),
    Confidence(Confidence),
    Number(u64),
    /// RFC 3339, as exact as the stamp.
    Time(Micros),
}

/// In the order of [`COLUMNS`]. Who opened the flow is the client; bytes are those of the innermost IP packets.
fn values<'a>(capture: &'a str, flow: &'a Flow) -> [Value<'a>; COLUMNS.len()] {
    let key = &flow.key;
    let [up, down] = [Direction::Up, Direction::Down].map(|direction| flow.traffic[direction.index()]);
    let verdict = flow.verdict.as_deref();
    let text = |text: Option<&'a str>| text.map_or(Value::Unknown, Value::Text);
    [
        Value::Text(capture),
        Value::Protocol(key.protocol),
        Value::Endpoint(SocketAddr::new(packet::address(key.subscriber), key.subscriber_port)),
        Value::Endpoint(SocketAddr::new(packet::address(key.remote), key.remote_port)),
        Value::Layers(flow),
        text(verdict.and_then(|verdict| verdict.app.as_deref())),
        Value::Text(verdict.map_or(Class::Other, |verdict| verdict.class).name()),
        text(verdict.and_then(|verdict| verdict.name.as_deref())),
        text(verdict.map(|verdict| verdict.via.name())),
        verdict.map_or(Value::Unknown, |verdict| Value::Confidence(verdict.confidence)),
        Value::Number(up.bytes),
        Value::Number(down.bytes),
        Value::Number(up.packets),
        Value::Number(down.packets),
        Value::Time(flow.first),
        Value::Time(flow.last),
    ]
}

/// Rows on their way out.
pub(super) struct Lines<'a> {
    format: Format,
    out: &'a mut dyn Write,
    text: Text,
    sheet: Option<Sheet>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(format: Format, out: &'a mut dyn Write) -> Self {
        Self { format, out, text: Text::default(), sheet: None }
    }

    /// What comes before all rows.
    pub(super) fn begin(&mut self) {
        if self.format == Format::Csv {
            self.text.put(COLUMNS.join(",").as_bytes());
            self.text.put(b"\n");
        }
    }

    pub(super) fn row(&mut self, capture: &str, flow: &Flow) -> io::Result<()> {
        let values = values(capture, flow);
        match self.format {
            Format::Json => self.json(&values),
            Format::Csv => self.csv(&values),
            Format::Table => self.line_of_table(&values),
        }
        if self.text.bytes().len() >= OUT_BUFFER { self.flush() } else { Ok(()) }
    }

    pub(super) fn end_of_capture(&mut self) -> io::Result<()> {
        if let Some(sheet) = self.sheet.take() {
            self.text.put(sheet.trim_fmt().as_bytes());
            self.text.put(b"\n");
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(self.text.bytes())?;
        self.text.clear();
        self.out.flush()
    }

    fn json(&mut self, values: &[Value<'_>; COLUMNS.len()]) {
        let text = &mut self.text;
        let mut before = b'{';
        for (column, value) in COLUMNS.into_iter().zip(values) {
            text.put(&[before, b'"']);
            text.put(column.as_bytes());
            text.put(b"\":");
            before = b',';
            match *value {
                Value::Text(value) => text.json_string(value),
                Value::Unknown => text.put(b"null"),
                Value::Confidence(value) => text.display(&value),
                Value::Number(value) => text.number(value),
                Value::Layers(flow) => {
                    text.put(b"[");
                    for (number, layer) in flow.layers().enumerate() {
                        text.put(if number == 0 { b"\"" } else { b",\"" });
                        text.display(&layer);
                        text.put(b"\"");
                    }
                    text.put(b"]");
                }
                Value::Protocol(_) | Value::Endpoint(_) | Value::Time(_) => {
                    text.put(b"\"");
                    put(text, value);
                    text.put(b"\"");
                }
            }
        }
        text.put(b"}\n");
    }

    fn csv(&mut self, values: &[Value<'_>; COLUMNS.len()]) {
        for (number, value) in values.iter().enumerate() {
            self.text.put(if number == 0 { b"" } else { b"," });
            match value {
                Value::Text(value) => self.text.csv_string(value),
                value => put(&mut self.text, value),
            }
        }
        self.text.put(b"\n");
    }

    fn line_of_table(&mut self, values: &[Value<'_>; COLUMNS.len()]) {
        let [capture, proto, client, server, encap, app, class, name, via, _, up, down, ..] = values;
        let sheet = self.sheet.get_or_insert_with(|| new_sheet(&written(capture)));
        let bytes = [up, down].map(|value| match value {
            Value::Number(bytes) => Bytes(*bytes).to_string(),
            other => written(other),
        });
        sheet.add_row(
            [proto, client, server, encap, app, class, via, name].map(written).into_iter().chain(bytes),
        );
    }
}

/// A value by itself, without quotes.
fn put(text: &mut Text, value: &Value<'_>) {
    match *value {
        Value::Text(value) => text.put(value.as_bytes()),
        Value::Unknown => {}
        Value::Protocol(number) => match protocol(number) {
            Some(name) => text.put(name.as_bytes()),
            None => text.number(u64::from(number)),
        },
        Value::Endpoint(endpoint) => text.endpoint(endpoint),
        Value::Layers(flow) => {
            for (number, layer) in flow.layers().enumerate() {
                text.put(if number == 0 { b"" } else { b" " });
                text.display(&layer);
            }
        }
        Value::Confidence(value) => text.display(&value),
        Value::Number(value) => text.number(value),
        Value::Time(at) => text.time(at),
    }
}

fn written(value: &Value<'_>) -> String {
    let mut text = Text::default();
    put(&mut text, value);
    String::from_utf8_lossy(text.bytes()).into_owned()
}

const fn protocol(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "icmp",
        packet::TCP => "tcp",
        packet::UDP => "udp",
        47 => "gre",
        50 => "esp",
        58 => "icmp6",
        132 => "sctp",
        _ => return None,
    })
}

fn new_sheet(capture: &str) -> Sheet {
    let mut sheet = Sheet::new();
    sheet.load_style(presets::NOTHING);
    sheet.set_header([capture, "client", "server", "encap", "app", "class", "via", "name", "up", "down"]);
    for column in [8, 9] {
        if let Some(column) = sheet.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    sheet
}
