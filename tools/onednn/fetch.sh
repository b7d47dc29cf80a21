#!/usr/bin/env bash
# Fetches and unpacks oneDNN's source: Debian's package of a newer suite (trixie: 3.7.2 with the fixes of 3.7.3), without touching the system's own apt
# configuration; the mirror is the one that apt already uses. Its three files must have the checksums below.
#   tools/onednn/fetch.sh FOLDER      the source lands in FOLDER/source
set -euo pipefail
mkdir -p "${1:?folder}"
folder=$(cd "$1" && pwd)
suite=trixie
mirror=$(apt-get indextargets --format '$(REPO_URI) $(SUITE)' | awk '$2 !~ /security/ {print $1; exit}')
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
cd "$folder"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >apt/sources.list
: >apt/status
cat >apt/apt.conf <<CONF
Dir::Etc::sourcelist "$folder/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$folder/apt/lists";
Dir::Cache "$folder/apt/cache";
Dir::State::status "$folder/apt/status";
CONF
[ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";' >>apt/apt.conf
export APT_CONFIG="$folder/apt/apt.conf"
apt-get -q -o Acquire::Retries=2 update
apt-get -q -o Acquire::Retries=2 source --download-only onednn=3.7.2+ds-2
sha256sum --check --strict <<SUMS
440b9c25665d6cb75d251ffd6477b2694a668423c496d355c0afde58b410337a  onednn_3.7.2+ds-2.dsc
0cc51ca26c1af6a2bb1e71e378e7046f3ceb3e71791ee9d4e246d50f904a6ea6  onednn_3.7.2+ds.orig.tar.xz
db6b5144773b4f5b152a0138cba74af39124d59285975db7f2c220e992dcd2d4  onednn_3.7.2+ds-2.debian.tar.xz
SUMS
rm -rf source
dpkg-source --no-check -x 'onednn_3.7.2+ds-2.dsc' source
