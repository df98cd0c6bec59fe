#!/usr/bin/env bash
# All that needs a CUDA device, in five minutes on an H100 with 80 GB: the tests marked `gpu`, then the tables and plots
# of `foveate bench` on the shapes of released 7B checkpoints (random weights, made on the device; nothing is loaded).
#
#     benchmarks/gpu.sh OUT
#
# In OUT: summary.txt (card, versions, every step with its status and seconds), tests.log, bench.log and results.tgz
# (JSON, Markdown, plots). A step that fails or takes too long stops no other; the status is 1 when any did.
# PYTHON (python3), LIMIT (300, seconds for all steps) and, to try the script without a GPU, DEVICE and SHAPE_OPTIONS:
#     DEVICE=cpu SHAPE_OPTIONS="--llm-layers 1 --vision-layers 8 --image 336x336" benchmarks/gpu.sh OUT
set -u
shopt -s nullglob
[ $# -eq 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-300}
DEVICE=${DEVICE:-cuda}
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false COLUMNS=240
PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT
read -ra SHAPE_OPTIONS <<< "${SHAPE_OPTIONS:-}"

# step NAME SECONDS COMMAND...: within its own seconds and those left of all.
step() {
    local name=$1 most=$2 left=$((LIMIT - SECONDS)) begun=$SECONDS rc=0
    shift 2
    if [ "$left" -lt 10 ]; then
        rc="not started"
    else
        timeout --kill-after=10 "$((left < most ? left : most))" "$@" > "$PARTS/$name.log" 2>&1 || rc=$?
    fi
    printf '%-28s status %-12s %4d s\n' "$name" "$rc" "$((SECONDS - begun))" | tee -a "$OUT/summary.txt"
}

bench() {  # bench NAME SECONDS OPTIONS...
    local name=$1 most=$2
    shift 2
    step "$name" "$most" "$PYTHON" -m foveate bench --device "$DEVICE" --out "$PARTS/results/$name" "$@"
}

shape() {  # shape NAME SECONDS SHAPE OPTIONS...
    local name=$1 most=$2 of=$3
    shift 3
    bench "$name" "$most" --shape "$of" --max-new-tokens 1 --repeats 7 --no-baseline \
        "$@" ${SHAPE_OPTIONS[@]+"${SHAPE_OPTIONS[@]}"}
}

{
    echo "$(git rev-parse --short HEAD 2> /dev/null || echo 'no commit known'), device $DEVICE"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null
    "$PYTHON" - <<'VERSIONS'
import platform
from importlib import import_module

print("python", platform.python_version())
for name in ("torch", "transformers", "numpy", "foveate"):
    try:
        print(name, import_module(name).__version__)
    except ImportError as error:
        print(name, error)
import torch

print("cuda", torch.version.cuda, torch.cuda.get_device_name() if torch.cuda.is_available() else "no device")
VERSIONS
} > "$OUT/summary.txt" 2>&1
cat "$OUT/summary.txt"

# Side by side: they wait for Python more than for the device, and are not timed.
for file in $(grep -rl 'mark\.gpu' tests --include='test_*.py'); do
    name=$(basename "$file" .py)
    step "$name" 150 "$PYTHON" -m pytest -p no:cacheprovider -q -ra -m gpu "$file" &
done
wait

bench selection 45 --selection --methods all
shape llava-next-7b 75 llava-next-7b --methods adafv,cover --keep 1.0,0.25,0.1,0.05 --crops 0.5
shape internvl-8b-12-tiles 60 internvl-8b --image 1344x1792 --methods adafv,cover --keep 1.0,0.1 --crops 0.5,0.25
shape llava-next-7b-batch-4 60 llava-next-7b --batch-size 4 --methods adafv --keep 1.0,0.1 --crops 0.5
shape qwen2.5-vl-7b 60 qwen2.5-vl-7b --methods adafv,cover --keep 1.0,0.1
bench bundled 45 --quick --methods adafv,cover --crops 0.5
shape llava-1.5-7b 45 llava-1.5-7b --methods adafv,cover --keep 1.0,0.25,0.1,0.05
if [ ${#SHAPE_OPTIONS[@]} -eq 0 ]; then bench tap 60 --tap; else bench tap 90 --tap --quick --shape llava-next-7b; fi

for log in "$PARTS"/*.log; do
    case $(basename "$log") in test_*) into=tests ;; *) into=bench ;; esac
    { echo "== $(basename "$log" .log)"; cat "$log"; echo; } >> "$PARTS/$into.all"
done
for into in tests bench; do mv "$PARTS/$into.all" "$OUT/$into.log" 2> /dev/null; done
mkdir -p "$PARTS/results" && tar -czf "$OUT/results.tgz" -C "$PARTS" results
! grep -qE 'status ([1-9]|not)' "$OUT/summary.txt"
