#!/usr/bin/env bash
# What the vulkan backend's cooperative matrices need beyond Debian 12, into build/vulkan; nothing of the system is changed.
#
#   tools/vulkan/setup.sh glslang     a shader compiler that knows GL_KHR_cooperative_matrix, from PyPI (requirements.txt here; 28 MB)
#   tools/vulkan/setup.sh lavapipe    a lavapipe that has VK_KHR_cooperative_matrix, from Debian 13 with its own libraries (70 MB, 320 MB unpacked): for tests
#
# build/vulkan/lavapipe/run PROGRAM ARGUMENTS... runs a program with those libraries and that driver alone. A second run takes no time.
# Exit codes: 0 it is there, 1 it could not be had (said).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
folder=$PWD/build/vulkan
mesa=26.1.6-1~bpo13+1

stop() { printf 'vulkan: %s\n' "$*" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || stop "only for x86_64"

glslang() {
  local wanted python=build/venv/bin/python
  wanted=$(sha256sum <tools/vulkan/requirements.txt)
  [ "$(cat "$folder/glslang/.stamp" 2>/dev/null)" = "$wanted" ] && return
  [ -x $python ] || stop "no build/venv; run ./setup first"
  rm -rf "$folder/glslang"
  $python -m pip install --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --quiet \
    --target "$folder/glslang" -r tools/vulkan/requirements.txt || stop "the shader compiler could not be installed (the network?)"
  printf '%s\n' "$wanted" >"$folder/glslang/.stamp"
}

# Where this machine has Debian from, and its keys; the lists and packages of Debian 13 go beside the system's own.
lavapipe() {
  local there=$folder/lavapipe work uri apt
  [ "$(cat "$there/.stamp" 2>/dev/null)" = "$mesa $there" ] && return
  command -v apt-get >/dev/null || stop "this is not a Debian system"
  # shellcheck disable=SC2016  # apt fills these in
  uri=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
    sed -n 's/^Debian main \(bookworm\|trixie\) //p' | head -n 1)
  [ -n "$uri" ] || stop "apt knows no source of Debian 12 or 13"
  work=$(mktemp -d) || exit 1
  # shellcheck disable=SC2064  # now: it is local
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work/lists/partial" "$work/archives/partial"
  : >"$work/status"
  printf 'deb %s trixie main\ndeb %s trixie-backports main\n' "$uri" "$uri" >"$work/sources.list"
  apt=(apt-get -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives"
       -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
       -o APT::Sandbox::User=root -o Acquire::Retries=2)
  "${apt[@]}" update >"$work/log" 2>&1 || stop "no package lists of Debian 13: $(tail -n 1 "$work/log")"
  if ! "${apt[@]}" install -y --download-only --no-install-recommends "mesa-vulkan-drivers=$mesa" vulkan-validationlayers >"$work/log" 2>&1; then
    # Backports keep one version: a later one is as good, and said.
    printf 'vulkan: mesa-vulkan-drivers %s is gone; taking what trixie-backports has\n' "$mesa"
    "${apt[@]}" install -y --download-only --no-install-recommends mesa-vulkan-drivers/trixie-backports vulkan-validationlayers >"$work/log" 2>&1 ||
      stop "lavapipe could not be fetched: $(tail -n 1 "$work/log")"
  fi
  rm -rf "$there"
  mkdir -p "$there"
  for package in "$work"/archives/*.deb; do
    dpkg-deb -x "$package" "$there" || stop "$package could not be unpacked"
  done
  local libraries=$there/usr/lib/x86_64-linux-gnu
  sed "s#\"[^\"]*libvulkan_lvp.so\"#\"$libraries/libvulkan_lvp.so\"#" "$there/usr/share/vulkan/icd.d/lvp_icd.json" >"$there/lavapipe.json" || exit 1
  cat >"$there/run" <<END
#!/bin/sh
# Runs a program with the libraries of this folder and its lavapipe as the only Vulkan driver. Written by tools/vulkan/setup.sh.
export VK_ICD_FILENAMES=$there/lavapipe.json VK_DRIVER_FILES=$there/lavapipe.json VK_LAYER_PATH=$there/usr/share/vulkan/explicit_layer.d
exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries "\$@"
END
  chmod +x "$there/run"
  "$there/run" /bin/true || stop "programs do not run with the libraries of Debian 13"
  printf '%s\n' "$mesa $there" >"$there/.stamp"
}

case "${1:-}" in
  glslang|lavapipe) "$1" ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac
