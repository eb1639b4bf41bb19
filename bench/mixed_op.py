"""The fused mixed operation beside the same one in eager PyTorch: `python bench/mixed_op.py`.

Forward + backward through autograd, batch 64. Results are checked against eager before the
timing; times are medians of interleaved runs in one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from metadnas_ext import build_info
from metadnas_ext.nn import MixedOp

SHAPES = [(16, 32, 1), (32, 16, 1), (64, 8, 1), (32, 32, 2)]  # channels, size, stride
BATCH = 64


def convolution(channels: int, kernel: int, stride: int, dilation: int) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    )


class FactorizedReduce(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


class Candidate(nn.Module):
    """One convolutional candidate, its layers under `op` as in DARTS."""

    def __init__(self, *parts: nn.Sequential) -> None:
        super().__init__()
        self.op = nn.Sequential(*(layer for part in parts for layer in part))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class EagerMixedOp(nn.Module):
    """The mixed operation as DARTS code writes it."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()

        def sep(kernel: int) -> Candidate:
            return Candidate(
                convolution(channels, kernel, stride, 1), convolution(channels, kernel, 1, 1)
            )

        def dil(kernel: int) -> Candidate:
            return Candidate(convolution(channels, kernel, stride, 2))

        def pool(kind: nn.Module) -> nn.Sequential:
            return nn.Sequential(kind, nn.BatchNorm2d(channels, affine=False))

        self.stride = stride
        skip = nn.Identity() if stride == 1 else FactorizedReduce(channels)
        self._ops = nn.ModuleList(
            [
                nn.Identity(),  # none: handled below
                pool(nn.MaxPool2d(3, stride, 1)),
                pool(nn.AvgPool2d(3, stride, 1, count_include_pad=False)),
                skip,
                sep(3),
                sep(5),
                dil(3),
                dil(5),
            ]
        )

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        none = x[:, :, :: self.stride, :: self.stride].mul(0.0)
        return p[0] * none + sum(p[k] * op(x) for k, op in enumerate(self._ops) if k > 0)


def case(channels: int, size: int, stride: int, repeats: int) -> dict[str, object]:
    torch.manual_seed(0)
    eager = EagerMixedOp(channels, stride)
    fused = MixedOp(channels, stride)
    fused.load_state_dict(eager.state_dict())
    x = torch.randn(BATCH, channels, size, size)
    p = torch.rand(8).softmax(0)
    grad = torch.randn(BATCH, channels, size // stride, size // stride)
    runs = {
        "eager NCHW": step(eager, x, p, grad),
        "eager channels-last": step(eager, *channels_last(x, grad, p)),
        "fused": step(fused, *channels_last(x, grad, p)),
    }
    expected, got = runs["eager NCHW"](), runs["fused"]()
    error = float((expected - got).norm() / expected.norm())
    if not error < 1e-4:
        raise SystemExit(f"wrong result at {channels}, {size}, {stride}: error {error}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"channels": channels, "size": size, "stride": stride, "error": error, "ms": medians}


def channels_last(x: Tensor, grad: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    form = torch.channels_last
    return x.contiguous(memory_format=form), p, grad.contiguous(memory_format=form)


def step(module: nn.Module, x: Tensor, p: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    """Forward and backward with fresh gradients; returns the gradient of x."""
    x, p = x.clone().requires_grad_(), p.clone().requires_grad_()

    def run() -> Tensor:
        x.grad = p.grad = None
        module.zero_grad(set_to_none=True)
        module(x, p).backward(grad)
        assert x.grad is not None
        return x.grad

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rows = []
    print(f"{'case':>16}  {'eager NCHW':>11}  {'channels-last':>13}  {'fused':>8}  ratios")
    for channels, size, stride in SHAPES:
        row = case(channels, size, stride, arguments.repeats)
        rows.append(row)
        nchw, last, fused = row["ms"].values()  # type: ignore[attr-defined]
        name = f"C{channels} {size}x{size} s{stride}"
        print(
            f"{name:>16}  {nchw:8.1f} ms  {last:10.1f} ms  {fused:5.1f} ms  "
            f"{nchw / fused:.1f}x, {last / fused:.1f}x"
        )
    if arguments.out:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            **build_info(),
        }
        arguments.out.write_text(json.dumps({"machine": machine, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
