"""Compiles the CUDA sources for the host, against tests/cuda_shim instead of CUDA.

    python tests/cuda_shim/build.py [library | selftest]

prints the path of what it built: the library that registers CUDA's kernels as those of the CPU, or
the shim's own tests. Objects stay in build/cuda_shim, and only what is out of date is compiled.

Environment: CXX, MAX_JOBS, DEBUG=1 (-O0 -g), METADNAS_SHIM_SANITIZE=1 (a library of its own, see
memcheck.sh).
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = os.environ.get("METADNAS_SHIM_SANITIZE", "0") == "1"
BUILD = ROOT / "build" / ("cuda_shim_sanitized" if SANITIZE else "cuda_shim")
# Not of the stack: threads that wait have stacks of their own.
SANITIZERS = ("-fsanitize=address,alignment", "-fno-sanitize-recover=all", "--param=asan-stack=0")
CXX = os.environ.get("CXX", "c++")
SHIM = "tests/cuda_shim/cuda_shim.cpp"
STAND_IN = "tests/cuda_shim/torch_stand_in.cpp"
# Plans hold no tensors: setup.py gives both libraries their own copy too.
SHARED = ["csrc/mixed_op/plan.cpp", "csrc/cell/graph.cpp"]


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
        *(SANITIZERS if SANITIZE else ()),
        *(f"-I{path}" for path in includes),
    ]


def out_of_date(output: Path, command: list[str]) -> bool:
    """Whether `output` was made by another command, or before a file it was made of changed."""
    made_by, read = output.with_suffix(".cmd"), output.with_suffix(".d")
    if not (output.exists() and made_by.exists() and read.exists()):
        return True
    if made_by.read_text() != " ".join(command):
        return True
    files = read.read_text().replace("\\\n", " ").split()[1:]
    made = output.stat().st_mtime
    return any(not (ROOT / f).exists() or (ROOT / f).stat().st_mtime > made for f in files)


def compile_source(source: str) -> Path:
    output = BUILD / f"{source.replace('/', '_')}.o"
    command = [CXX, *flags(), "-MMD", "-MF", str(output.with_suffix(".d"))]
    command += ["-x", "c++", "-c", source, "-o", str(output)]
    if out_of_date(output, command):
        subprocess.run(command, cwd=ROOT, check=True)
        output.with_suffix(".cmd").write_text(" ".join(command))
    return output


def build(target: str) -> Path:
    """Builds the `library` or the `selftest` and returns its path."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if target == "library":
        sources, output = library_sources(), BUILD / "libmetadnas_shim.so"
        folder = Path(torch.__file__).parent / "lib"
        libraries = [f"-L{folder}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder}"]
        # Its stand-ins go before what torch has.
        link = ["-shared", "-Wl,-Bsymbolic", *(SANITIZERS if SANITIZE else ())]
    elif target == "selftest":
        sources, output = ["tests/cuda_shim/selftest.cu", SHIM], BUILD / "selftest"
        link, libraries = [], []
    else:
        raise SystemExit(f"build.py: target is {target!r}, expected library or selftest")
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_source, sources))
    newest = max(path.stat().st_mtime for path in objects)
    if not output.exists() or output.stat().st_mtime < newest:
        subprocess.run([CXX, *link, *objects, *libraries, "-o", output], cwd=ROOT, check=True)
    return output


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else "library"))
