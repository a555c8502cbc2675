//! The probe's programs on crafted packets, in the kernel, under BPF_PROG_TEST_RUN.
//!
//! Needs root and a kernel that takes BPF; without, each test says that it is skipped.

mod accuracy;
mod apps;
mod enforcement;
mod interfaces;
mod life;
mod limits;
mod marking;
mod packets;
mod quality;
mod rig;
mod shaping;
mod tunnels;
mod upgrade;
mod verifier;
mod xdp;

/// Runs the rest of a test where the kernel lets it, else says why not. Of some it takes a kernel with TCX: the driver's programs do, and
/// programs of former layouts, which older verifiers do not take.
macro_rules! on_a_kernel {
    ($name:literal) => {
        if let Some(reason) = usher_tests::skip::why_no_probe() {
            usher_tests::skip::skipped($name, &reason);
            return;
        }
    };
    ($name:literal, tcx) => {
        if let Some(reason) = usher_tests::skip::why_no_probe().or_else(usher_tests::skip::why_no_tcx) {
            usher_tests::skip::skipped($name, &reason);
            return;
        }
    };
}
pub(crate) use on_a_kernel;
