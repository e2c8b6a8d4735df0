#!/usr/bin/env bash
# Everything that a CPU can measure, then the tables and plots of the docs: `benchmarks/cpu.sh [PART …]`, default all.
#
# Stop it anywhere, run it again and it goes on. Nothing else should run meanwhile where times are compared.
#
#   STATE    what has to be there the next time ($TMPDIR/geomtx-bench); without it, and with other code, everything is
#            measured again
#   PYTHON   .venv/bin/python
#   WEIGHTS  of VGGT-1B's size, for `vggt`; made if they are not there (5 GB)
#   PHOTOS   a folder of photos, for `photos`, which needs one
#   BEFORE   another checkout of geomtx to compare with in `vggt`, and in `small`, which needs one
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-.venv/bin/python}
STATE=${STATE:-${TMPDIR:-/tmp}/geomtx-bench}
WEIGHTS=${WEIGHTS:-${TMPDIR:-/tmp}/geomtx-benchmark-1b.safetensors}
FAILED=0
# Of all code, not of the last commit: one that brings results only leaves them as they are.
DONE=$STATE/$(find src benchmarks -name '*.py' | sort | xargs cat | sha256sum | cut -c 1-12)
mkdir -p "$DONE"

step() { # NAME FILE ARGUMENTS…: run benchmarks/FILE unless it is done; a failure doesn't stop the rest
  local name=$1 file=$2
  shift 2
  if [ -e "$DONE/$name" ]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name"
  if "$PYTHON" "benchmarks/$file" "$@"; then touch "$DONE/$name"; else echo "== $name: FAILED"; FAILED=1; fi
}

small() { # that nothing got slower where there is little to do
  if [ -z "${BEFORE:-}" ]; then
    echo "== small: needs BEFORE"
    return
  fi
  step small vggt_speed.py nano --before "$BEFORE" --name small --candidates plain --cases 1x48x64 2x48x64 8x48x64 \
    --view-chunk 8 --warmup 3 --repeats 401
}

long() { # beside what other code has left: rows of two codes would not be compared
  step long_accuracy long.py accuracy --scenes 24 --output "$DONE/long"
  step long_time long.py time --views 24 64 128 --repeats 3 --output "$DONE/long"
  RESULTS="benchmarks/results/$("$PYTHON" -c "import geomtx; print(geomtx.__version__)")"
  mkdir -p "$RESULTS" && cp "$DONE/long/"*.json "$RESULTS/"
}

vggt() {
  if [ ! -e "$DONE/vggt" ] || [ ! -e "$DONE/load" ] || [ ! -e "$DONE/exactness_1b" ]; then
    [ -e "$WEIGHTS" ] || "$PYTHON" benchmarks/weights.py "$WEIGHTS" || exit
  fi
  step load load.py "$WEIGHTS"
  step vggt vggt_speed.py "$WEIGHTS" --cases 4x280x280 ${BEFORE:+--before "$BEFORE"}
  step exactness_1b exactness.py "$WEIGHTS" --scenes 1 --size 280 280 --modes "in pieces" "leanest plan" "math attention"
}

photos() { # whole networks on photos, by the command
  if [ -z "${PHOTOS:-}" ]; then
    echo "== photos: needs PHOTOS"
    return
  fi
  step photos photos.py "$PHOTOS"
}

[ $# -gt 0 ] || set -- exactness attention quantise long memory small vggt photos
for part in "$@"; do
  case $part in
    exactness) step exactness exactness.py ;;
    attention) step attention attention.py ;;
    quantise) step quantise quantise.py ;;
    long) long ;;
    memory)
      step memory_small memory.py --views 8 24 100 200
      step memory_camera memory.py --views 8 200 1000 --heads camera
      step memory_large memory.py --size 392 518 --views 8 200 1000 --plans plain offloaded low
      ;;
    small) small ;;
    vggt) vggt ;;
    photos) photos ;;
    *)
      echo "part must be one of exactness, attention, quantise, long, memory, small, vggt, photos, got '$part'" >&2
      exit 2
      ;;
  esac
done
"$PYTHON" benchmarks/report.py --plots && exit "$FAILED"
