#!/usr/bin/env bash
# Everything that waits for a GPU, in order of worth: `benchmarks/gpu.sh [tests] [train] [nano] [attention] [vggt]`, default
# all.
#
# Made for a machine that is lent for minutes: stop it anywhere, run it again and it goes on. Training runs by itself,
# in a session of its own that outlives this script, and from its last checkpoint if that was stopped too.
#
#   OUT         gets a copy of all that is finished, and the newest weights in half precision
#               (benchmarks/results/<version>)
#   STATE       what has to be there the next time: results, checkpoints ($TMPDIR/geomtx-gpu)
#   WAIT_S      seconds that `train` waits for the training before it leaves it to itself (480)
#   PYTHON      needs torch with CUDA, roma, safetensors, einops, accelerate, pyyaml, for the tests also kornia, pytest,
#               pytest-timeout, jaxtyping and beartype, and for SIFT opencv-python-headless (python3)
#   TRAIN_ARGS  for `geomtx train nano_gpu`, like "--set schedule.steps=4000": the schedule has to fit into the time
#   NANO_ARGS   for benchmarks/nano.py
#   WEIGHTS     of VGGT-1B's size, for `vggt`; made if they are not there
#   CANDIDATES  for `vggt`, see benchmarks/vggt.py
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:${PYTHONPATH:-}"
VERSION=$("$PYTHON" -c "import geomtx; print(geomtx.__version__)") || exit
OUT=${OUT:-benchmarks/results/$VERSION}
STATE=${STATE:-${TMPDIR:-/tmp}/geomtx-gpu}
WAIT_S=${WAIT_S:-480}
CANDIDATES=${CANDIDATES:-plain straightforward graphs compile sdpa_flash sdpa_cudnn pieces low}
WEIGHTS=${WEIGHTS:-${TMPDIR:-/tmp}/geomtx-benchmark-1b.safetensors}
RUN=$STATE/nano_gpu
mkdir -p "$OUT" "$STATE/results"
# Whatever ends this script, what is finished is in $OUT.
trap 'cp "$STATE/results/"* "$OUT/" 2>/dev/null' EXIT

step() { # NAME COMMAND…: run unless NAME.json or NAME.txt is there; a failure doesn't stop the rest
  local name=$1
  shift
  if [ -e "$STATE/results/$name.json" ] || [ -e "$STATE/results/$name.txt" ]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name"
  "$@" || echo "== $name: FAILED"
}

run_tests() {
  "$PYTHON" -m pytest -m cuda -q --continue-on-collection-errors | tee "$STATE/cuda_tests.part" &&
    mv "$STATE/cuda_tests.part" "$STATE/results/cuda_tests.txt"
}

training_runs() {
  [ -e "$RUN.pid" ] && kill -0 "$(cat "$RUN.pid")" 2>/dev/null
}

training_is_done() { # the command's last line says so
  grep -qs "after step \([0-9]*\) of \1\b" "$RUN.out"
}

start_training() {
  local resume=()
  [ -e "$RUN/checkpoint.pt" ] && resume=(--resume)
  # shellcheck disable=SC2086 # several arguments
  setsid nohup "$PYTHON" -m geomtx train nano_gpu -o "$RUN" "${resume[@]}" ${TRAIN_ARGS:-} \
    >>"$RUN.out" 2>&1 </dev/null &
  echo $! >"$RUN.pid"
}

copy_training() { # its log, and the weights small enough to travel
  cp "$RUN/log.jsonl" "$OUT/nano_gpu_log.jsonl" 2>/dev/null
  [ -e "$RUN/weights" ] || return 0
  "$PYTHON" - "$RUN/weights" "$STATE/nano_gpu_half" <<'PYTHON'
import sys

import torch

import geomtx

geomtx.VGGT.from_pretrained(sys.argv[1], dtype=torch.float16).save_pretrained(sys.argv[2])
PYTHON
  mkdir -p "$OUT/nano_gpu" && cp "$STATE/nano_gpu_half/"* "$OUT/nano_gpu/"
}

train() {
  local end=$((SECONDS + WAIT_S))
  echo "== training"
  if ! training_is_done; then
    training_runs || start_training
    while training_runs && [ "$SECONDS" -lt "$end" ]; do sleep 2; done
  fi
  tail -n 2 "$RUN.out"
  tail -n 1 "$RUN/log.jsonl" 2>/dev/null | cut -c 1-400
  copy_training
  training_is_done && return
  if training_runs; then echo "== training: goes on; run this again"; else echo "== training: STOPPED; run this again"; fi
}

benchmark_nano() { # with the weights as they would ship
  if ! training_is_done; then
    echo "== nano: waits for the training"
    return
  fi
  # shellcheck disable=SC2086 # several arguments
  step nano_gpu measure_nano ${NANO_ARGS:---device cuda --scenes 128}
}

measure_nano() {
  "$PYTHON" benchmarks/nano.py "$STATE/nano_gpu_half" --recipe nano_gpu --output "$STATE/nano" "$@" &&
    mv "$STATE/nano/nano.json" "$STATE/results/nano_gpu.json"
}

benchmark_vggt() { # small numbers of views first: they are done in seconds
  [ -e "$WEIGHTS" ] || "$PYTHON" benchmarks/weights.py "$WEIGHTS" || return
  local size views cases=()
  for views in 1 2 4 8 10 20 50 100 200; do
    for size in 336x518 518x518; do cases+=("${views}x$size"); done
  done
  echo "== vggt"
  # shellcheck disable=SC2086 # several candidates
  "$PYTHON" benchmarks/vggt.py "$WEIGHTS" --device cuda --dtype bfloat16 --view-chunk 8 --repeats 5 --limit-s 40 \
    --candidates $CANDIDATES --cases "${cases[@]}" --output "$STATE/results" --skip-done || echo "== vggt: FAILED"
}

[ $# -gt 0 ] || set -- tests train nano attention vggt
for part in "$@"; do
  case $part in
    tests) step cuda_tests run_tests ;;
    train) train ;;
    nano) benchmark_nano ;;
    attention) step attention_cuda_bfloat16 "$PYTHON" benchmarks/attention.py "$STATE/results" --device cuda ;;
    vggt) benchmark_vggt ;;
    *)
      echo "part must be one of tests, train, nano, attention, vggt, got '$part'" >&2
      exit 2
      ;;
  esac
done
