set -e
cd /tmp/w/A1/ebpf
RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C link-arg=--btf -C target-cpu=v3 --remap-path-prefix=$PWD=/ebpf" cargo build --release --target bpfel-unknown-none -Z build-std=core
