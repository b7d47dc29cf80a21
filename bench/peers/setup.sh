#!/usr/bin/env bash
# Builds the peer that compare.py measures against: llama.cpp as the PyPI package llama-cpp-python carries it, from source, for this machine's CPU, without a GPU.
#
#   bench/peers/setup.sh              into build/peers/venv; a second run takes no time
#   JOBS=2 bench/peers/setup.sh       compile with two jobs (default: 1, at low priority: this takes minutes)
#
# Exit codes: 0 the peer can be imported, 2 it cannot be built (said why).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

# 0.3.15 is the first whose llama.cpp knows the architecture smallthinker; this one is what the committed figures were taken with.
version=0.3.36
folder=build/peers
python=$folder/venv/bin/python
log=build/logs/peers.log
# Everything the compiler finds for this CPU; libgomp as upstream's own releases have it; neither curl nor the multimodal part.
cmake_args="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_CUDA=OFF -DGGML_VULKAN=OFF -DGGML_METAL=OFF -DGGML_BLAS=OFF -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"

stop() { printf 'peers: %s\n' "$*" >&2; exit 2; }

stamp="$version $cmake_args"
if [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ] && "$python" -c 'import llama_cpp' >/dev/null 2>&1; then
  exit 0
fi
mkdir -p "$folder" build/logs || stop "cannot make $folder"
found=""
for candidate in /usr/bin/python3 python3; do
  "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1 && found=$candidate && break
done
[ -n "$found" ] || stop "no python3 of 3.9 or later with venv; on Debian: apt-get install python3 python3-venv"
command -v cmake >/dev/null || stop "no cmake; ./setup installs it"
command -v c++ >/dev/null || stop "no C++ compiler; ./setup installs it"
rm -rf "$folder/venv" "$folder/.stamp"
"$found" -m venv "$folder/venv" >"$log" 2>&1 || stop "the virtual environment cannot be made; the log is in $log"
printf 'peers: building llama-cpp-python %s from source, minutes; the log is %s\n' "$version" "$log"
if ! CMAKE_ARGS="$cmake_args" CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-1}" nice -n 10 \
     "$python" -m pip install --disable-pip-version-check --no-binary llama-cpp-python --verbose "llama-cpp-python==$version" >>"$log" 2>&1; then
  grep -E '^ *(ERROR|error:|CMake Error)' "$log" | tail -n 5 >&2
  stop "llama-cpp-python $version cannot be built (no network? no memory?); the whole log is in $log"
fi
"$python" -c 'import llama_cpp' >>"$log" 2>&1 || stop "it was built, but importing llama_cpp fails; the log is in $log"
printf '%s\n' "$stamp" >"$folder/.stamp"
