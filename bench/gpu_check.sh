#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: builds the package against the torch
# that is here, tests it on the GPU, looks for bad memory accesses, times it. A part that fails does
# not stop the next one; the summary comes last.
#
# usage: bench/gpu_check.sh [FOLDER [PART...]]    (results; default runs/gpu_check)
# Parts: build tests runs sanitize bench, which is the default, and compile (torch.compile beside the
# rest, for minutes). What one call has built the next one finds: a part may have a call of its own.
# Environment: PYTHON, TORCH_CUDA_ARCH_LIST (default: the GPU's own), MAX_JOBS
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:-runs/gpu_check}")
parts=("${@:2}")
if ((${#parts[@]} == 0)); then parts=(build tests runs sanitize bench); fi
declare -A limits=([build]=200 [tests]=150 [runs]=60 [sanitize]=90 [bench]=100 [compile]=540)
for name in "${parts[@]}"; do
  if [[ ! -v limits[$name] ]]; then
    echo "no part '$name', expected some of: ${!limits[*]}" >&2
    exit 2
  fi
done
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
  timeout "$limit" bash -c "$name" >"$out/$name.log" 2>&1 || code=$?
  echo "$name: $((SECONDS - start)) s, exit $code" | tee -a "$out/summary.txt"
  return "$code"
}

build() {
  FORCE_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps --no-index \
    --target "$site" --upgrade . &&
    (cd "$out" && "$python" -P -c 'from metadnas_ext import build_info; print(build_info())')
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

measure() { (cd "$out" && "$python" -P -m metadnas_ext bench --device cuda --out "$@"); }

bench() {
  measure "$out/gpu.json" --memory --seconds 2 mixed_op supernet supernet_cohort search_step \
    federated_round stage aggregation/mean-weights-256 aggregation/median-weights-255
}

compile() { measure "$out/gpu_compile.json" --compile --seconds 2 mixed_op supernet; }

export -f build tests runs sanitize measure bench compile
export out python site
nvidia-smi >"$out/nvidia-smi.txt" 2>&1
for name in "${parts[@]}"; do
  part "$name" "${limits[$name]}" || [[ $name != build ]] || break
done
rm -rf build/bdist.*
for name in "${parts[@]}"; do
  if [[ -e $out/$name.log ]]; then echo "--- $name" && tail -n 12 "$out/$name.log"; fi
done
cat "$out/summary.txt"
! grep -q 'exit [^0]' "$out/summary.txt"
