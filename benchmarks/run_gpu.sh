#!/usr/bin/env bash
# GPU tests and every benchmark in one call, under 9 minutes on one H200; needs only Python with torch, triton, transformers,
# einops, numpy, matplotlib, tqdm and pytest (with pytest-xdist, if it is there, tests compile their kernels on all processors),
# and no network. What a step lacks, or does not finish in time, costs the other steps nothing.
#
#   benchmarks/run_gpu.sh [OUTPUT_FOLDER]      default: benchmarks/results/DATE_COMMIT_DEVICE
#
# Other projects to compare with, if they are there: PEERS="lact=../LaCT dion=../dion" benchmarks/run_gpu.sh
# In a copy without .git: BENCHMARK_COMMIT=0123abc benchmarks/run_gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("No CUDA device here.")' || exit 1
export BENCHMARK_COMMIT=${BENCHMARK_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
out=${1:-benchmarks/results/$(date +%F)_${BENCHMARK_COMMIT:0:7}_$device}
log=$out/log.txt
mkdir -p "$out"
start=$SECONDS failed=()
step() {  # name, seconds it may take, command: its output goes to the log, and a failure does not stop the others
  local name=$1 limit=$2
  shift 2
  echo "== $name (at $((SECONDS - start)) s): $*" | tee -a "$log"
  timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1
  local code=$?
  [ $code -eq 0 ] || failed+=("$name")
  tail -n 3 "$log"
  echo "   $name: exit $code (124: out of time) at $((SECONDS - start)) s" | tee -a "$log"
}
{
  date -u
  echo "commit $BENCHMARK_COMMIT"
  nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv,noheader
  "$python" -c 'import torch, triton, sys; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
} 2>&1 | tee "$log"
peers=()
for peer in ${PEERS:-}; do peers+=(--peer "$peer"); done
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8 --dist worksteal)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/lact_inductor TRITON_CACHE_DIR=${TMPDIR:-/tmp}/lact_triton
pytest=("$python" -m pytest -q -p no:cacheprovider)
step kernel_tests 95 env OMP_NUM_THREADS=2 "${pytest[@]}" "${workers[@]}" --continue-on-collection-errors tests/kernels --deselect tests/kernels/test_ahead_of_time.py
step model_tests 25 "${pytest[@]}" tests/lact_asr/test_fast_weight_ops.py tests/lact_asr/test_vector_lengths.py
step kernels 155 "$python" -m benchmarks.kernels --output_dir "$out" --seconds 125 --compile_seconds 70 "${peers[@]}"
step model 100 "$python" -m benchmarks.model --output_dir "$out" --budget_seconds 0.5
step training 90 "$python" -m benchmarks.training --output_dir "$out" --sizes paper small tiny
step tiles 60 "$python" -m benchmarks.tiles --output_dir "$out"
echo "all done after $((SECONDS - start)) s; results in $out${failed[*]:+; failed: ${failed[*]}}" | tee -a "$log"
[ ${#failed[@]} -eq 0 ]
