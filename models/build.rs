//! Generates the telemetry types and service from `proto/telemetry.proto`, without a protoc on the machine.

#[cfg(feature = "std")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/telemetry.proto");
    let descriptors = protox::compile(["proto/telemetry.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "std"))]
fn main() {}
