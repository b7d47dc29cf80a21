#!/bin/sh
# Runs a Python test with the interpreter of ./setup's virtual environment; exit 77 (CTest: skipped) when there is none.
#   with_venv.sh SOURCE_DIR SCRIPT ARGUMENTS...
python="$1/build/venv/bin/python"
if [ ! -x "$python" ]; then
  echo "skipped: no build/venv (numpy and gguf); ./setup --dev makes it"
  exit 77
fi
shift
exec "$python" -B "$@"
