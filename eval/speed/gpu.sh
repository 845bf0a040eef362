#!/usr/bin/env bash
# Check everything that a GPU changes, then measure it. In the project's root, with its dependencies installed:
#   bash eval/speed/gpu.sh OUT                # about 7 minutes on one GPU with 80 GB and 16 cores
#   MEASURE= bash eval/speed/gpu.sh OUT       # the checks alone
#   DEVICE=cpu PYTHON=.venv/bin/python CHECKS="smoke families-float32" MEASURE=toy bash eval/speed/gpu.sh OUT  # try the script
# Checks run at the same time, then measurements one by one. Each has a time limit, so that none takes the others' time.
# OUT has a log of each, and phases.py's JSON and profiles. Exits with 1 if any failed.
set -u
out=${1:?usage: bash eval/speed/gpu.sh OUT}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
CHECKS=${CHECKS-smoke families-bfloat16 families-float32 stages tests}
MEASURE=${MEASURE-llava-1.5-7b qwen2.5-vl-3b grpo ppo}
DEVICE=${DEVICE:-cuda}
rm -f "$out/failed.txt"
if [ "$DEVICE" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "$python sees no GPU: install its driver, or a torch that was built for it" >&2
  exit 1
fi

step() { # name, limit in seconds, command
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1
  status=$?
  echo "$name: exit status $status after $((SECONDS - start)) s: $(tail -n 1 "$out/$name.txt" | cut -c1-600)"
  if [ $status != 0 ]; then
    echo "$name" >> "$out/failed.txt"
    tail -n 15 "$out/$name.txt"
  fi
}

check() {
  case $1 in
    smoke) step smoke 90 "$python" eval/speed/gpu_smoke.py --device "$DEVICE" ;;
    families-*) step "$1" 150 "$python" -m tests.models.test_families --device "$DEVICE" --dtype "${1#families-}" ;;
    stages) step stages 150 "$python" eval/speed/gpu_stages.py --out "$out/stages" ;;
    # Tests run on the CPU unless a GPU is named; some compare with figures of a CPU.
    tests) CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} OMP_NUM_THREADS=1 step tests 150 \
      "$python" -m pytest -q --maxfail 100 -p no:cacheprovider -n 6 tests/engine tests/models tests/rewards tests/training ;;
    *) echo "no check $1" | tee -a "$out/failed.txt" >&2 ;;
  esac
}

measure() {
  case $1 in
    grpo | ppo) step "$1" 60 "$python" eval/speed/rl_step.py data/tiny_vlm --algo "$1" ;;
    *) step "phases-$1" 200 "$python" eval/speed/phases.py --shape "$1" --profile --out "$out/$1" ;;
  esac
}

for name in $CHECKS; do check "$name" & done
wait
for name in $MEASURE; do measure "$name"; done
[ ! -e "$out/failed.txt" ]
