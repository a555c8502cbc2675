#!/usr/bin/env bash
# Every test there is: unit, property, end to end. Ends with what was left out, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

# The end-to-end tests run the daemons as they are shipped.
cargo build --release --workspace --bins

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --release --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

echo
if grep -q 'SKIPPED ' "$log"; then
  echo "left out on this machine:"
  grep -o 'SKIPPED .*' "$log" | sort -u | sed 's/^SKIPPED /  /'
else
  echo "no test was left out"
fi
grep -E '^test result: ' "$log" >target/test-results.txt || true
awk '{ passed += $4; failed += $6 } END { printf "%d tests passed, %d failed\n", passed, failed }' target/test-results.txt
exit "$status"
