#!/usr/bin/env bash
# clang-tidy (.clang-tidy) over the sources, with the compile commands of build/dev. What passed is remembered by content.
#   tidy.sh changed [N]   files that differ from the commit before, at most N of them (8)
#   tidy.sh all           every source file
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
commands=build/dev/compile_commands.json
[ -f "$commands" ] || { echo "tidy: $commands is missing; cmake --preset dev writes it"; exit 1; }
cache=build/cache/tidy
mkdir -p "$cache"

sources() { git ls-files --cached --others --exclude-standard -- 'core/*.cpp' 'plugins/*.cpp' 'backends/*.cpp' 'tools/*.cpp' | sort -u; }
limit=1000000
case "${1:-changed}" in
  all) mapfile -t files < <(sources) ;;
  changed)
    limit=${2:-8}
    base=$(git rev-parse -q --verify HEAD~1 || git hash-object -t tree /dev/null)
    mapfile -t files < <(comm -12 <(sources) <({ git diff --name-only "$base"; git ls-files --others --exclude-standard; } | sort -u)) ;;
  *) echo "usage: tidy.sh changed [N] | all"; exit 2 ;;
esac

# A file's result holds as long as it, every project header and the rules stay the same.
headers=$(git ls-files --cached --others --exclude-standard -- '*.h' '*.def' | sort -u | xargs cat .clang-tidy 2>/dev/null | sha256sum)
todo=() known=0
for file in "${files[@]}"; do
  [ -f "$file" ] && grep -qF "/$file\"" "$commands" || continue
  key=$(printf '%s' "$headers" | cat - "$file" | sha256sum | cut -c 1-40)
  if [ -e "$cache/$key" ]; then
    known=$((known + 1))
  elif [ "${#todo[@]}" -lt "$limit" ]; then
    todo+=("$key $file")
  fi
done

one() {
  if clang-tidy -p build/dev --quiet --warnings-as-errors='*' "$2" 2>/dev/null; then
    : >"build/cache/tidy/$1"
  else
    echo "$2: clang-tidy"
    return 1
  fi
}
export -f one
if [ "${#todo[@]}" -gt 0 ]; then
  printf '%s\n' "${todo[@]}" | xargs -P "$(nproc)" -L 1 bash -c 'one "$@"' tidy || exit 1
fi
echo "${#todo[@]} files looked at, $known known to pass, of ${#files[@]} (${1:-changed})"
