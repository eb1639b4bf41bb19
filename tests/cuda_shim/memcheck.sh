#!/usr/bin/env bash
# What compute-sanitizer's memcheck looks for on a GPU, as far as the host can: CUDA kernels under
# AddressSanitizer, with the memory behind a block's shared memory poisoned, and with loads and
# stores that are not aligned for their vectors an error. Backwards, as no other test runs them.
#
# usage: memcheck.sh [PYTEST-ARGUMENT...]    (default: what bench/gpu_check.sh checks, and halves)
# Environment: CXX (gcc), MAX_JOBS
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CXX=${CXX:-c++} METADNAS_SHIM_SANITIZE=1 METADNAS_SHIM_ORDER=reverse
names="modes or ragged or every_rank or twin or equals_numpy or halves"
tests=(tests/ops -k "($names) and not gradcheck and not channels")
if (($# > 0)); then tests=("$@"); fi
python tests/cuda_shim/build.py library

# Both before python's own: AddressSanitizer has to find the real __cxa_throw when it starts. Its
# report goes to the process's stderr, which pytest has to leave alone.
preload="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libstdc++.so.6)"
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 python -P -m pytest --capture=sys --device=shim "${tests[@]}"
