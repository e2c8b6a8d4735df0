#!/usr/bin/env bash
# Everything that waits for a GPU, in order of worth: `benchmarks/gpu.sh`.
#
# Results go to $OUT (default: benchmarks/results/<version>). A step whose result is there already is passed over, so
# the script can be run again where it stopped. PYTHON names the interpreter; it needs torch with CUDA, roma, kornia,
# safetensors, einops, pytest, pytest-timeout, jaxtyping and beartype.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:${PYTHONPATH:-}"
VERSION=$("$PYTHON" -c "import geomtx; print(geomtx.__version__)") || exit
OUT=${OUT:-benchmarks/results/$VERSION}
WEIGHTS=${WEIGHTS:-${TMPDIR:-/tmp}/geomtx-benchmark-1b.safetensors}
mkdir -p "$OUT"

step() { # NAME COMMAND…: run unless NAME.json or NAME.txt is there; a failure doesn't stop the rest
  local name=$1
  shift
  if [ -e "$OUT/$name.json" ] || [ -e "$OUT/$name.txt" ]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name"
  "$@" || echo "== $name: FAILED"
}

run_tests() {
  "$PYTHON" -m pytest -m cuda -q | tee "$OUT/cuda_tests.part" && mv "$OUT/cuda_tests.part" "$OUT/cuda_tests.txt"
}

step cuda_tests run_tests
[ -e "$WEIGHTS" ] || "$PYTHON" benchmarks/weights.py "$WEIGHTS" || exit
for size in "336 518" "518 518"; do
  for views in 1 2 4 8 10 20 50 100 200; do
    # shellcheck disable=SC2086 # height and width are two arguments
    step "vggt_cuda_bfloat16_${views}x${size/ /x}" "$PYTHON" benchmarks/vggt.py "$WEIGHTS" --device cuda \
      --dtype bfloat16 --views "$views" --size $size --view-chunk 8 --repeats 5 --output "$OUT"
  done
done
