"""Loads the native library, or, with METADNAS_EXT_REFERENCE=1, does without it.

There is no silent fallback: a missing or broken library is an ImportError that says what to do.
"""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch

REFERENCE = os.environ.get("METADNAS_EXT_REFERENCE", "0") == "1"
"""True: every operator runs as its pure-torch twin and no native code is loaded."""


def _load() -> Any:
    if REFERENCE:
        return None
    try:
        return importlib.import_module("metadnas_ext._C")
    except ImportError as error:
        raise ImportError(
            "metadnas_ext: the native library metadnas_ext._C cannot be loaded "
            f"({error}). Build it with `pip install .`, or set METADNAS_EXT_REFERENCE=1 to run "
            "the slow pure-torch path."
        ) from error


_C = _load()


def _load_cuda() -> str | None:
    """Registers the operators on CUDA; returns why not, or None."""
    if REFERENCE:
        return "METADNAS_EXT_REFERENCE=1 runs everything in pure torch"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    found = sorted(Path(__file__).parent.glob("_C_cuda*.so"))
    if not found:
        return "this installation was built without CUDA kernels"
    try:
        torch.ops.load_library(str(found[0]))  # type: ignore[no-untyped-call]
    except OSError as error:
        reason = f"{found[0].name} cannot be loaded: {error}"
        warnings.warn(f"metadnas_ext: no CUDA kernels: {reason}", stacklevel=2)
        return reason
    return None


_NO_CUDA = _load_cuda()


def release_memory() -> int:
    """Gives the memory of large results that are gone back to the system.

    What the operators of cells return, or keep for the backward pass, lives in blocks that the next
    results of about the same size use again. Idle ones and those in use together are at most a
    quarter more than have been in use at once since the last call of this function. Tensors in use
    are left alone. Any thread may call it at any time.

    Returns:
        Bytes given back; 0 on the reference path, which keeps nothing.
    """
    return 0 if REFERENCE else int(_C.pool_release())


def build_info() -> dict[str, str | bool]:
    """What this installation was built with and runs on.

    Keys: `native` (False on the reference path), `cpu_isa` ("avx512", "avx2", "baseline"),
    `cuda` (whether CUDA kernels are loaded), `no_cuda` (why not, where they are not), `compiler`,
    `torch` (the running version).
    """
    info: dict[str, str | bool] = {"native": not REFERENCE, "cuda": _NO_CUDA is None}
    if _NO_CUDA is not None:
        info["no_cuda"] = _NO_CUDA
    if not REFERENCE:
        info["cpu_isa"] = _C.cpu_isa()
        info["compiler"] = _C.compiler
    info["torch"] = torch.__version__
    return info
