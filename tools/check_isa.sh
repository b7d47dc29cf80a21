#!/bin/sh
# Checks that the object file of each instruction set's kernels defines its one table and nothing else that a linker could take for everyone:
# no weak symbol (an inline library function, compiled for AVX-512, may be the copy that is kept) and no other global one.
#   tools/check_isa.sh [build folder, default build/release]
set -eu
build=${1:-build/release}
status=0
found=0
list=$(mktemp)
trap 'rm -f "$list"' EXIT
find "$build" -type f \( -name 'x86_*.cpp.o' -o -name 'arm_*.cpp.o' \) -path '*kernels*' > "$list"
while read -r object; do
  found=$((found + 1))
  symbols=$(${NM:-nm} -C --defined-only "$object" | sed 's/^[0-9a-f]* *//' | grep -E '^[A-TV-Zuvw] ' || true)
  tables=$(printf '%s\n' "$symbols" | grep -cE '^[DRB] fth::[a-z]+::k[A-Za-z0-9]+$' || true)
  others=$(printf '%s\n' "$symbols" | grep -vE '^[DRB] fth::[a-z]+::k[A-Za-z0-9]+$' || true)
  if [ "$tables" != 1 ] || [ -n "$others" ]; then
    echo "check_isa: $object defines $tables tables (want 1), and: ${others:-nothing else}"
    status=1
  else
    echo "check_isa: $(basename "$object"): ${symbols#? }"
  fi
done < "$list"
if [ "$found" = 0 ]; then
  echo "check_isa: no object file of an instruction set below $build; build fth_cpu_kernels first"
  exit 1
fi
exit $status
