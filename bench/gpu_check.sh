#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: builds the package against the torch
# that is here, tests it on the GPU, looks for bad memory accesses and races, times it. A part that
# fails does not stop the next one; the summary comes last. Results to be committed are the JSON
# files, named after the GPU.
#
# usage: bench/gpu_check.sh [FOLDER [PART...]]    (results; default runs/gpu_check)
# Parts: build tests runs bench memory races, which is the default, and long (torch.compile beside the
# rest, and a hundred clients, for minutes). What one call has built the next one finds: parts may have calls of their own.
# Environment: PYTHON, TORCH_CUDA_ARCH_LIST (default: the GPU's own), MAX_JOBS
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:-runs/gpu_check}")
parts=("${@:2}")
if ((${#parts[@]} == 0)); then parts=(build tests runs bench memory races); fi
declare -A limits=(
  [build]=220 [tests]=120 [runs]=40 [bench]=110 [memory]=55 [races]=40 [long]=540
)
for name in "${parts[@]}"; do
  if [[ ! -v limits[$name] ]]; then
    echo "no part '$name', expected some of: ${!limits[*]}" >&2
    exit 2
  fi
done
python=${PYTHON:-python3}
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
gpu='import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))
print("_".join(torch.cuda.get_device_name().lower().split()))'
if ! found=$("$python" -c "$gpu"); then
  echo "gpu_check.sh: torch of $python finds no GPU" >&2
  exit 1
fi
{ read -r architecture && read -r machine; } <<<"$found"
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$architecture}
# Kernels of a file beside one another; nvcc of CUDA 12.3 and later.
export NVCC_APPEND_FLAGS="--split-compile=0 ${NVCC_APPEND_FLAGS:-}"
mkdir -p "$out"
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

# Only what runs on the GPU; in several processes where pytest-xdist is installed.
tests() {
  local workers=()
  if "$python" -P -c 'import xdist' 2>/dev/null; then workers=(-n 8); fi
  (cd "$out" && "$python" -P -m pytest "$OLDPWD/tests/ops" --device=cuda -p no:cacheprovider \
    "${workers[@]}")
}

# Whole runs, against the same ones on the CPU; these tests look for a GPU themselves.
runs() {
  (cd "$out" && "$python" -P -m pytest "$OLDPWD/tests/methods/test_on_gpu.py" -k two_rounds \
    -p no:cacheprovider)
}

# A tool of compute-sanitizer on the tests of these names. Every tensor has memory of its own, not a
# part of torch's larger blocks, in which an access behind its end would go unseen.
sanitized() {
  local sanitizer
  if ! sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer); then
    echo "there is no compute-sanitizer (PATH, CUDA_HOME/bin)"
    return 127
  fi
  (cd "$out" && PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" --error-exitcode 9 \
    --launch-timeout 120 "$python" -P -m pytest "$OLDPWD/tests/ops" --device=cuda \
    -p no:cacheprovider -x -k "$2")
}
memory() {
  sanitized memcheck "(modes or ragged or every_rank or twin or equals_numpy) and not channels"
}
races() { sanitized racecheck "one_candidate_an_edge or each_candidate or untrimmed or twin"; }

measure() { (cd "$out" && "$python" -P -m metadnas_ext bench --device cuda --out "$@"); }
bench() {
  measure "$out/$machine.json" --memory --seconds 1 supernet mixed_op search_epoch \
    supernet_cohort/{1-client,8-clients,32-clients} federated_round stage \
    aggregation/{mean-weights-256,median-weights-255}
}
long() {
  measure "$out/${machine}_long.json" --compile --seconds 1 supernet mixed_op \
    supernet_cohort/100-clients
}

export -f build tests runs sanitized memory races measure bench long
export out python site machine
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
