#!/usr/bin/env bash
# Builds the native kernels without torch, with AddressSanitizer and UndefinedBehaviorSanitizer, and
# runs tests/cpp on them. GCC.
#
# usage: run.sh [SUITE...]    (plan, discretize, row_optimizers, relu_conv_bn, mixed_op; default all)
# Environment: CXX, MAX_JOBS (parallel compile jobs), CPP_TESTS_BUILD (folder of the objects, of
# which those older than their sources are made again; default build/cpp-tests)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CXX=${CXX:-c++}
jobs=${MAX_JOBS:-$(nproc)}
build=${CPP_TESTS_BUILD:-build/cpp-tests}
mkdir -p "$build"

# As setup.py, but for the optimisation. Checks by call: inline ones would take several times as long
# to compile in the unrolled kernels. Left out of UBSan, for the same reason: what AddressSanitizer
# mostly sees as well.
flags=(
  -std=c++20 -ffp-contract=fast -Wall -Wextra -Wno-psabi -O1 -g1 -Icsrc -Itests/cpp
  -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all
  -fno-sanitize=null,alignment,object-size,pointer-overflow,vptr
  --param asan-instrumentation-with-call-threshold=0
)

# The longest first.
sources=(
  csrc/mixed_op/cpu/kernels_*.cpp csrc/relu_conv_bn/cpu/kernels_*.cpp tests/cpp/test_*.cpp
  csrc/row_optimizers/cpu/kernels_*.cpp csrc/discretize/solver.cpp csrc/mixed_op/plan.cpp
  csrc/cell/graph.cpp csrc/common/isa.cpp tests/cpp/stand_in.cpp tests/cpp/main.cpp
)

object_of() { echo "$build/${1//\//_}.o"; }

outdated() {
  local object
  object=$(object_of "$1")
  local read=(csrc tests/cpp/run.sh)
  if [[ $1 == tests/* ]]; then read+=(tests/cpp); fi
  [[ ! -e $object || -n $(find "${read[@]}" -type f -newer "$object" -print -quit) ]]
}

for source in "${sources[@]}"; do
  if outdated "$source"; then printf '%s\0%s\0' "$source" "$(object_of "$source")"; fi
done | xargs --null --no-run-if-empty --max-args=2 --max-procs="$jobs" \
  bash -c '"$CXX" "${@:1:$#-2}" -c "${@:$#-1:1}" -o "${@:$#}"' compile "${flags[@]}"

# Objects for the oldest processors first: the linker keeps the first copy of what several have.
objects=()
for source in "${sources[@]}"; do
  if [[ $source != *_avx* ]]; then objects+=("$(object_of "$source")"); fi
done
for source in "${sources[@]}"; do
  if [[ $source == *_avx* ]]; then objects+=("$(object_of "$source")"); fi
done
"$CXX" -fsanitize=address,undefined -pthread "${objects[@]}" -o "$build/tests"

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:check_initialization_order=1
export ASAN_OPTIONS+=:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
"$build/tests" "$@"
