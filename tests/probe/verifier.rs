//! What the kernel's verifier is asked to do.

use aya::EbpfLoader;
use aya::programs::Program;
use usher_tests::process;

use crate::on_a_kernel;

/// The steps that a verifier takes at the most are a million, and those of older kernels take three times as many as a newer one for the same
/// program (6.1 beside 6.18).
const STEPS: u32 = 250_000;

#[test]
fn every_program_leaves_the_verifiers_of_older_kernels_room() {
    on_a_kernel!("every_program_leaves_the_verifiers_of_older_kernels_room");
    let object =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/usher-probe.o")).expect("is there");
    let mut ebpf = EbpfLoader::new().load(&object).expect("the maps are made");
    let mut looked_at = 0;
    for (name, program) in ebpf.programs_mut() {
        let info = match program {
            Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
            Program::Xdp(program) => program.load().and_then(|()| program.info()),
            other => panic!("{name} is a {:?}", other.prog_type()),
        };
        let steps = info.expect("loads").verified_instruction_count().expect("Linux 5.16 tells");
        process::say(&format!("{steps:>7} steps for {name}"));
        assert!(steps < STEPS, "{name} takes {steps}");
        looked_at += 1;
    }
    assert_eq!(looked_at, 8);
}
