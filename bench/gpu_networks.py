"""Times mixed operations, the supernet's step, cohorts and a search on a GPU beside eager PyTorch.

    python bench/gpu_networks.py --out results.json [--compile] [--device cpu --tiny]

Eager code runs as it is and, where it fits, as a CUDA graph; with --compile also as compiled by
torch.compile(mode="max-autotune"), part by part, which takes many minutes. Every case is compared
with eager code first. Convolutions of eager code are in TF32, as PyTorch has it by default.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from gpu_ops import copy_bandwidth, elapsed_ms, error_of, graphed

from metadnas_ext import build_info
from metadnas_ext.bench import baseline
from metadnas_ext.bench.cases import search
from metadnas_ext.bench.cases.networks import compile_module, compile_parts
from metadnas_ext.nn import MixedOp, Supernet
from metadnas_ext.search.architect import FirstOrder
from metadnas_ext.search.cohort import TrainBatches
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.relaxations import SOFTMAX
from metadnas_ext.search.training import Training, cohort_of, train
from metadnas_ext.space import NetworkShape, cost_table
from metadnas_ext.space.primitives import PRIMITIVES, Conv, layers

CLASSES = 10
MIXED = ((16, 32, 1), (32, 16, 1), (64, 8, 1), (16, 32, 2), (32, 16, 2))
COHORTS = (1, 8, 32, 100)
SEARCH_IMAGES, SEARCH_EPOCHS = 25_000, 50  # DARTS: half of CIFAR-10 for w, half for α

Step = Callable[[], Sequence[Tensor]]


@dataclass
class Figure:
    """Times and peaks are None where a variant was left out or failed."""

    case: str
    fused_ms: float
    fused_graph_ms: float | None
    eager_ms: float
    eager_graph_ms: float | None
    compiled_ms: float | None
    flop: float | None
    fused_peak_bytes: int | None
    eager_peak_bytes: int | None
    error: float


def joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


class Bench:
    def __init__(self, device: torch.device, tiny: bool, compiling: bool) -> None:
        self.device, self.tiny, self.compiling = device, tiny, compiling
        self.figures: list[Figure] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def peak(self, step: Step) -> int | None:
        """Most memory that a step takes beside what is there."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def captured(self, step: Step) -> float | None:
        if self.device.type != "cuda":
            return None
        try:
            return elapsed_ms(graphed(step, self.device), self.device)
        except RuntimeError as error:  # out of memory, too
            print(f"not captured: {error}", flush=True)
            return None

    def compiled(self, make: Callable[[], Step] | None) -> float | None:
        if make is None or not self.compiling:
            return None
        try:
            step = make()

            def marked() -> Sequence[Tensor]:
                torch.compiler.cudagraph_mark_step_begin()
                return step()

            return elapsed_ms(marked, self.device)
        except Exception as error:  # not ours to put right
            print(f"not compiled: {error}", flush=True)
            return None

    def add(
        self,
        case: str,
        fused: Step,
        eager: Step,
        flop: float | None = None,
        compiled: Callable[[], Step] | None = None,
        eager_graph: bool = True,
    ) -> None:
        """Steps return what they computed, in the same order."""
        error = error_of(joined(fused()), joined(eager()))
        peaks = self.peak(fused), self.peak(eager)
        figure = Figure(
            case,
            elapsed_ms(fused, self.device),
            self.captured(fused),
            elapsed_ms(eager, self.device),
            self.captured(eager) if eager_graph else None,
            self.compiled(compiled),
            flop,
            *peaks,
            error,
        )
        self.figures.append(figure)
        print(json.dumps(asdict(figure)), flush=True)


def weights_of(module: nn.Module) -> list[Tensor]:
    return [parameter for _, parameter in sorted(module.named_parameters())]


def mixed_operations(bench: Bench) -> None:
    for channels, size, stride in MIXED:
        batch = 2 if bench.tiny else 64
        eager = baseline.MixedOp(channels, stride).to(bench.device)
        ours = MixedOp(channels, stride)
        ours.load_state_dict(eager.state_dict())
        x = bench.randn(batch, channels, size, size).requires_grad_()
        last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        p = torch.rand(len(PRIMITIVES), device=bench.device).softmax(-1).requires_grad_()
        grad = bench.randn(batch, channels, size // stride, size // stride)

        def step(module: nn.Module, x: Tensor, p: Tensor = p, grad: Tensor = grad) -> Step:
            return lambda: torch.autograd.grad(module(x, p), (x, p, *weights_of(module)), grad)

        def compiled(step=step, eager=eager, x=x) -> Step:
            module = copy.deepcopy(eager)
            compile_module(module, "max-autotune")
            return step(module, x)

        macs = sum(
            layer.macs_per_pixel * (size // stride) ** 2
            for primitive in PRIMITIVES
            for layer in layers(primitive, channels, stride)
            if isinstance(layer, Conv)
        )
        name = f"mixed_op C {channels}, {size}x{size}, stride {stride}, batch {batch}"
        ours = ours.to(bench.device)
        bench.add(name, step(ours, last), step(eager, x), 6 * macs * batch, compiled)


def shape_of(bench: Bench) -> NetworkShape:
    return NetworkShape(4, 3, 2, CLASSES, 8) if bench.tiny else NetworkShape(16, 8, 4, CLASSES, 32)


def macs_of(shape: NetworkShape) -> float:
    costs = cost_table(shape)
    return costs.fixed + float(costs.cells.sum())


def supernets(bench: Bench, shape: NetworkShape, clients: int | None) -> tuple[nn.Module, Supernet]:
    """Eager and ours, of the same weights."""
    eager = baseline.Supernet(shape)
    ours = Supernet(
        shape.channels,
        CLASSES,
        shape.layers,
        nodes=shape.nodes,
        image_size=shape.image_size,
        clients=clients,
        keep="middle" if (clients or 1) > 32 else "all",
    )
    state = eager.state_dict()
    if clients is not None:
        state = {name: torch.stack([value] * clients) for name, value in state.items()}
    ours.load_state_dict(state)
    return eager.to(bench.device), ours.to(bench.device)


def gradients(net: nn.Module, x: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """Of the mean loss of each client, all parameters."""
    logits = net(x)
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return torch.autograd.grad(loss.sum() / x.shape[-4], weights_of(net))


def supernet_step(bench: Bench) -> None:
    shape = shape_of(bench)
    batch = 2 if bench.tiny else 64
    eager, ours = supernets(bench, shape, None)
    x = bench.randn(batch, 3, shape.image_size, shape.image_size)
    labels = torch.arange(batch, device=bench.device) % CLASSES
    last = x.contiguous(memory_format=torch.channels_last)

    def compiled() -> Step:
        net = copy.deepcopy(eager).to(memory_format=torch.channels_last)
        compile_parts(net, "max-autotune")
        return lambda: gradients(net, last, labels)

    bench.add(
        f"supernet C {shape.channels}, {shape.layers} cells, batch {batch}",
        lambda: gradients(ours, last, labels),
        lambda: gradients(eager, x, labels),
        6 * macs_of(shape) * batch,
        compiled,
    )


def cohorts(bench: Bench) -> None:
    """Clients at once beside the same clients one after another."""
    shape = shape_of(bench)
    batch = 2 if bench.tiny else 16
    for clients in COHORTS[:1] if bench.tiny else COHORTS:
        eager, ours = supernets(bench, shape, clients)
        x = bench.randn(clients, batch, 3, shape.image_size, shape.image_size)
        labels = torch.randint(CLASSES, (clients, batch), device=bench.device)

        def one_by_one(eager=eager, x=x, labels=labels) -> Sequence[Tensor]:
            each = [gradients(eager, *client) for client in zip(x, labels, strict=True)]
            return [torch.stack(same) for same in zip(*each, strict=True)]

        bench.add(
            f"cohort of {clients}, supernet, batch {batch}",
            lambda ours=ours, x=x, labels=labels: gradients(ours, x, labels),
            one_by_one,
            6 * macs_of(shape) * batch * clients,
            eager_graph=clients == 1,
        )


def search_epoch(bench: Bench) -> float:
    """Seconds of an epoch of DARTS' first-order search, as this package runs it."""
    shape, batch = shape_of(bench), 2 if bench.tiny else 64
    images = 6 if bench.tiny else SEARCH_IMAGES
    made = search._federation(1, images, batch, shape)
    config = made.config.updated({"client.graphs": bench.device.type == "cuda"})
    federation = replace(
        made, config=config, store=made.store.to(bench.device), device=bench.device
    )
    start = search._Start.of(federation)
    start_of = (t.to(bench.device) for t in (start.theta, start.running, start.alpha))
    cohort = cohort_of(federation.splits, *start_of)
    budgets, costs = federation.cohort_budgets([0]), federation.cohort_costs([0])
    objective = Objective.of(config.client, SOFTMAX, costs, budgets, None)
    architect = FirstOrder(start.plan, cohort, config.client, objective, SOFTMAX, "benchmark")
    batches = TrainBatches(
        federation.store, federation.splits, batch, 1, False, 0, "epoch", device=bench.device
    )
    began = time.perf_counter()
    train(start.plan, cohort, batches, Training.of(config.client), "benchmark", architect)
    return time.perf_counter() - began  # the end of a training reads numbers: all is done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="with torch.compile; takes long")
    parser.add_argument("--tiny", action="store_true", help="only whether everything works")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    bench = Bench(device, options.tiny, options.compile)
    results: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "build": build_info(),
        "copy_bytes_per_s": copy_bandwidth(device, options.tiny),
    }

    def save() -> None:
        results["figures"] = [asdict(figure) for figure in bench.figures]
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    for group in (supernet_step, mixed_operations):
        group(bench)
        save()
    results["search_epoch_s"] = epoch = search_epoch(bench)
    results["search_hours"] = SEARCH_EPOCHS * epoch / 3600
    save()
    cohorts(bench)
    save()


if __name__ == "__main__":
    main()
