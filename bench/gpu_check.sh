#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: builds the package against the torch
# that is here, tests it on the GPU, looks for bad memory accesses, times it. A part that fails does
# not stop the next one; the summary comes last.
#
# usage: bench/gpu_check.sh [FOLDER]    (results; default runs/gpu_check)
# Environment: PYTHON, TORCH_CUDA_ARCH_LIST (default: the GPU's own), MAX_JOBS
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:-runs/gpu_check}")
mkdir -p "$out"
python=${PYTHON:-python3}
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
architecture='import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))'
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$python" -c "$architecture")}
# An installation of its own, beside the image's packages, and no checkout on the path: tests run
# against what was built.
site=$out/site
export PYTHONPATH=$site PYTHONSAFEPATH=1
: >"$out/summary.txt"

part() {
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2  # what is left: a function
  timeout "$limit" bash -c "$1" >"$out/$name.log" 2>&1 || code=$?
  echo "$name: $((SECONDS - start)) s, exit $code" | tee -a "$out/summary.txt"
  return "$code"
}

build() {
  FORCE_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps --no-index \
    --target "$site" --upgrade .
}

# Only what runs on the GPU.
tests() { (cd "$out" && "$python" -P -m pytest "$OLDPWD/tests/ops" --device=cuda -p no:cacheprovider); }

# Whole runs, against the same ones on the CPU; these tests look for a GPU themselves.
runs() {
  (cd "$out" && "$python" -P -m pytest "$OLDPWD/tests/methods/test_on_gpu.py" -k two_rounds \
    -p no:cacheprovider)
}

sanitize() {
  local names="modes or ragged or every_rank or twin or equals_numpy"
  (cd "$out" && compute-sanitizer --tool memcheck --error-exitcode 9 --launch-timeout 120 \
    "$python" -P -m pytest "$OLDPWD/tests/ops" --device=cuda -p no:cacheprovider -x \
    -k "($names) and not channels" --maxfail 1)
}

ops() { (cd "$out" && "$python" -P "$OLDPWD/bench/gpu_ops.py" --out "$out/gpu_ops.json"); }

export -f build tests runs sanitize ops
export out python site
nvidia-smi >"$out/nvidia-smi.txt" 2>&1
if part build 200 build; then
  (cd "$out" && "$python" -P -c 'from metadnas_ext import build_info; print(build_info())') |
    tee -a "$out/summary.txt"
  part tests 150 tests
  part runs 60 runs
  part sanitize 90 sanitize
  part bench 90 ops
fi
rm -rf "$site" build/bdist.*
for log in build tests runs sanitize bench; do
  if [[ -e $out/$log.log ]]; then echo "--- $log" && tail -n 12 "$out/$log.log"; fi
done
cat "$out/summary.txt"
! grep -q 'exit [^0]' "$out/summary.txt"
