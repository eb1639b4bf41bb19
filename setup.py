"""Builds the `_C` extension (operators through the LibTorch stable ABI, plus a pybind11 module).

Environment: MAX_JOBS (parallel compile jobs), DEBUG=1 (-O0 -g), FORCE_CUDA=1 (fail if CUDA cannot
be built).
"""

import os
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG", "0") == "1"

if os.environ.get("FORCE_CUDA", "0") == "1":
    raise SystemExit("FORCE_CUDA=1: this version has no CUDA kernels yet; unset FORCE_CUDA")

DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # runs under every torch >= 2.11
OPTIMISE = ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-DNDEBUG", "-g0"]
# Contraction to FMA is the compiler's default in GNU mode only; the kernels count on it.
FLAGS = ["-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))


setup(
    ext_modules=[
        CppExtension(
            name="metadnas_ext._C",
            sources=sources(),
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": FLAGS + OPTIMISE + DEFINES},
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
