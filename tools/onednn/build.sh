#!/usr/bin/env bash
# Makes oneDNN available to the build, behind build/onednn (backends/onednn/CMakeLists.txt looks there).
#   tools/onednn/build.sh           the pruned static build of 3.7.2: fetched (10 MB) and built once, about 8 minutes on two idle cores, and kept in
#                                   $XDG_CACHE_HOME (or ~/.cache) /forethought; no time when it is there
#   tools/onednn/build.sh wheel     onednn-cpu-gomp 2023.2.0 (oneDNN 3.2, 39 MB, no ukernels) in a virtual environment there
# Needs a network for what is not kept. A build that was interrupted goes on where it stopped.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/forethought
jobs=$(nproc)

# Built once for each recipe and compiler.
key=$(cat "$here/CMakeLists.txt" "$here/fetch.sh" | cat - <(c++ -dumpfullversion -dumpmachine) | sha256sum | cut -c 1-12)
if [ "${1:-}" = wheel ]; then
  kept=$cache/onednn-wheel-2023.2.0
  if [ ! -e "$kept/.done" ]; then
    rm -rf "$kept"
    mkdir -p "$cache"
    python3 -m venv "$kept"
    "$kept/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps onednn-cpu-gomp==2023.2.0 onednn-devel-cpu-gomp==2023.2.0
    touch "$kept/.done"
  fi
else
  kept=$cache/onednn-3.7.2-$key
  if [ ! -e "$kept/.done" ]; then
    work=$cache/onednn-3.7.2-$key.build
    mkdir -p "$work"
    exec 9>"$work/lock"
    flock 9 # two builds at once would be one too many
    if [ ! -e "$kept/.done" ]; then
      [ -d "$work/source" ] || "$here/fetch.sh" "$work"
      cmake -G Ninja -S "$here" -B "$work/build" -DONEDNN_SOURCE="$work/source" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$kept" -DCMAKE_INSTALL_LIBDIR=lib
      cmake --build "$work/build" -j "$jobs"
      cmake --install "$work/build" >"$work/install.log"
      touch "$kept/.done"
      rm -rf "$work"
    fi
  fi
fi
mkdir -p "$root/build"
ln -sfn "$kept" "$root/build/onednn"
echo "oneDNN: $kept"
