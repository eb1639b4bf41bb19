"""The device that is measured: waiting for it, its memory, steps as CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from metadnas_ext.bench.case import Outcome, Variant
from metadnas_ext.bench.machine import available_memory
from metadnas_ext.config_checks import check_device_name
from metadnas_ext.errors import BenchmarkError, ConfigError
from metadnas_ext.placement import device_of

WARM_UP = 3  # steps before a capture, in which libraries allocate and choose


def bench_device(name: str) -> torch.device:
    """The device called `name`, ready to be measured. BenchmarkError if it cannot be used.

    On a GPU cuDNN looks for its fastest algorithms and, as the package does, computes in float32:
    TF32 would compare other arithmetic.
    """
    try:
        check_device_name(name, "--device")
        device = device_of(name, "--device")
    except ConfigError as error:
        raise BenchmarkError(str(error)) from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
    return device


def compile_modes(device: torch.device) -> tuple[str, ...]:
    """Modes of torch.compile worth measuring; on a CPU the others differ by CUDA graphs only."""
    modes = ("default", "max-autotune-no-cudagraphs")
    return modes if device.type == "cpu" else (*modes, "max-autotune")


def seconds(step: Callable[[], object], device: torch.device, loops: int = 1) -> float:
    """Seconds a step takes until its results are there; the mean of `loops` in a row."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(loops):
        step()
    wait_for(device)
    return (time.perf_counter() - start) / loops


def wait_for(device: torch.device) -> None:
    """Returns when the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def gpu_peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a step adds to what tensors on a GPU take."""
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device) - before


def captured(variant: Variant) -> Variant:
    """The variant's step as one CUDA graph; RuntimeError if it waits for the device.

    Results are overwritten by the next step.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            variant.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = variant.step()

    def replay() -> Outcome:
        graph.replay()
        return outcome

    return Variant(replay, variant.parameters, variant.comparable)
