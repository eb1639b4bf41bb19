#!/usr/bin/env bash
# Fails if an object file compiled for one instruction set defines a weak symbol that is not of that
# set: an inline library function, say. The linker keeps one copy of those for everyone, and a
# processor without the instructions would stop at it.
#
# usage: check_symbols.sh FOLDER...    (searched for kernels_<isa>.o; after an installation: build)
set -euo pipefail

checked=0 offenders=0
while IFS= read -r -d '' object; do
  isa=$(basename "$object" .o)
  isa=${isa#kernels_}
  # V would be weak data, which is the same for everyone.
  strays=$(nm --demangle --defined-only "$object" | awk '$2 == "W"' |
    grep -v "metadnas::$isa::" || true)
  checked=$((checked + 1))
  if [[ -n $strays ]]; then
    offenders=$((offenders + 1))
    printf '%s defines weak symbols outside of metadnas::%s:\n%s\n' "$object" "$isa" "$strays" >&2
  fi
done < <(find "$@" -name 'kernels_*.o' ! -name 'kernels_baseline.o' -print0)

if ((checked == 0)); then
  echo "no kernels_<isa>.o in $*" >&2
  exit 1
fi
echo "$checked object files checked, $offenders with symbols that others could get"
((offenders == 0))
