#!/usr/bin/env bash
# Everything that waits for a GPU, in order of worth: `benchmarks/gpu.sh [PART …]`, default all: tests vggt attention
# exactness quantise long train nano.
#
# Made for a machine that is rented for minutes: stop it anywhere, run it again and it goes on. What fails doesn't stop
# what comes after it. Training runs by itself, in a session of its own that outlives this script, and from its last
# checkpoint if that was stopped too; what is timed comes before it, or waits for it.
#
#   OUT         gets a copy of all that is finished after each part, the log and the newest weights in half precision
#               (benchmarks/results/<version>)
#   PACK        1 = one archive in OUT instead, gpu_results.tar.gz, where only few files may travel
#   STATE       what has to be there the next time: results, checkpoints ($TMPDIR/geomtx-gpu)
#   LIMIT_S     seconds that this may take; what is under way then is stopped (as long as it takes)
#   STEP_S      seconds that one measurement may take of these (420)
#   WAIT_S      seconds that `train` waits for the training before it leaves it to itself (480)
#   WHEELS      folder of wheels of what PYTHON lacks, installed under STATE without asking a registry (none)
#   PYTHON      needs torch with CUDA, einops, roma, safetensors, tqdm, matplotlib, for training also accelerate and pyyaml, for the tests
#               kornia, pytest, pytest-timeout, jaxtyping and beartype, for SIFT opencv-python-headless, and torchao for
#               quantised weights (python3)
#   TRAIN_ARGS  for `geomtx train nano_gpu`, like "--set schedule.steps=4000": the schedule has to fit into the time
#   NANO_ARGS   for benchmarks/nano.py
#   WEIGHTS     of VGGT-1B's size; made if they are not there (5 GB)
#   CANDIDATES  for `vggt`, see benchmarks/vggt_speed.py
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
STATE=${STATE:-${TMPDIR:-/tmp}/geomtx-gpu}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:$STATE/site:${PYTHONPATH:-}"
VERSION=$("$PYTHON" -c "import geomtx; print(geomtx.__version__)") || exit
OUT=${OUT:-benchmarks/results/$VERSION}
LIMIT_S=${LIMIT_S:-1000000}
STEP_S=${STEP_S:-420}
WAIT_S=${WAIT_S:-480}
CANDIDATES=${CANDIDATES:-plain straightforward graphs compile sdpa_flash sdpa_cudnn fp8 int8 pieces low}
WEIGHTS=${WEIGHTS:-${TMPDIR:-/tmp}/geomtx-benchmark-1b.safetensors}
RUN=$STATE/nano_gpu
mkdir -p "$OUT" "$STATE/results"
exec > >(tee -a "$STATE/results/gpu_log.txt") 2>&1

publish() { # what is finished, to where it is looked for
  if [ -n "${PACK:-}" ]; then
    tar -czf "$OUT/gpu_results.tar.gz" -C "$STATE/results" .
  else
    cp -r "$STATE/results/." "$OUT/"
  fi
}
trap publish EXIT

install_wheels() { # again where there are new ones
  [ -n "${WHEELS:-}" ] && [ ! "$STATE/site" -nt "$WHEELS" ] || return 0
  rm -rf "$STATE/site" "$STATE/site.part"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$STATE/site.part" "$WHEELS"/*.whl &&
    mv "$STATE/site.part" "$STATE/site"
}

limited() { # COMMAND…: no longer than there is time
  local left=$((LIMIT_S - SECONDS))
  if [ "$left" -lt 5 ]; then
    echo "no time left"
    return 1
  fi
  timeout -k 10 $((left < STEP_S ? left : STEP_S)) "$@"
}

step() { # NAME COMMAND…: run unless NAME.json or NAME.txt is there; a failure doesn't stop the rest
  local name=$1
  shift
  if [ -e "$STATE/results/$name.json" ] || [ -e "$STATE/results/$name.txt" ]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name"
  "$@" || echo "== $name: FAILED"
  publish
}

timed() { # NAME COMMAND…: a step that nothing may run beside
  if training_runs; then echo "== $1: waits for the training"; else step "$@"; fi
}

benchmark() { # FILE ARGUMENTS…
  local file=$1
  shift
  limited "$PYTHON" "benchmarks/$file" "$@"
}

run_tests() { # finished is finished, whatever they found
  limited "$PYTHON" -m pytest -m cuda -q -p no:cacheprovider --continue-on-collection-errors \
    | tee "$STATE/cuda_tests.part"
  local code=${PIPESTATUS[0]}
  [ "$code" -le 1 ] && mv "$STATE/cuda_tests.part" "$STATE/results/cuda_tests.txt"
  return "$code"
}

make_weights() {
  [ -e "$WEIGHTS" ] || benchmark weights.py "$WEIGHTS"
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
  cp "$RUN/log.jsonl" "$STATE/results/nano_gpu_log.jsonl" 2>/dev/null
  [ -e "$RUN/weights" ] || return 0
  "$PYTHON" - "$RUN/weights" "$STATE/nano_gpu_half" <<'PYTHON'
import sys

import torch

import geomtx

geomtx.VGGT.from_pretrained(sys.argv[1], dtype=torch.float16).save_pretrained(sys.argv[2])
PYTHON
  mkdir -p "$STATE/results/nano_gpu" && cp "$STATE/nano_gpu_half/"* "$STATE/results/nano_gpu/"
}

train() {
  local end=$((SECONDS + WAIT_S))
  [ "$end" -lt $((LIMIT_S - 20)) ] || end=$((LIMIT_S - 20))
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
  benchmark nano.py "$STATE/nano_gpu_half" --recipe nano_gpu --output "$STATE/nano" "$@" &&
    mv "$STATE/nano/nano.json" "$STATE/results/nano_gpu.json"
}

benchmark_vggt() { # the size that others publish first; of recordings, only those that are small
  make_weights || return
  if training_runs; then
    echo "== vggt: waits for the training"
    return
  fi
  local size
  for size in 336x518 518x518; do
    time_cases "$CANDIDATES" "$size" 1 2 4 8 10
    time_cases "${CANDIDATES/graphs/}" "$size" 20 50 100 200
  done
}

time_cases() { # CANDIDATES SIZE VIEWS…
  local candidates=$1 size=$2
  shift 2
  echo "== vggt, $size, views $*"
  # shellcheck disable=SC2086 # several candidates
  benchmark vggt_speed.py "$WEIGHTS" --device cuda --dtype bfloat16 --view-chunk 8 --repeats 5 --limit-s 40 \
    --candidates $candidates --cases "${@/%/x$size}" --output "$STATE/results" --skip-done || echo "== vggt: FAILED"
  publish
}

benchmark_exactness() {
  step exactness_cuda_nano benchmark exactness.py --device cuda --output "$STATE/results"
  make_weights &&
    step exactness_cuda_1b benchmark exactness.py "$WEIGHTS" --device cuda --scenes 1 --size 336 518 \
      --output "$STATE/results"
}

benchmark_quantise() { # the result's name is of weights, precision and kind
  make_weights || return
  local kind name
  name=$(basename "$WEIGHTS")
  for kind in fp8 int8; do
    step "quantise_${name}_bfloat16_$kind" benchmark quantise.py "$WEIGHTS" --kind "$kind" --device cuda \
      --dtype bfloat16 --views 8 --size 336 518 --random 4 --scenes 0 --output "$STATE/results"
  done
}

time_long() {
  benchmark long.py time --preset 1b --views 100 --size 336 518 --device cuda --dtype bfloat16 --repeats 3 \
    --output "$STATE/long" && mv "$STATE/long/long_time.json" "$STATE/results/long_time_cuda.json"
}

[ $# -gt 0 ] || set -- tests vggt attention exactness quantise long train nano
install_wheels || echo "== wheels: FAILED"
for part in "$@"; do
  case $part in
    tests) step cuda_tests run_tests ;;
    vggt) benchmark_vggt ;;
    attention) timed attention_cuda_bfloat16 benchmark attention.py "$STATE/results" --device cuda ;;
    exactness) benchmark_exactness ;;
    quantise) benchmark_quantise ;;
    long) timed long_time_cuda time_long ;;
    train) train ;;
    nano) benchmark_nano ;;
    *)
      echo "part must be one of tests, vggt, attention, exactness, quantise, long, train, nano, got '$part'" >&2
      exit 2
      ;;
  esac
  publish
done
