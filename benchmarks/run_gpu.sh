#!/usr/bin/env bash
# GPU tests and every benchmark in one call, under 9 minutes on one H200; needs only Python with torch, triton, transformers,
# einops, numpy, matplotlib, tqdm and pytest, and no network. Results go to one folder: benchmarks/run_gpu.sh [OUTPUT_FOLDER]
# Other projects to compare with, if they are there: PEERS="lact=../LaCT dion=../dion" benchmarks/run_gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/$(date +%F)}
python=${PYTHON:-python3}
mkdir -p "$out"
start=$SECONDS
step() {  # name, seconds it may take, command: keeps its output, and goes on when it fails
  local name=$1 limit=$2
  shift 2
  echo "== $name (at $((SECONDS - start)) s)"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  echo "   exit $? after $((SECONDS - start)) s"
  tail -n 3 "$out/$name.log"
}
{
  date -u
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv,noheader
  "$python" -c 'import torch, triton, sys; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
} | tee "$out/machine.txt"
peers=()
for peer in ${PEERS:-}; do peers+=(--peer "$peer"); done
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/lact_inductor TRITON_CACHE_DIR=${TMPDIR:-/tmp}/lact_triton
step tests 120 "$python" -m pytest -q -p no:cacheprovider tests/kernels tests/lact_asr/test_fast_weight_ops.py tests/lact_asr/test_lact_layer.py --deselect tests/kernels/test_ahead_of_time.py
step kernels 170 "$python" -m benchmarks.kernels --output_dir "$out" --compile_seconds 85 "${peers[@]}"
step model 75 "$python" -m benchmarks.model --output_dir "$out"
step training 80 "$python" -m benchmarks.training --output_dir "$out"
step tiles 90 "$python" -m benchmarks.tiles --output_dir "$out"
echo "all done after $((SECONDS - start)) s; results in $out"
