"""Compiles the CUDA sources for the host, against tests/cuda_shim instead of CUDA.

    python tests/cuda_shim/build.py [library | selftest]

prints the path of what it built: the library that registers CUDA's kernels as those of the CPU, or
the shim's own tests. Objects stay in build/cuda_shim, and only what is out of date is compiled.

Environment: CXX, MAX_JOBS, DEBUG=1 (-O0 -g).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda_shim"
SHIM = "tests/cuda_shim/cuda_shim.cpp"
STAND_IN = "tests/cuda_shim/torch_stand_in.cpp"
# Shared with the library of the CPU: plans hold no tensors.
SHARED = ["csrc/mixed_op/plan.cpp", "csrc/cell/graph.cpp"]

NINJA = """\
ninja_required_version = 1.3
builddir = {folder}
rule compile
  command = {cxx} -MMD -MF $out.d {flags} -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} {link} $in {libraries} -o $out
"""


def library_sources() -> list[str]:
    """Everything in a folder `cuda`, what it shares with the CPU, and the shim."""
    found = [p for end in ("cu", "cpp") for p in ROOT.glob(f"csrc/*/cuda/*.{end}")]
    return [*sorted(str(p.relative_to(ROOT)) for p in found), *SHARED, SHIM, STAND_IN]


def flags() -> list[str]:
    includes = ["csrc", "tests/cuda_shim", *cpp_extension.include_paths()]
    optimise = ["-O0", "-g"] if os.environ.get("DEBUG", "0") == "1" else ["-O2", "-g0"]
    return [
        *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", *optimise),
        *("-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-attributes"),
        *("-DMETADNAS_CUDA_SHIM", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        *(f"-I{path}" for path in includes),
    ]


def build(target: str) -> Path:
    """Builds the `library` or the `selftest` and returns its path."""
    if target == "library":
        sources, name, link = library_sources(), "libmetadnas_shim.so", "-shared -Wl,-Bsymbolic"
        folder = Path(torch.__file__).parent / "lib"
        libraries = f"-L{folder} -ltorch -ltorch_cpu -lc10 -Wl,-rpath,{folder}"
    elif target == "selftest":
        sources, name, link, libraries = ["tests/cuda_shim/selftest.cu", SHIM], "selftest", "", ""
    else:
        raise SystemExit(f"build.py: target is {target!r}, expected library or selftest")
    BUILD.mkdir(parents=True, exist_ok=True)
    rules = NINJA.format(
        folder=BUILD,
        cxx=os.environ.get("CXX", "c++"),
        flags=" ".join(flags()),
        link=link,
        libraries=libraries,
    )
    objects = {source: f"{BUILD}/{source.replace('/', '_')}.o" for source in sources}
    output = BUILD / name
    lines = [f"build {o}: compile {ROOT / s}" for s, o in objects.items()]
    lines += [f"build {output}: link {' '.join(objects.values())}", f"default {output}", ""]
    file = BUILD / f"{target}.ninja"
    file.write_text(rules + "\n".join(lines))
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    subprocess.run(
        ["ninja", "-f", str(file), *jobs], cwd=ROOT, check=True, stdout=sys.stderr.fileno()
    )
    return output


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else "library"))
