"""What a client of any codebase does with a supernet: search, derive and train.

The host keeps its data, loaders, optimiser of w, rounds and messages. In a run of this package
whole cohorts search at once (`metadnas_ext.search`); these hosts hold one model a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, random_split

from metadnas_ext.nn import DerivedNet, NASBench201Supernet, Supernet
from metadnas_ext.nn.functional import MOMENTUM
from metadnas_ext.space import (
    CostTable,
    Shape,
    cheapest_cost,
    cost_table,
    dearest_cost,
    expected_cost,
)

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches (images, labels), again from the start each time it is iterated over."""

_STATISTICS = ("running_mean", "running_var")
_NO_BATCH = (
    "the loader yields no batch, expected at least one (fewer images than a batch, dropped?)"
)


@dataclass(frozen=True)
class SearchSettings:
    """The step on α: Adam, weight of the complexity penalty; and w's largest gradient norm."""

    alpha_lr: float = 0.01
    alpha_beta1: float = 0.5
    alpha_weight_decay: float = 0.001
    penalty: float = 0.1
    clip: float = 5.0


class Budget:
    """What a client's network may cost.

    Args:
        shape: of the supernet, `supernet.shape`.
        level: up to 1 a share of the dearest network, above 1 in `unit`.
        unit: "macs" or "params".

    Raises ConfigError on another unit, ValueError if no network is as cheap.
    """

    def __init__(self, shape: Shape, level: float, unit: str = "macs") -> None:
        self.costs: CostTable = cost_table(shape, unit)
        self.limit = level * dearest_cost(self.costs) if level <= 1 else level
        least = cheapest_cost(self.costs)
        if not self.limit >= least:
            raise ValueError(
                f"level={level} is a budget of {self.limit:.6g} {unit}, expected at least "
                f"{least:.6g}, what the cheapest network costs"
            )


class LocalSearch:
    """First-order DARTS of one client (Liu et al., ICLR 2019): α and w move in turn.

    α moves on held-out batches along the gradient of CE + penalty * (expected cost / budget - 1),
    w on training batches by the host's optimiser.

    Args:
        model: a supernet, or a module that holds one (as its base, with a head of its own).
        optimizer: of the parameters that are not α; α in it would move twice.
        budget: the client's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        budget: Budget,
        settings: SearchSettings | None = None,
    ) -> None:
        self._model, self._optimizer, self._budget = model, optimizer, budget
        self._settings = settings or SearchSettings()
        self._supernet = supernet_in(model)
        self._alphas = self._supernet.arch_parameters()
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(alpha) in moved for alpha in self._alphas):
            raise ValueError("optimizer holds α, expected only weights: see weight_parameters()")
        self._alpha_optimizer = torch.optim.Adam(
            self._alphas,
            self._settings.alpha_lr,
            betas=(self._settings.alpha_beta1, 0.999),
            weight_decay=self._settings.alpha_weight_decay,
        )

    def epoch(self, train: Loader, held_out: Loader) -> float:
        """One pass over `train`, with a batch of `held_out` for each; mean loss on `train`."""
        self._model.train()
        validation = _endless(held_out)
        losses = []
        for images, labels in train:
            self._step_alpha(*next(validation))
            with _frozen(self._alphas):
                loss = _step(self._model, images, labels, self._optimizer, self._settings.clip)
            losses.append(loss)
        return _mean(losses)

    def _step_alpha(self, images: Tensor, labels: Tensor) -> None:
        device = self._alphas[0].device
        with _frozen(
            weight_parameters(self._model)
        ):  # the kernels then leave out the gradients of w
            loss = F.cross_entropy(self._model(images.to(device)), labels.to(device))
            mixing = self._supernet.mixing_weights()
            chances = (w[..., : len(self._budget.costs.candidates)] for w in mixing)
            cost = expected_cost(self._budget.costs, *chances).squeeze(0)
            total = loss + self._settings.penalty * (cost / self._budget.limit - 1).to(loss.dtype)
            grads = torch.autograd.grad(total, self._alphas)
        for alpha, grad in zip(self._alphas, grads, strict=True):
            alpha.grad = grad
        self._alpha_optimizer.step()
        self._alpha_optimizer.zero_grad()


def supernet_in(model: nn.Module) -> Supernet | NASBench201Supernet:
    """The supernet that `model` is or holds; ValueError unless it is one of a single client."""
    for module in model.modules():
        if isinstance(module, Supernet | NASBench201Supernet):
            if module.clients is not None:
                raise ValueError(f"the supernet has clients={module.clients}, expected None")
            return module
    raise ValueError(f"model is {type(model).__name__} without a Supernet in it")


def weight_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of `model` but α, for the host's optimiser."""
    alphas = {id(alpha) for alpha in supernet_in(model).arch_parameters()}
    return [p for p in model.parameters() if id(p) not in alphas]


def alpha_names(model: nn.Module) -> list[str]:
    """α's keys in the state dict of `model`: what `aggregate` has to centre, but for the mean."""
    alphas = {id(alpha) for alpha in supernet_in(model).arch_parameters() if alpha.dim() == 2}
    return [name for name, parameter in model.named_parameters() if id(parameter) in alphas]


def derive(model: nn.Module, budget: Budget) -> DerivedNet:
    """The best network of the α in `model` within `budget`, with its weights."""
    supernet = supernet_in(model)
    return supernet.derive(supernet.genotype(budget.costs, budget.limit))


def train_epoch(
    model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer, clip: float = 5.0
) -> float:
    """One pass over `loader`, every parameter that `optimizer` holds; mean loss."""
    model.train()
    return _mean([_step(model, images, labels, optimizer, clip) for images, labels in loader])


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Loader) -> None:
    """Replaces running statistics by their mean over the batches of one pass.

    Statistics that were collected in a mixture of all candidates are not those of one network.
    """
    running = [b for name, b in model.named_buffers() if name.endswith(_STATISTICS)]
    totals = [torch.zeros_like(buffer) for buffer in running]
    model.train()
    batches = 0
    for images, _ in loader:
        for buffer in running:
            buffer.zero_()
        model(images.to(_device(model)))
        for total, buffer in zip(totals, running, strict=True):
            total += buffer / MOMENTUM
        batches += 1
    if batches == 0:
        raise ValueError(_NO_BATCH)
    for total, buffer in zip(totals, running, strict=True):
        buffer.copy_(total / batches)


@torch.no_grad()
def accuracy(model: nn.Module, loader: Loader) -> float:
    """Share of the images of `loader` that `model` classifies correctly, in eval mode."""
    model.eval()
    hits = images_seen = 0
    for images, labels in loader:
        device = _device(model)
        hits += int((model(images.to(device)).argmax(-1) == labels.to(device)).sum())
        images_seen += len(labels)
    if images_seen == 0:
        raise ValueError(_NO_BATCH)
    return hits / images_seen


def held_out(data: Dataset[Any], share: float, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """`data` in two: what w trains on, and a `share` of it for α; the same for the same seed."""
    size = len(data)  # type: ignore[arg-type]  # of a map-style dataset
    count = round(share * size)
    if not 0 < count < size:
        raise ValueError(
            f"share={share} of {size} images leaves a part empty, expected both with at least one"
        )
    generator = torch.Generator().manual_seed(seed)
    train, validation = random_split(data, [size - count, count], generator)
    return train, validation


def _step(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, clip: float
) -> float:
    device = _device(model)
    loss = F.cross_entropy(model(images.to(device)), labels.to(device))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(moved, clip)
    optimizer.step()
    return float(loss.detach())


def _mean(losses: list[float]) -> float:
    if not losses:
        raise ValueError(_NO_BATCH)
    return sum(losses) / len(losses)


def _endless(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError(_NO_BATCH)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Those that require gradients do not, within the block."""
    moving = [p for p in parameters if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
