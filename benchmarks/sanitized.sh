#!/usr/bin/env bash
# Runs a command under a tool of compute-sanitizer; fails where the command does, where the tool
# found something in our kernels, and where it did not get to its end.
#
#     bash benchmarks/sanitized.sh TOOL COMPUTE_SANITIZER COMMAND...
#
# Failed API calls are not reported: torch asks for what a driver may lack. initcheck also reports
# the host's copies of what torch's kernels wrote, since those are not instrumented, so only what
# it found in a kernel of ours counts.
set -uo pipefail
tool=$1 sanitizer=$2
shift 2
options=(--tool "$tool" --print-limit 10000 --show-backtrace no)
for name in _rows_ sample_masks below_threshold dual_cross_entropy; do
  options+=(--kernel-name "kernel_substring=$name")
done
[ "$tool" = memcheck ] && options+=(--report-api-errors no)
[ "$tool" = initcheck ] || options+=(--error-exitcode 9)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$sanitizer" "${options[@]}" "$@" 2>&1 | tee "$log"
code=${PIPESTATUS[0]}
if grep -qE '^========= +at .*(_rows_|sample_masks|below_threshold|dual_cross_entropy)' "$log"; then
  echo "$tool found errors in our kernels"
  exit 9
fi
if ! grep -qE '^========= (ERROR|RACECHECK) SUMMARY: ' "$log"; then
  echo "$tool did not get to its end"
  exit 8
fi
exit "$code"
