#!/usr/bin/env bash
# Every test there is: unit, property, end to end. Ends with what was left out, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# All there are: no test is in a program's own file, and no documentation holds code that could run. What is tested from outside is
# built along, as it is shipped.
targets=(--lib --test '*')
# A program of tests that hangs is ended, and named, so that it cannot take the others along.
limit='["timeout", "--foreground", "--verbose", "--kill-after=10", "900"]'
cargo test --config "target.'cfg(unix)'.runner = $limit" --release --workspace "${targets[@]}" --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

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
