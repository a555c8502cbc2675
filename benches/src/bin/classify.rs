//! What `usher-agent classify` costs a packet: the whole command on captures made here, user CPU time, beside tcpdump and,
//! where it is installed, softflowd on the same files.
//!
//! The captures: many short TLS flows (13 packets each) and fewer long ones (120 packets each), interleaved as a gateway
//! sees them, in Ethernet frames of the sizes that such flows have. Each client's hello carries one of many names.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_benches::{say, target_folder};

/// Interleaved, so that the machine's moods meet all programs alike; the best of them counts, for noise only adds.
const ROUNDS: usize = 5;
/// Flows that are open at a time.
const OPEN: u32 = 2_000;

/// A kind of capture.
struct Shape {
    name: &'static str,
    flows: u32,
    /// Packets of a flow, at least 8: a handshake, hellos, data.
    packets: u32,
    /// Payload bytes of a data packet to the client.
    payload: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "short-flows", flows: 80_000, packets: 13, payload: 200 },
    Shape { name: "long-flows", flows: 10_000, packets: 120, payload: 600 },
];

/// What was measured of one capture.
#[derive(Debug, Serialize)]
struct Case {
    #[serde(rename = "case")]
    name: &'static str,
    packets: u64,
    flows: u32,
    packets_per_s: f64,
    ns_per_packet: f64,
    ns_per_flow: f64,
    /// Of the whole command, at its peak.
    peak_memory_bytes: u64,
    tcpdump_packets_per_s: Option<f64>,
    softflowd_packets_per_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Case>,
}

/// A run's user CPU time and peak memory.
#[derive(Debug, Clone, Copy)]
struct Cost {
    user_seconds: f64,
    peak_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let folder = target_folder().join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut report = Report { cases: Vec::new() };
    for shape in &SHAPES {
        let capture = Temporary(folder.join(format!("{}-{}.pcap", shape.name, std::process::id())));
        let measured = write_capture(&capture.0, shape).and_then(|()| measure(shape, &capture.0))?;
        report.cases.push(measured);
    }
    print(&report);
    let path = folder.join("classify.json");
    let text = serde_json::to_string_pretty(&report).context("write the report")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    say(&format!("written to {}", path.display()));
    Ok(())
}

fn measure(shape: &Shape, capture: &Path) -> anyhow::Result<Case> {
    let agent = target_folder().join("release/usher-agent");
    ensure!(agent.exists(), "{} is missing: cargo build --release -p usher-agent", agent.display());
    let file = capture.as_os_str();
    let mut ours: Option<Cost> = None;
    let (mut tcpdump, mut softflowd) = (None, None);
    for _ in 0..ROUNDS {
        let mut command = Command::new(&agent);
        let run = run(command.args(["classify", "--format", "json"]).arg(file))?;
        let run = run.with_context(|| format!("run {}", agent.display()))?;
        if ours.is_none_or(|best| run.user_seconds < best.user_seconds) {
            ours = Some(run);
        }
        let mut command = Command::new("tcpdump");
        keep_best(&mut tcpdump, run_beside(command.arg("-r").arg(file).args(["-w", "-"]))?);
        let mut command = Command::new("softflowd");
        keep_best(&mut softflowd, run_beside(command.arg("-r").arg(file).args(["-d", "-n", "127.0.0.1:9"]))?);
    }
    let cost = ours.context("nothing was measured")?;
    let packets = u64::from(shape.flows) * u64::from(shape.packets);
    let total = f64::from(shape.flows) * f64::from(shape.packets);
    Ok(Case {
        name: shape.name,
        packets,
        flows: shape.flows,
        packets_per_s: total / cost.user_seconds,
        ns_per_packet: cost.user_seconds * 1e9 / total,
        ns_per_flow: cost.user_seconds * 1e9 / f64::from(shape.flows),
        peak_memory_bytes: cost.peak_bytes,
        tcpdump_packets_per_s: tcpdump.map(|seconds| total / seconds),
        softflowd_packets_per_s: softflowd.map(|seconds| total / seconds),
    })
}

fn keep_best(best: &mut Option<f64>, seconds: Option<f64>) {
    *best = match (*best, seconds) {
        (Some(best), Some(seconds)) => Some(best.min(seconds)),
        (best, seconds) => best.or(seconds),
    };
}

/// A program this is measured beside; `None` where it is not installed or does not do it.
fn run_beside(command: &mut Command) -> anyhow::Result<Option<f64>> {
    Ok(run(command)?.map(|cost| cost.user_seconds))
}

/// Runs a command to its end, its output read by nobody. `None` where there is no such program or it fails.
fn run(command: &mut Command) -> anyhow::Result<Option<Cost>> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("start a program to measure"),
    };
    let (status, usage) = wait(child.id())?;
    let user = usage.ru_utime;
    let seconds = f64::from(u32::try_from(user.tv_sec).unwrap_or(u32::MAX));
    let micros = f64::from(u32::try_from(user.tv_usec).unwrap_or_default());
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024;
    Ok((status == 0).then_some(Cost { user_seconds: seconds + micros / 1e6, peak_bytes }))
}

/// A file that is gone when dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is in the build's own folder.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reaps a child with what it took.
#[expect(unsafe_code, reason = "the standard library does not tell what a child took")]
fn wait(child: u32) -> anyhow::Result<(i32, libc::rusage)> {
    let child = i32::try_from(child).context("a process id is too large")?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid for writing for the time of the call, and all zeroes are a valid `rusage`.
    let (waited, usage) =
        unsafe { (libc::wait4(child, &raw mut status, 0, usage.as_mut_ptr()), usage.assume_init()) };
    ensure!(waited == child, "wait for a measured program: {}", std::io::Error::last_os_error());
    Ok((status, usage))
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case", "packets/s", "ns/packet", "ns/flow", "peak MB", "tcpdump -w", "softflowd"]);
    let million = |rate: f64| format!("{:.2} M", rate / 1e6);
    let beside = |rate: Option<f64>| rate.map_or_else(|| "not installed".to_owned(), million);
    for case in &report.cases {
        table.add_row([
            case.name.to_owned(),
            million(case.packets_per_s),
            format!("{:.0}", case.ns_per_packet),
            format!("{:.0}", case.ns_per_flow),
            (case.peak_memory_bytes / 1_000_000).to_string(),
            beside(case.tcpdump_packets_per_s),
            beside(case.softflowd_packets_per_s),
        ]);
    }
    say(&table.to_string());
    say(&format!("user CPU time of the whole command, best of {ROUNDS}"));
}

/// Names that clients ask for, some in the catalogue and some not.
const NAMES: [&str; 8] = [
    "www.netflix.com",
    "rr3---sn-4g5ednsl.googlevideo.com",
    "www.example.org",
    "static.xx.fbcdn.net",
    "api.spotify.com",
    "outlook.office365.com",
    "cdn.some-shop.example",
    "edge.telegram.org",
];

fn write_capture(path: &Path, shape: &Shape) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    // pcap 2.4, microseconds, Ethernet.
    out.write_all(&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0])?;
    let mut micros = 0_u64;
    let mut next = 0;
    while next < shape.flows {
        let last = shape.flows.min(next + OPEN);
        let mut open: Vec<Flow> = (next..last).map(Flow::new).collect();
        for step in 0..shape.packets {
            for flow in &mut open {
                micros += 2;
                flow.packet(step, shape, micros, &mut out)?;
            }
        }
        next = last;
    }
    out.flush().with_context(|| format!("write {}", path.display()))
}

/// A TLS connection from its SYN to its FINs.
struct Flow {
    client: [u8; 4],
    server: [u8; 4],
    port: u16,
    name: String,
    /// Next sequence numbers, the client's first.
    sequence: [u32; 2],
}

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x18;
const FIN: u8 = 0x11;

impl Flow {
    fn new(number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        let name = NAMES[usize::from(c) % NAMES.len()];
        Self {
            client: [10, a, b, c],
            server: [198, 18, b & 0x3f, c.wrapping_mul(7)],
            port: 32_768 + (u16::from_be_bytes([b, c]) & 0x3fff),
            name: name.to_owned(),
            sequence: [number.wrapping_mul(2_654_435_761), number.wrapping_mul(40_503)],
        }
    }

    fn packet(&mut self, step: u32, shape: &Shape, micros: u64, out: &mut impl Write) -> anyhow::Result<()> {
        let data = |length| vec![0x17_u8; length];
        let (down, flags, payload) = match step {
            0 => (false, SYN, Vec::new()),
            1 => (true, SYN | ACK, Vec::new()),
            3 => (false, PUSH, client_hello(&self.name, self.sequence[0])),
            5 => (true, PUSH, data(shape.payload)),
            step if step + 2 == shape.packets => (false, FIN, Vec::new()),
            step if step + 1 == shape.packets => (true, FIN, Vec::new()),
            // Bare acknowledgements: the handshake's, the hello's, and of every second segment later on.
            2 => (false, ACK, Vec::new()),
            4 => (true, ACK, Vec::new()),
            step if step % 3 == 0 => (false, ACK, Vec::new()),
            _ => (true, ACK, data(shape.payload)),
        };
        let (mine, theirs) = (usize::from(down), usize::from(!down));
        let frame = self.frame(down, flags, self.sequence[mine], self.sequence[theirs], &payload)?;
        let opens_or_ends = u32::from(flags & 3 != 0);
        let length = u32::try_from(payload.len())?;
        self.sequence[mine] = self.sequence[mine].wrapping_add(length + opens_or_ends);
        let seconds = u32::try_from(1_700_000_000 + micros / 1_000_000)?;
        let length = u32::try_from(frame.len())?;
        for field in [seconds, u32::try_from(micros % 1_000_000)?, length, length] {
            out.write_all(&field.to_le_bytes())?;
        }
        Ok(out.write_all(&frame)?)
    }

    fn frame(
        &self,
        down: bool,
        flags: u8,
        sequence: u32,
        next: u32,
        payload: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let client = (self.client, self.port);
        let server = (self.server, 443_u16);
        let (from, to) = if down { (server, client) } else { (client, server) };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
        let length = u16::try_from(40 + payload.len())?.to_be_bytes();
        frame.extend([0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(from.0);
        frame.extend(to.0);
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend(next.to_be_bytes());
        frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        Ok(frame)
    }
}

/// A ClientHello of the size that browsers send without post-quantum shares (RFC 8446, 4.1.2), padded to 512 bytes.
fn client_hello(name: &str, seed: u32) -> Vec<u8> {
    let sized =
        |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &sized(body)].concat();
    let random: Vec<u8> = seed.to_be_bytes().repeat(8);
    let host = [&[0][..], &sized(name.as_bytes())].concat();
    let mut extensions = extension(0, &sized(&host));
    extensions.extend(extension(10, &sized(&[0, 0x1d, 0, 0x17])));
    extensions.extend(extension(16, &sized(b"\x02h2\x08http/1.1")));
    extensions.extend(extension(43, &[4, 3, 4, 3, 3]));
    extensions.extend(extension(51, &sized(&[&[0, 0x1d][..], &sized(&random)].concat())));
    extensions.extend(extension(21, &vec![0; 396_usize.saturating_sub(extensions.len())]));
    let ciphers = [0x13, 1, 0x13, 2, 0x13, 3, 0xc0, 0x2b, 0xc0, 0x2f];
    let body =
        [&[3, 3][..], &random, &[32], &random, &sized(&ciphers), &[1, 0], &sized(&extensions)].concat();
    let length = u32::try_from(body.len()).unwrap_or_default().to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 3, 1][..], &sized(&handshake)].concat()
}
