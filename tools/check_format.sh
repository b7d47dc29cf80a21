#!/usr/bin/env bash
# clang-format (14, .clang-format) over every C and C++ file of the repository.
#   check_format.sh         lists what differs; exit 1 if anything does
#   check_format.sh --fix   formats in place
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mapfile -d '' -t files < <(git ls-files -z --cached --others --exclude-standard -- '*.h' '*.hpp' '*.c' '*.cpp' | sort -zu)
existing=()
for file in "${files[@]}"; do
  [ -f "$file" ] && existing+=("$file")
done
[ "${#existing[@]}" -gt 0 ] || { echo "no files found"; exit 1; }
version=$(clang-format --version)
case "$version" in
  *" 14."*) ;;
  *) echo "clang-format 14 is wanted, other versions format otherwise; found: $version"; exit 1 ;;
esac
if [ "${1:-}" = --fix ]; then
  clang-format -i "${existing[@]}"
  exit
fi
differ=$(printf '%s\0' "${existing[@]}" | xargs -0 -P "$(nproc)" -I{} sh -c 'clang-format "$1" | cmp -s - "$1" || echo "$1"' sh {})
if [ -n "$differ" ]; then
  printf '%s\n' "$differ"
  echo "these are not formatted; tools/check_format.sh --fix formats them"
  exit 1
fi
echo "${#existing[@]} files are formatted"
