"""Peak resident memory of a step, measured in a process of its own.

`python -m metadnas_ext.bench.memory CASE VARIANT` prints how many bytes the first step adds at its
highest to what was resident before it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from metadnas_ext.bench.registry import CASES
from metadnas_ext.errors import BenchmarkError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes(case: str, variant: str, *, tiny: bool = False) -> int:
    """Most bytes that the first step adds, in a fresh process with as many threads as here.

    Raises BenchmarkError if the process fails, as where there is no Linux /proc.
    """
    arguments = [case, variant, str(torch.get_num_threads()), str(int(tiny))]
    command = [sys.executable, "-m", "metadnas_ext.bench.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchmarkError(f"the memory of {case}, {variant} cannot be measured: {reason}")
    return int(done.stdout)


def _measure(case: str, variant: str, threads: int, tiny: bool) -> int:
    torch.set_num_threads(threads)
    step = CASES[case].setup(tiny).makers()[variant]().step
    _CLEAR.write_text("5")  # Linux: sets the high-water mark to what is resident now
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise BenchmarkError(f"{_STATUS} has no {field}")
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"))
