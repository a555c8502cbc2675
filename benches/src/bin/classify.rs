//! What `usher-agent classify` costs a packet and a flow: the whole command on captures made here, user CPU time and peak
//! memory, beside tcpdump and softflowd on the same files.
//!
//! The captures: many short TLS flows (13 packets each) and fewer long ones (120 packets each), interleaved as a gateway
//! sees them, in Ethernet frames of the sizes that such flows have; and a million flows that are all open at a time, each of
//! another name, whose packets come in no order. What a flow takes of memory is what the command takes on a capture less what
//! it takes on an empty one.
//!
//! `--check` fails where a bar is missed: a fifth of a rate's bar is given to the machine's moods, of memory's nothing.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use comfy_table::{Table, presets};
use serde::Serialize;
use usher_benches::{say, target_folder};

/// Interleaved, so that the machine's moods meet all programs alike; the best of them counts, for noise only adds.
const ROUNDS: usize = 5;
/// Of a rate's bar, what must be reached where a machine has other things to do.
const CHECKED: f64 = 0.8;
/// What the command may take where a million flows are open.
const MEMORY_BAR: u64 = 300_000_000;

/// A kind of capture.
struct Shape {
    name: &'static str,
    flows: u32,
    /// Packets of a flow, at least 8: a handshake, hellos, data, farewells.
    packets: u32,
    /// Payload bytes of a data packet to the client.
    payload: usize,
    /// Flows that are open at a time.
    open: u32,
    /// Bytes that a hello's extensions are padded to.
    hello: usize,
    /// Whether each flow is of a name of its own, and its packets come when they like.
    wild: bool,
    /// Packets a second to be reached, if any.
    bar: Option<f64>,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "short-flows",
        flows: 80_000,
        packets: 13,
        payload: 200,
        open: 2_000,
        hello: 396,
        wild: false,
        bar: Some(2.5e6),
    },
    Shape {
        name: "long-flows",
        flows: 10_000,
        packets: 120,
        payload: 600,
        open: 2_000,
        hello: 396,
        wild: false,
        bar: Some(5e6),
    },
    Shape {
        name: "million-flows",
        flows: 1_000_000,
        packets: 8,
        payload: 100,
        open: 1_000_000,
        hello: 0,
        wild: true,
        bar: None,
    },
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
    ns_per_named_flow: f64,
    /// Of the whole command, at its peak.
    peak_memory_bytes: u64,
    /// More of it than on an empty capture.
    state_bytes_per_flow: f64,
    tcpdump_packets_per_s: f64,
    softflowd_packets_per_s: f64,
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
    let checks = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("unknown argument `{other}`: there is --check"),
    };
    let folder = target_folder().join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let temporary =
        |name: &str| Temporary(folder.join(format!("classify-{name}-{}.pcap", std::process::id())));
    let empty = temporary("empty");
    std::fs::write(&empty.0, PCAP_HEADER).with_context(|| format!("write {}", empty.0.display()))?;
    let at_rest = run(agent()?.arg(&empty.0))?.peak_bytes;
    let mut report = Report { cases: Vec::new() };
    for shape in &SHAPES {
        let capture = temporary(shape.name);
        write_capture(&capture.0, shape)?;
        report.cases.push(measure(shape, &capture.0, at_rest)?);
    }
    print(&report);
    let path = folder.join("classify.json");
    let text = serde_json::to_string_pretty(&report).context("write the report")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    say(&format!("written to {}", path.display()));
    if checks { check(&report) } else { Ok(()) }
}

/// Whether the bars are reached.
fn check(report: &Report) -> anyhow::Result<()> {
    for (shape, case) in SHAPES.iter().zip(&report.cases) {
        if let Some(bar) = shape.bar {
            let (rate, bar) = (case.packets_per_s / 1e6, bar * CHECKED / 1e6);
            ensure!(rate >= bar, "{}: {rate:.2} M packets/s, and {bar:.2} M must be reached", case.name);
        }
        let peak = case.peak_memory_bytes;
        ensure!(
            peak <= MEMORY_BAR,
            "{}: {peak} bytes of memory, of which {MEMORY_BAR} may be taken",
            case.name
        );
    }
    Ok(())
}

/// The command that is measured, but for the capture.
fn agent() -> anyhow::Result<Command> {
    let agent = target_folder().join("release/usher-agent");
    ensure!(agent.exists(), "{} is missing: cargo build --release -p usher-agent", agent.display());
    let mut command = Command::new(agent);
    command.args(["classify", "--format", "json"]);
    Ok(command)
}

fn measure(shape: &Shape, capture: &Path, at_rest: u64) -> anyhow::Result<Case> {
    let (rows, named) = rows(capture)?;
    ensure!(rows == shape.flows, "{}: {rows} rows of {} flows", shape.name, shape.flows);
    ensure!(
        named == shape.flows,
        "{}: {named} of {} flows are listed with their names",
        shape.name,
        shape.flows
    );
    let (mut ours, mut tcpdump, mut softflowd) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(run(agent()?.arg(capture))?);
        tcpdump.push(run(Command::new("tcpdump").arg("-r").arg(capture).args(["-w", "-"]))?);
        let mut command = Command::new("softflowd");
        softflowd.push(run(command.arg("-r").arg(capture).args(["-d", "-n", "127.0.0.1:9"]))?);
    }
    let best = |costs: &[Cost]| costs.iter().map(|cost| cost.user_seconds).fold(f64::INFINITY, f64::min);
    let seconds = best(&ours);
    let peak_memory_bytes = ours.iter().map(|cost| cost.peak_bytes).max().unwrap_or_default();
    let packets = u64::from(shape.flows) * u64::from(shape.packets);
    let total = f64::from(shape.flows) * f64::from(shape.packets);
    let state = u32::try_from(peak_memory_bytes.saturating_sub(at_rest)).unwrap_or(u32::MAX);
    Ok(Case {
        name: shape.name,
        packets,
        flows: shape.flows,
        packets_per_s: total / seconds,
        ns_per_packet: seconds * 1e9 / total,
        ns_per_named_flow: seconds * 1e9 / f64::from(shape.flows),
        peak_memory_bytes,
        state_bytes_per_flow: f64::from(state) / f64::from(shape.flows),
        tcpdump_packets_per_s: total / best(&tcpdump),
        softflowd_packets_per_s: total / best(&softflowd),
    })
}

/// How many rows there are, and with a name: flows left out, split or merged would make the rest look fast.
fn rows(capture: &Path) -> anyhow::Result<(u32, u32)> {
    let mut child = agent()?.arg(capture).stdout(Stdio::piped()).spawn().context("start usher-agent")?;
    let (mut all, mut named) = (0, 0);
    if let Some(rows) = child.stdout.take() {
        for row in BufReader::new(rows).lines() {
            all += 1;
            named += u32::from(row.context("read the rows")?.contains("\"via\":\"sni\""));
        }
    }
    ensure!(child.wait().context("wait for usher-agent")?.success(), "usher-agent failed");
    Ok((all, named))
}

/// Runs a command to its end, its output read by nobody.
fn run(command: &mut Command) -> anyhow::Result<Cost> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.with_context(|| format!("start {program}, which scripts/install.sh bench installs"))?;
    let (status, usage) = wait(child.id())?;
    ensure!(status == 0, "{program} failed");
    let user = usage.ru_utime;
    let seconds = f64::from(u32::try_from(user.tv_sec).unwrap_or(u32::MAX));
    let micros = f64::from(u32::try_from(user.tv_usec).unwrap_or_default());
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024;
    Ok(Cost { user_seconds: seconds + micros / 1e6, peak_bytes })
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
    table.set_header([
        "case",
        "packets/s",
        "ns/packet",
        "ns/named flow",
        "state bytes/flow",
        "peak MB",
        "tcpdump -w",
        "softflowd",
    ]);
    let million = |rate: f64| format!("{:.2} M", rate / 1e6);
    for case in &report.cases {
        table.add_row([
            case.name.to_owned(),
            million(case.packets_per_s),
            format!("{:.0}", case.ns_per_packet),
            format!("{:.0}", case.ns_per_named_flow),
            format!("{:.0}", case.state_bytes_per_flow),
            (case.peak_memory_bytes / 1_000_000).to_string(),
            million(case.tcpdump_packets_per_s),
            million(case.softflowd_packets_per_s),
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

/// pcap 2.4, microseconds, Ethernet.
const PCAP_HEADER: [u8; 24] =
    [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
/// A step through flows that meets each once, for it shares no factor with their number.
const STRIDE: usize = 618_033;

fn write_capture(path: &Path, shape: &Shape) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&PCAP_HEADER)?;
    let mut micros = 0_u64;
    let mut next = 0;
    while next < shape.flows {
        let last = shape.flows.min(next + shape.open);
        let mut open: Vec<Flow> = (next..last).map(|number| Flow::new(number, shape)).collect();
        for step in 0..shape.packets {
            let mut place = 0;
            for _ in 0..open.len() {
                micros += 2;
                open[place].packet(step, shape, micros, &mut out)?;
                place = (place + if shape.wild { STRIDE } else { 1 }) % open.len();
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
    fn new(number: u32, shape: &Shape) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        let name = NAMES[usize::from(c) % NAMES.len()];
        let name = if shape.wild { format!("{number}.{name}") } else { name.to_owned() };
        Self {
            client: [10, a, b, c],
            server: [198, 18, b & 0x3f, c.wrapping_mul(7)],
            port: 32_768 + (u16::from_be_bytes([b, c]) & 0x3fff),
            name,
            sequence: [number.wrapping_mul(2_654_435_761), number.wrapping_mul(40_503)],
        }
    }

    fn packet(&mut self, step: u32, shape: &Shape, micros: u64, out: &mut impl Write) -> anyhow::Result<()> {
        let data = |length| vec![0x17_u8; length];
        let (down, flags, payload) = match step {
            0 => (false, SYN, Vec::new()),
            1 => (true, SYN | ACK, Vec::new()),
            3 => (false, PUSH, client_hello(&self.name, self.sequence[0], shape.hello)),
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

/// A ClientHello (RFC 8446, 4.1.2), its extensions padded (RFC 7685): to 396 bytes, it is of the size that browsers send
/// without post-quantum shares.
fn client_hello(name: &str, seed: u32, padded: usize) -> Vec<u8> {
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
    extensions.extend(extension(21, &vec![0; padded.saturating_sub(extensions.len())]));
    let ciphers = [0x13, 1, 0x13, 2, 0x13, 3, 0xc0, 0x2b, 0xc0, 0x2f];
    let body =
        [&[3, 3][..], &random, &[32], &random, &sized(&ciphers), &[1, 0], &sized(&extensions)].concat();
    let length = u32::try_from(body.len()).unwrap_or_default().to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 3, 1][..], &sized(&handshake)].concat()
}
