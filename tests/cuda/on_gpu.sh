#!/usr/bin/env bash
# Everything about the cuda backend that needs a GPU, on a machine that has one: builds it, runs the conformance cases, the program with the bundled model,
# and writes figures. No options, no network. Needs nvcc, a driver, and what ./setup installs to build; without ./setup's Python environment the program's
# test is left out and said to be.
#
#   tests/cuda/on_gpu.sh
#
# Writes build/cuda/on_gpu/: conformance.txt, perf.txt, bench.txt, devices.txt, and report.md, which holds the ends of all. OUT and BUILD name other folders,
# MODELS more GGUF files to time. Exit code 0 only if every step passed; 77 without a GPU.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
build=${BUILD:-build/cuda}
out=${OUT:-$build/on_gpu}
export PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$out" || exit 1
report=$out/report.md
broken=0

# step TITLE FILE COMMAND...: runs it, keeps its output in FILE and the end of that in the report.
step() {
  local title=$1 file=$out/$2 code begin=$SECONDS
  shift 2
  "$@" >"$file" 2>&1 </dev/null
  code=$?
  [ "$code" = 0 ] || broken=$((broken + 1))
  printf '%-28s exit %d, %d s: %s\n' "$title" "$code" "$((SECONDS - begin))" "$(grep -v '^[[:space:]]*$' "$file" | tail -n 1 | cut -c 1-140)"
  { printf '\n## %s\n\nexit %d, %d s\n\n```\n' "$title" "$code" "$((SECONDS - begin))"; tail -n 40 "$file"; printf '```\n'; } >>"$report"
  return "$code"
}

build_it() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release &&
    cmake --build "$build" --target conformance forethought cuda_backend_test fth_cuda_emulated &&
    cmake --build "$build" --target fth_cuda  # not there: CMake left the backend out, and said why above
}

command -v nvidia-smi >/dev/null || { echo "skipped: no nvidia-smi, so no driver"; exit 77; }
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1) || { echo "skipped: nvidia-smi: $gpu"; exit 77; }
printf '# The cuda backend on a GPU\n\ncommit %s, %s\n\n%s\n\n%s\n' "$(git describe --always --dirty 2>/dev/null || echo unknown)" "$(date -u +%F)" "$gpu" \
  "$(nvcc --version 2>/dev/null | tail -n 2 | head -n 1)" >"$report"
echo "$gpu"

step build build.txt build_it || exit 1
suite=$build/tests/conformance_suite
plugin=$build/plugins/libfth_cuda.so
program=$build/forethought
model=tools/tiny_model/tiny-smallthinker-q4_0.gguf
expect=backends/cuda/conformance.txt

step "conformance" conformance.txt "$suite" --backend "$plugin" --expect "$expect"
step "conformance, tight bounds" exact.txt "$suite" --backend "$plugin" --expect "$expect" --cases tests/opencl/cases
step "conformance, edges" edges.txt "$suite" --backend "$plugin" --expect "$expect" --cases tests/cuda/cases
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    step "compute-sanitizer $tool" "$tool.txt" compute-sanitizer --tool "$tool" --error-exitcode 9 "$suite" --backend "$plugin" --threads 1 \
      --cases tests/opencl/small.txt
  done
else
  echo "no compute-sanitizer: accesses and races on the device are not checked" | tee -a "$report"
fi
time_ops() {  # kind by kind: experts, among them, are refused
  local kind
  for kind in matmul attention head rms_norm; do
    "$suite" --backend "$plugin" --mode perf --filter "$kind*" || return 1
  done
}
step "timings of ops" perf.txt time_ops
step "devices" devices.txt "$program" devices --plugin "$plugin"
if [ -x build/venv/bin/python ]; then
  export FTH_PROGRAM=$PWD/$program FTH_BUILD_DIR=$PWD/$build FTH_CUDA_PLUGIN=$PWD/$plugin FTH_CONFORMANCE=$PWD/$suite
  step "models" models.txt tests/e2e/with_venv.sh "$PWD" tests/e2e/make_models.py "$FTH_BUILD_DIR/tests/models"
  step "the program's text and logits" program.txt tests/e2e/with_venv.sh "$PWD" tests/cuda/cuda_test.py RealDevice
else
  echo "no build/venv (./setup makes it): the program's text and logits are not compared" | tee -a "$report"
fi
# shellcheck disable=SC2086
for file in "$model" ${MODELS:-}; do
  name=$(basename "$file" .gguf)
  step "$name, cpu only" "bench-$name-cpu.txt" "$program" bench -m "$file" --cpu-only
  step "$name, attention on cuda:0" "bench-$name-cuda.txt" "$program" bench -m "$file" --plugin "$plugin" --device cuda:0
done
echo "report: $report"
[ "$broken" = 0 ]
