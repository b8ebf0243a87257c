#!/usr/bin/env bash
# Everything that only a GPU can show, in under 9 minutes: build, GPU tests, compute-sanitizer,
# benchmarks, a training step and the demo.
#
#     bash benchmarks/gpu_check.sh OUTPUT_FOLDER
#
# OUTPUT_FOLDER gets a log a step, the results as JSON, and summary.json; the last lines say what
# failed. Needs a torch with CUDA and the test extra: pip install -c constraints.txt ".[test]".
# Liger-Kernel, cut-cross-entropy, quack and flash-attn are measured too where they are installed.
set -uo pipefail
if [ $# != 1 ]; then
  echo "usage: bash benchmarks/gpu_check.sh OUTPUT_FOLDER" >&2
  exit 2
fi
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
python=$(command -v python || command -v python3)
deadline=$((SECONDS + 530))
names=() codes=() times=()

# step NAME SECONDS COMMAND...: its output to NAME.log, its exit status to the summary.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) started=$SECONDS code
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -le 5 ]; then
    echo "no time was left" >"$out/$name.log"
    code=124
  else
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
  fi
  names+=("$name") codes+=("$code") times+=("$((SECONDS - started))")
  echo "$name: $([ "$code" = 0 ] && echo passed || echo "FAILED ($code)") in $((SECONDS - started)) s"
}

# summary: what was run, how it ended and how long it took.
summary() {
  {
    echo '{"steps": ['
    for i in "${!names[@]}"; do
      [ "$i" = 0 ] || echo ,
      printf ' {"name": "%s", "exit": %s, "seconds": %s}' "${names[i]}" "${codes[i]}" "${times[i]}"
    done
    echo ']}'
  } >"$out/summary.json"
}

step gpu 60 "$python" -c "import hypothesis, pybind11, pytest, pytest_benchmark, scipy, setuptools
import torch, transformers; print(torch.__version__, torch.cuda.get_device_name())"
if [ "${codes[0]}" != 0 ]; then
  summary
  echo "failed: no GPU to check, or a package is missing: $(tail -n 1 "$out/gpu.log")"
  exit 1
fi

# Only our kernels are instrumented; without torch's allocator every tensor is an allocation.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
sanitize() {
  local tool=$1 which=$2
  step "$tool" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" \
    --error-exitcode 9 --kernel-regex 'kns=_rows_' --kernel-regex 'kns=sample_masks' \
    --kernel-regex 'kns=dual_cross_entropy' \
    "$python" -m pytest -q -x -p no:cacheprovider tests/test_gpu.py -k "$which"
}

step build 90 "$python" setup.py build_ext --inplace
step info 30 "$python" -m masktuning.info
step rows 90 "$python" benchmarks/compare_gpu.py "$out/gpu.json"
step small_tests 100 "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/small_tests.xml" \
  tests/test_gpu.py -k "not grid"
sanitize memcheck "small and cuda"
sanitize racecheck "small and cuda and not broken"
sanitize initcheck "small and cuda and not broken"
step train_step 40 "$python" benchmarks/train_step.py "$out/train_step.json"
step demo 60 "$python" -m masktuning.train --output_dir "$out/demo-$(date +%s)" --disable_tqdm true
step grid 150 "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/grid.xml" \
  tests/test_gpu.py -k grid
step benchmarks 60 "$python" -m pytest -q benchmarks --benchmark-only \
  --benchmark-json="$out/benchmarks.json" --benchmark-columns=median,rounds

summary
failed=()
for i in "${!names[@]}"; do [ "${codes[i]}" = 0 ] || failed+=("${names[i]}"); done
grep -h '^MISSED' "$out/rows.log" 2>/dev/null
if [ "${#failed[@]}" = 0 ]; then
  echo "all passed"
else
  echo "failed: ${failed[*]} (see $out/<name>.log)"
  exit 1
fi
