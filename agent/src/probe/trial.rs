//! One frame through one loaded program, off the wire: for tests, which must see the very programs that run.

use std::time::Duration;

use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, TestRun, TestRunOptions};
use usher_models::wire::Direction;

use super::ProbeError;
use super::attach::program_name;
use super::early::EARLY;
use super::interfaces::Link;
use super::maps::kernel;

/// A frame and how to run it.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// The direction whose program it is.
    pub direction: Direction,
    /// The frame from its Ethernet header on, or what is taken for one; the kernel takes no frame of 14 bytes or fewer.
    pub frame: &'a [u8],
    /// Whether it goes through the program for interfaces without a link-layer header.
    pub no_link_layer: bool,
    /// Whether it goes through the program in the driver, which a probe has from its first interface on that is met there. It knows one
    /// direction, and no super-packets.
    pub in_driver: bool,
    /// How often to run it; the outcome is the last run's, the time the mean.
    pub repeat: u32,
    /// Bytes a segment carries, for a super-packet; 0 for none.
    pub segment_bytes: u32,
}

impl<'a> Trial<'a> {
    /// One run of `frame` in `direction`.
    pub fn once(direction: Direction, frame: &'a [u8]) -> Self {
        Self { direction, frame, no_link_layer: false, in_driver: false, repeat: 1, segment_bytes: 0 }
    }
}

/// What a program said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on, to other programs or the stack.
    Pass,
    /// The packet is held back.
    Drop,
    /// A number the probe never returns.
    Other(u32),
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialOutcome {
    /// What the program said.
    pub verdict: Verdict,
    /// What a run took, on average.
    pub duration: Duration,
    /// The frame as it goes on.
    pub frame: Vec<u8>,
}

/// Size of `__sk_buff`, and where it says the size of a segment (linux/bpf.h).
const CONTEXT_BYTES: usize = 192;
const CONTEXT_GSO_SIZE: usize = 176;

/// TCX_NEXT and TC_ACT_UNSPEC; TCX_DROP and TC_ACT_SHOT.
const NEXT: u32 = (-1_i32).cast_unsigned();
const DROP: u32 = 2;

pub(super) fn run(ebpf: &Ebpf, trial: &Trial<'_>) -> Result<TrialOutcome, ProbeError> {
    let doing = "run a program on a frame";
    if trial.in_driver {
        return run_in_driver(ebpf, trial);
    }
    let link = if trial.no_link_layer { Link::Ip } else { Link::Ethernet };
    let name = program_name(link, trial.direction);
    let program = ebpf.program(name).ok_or(ProbeError::NotInObject { name })?;
    let program: &SchedClassifier = program.try_into().map_err(kernel(doing))?;
    let mut context = [0_u8; CONTEXT_BYTES];
    context[CONTEXT_GSO_SIZE..][..4].copy_from_slice(&trial.segment_bytes.to_ne_bytes());
    let mut frame = vec![0; trial.frame.len()];
    let options = TestRunOptions {
        data_in: Some(trial.frame),
        data_out: Some(&mut frame),
        ctx_in: (trial.segment_bytes != 0).then_some(&context[..]),
        repeat: trial.repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(kernel(doing))?;
    let verdict = match result.return_value {
        NEXT => Verdict::Pass,
        DROP => Verdict::Drop,
        other => Verdict::Other(other),
    };
    Ok(TrialOutcome { verdict, duration: result.duration, frame })
}

/// XDP_DROP and XDP_PASS (linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Room for what the program leaves before the frame.
const METADATA_BYTES: usize = 32;

fn run_in_driver(ebpf: &Ebpf, trial: &Trial<'_>) -> Result<TrialOutcome, ProbeError> {
    let doing = "run the driver's program on a frame";
    let program = ebpf.program(EARLY).ok_or(ProbeError::NotInObject { name: EARLY })?;
    let program: &Xdp = program.try_into().map_err(kernel(doing))?;
    let mut out = vec![0; METADATA_BYTES + trial.frame.len()];
    let options = TestRunOptions {
        data_in: Some(trial.frame),
        data_out: Some(&mut out),
        repeat: trial.repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(kernel(doing))?;
    let verdict = match result.return_value {
        XDP_PASS => Verdict::Pass,
        XDP_DROP => Verdict::Drop,
        other => Verdict::Other(other),
    };
    let written = usize::try_from(result.data_size_out).unwrap_or(usize::MAX).min(out.len());
    // The frame is the last of what is written.
    let frame = out.get(written.saturating_sub(trial.frame.len())..written).unwrap_or_default().to_vec();
    Ok(TrialOutcome { verdict, duration: result.duration, frame })
}
