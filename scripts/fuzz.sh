#!/usr/bin/env bash
# Feeds hostile bytes to every parser of foreign bytes: first the corpus in fuzz/corpus, then what libFuzzer makes of it.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]    each target for so long, two at a time; 60 seconds and all targets by default
#   scripts/fuzz.sh 0                        the corpus alone
#   scripts/fuzz.sh --keep [TARGET...]       puts into the corpus the smallest inputs that reach all that was ever reached
#
# What is found new stays below fuzz/target. With a finding the run fails, and tells the command that repeats it.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0

seconds=${1:-60}
targets=("${@:2}")
if [ ${#targets[@]} -eq 0 ]; then
  for source in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$source" .rs)"); done
fi

# Coverage for libFuzzer, by the stable compiler: no sanitizer, for there is no unsafe code here that one could watch.
# --target keeps these flags from build scripts and procedural macros.
triple=$(rustc --version --verbose | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-trace-compares"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
RUSTFLAGS="--cfg fuzzing $coverage" cargo build --quiet --release --target "$triple" \
  --manifest-path fuzz/Cargo.toml --target-dir fuzz/target

work=fuzz/target/found
built=fuzz/target/$triple/release
options="-rss_limit_mb=2048 -timeout=10 -close_fd_mask=1 -max_len=8192 -print_final_stats=1"

fuzz_one() {
  local target=$1 corpus=fuzz/corpus/$1 found=$work/$1 crashes=$work/crashes/$1 log=$work/$1.log runs=
  mkdir -p "$corpus" "$found" "$crashes"
  case $seconds in
    --keep)
      # shellcheck disable=SC2086 # options are several words
      mv "$corpus" "$corpus.before" && mkdir "$corpus" &&
        "$built/$target" $options -set_cover_merge=1 -use_counters=0 "$corpus" "$corpus.before" "$found" >"$log" 2>&1 && rm -r "$corpus.before"
      printf '%-16s %4s inputs kept\n' "$target" "$(find "$corpus" -type f | wc -l)"
      return ;;
    0) runs="-runs=0" ;;
    *) runs="-max_total_time=$seconds" ;;
  esac
  # shellcheck disable=SC2086
  if ! "$built/$target" $options $runs -artifact_prefix="$crashes/" "$found" "$corpus" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "$target: a finding; again by $built/$target FILE, with the newest file in $crashes" >&2
    return 1
  fi
  printf '%-16s %4s inputs of the corpus, %9s executions: held\n' "$target" "$(find "$corpus" -type f | wc -l)" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
}
export -f fuzz_one
export seconds work built options
printf '%s\n' "${targets[@]}" | xargs -P 2 -I {} bash -c 'fuzz_one {}'
