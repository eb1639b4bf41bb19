"""What the measurements were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from metadnas_ext import __version__, build_info
from metadnas_ext.placement import CPU

PACKAGE = Path(__file__).resolve().parents[1]


def machine(device: torch.device = CPU) -> dict[str, str | int]:
    """Processor, cores, threads that torch uses, instruction set, memory in bytes, system.

    With a GPU, its name and memory, too.
    """
    gpu: dict[str, str | int] = {}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        gpu = {"gpu": found.name, "gpu_memory_bytes": found.total_memory}
    return gpu | {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "isa": str(build_info().get("cpu_isa", "reference")),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Of this package, torch, Python and the compiler of the native code."""
    return {
        "metadnas_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": str(build_info().get("compiler", "none")),
    }


def commit() -> str | None:
    """The commit this package was imported from, "+" if changed since; None outside a checkout."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changed = _git("status", "--porcelain", "--", ".", "../csrc")
    return f"{_git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"


def available_memory() -> int:
    """Bytes that can be allocated without swapping; what the machine has where Linux's /proc is
    missing."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """What git prints in the package's folder, or None if there is no git or it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
