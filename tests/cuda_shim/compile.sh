#!/usr/bin/env bash
# Compiles every CUDA source with nvcc, which needs no GPU, and fails on spilled registers; prints
# registers and static shared memory of each kernel. Lets the host's compiler read the host's sources
# with CUDA's headers, which the shim replaces. Skipped where there is no nvcc.
#
# usage: compile.sh [SOURCE...]    (default: csrc/*/cuda/*.cu and csrc/*/cuda/*.cpp)
# Environment: CUDA_HOME, CUDA_ARCHITECTURES (default "80 90 100"), CXX, MAX_JOBS
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
if [[ ! -x $nvcc ]]; then nvcc=$(command -v nvcc || true); fi
if [[ -z $nvcc ]]; then
  echo "no nvcc here (CUDA_HOME, /usr/local/cuda, PATH): CUDA sources are not compiled"
  exit 0
fi
jobs=${MAX_JOBS:-$(nproc)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As setup.py: torch's headers, and those of the nvcc that is asked where it is from.
read_host_sources() {
  local home includes
  home=$("$nvcc" --dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
  mapfile -t includes < <(python -c 'from torch.utils.cpp_extension import include_paths
print(*("-isystem" + path for path in include_paths()), sep="\n")')
  printf '%s\0' "$@" | xargs --null --max-args=1 --max-procs="$jobs" \
    "${CXX:-c++}" -std=c++20 -fsyntax-only -fvisibility=hidden -Wall -Wno-psabi -Icsrc "${includes[@]}" \
    "-I$home/include" -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000
  echo "$# host sources read with CUDA's headers"
}

sources=("$@")
if ((${#sources[@]} == 0)); then
  sources=(csrc/*/cuda/*.cu)
  read_host_sources csrc/*/cuda/*.cpp
fi
targets=()
for architecture in ${CUDA_ARCHITECTURES:-80 90 100}; do
  targets+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
done

# As setup.py. Kernels include no torch header.
compile() {
  local source=$1 log
  shift
  log=$work/${source//\//_}.log
  "$@" -c "$source" -o "${log%.log}.o" >"$log" 2>&1 || { cat "$log" >&2; exit 255; }
}
export -f compile
export work
printf '%s\0' "${sources[@]}" | xargs --null --max-procs="$jobs" --replace \
  bash -c 'compile "$@"' compile {} "$nvcc" -std=c++20 -O3 -Icsrc -Xptxas -v "${targets[@]}"

# One line a kernel and architecture: architecture, registers, static shared memory, spills, name.
awk '
  /Compiling entry function/ {
    split($0, part, "\047"); name = part[2]; architecture = part[4]
  }
  /bytes spill stores/ { spilled = $5 + $9 }
  /Used [0-9]+ registers/ {
    registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
    print architecture, registers, shared, spilled, name
  }' "$work"/*.log | c++filt | sed 's/(anonymous namespace):://g; s/metadnas:://g' |
  sort -k 5 -k 1,1 >"$work/kernels"
echo "architecture registers shared_bytes spilled_bytes kernel"
cat "$work/kernels"
echo "$(wc -l <"$work/kernels") kernels of ${#sources[@]} files"
if awk '$4 > 0 { bad = 1 } END { exit !bad }' "$work/kernels"; then
  echo "registers are spilled:" >&2
  awk '$4 > 0' "$work/kernels" >&2
  exit 1
fi
