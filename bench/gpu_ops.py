"""Times the operators on a GPU beside eager PyTorch, against the bandwidth of a plain copy.

    python bench/gpu_ops.py --out results.json [--device cpu --tiny]

Every case is compared with the reference before it is timed. Times are medians of replays of a CUDA
graph, so launches cost what they cost in a captured step; eager runs as it is, and in a graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from metadnas_ext import build_info
from metadnas_ext.ops import (
    adam_rows_,
    gram,
    median,
    mixtures,
    reference_aggregate,
    reference_layers,
    relu_conv_bn,
    weighted_mean,
)

REPEATS, WARM_UP = 20, 3
LONGEST_MS = 2000.0  # of one case's runs together


@dataclass
class Figure:
    case: str
    fused_ms: float
    eager_ms: float | None
    eager_graph_ms: float | None
    bytes: int
    copy_share: float
    error: float


def elapsed_ms(run: Callable[[], object], device: torch.device) -> float:
    """Median of several runs, after a few to warm up; of fewer where they are slow."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    times: list[float] = []
    while len(times) < REPEATS + WARM_UP and sum(times) < LONGEST_MS:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[WARM_UP:] or times[-1:])


def graphed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """run as one replay; as it is on the CPU."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copy_bandwidth(device: torch.device, tiny: bool) -> float:
    """Bytes a second, read and written."""
    x = torch.randn((1 << 12) if tiny else (1 << 29), device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / (elapsed_ms(lambda: y.copy_(x), device) * 1e-3)


def error_of(actual: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> float:
    """Largest relative L2 error of the parts."""
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        difference = float((actual.double() - expected.double()).norm())
        return difference / max(float(expected.double().norm()), 1e-30)
    return max(error_of(a, e) for a, e in zip(actual, expected, strict=True))


class Bench:
    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device = device
        self.tiny = tiny
        self.bandwidth = copy_bandwidth(device, tiny)
        self.figures: list[Figure] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def add(
        self,
        case: str,
        fused: Callable[[], object],
        eager: Callable[[], object],
        moved: int,
        expected: Callable[[], object] | None = None,
    ) -> None:
        """moved: the fewest bytes the case reads and writes."""
        error = error_of(fused(), (expected or eager)())
        own = elapsed_ms(graphed(fused, self.device), self.device)
        plain = elapsed_ms(eager, self.device)
        try:
            captured = elapsed_ms(graphed(eager, self.device), self.device)
        except RuntimeError:  # eager code that waits for the device cannot be captured
            captured = None
        share = moved / (own * 1e-3) / self.bandwidth
        self.figures.append(Figure(case, own, plain, captured, moved, share, error))
        print(json.dumps(asdict(self.figures[-1])), flush=True)


def aggregation(bench: Bench) -> None:
    clients, columns = (9, 700) if bench.tiny else (256, 2_000_000)
    x = bench.randn(clients, columns)
    weights = torch.rand(clients, device=bench.device) + 0.1
    mixed = torch.rand(8, clients, device=bench.device) + 0.1
    shares, shares_mixed = weights / weights.sum(), mixed / mixed.sum(1, keepdim=True)
    bench.add("weighted_mean", lambda: weighted_mean(x, weights), lambda: shares @ x, x.nbytes)
    bench.add("mixtures of 8", lambda: mixtures(x, mixed), lambda: shares_mixed @ x, x.nbytes)
    bench.add("gram", lambda: gram(x, x[0]), lambda: reference_aggregate.gram(x, x[0]), x.nbytes)
    few = x[:9].contiguous()
    bench.add("median of 9", lambda: median(few), lambda: few.median(0).values, few.nbytes)
    middle = clients // 2
    bench.add(
        "median of many",
        lambda: median(x),
        lambda: x.sort(0).values[middle],
        x.nbytes,
        lambda: reference_aggregate.rank_mean(x, (clients - 1) // 2, middle + 1),
    )
    alpha = bench.randn(50 if bench.tiny else 10_000, 224)
    ones = torch.ones(len(alpha), device=bench.device)
    bench.add("mean of alpha", lambda: weighted_mean(alpha, ones), lambda: alpha.mean(0), 0)


def optimisers(bench: Bench) -> None:
    rows = bench.randn(3, 100) if bench.tiny else bench.randn(32, 2_000_000)
    grad, mean, square = torch.randn_like(rows), torch.zeros_like(rows), torch.zeros_like(rows)
    steps = torch.zeros(len(rows), device=bench.device)

    def fused() -> Tensor:
        adam_rows_(rows, grad, mean, square, steps, lr=1e-3, clip=5.0)
        return rows

    parameter = torch.nn.Parameter(rows.clone())
    graph = bench.device.type == "cuda"
    adam = torch.optim.Adam([parameter], lr=1e-3, fused=True, capturable=graph)

    def eager() -> Tensor:
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        parameter.grad = grad * (5.0 / (norms + 1e-6)).clamp(max=1.0)
        adam.step()
        return parameter.detach()

    bench.add("adam with clipping", fused, eager, 8 * rows.nbytes)


def preprocessing(bench: Bench) -> None:
    shapes = [(1, 64, 32, 64, 16), (1, 64, 16, 128, 32), (1, 64, 8, 256, 64), (32, 16, 32, 64, 16)]
    for clients, images, size, channels_in, channels in shapes:
        if bench.tiny:
            images, size = 2, 4
        x = bench.randn(clients, images, size, size, channels_in).requires_grad_()
        params = bench.randn(clients, channels * channels_in).requires_grad_()
        grad = bench.randn(clients, images, size, size, channels)

        def fused(x=x, params=params, grad=grad, channels=channels) -> tuple[Tensor, ...]:
            out, _ = relu_conv_bn(x, params, channels)
            return torch.autograd.grad(out, (x, params), grad)

        def eager(x=x, params=params, grad=grad, channels=channels) -> tuple[Tensor, ...]:
            rest = (None, None, channels, 1, True, False, 1e-5)
            out, _ = reference_layers.relu_conv_bn(x, params, *rest)
            return torch.autograd.grad(out, (x, params), grad)

        # Forward x -> out; backward x, out and its gradient -> that of x.
        moved = 3 * x.nbytes + 3 * grad.nbytes
        name = f"relu_conv_bn {clients}x{images}x{size}x{size} {channels_in}->{channels}"
        bench.add(name, fused, eager, moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="only whether everything works")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    bench = Bench(device, options.tiny)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    for group in (aggregation, optimisers, preprocessing):
        group(bench)
        results = {
            "device": name,
            "build": build_info(),
            "copy_bytes_per_s": bench.bandwidth,
            "figures": [asdict(figure) for figure in bench.figures],
        }
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
