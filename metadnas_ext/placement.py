"""Where a run computes: the device that `run.device` names, and copies to it that wait for nothing.

Random numbers are drawn on the CPU and moved, so that a run draws the same ones on every device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext._native import build_info
from metadnas_ext.errors import ConfigError

CPU = torch.device("cpu")


def device_of(name: str, setting: str = "run.device") -> torch.device:
    """The device of a value of `run.device`; "auto": a GPU if one can be used, else the CPU.

    Raises ConfigError naming the setting and saying why, if the device cannot be used.
    """
    if name == "cpu":
        return CPU
    lacking = _lacking()
    if name == "auto":
        # By hand the twins of the operators run on a GPU too; that is no reason to choose one.
        return CPU if lacking or not build_info()["cuda"] else torch.device("cuda", 0)
    if lacking:
        raise ConfigError(f"{setting} is {name!r}, but {lacking}; expected cpu or auto here")
    device, found = torch.device(name), torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= found:
        raise ConfigError(f"{setting} is {name!r}, expected cuda:0 to cuda:{found - 1} here")
    return torch.device("cuda", index)


def settled_name(name: str) -> str:
    """The value of `run.device` that a run keeps: "auto" as what it stands for here."""
    return str(device_of(name)) if name == "auto" else name


def make_repeatable(device: torch.device) -> None:
    """Keeps the libraries behind torch from sums in varying order, and from TF32 convolutions.

    For the whole process; to be called before the first product on the device.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for the work given to it before.

    Only in this direction: a copy from a device that nobody waits for may be read too early.
    """
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def index_on(device: torch.device, rows: Sequence[int]) -> Tensor:
    """Rows to index a tensor of the device with, int64; a list would wait for the device."""
    return to_device(torch.tensor(rows, dtype=torch.int64), device)


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on `device`: half of its free memory is for the networks."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * size <= free


def _lacking() -> str | None:
    """Why no GPU can be used, or None."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    info = build_info()
    if info["native"] and not info["cuda"]:
        reason = info.get("no_cuda", "this installation was built without them")
        return f"the CUDA operators are not loaded ({reason})"
    return None
