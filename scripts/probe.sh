#!/usr/bin/env bash
# Builds the probe's object, ebpf/usher-probe.o, which is committed: the agent carries it, and people who build the agent
# need no BPF toolchain. Beside it ebpf/usher-probe-bench.o, the programs that drive it in its bench.
#
#   scripts/probe.sh           build them
#   scripts/probe.sh --check   build them and fail if they are not, byte for byte, the committed ones
#
# Its toolchain is Debian's rustc with sources and bpf-linker on LLVM 22; what is missing is installed, by root, with apt and
# cargo. USHER_PROBE_TOOLCHAIN=nightly takes a rustup toolchain with rust-src instead: good for working on the
# probe, but another compiler makes other bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

check=false
case "${1:-}" in
  "") ;;
  --check) check=true ;;
  *)
    echo "usage: scripts/probe.sh [--check]" >&2
    exit 2
    ;;
esac

bpf_linker_version=0.13.0
target=bpfel-unknown-none

# Runs a command, and shows what it said only if it failed.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "failed: $*; its whole output is in $log" >&2
    exit 1
  fi
  rm -f "$log"
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing to build the probe: ${missing[*]}; install them as root with apt-get, or set USHER_PROBE_TOOLCHAIN=nightly" >&2
    exit 1
  fi
  echo "installing with apt-get, to build the probe: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get update -qq
  quietly apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

if [ -n "${USHER_PROBE_TOOLCHAIN:-}" ]; then
  rustc=$(rustup which --toolchain "$USHER_PROBE_TOOLCHAIN" rustc)
  if [ ! -d "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library" ]; then
    echo "the toolchain $USHER_PROBE_TOOLCHAIN has no sources: rustup component add rust-src --toolchain $USHER_PROBE_TOOLCHAIN" >&2
    exit 1
  fi
else
  install_packages rustc-web rust-web-src llvm-22
  rustc=/usr/bin/rustc
fi

if ! bpf-linker --version 2>/dev/null | grep -qF "bpf-linker $bpf_linker_version"; then
  install_packages llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libxml2-dev
  echo "installing bpf-linker $bpf_linker_version with cargo (some minutes)"
  LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 LLVM_PREFIX=/usr/lib/llvm-22 quietly cargo install --quiet --locked bpf-linker \
    --version "$bpf_linker_version" --no-default-features --features llvm-22
fi
nm=$(command -v llvm-nm-22 || command -v llvm-nm)
objcopy=$(command -v llvm-objcopy-22 || command -v llvm-objcopy)

# Nothing of this machine may be in the object: neither folders nor, through them, the compiler's hashes of them.
sources="$("$rustc" --print sysroot)/lib/rustlib/src/rust"
flags=(
  -C link-arg=--btf
  # Version 3 of the instruction set, for compare-exchange (Linux 5.12).
  -C target-cpu=v3
  "--remap-path-prefix=$root=/usher"
  "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  "--remap-path-prefix=$sources=/rust"
)
export RUSTC=$rustc RUSTC_BOOTSTRAP=1
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
# A caller's wish for incremental builds cuts the crates up otherwise, and makes other bytes.
export CARGO_INCREMENTAL=0
unset RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET RUSTC_WRAPPER RUSTUP_TOOLCHAIN
(cd ebpf && cargo build --quiet --locked --release --target "$target" -Z build-std=core)

objects=(usher-probe usher-probe-bench)
# A function that was not inlined has its crate's hash in its name, and that hash knows the folder: the name goes without.
crate_hash='Cs[0-9A-Za-z]*_'
for object in "${objects[@]}"; do
  built=ebpf/target/$target/release/$object
  "$nm" --format=just-symbols "$built" | sed -n "/^_R/{h;s/$crate_hash/C/g;H;x;s/\\n/ /p}" >"$built.names"
  "$objcopy" --strip-debug --redefine-syms="$built.names" "$built" "ebpf/target/$object.o"
done
made_by="$("$rustc" --version), $(bpf-linker --version), LLVM $("$objcopy" --version | grep -o '[0-9][0-9.]*' | head -n 1)"

for object in "${objects[@]}"; do
  built=ebpf/target/$object.o
  committed=ebpf/$object.o
  if ! $check; then
    cp "$built" "$committed"
    echo "built $committed: $(stat -c %s "$committed") bytes, $made_by"
  elif cmp "$built" "$committed"; then
    echo "$committed is what its source makes: $(sha256sum <"$committed" | cut -c 1-16), $made_by"
  else
    {
      echo "$committed is not what its source makes: run scripts/probe.sh and commit it"
      echo "the committed one was made by: $(cat ebpf/usher-probe.made-by)"
      echo "this one was made by:          $made_by"
    } >&2
    exit 1
  fi
done
$check || echo "$made_by" >ebpf/usher-probe.made-by
