"""Builds the native code: `_C` (operators through the LibTorch stable ABI, and a pybind11 module)
and, where torch has CUDA and there is an nvcc, `_C_cuda` (the same operators on CUDA).

Environment: MAX_JOBS (parallel compile jobs), DEBUG=1 (-O0 -g), FORCE_CUDA=1 (fail if CUDA cannot
be built), CUDA_HOME (default: where nvcc says that its toolkit is), TORCH_CUDA_ARCH_LIST (default:
8.0, 9.0, 10.0 and PTX for what comes after).
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup


def cuda_home() -> Path | None:
    """The CUDA toolkit. PyTorch takes the folder above nvcc's for it, which is wrong where the nvcc
    on the path is a script that starts the toolkit's own; that one knows, and CMake asks it too.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    homes = [Path("/usr/local/cuda")]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
        dry_run = subprocess.run(command, capture_output=True, text=True, check=False)
        tops = re.findall(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
        homes = [Path(nvcc).parents[1], *(Path(top).resolve() for top in tops), *homes]
    return next((home for home in homes if has_headers(home)), None)


def has_headers(home: Path) -> bool:
    patterns = ["include/cuda_runtime.h", "targets/*/include/cuda_runtime.h"]  # the latter: conda
    return any(any(home.glob(pattern)) for pattern in patterns)


HOME = cuda_home()
if HOME is not None:
    os.environ["CUDA_HOME"] = str(HOME)

from torch.utils import cpp_extension  # noqa: E402  reads CUDA_HOME when imported

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG", "0") == "1"

DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # runs under every torch >= 2.11
OPTIMISE = ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-DNDEBUG", "-g0"]
# Contraction to FMA is the compiler's default in GNU mode only; the kernels count on it.
FLAGS = ["-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fvisibility=hidden", *(["-g"] if DEBUG else [])]
NVCC_FLAGS += ["--threads=4"]  # architectures beside one another: the largest file takes minutes
# Plans hold no tensors: both libraries have their own copy.
SHARED_SOURCES = ["csrc/cell/graph.cpp", "csrc/mixed_op/plan.cpp"]


def sources(*patterns: str) -> list[str]:
    found = [path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(map(str, found))


def why_no_cuda() -> str | None:
    """Whether a GPU is here does not matter: it may be where the package goes."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if HOME is None:
        return "there is no CUDA toolkit (CUDA_HOME, nvcc on PATH, /usr/local/cuda)"
    if not (HOME / "bin" / "nvcc").exists():
        return f"there is no nvcc in the CUDA toolkit {HOME}"
    if not has_headers(HOME):
        return f"there is no cuda_runtime.h in the CUDA toolkit {HOME}"
    return None


def cpu_extension() -> Extension:
    import pybind11  # not before it is known that there is something to build

    cuda = set(sources("csrc/**/cuda/*.cpp"))
    return cpp_extension.CppExtension(
        name="metadnas_ext._C",
        sources=[path for path in sources("csrc/**/*.cpp") if path not in cuda],
        # The pybind11 within torch 2.11 refuses to be included beside TORCH_TARGET_VERSION.
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        extra_compile_args={"cxx": FLAGS + OPTIMISE + DEFINES},
    )


def cuda_extension() -> Extension:
    version = tuple(map(int, str(torch.version.cuda).split(".")[:2]))
    newest = "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", newest)
    defines = [*DEFINES, "-DUSE_CUDA"]
    return cpp_extension.CUDAExtension(
        name="metadnas_ext._C_cuda",
        sources=sources("csrc/**/cuda/*.cpp", "csrc/**/cuda/*.cu") + SHARED_SOURCES,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": FLAGS + OPTIMISE + defines, "nvcc": NVCC_FLAGS + defines},
    )


def extensions() -> list[Extension]:
    missing = why_no_cuda()
    if missing is None:
        return [cpu_extension(), cuda_extension()]
    if os.environ.get("FORCE_CUDA", "0") == "1":
        raise SystemExit(f"FORCE_CUDA=1, but {missing}")
    print(f"metadnas_ext: building without CUDA kernels: {missing}")
    return [cpu_extension()]


setup(ext_modules=extensions(), cmdclass={"build_ext": cpp_extension.BuildExtension})
