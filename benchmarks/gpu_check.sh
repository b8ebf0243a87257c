#!/usr/bin/env bash
# Everything that only a GPU can show, in under 9 minutes: build, timings of the kernels and of a
# training step, GPU tests, compute-sanitizer, a short training, other packages' timings.
#
#     bash benchmarks/gpu_check.sh OUTPUT_FOLDER            # all
#     bash benchmarks/gpu_check.sh --quick OUTPUT_FOLDER    # timings and the short tests: 3 minutes
#
# OUTPUT_FOLDER gets summary.json, the results as JSON and logs.tar.gz, kept up to date as the steps
# end; the last lines printed say what failed. It runs from the checkout, installed or not, without
# git and without network. Needs a torch with CUDA and most of the test extra (gpu_probe.py says
# what is missing); pytest-xdist makes it faster. Liger-Kernel, quack and flash-attn are measured
# too where they are installed.
set -uo pipefail
quick= limit=540
if [ "${1:-}" = --quick ]; then
  quick=yes limit=180
  shift
fi
if [ $# != 1 ] || [ -z "${1##-*}" ]; then
  echo "usage: bash benchmarks/gpu_check.sh [--quick] OUTPUT_FOLDER" >&2
  exit 2
fi
# Nothing below may run without the folder: it is written to, and partial files in it are removed.
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
python=$(command -v python3 || command -v python)
logs=$(mktemp -d)
trap 'rm -rf "$logs" "$out"/*.partial "$out"/.*.partial' EXIT
deadline=$((SECONDS + limit))
failed=()

# step NAME SECONDS COMMAND...: its output to NAME.log, its exit status to the summary. A step out
# of time is interrupted as by Ctrl-C, so that pytest still writes its report, and killed 5 s later.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) started=$SECONDS code
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -le 5 ]; then
    echo "no time was left" >"$logs/$name.log"
    code=124
  else
    # Python needs a SIGINT that is not ignored, as it is in a background job.
    timeout -s INT -k 5 "$limit" env --default-signal=INT "$@" >"$logs/$name.log" 2>&1
    code=$?
  fi
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - started))" >>"$logs/steps.tsv"
  [ "$code" = 0 ] || failed+=("$name")
  echo "$name: $([ "$code" = 0 ] && echo passed || echo "FAILED ($code)") in $((SECONDS - started)) s"
  "$python" benchmarks/gpu_summary.py "$logs" "$out"
}

step gpu 90 "$python" benchmarks/gpu_probe.py "$logs/machine.json"
if [ "${#failed[@]}" != 0 ]; then
  echo "failed: $(tail -n 1 "$logs/gpu.log")"
  exit 1
fi
cat "$logs/gpu.log"

# Warnings of other packages must not fail a test here, whatever their versions; ours must.
warnings="default
error:.* runs on .*:RuntimeWarning
error:masktuning_C has ABI:RuntimeWarning
error:the compiled kernels are not kept:RuntimeWarning"
pytest=("$python" -m pytest -q -p no:cacheprovider -o "filterwarnings=$warnings")
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n 8)

# sanitize TOOL SECONDS TESTS: the small tests with our kernels instrumented, and no others. Every
# tensor is an allocation of its own, without torch's allocator. sanitized.sh judges the outcome.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
sanitize() {
  step "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 bash benchmarks/sanitized.sh "$1" \
    "$sanitizer" "${pytest[@]}" -x tests/ops/test_gpu.py -k "$3"
}

step build 70 "$python" setup.py build_ext --inplace
step rows 75 "$python" benchmarks/compare_gpu.py "$out/gpu.json"
step bench_step 40 "$python" benchmarks/bench_step.py "$out/bench_step.json" --sizes 12x768 \
  --lengths 128 --batch_size 32 --rounds 10
step tests 70 "${pytest[@]}" "${parallel[@]}" --junitxml="$logs/tests.xml" tests/ops/test_gpu.py \
  -k "not grid"
if [ -z "$quick" ]; then
  sanitize memcheck 60 "small and cuda"
  sanitize racecheck 60 "small and cuda and not broken"
  # The threshold op reads offsets that a kernel of torch wrote, which initcheck cannot know.
  sanitize initcheck 60 "small and cuda and not broken and not threshold"
  step grid 45 "${pytest[@]}" "${parallel[@]}" --junitxml="$logs/grid.xml" tests/ops/test_gpu.py -k grid
  step info 15 "$python" -m masktuning.info
  step small_training 40 "$python" benchmarks/small_training.py "$out/small_training.json"
  step peers 50 "$python" benchmarks/compare_gpu.py --peers "$out/peers.json"
  if "$python" -c "import pytest_benchmark" 2>/dev/null; then
    step head 40 "${pytest[@]}" benchmarks/bench_masked_lm_head.py --benchmark-only \
      --benchmark-json="$out/head.json" --benchmark-columns=median,rounds
  else
    echo "head: not measured, pytest-benchmark is not installed"
  fi
fi

grep -h '^MISSED' "$logs"/*.log
if [ "${#failed[@]}" = 0 ]; then
  echo "all passed"
else
  echo "failed: ${failed[*]} (see $out/summary.json and $out/logs.tar.gz)"
  exit 1
fi
