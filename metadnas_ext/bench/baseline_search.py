"""Federated DARTS in ordinary PyTorch: clients one after the other, `torch.optim`, state dicts.

First-order DARTS (Liu et al., ICLR 2019) on each client, then FedAvg on the weights and a
first-order meta-step on α. Batches come from the package's own data pipeline, so that both sides
see the same images and pay the same for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.bench.baseline import Supernet
from metadnas_ext.config import ClientConfig
from metadnas_ext.data import ClientSplit, ImageStore
from metadnas_ext.search.cohort import Batch, TrainBatches, passes

StateDict = dict[str, Tensor]


class LocalSearch:
    """Alternating steps on α (validation batch) and w (training batch) of one client's supernet."""

    def __init__(self, net: Supernet, config: ClientConfig, form: torch.memory_format) -> None:
        self.net = net
        self._config = config
        self._form = form
        self._norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]

    def run(self, batches: TrainBatches) -> None:
        """All steps of the only client of `batches`."""
        config, net = self._config, self.net
        weights = net.weight_parameters()
        alpha_optimizer = torch.optim.Adam(
            net.arch_parameters(),
            config.alpha_lr,
            betas=(config.alpha_beta1, 0.999),
            weight_decay=config.alpha_weight_decay,
        )
        optimizer = torch.optim.SGD(
            weights, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        net.train()
        for _ in range(len(batches)):
            with self._statistics_kept():
                self._backward(batches.val(1), net.arch_parameters())
            alpha_optimizer.step()
            self._backward(batches.train(1), weights)
            nn.utils.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            schedule.step()

    def meta_gradient(self, store: ImageStore, split: ClientSplit) -> list[Tensor]:
        """Gradient of the validation loss with respect to α, in eval mode."""
        alphas = self.net.arch_parameters()
        total = [torch.zeros_like(alpha) for alpha in alphas]
        self.net.eval()
        for batch in passes(
            store, [split], "val", self._config.batch_size, device=alphas[0].device
        ):
            x, labels = self._images(batch)
            loss = F.cross_entropy(self.net(x), labels) * (len(x) / len(split.val))
            for part, grad in zip(total, torch.autograd.grad(loss, alphas), strict=True):
                part.add_(grad)
        return total

    def _backward(self, batch: Batch, wanted: Sequence[nn.Parameter]) -> None:
        x, labels = self._images(batch)
        loss = F.cross_entropy(self.net(x), labels)
        # Only what the step needs; loss.backward() would compute the other half too.
        for parameter, grad in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
            parameter.grad = grad

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        # Reading a size waits for the device.
        count = batch.x.shape[1] if batch.full else int(batch.sizes[0])
        x = batch.x[0, :count].permute(0, 3, 1, 2)  # (N, C, H, W)
        return x.contiguous(memory_format=self._form), batch.labels[0, :count]

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """The step on α leaves running statistics alone."""
        for norm in self._norms:
            norm.track_running_stats = False
        yield
        for norm in self._norms:
            norm.track_running_stats = True


def federated_round(
    search: LocalSearch,
    server: StateDict,
    store: ImageStore,
    splits: Sequence[ClientSplit],
    batches: Sequence[TrainBatches],
    alpha_lr: float,
) -> StateDict:
    """One round from the server's state: local searches in turn, then the server's step.

    `batches` are those of each client alone. Returns the server's next state dict, α included.
    """
    total = sum(len(split.train) for split in splits)
    mean: StateDict = {
        name: torch.zeros_like(value)
        for name, value in server.items()
        if value.is_floating_point() and not name.startswith("alphas_")
    }
    alphas = [server["alphas_normal"].clone(), server["alphas_reduce"].clone()]
    grads = [torch.zeros_like(alpha) for alpha in alphas]
    for split, own in zip(splits, batches, strict=True):
        share = len(split.train) / total
        search.net.load_state_dict(server)
        search.run(own)
        for name, value in search.net.state_dict().items():
            if name in mean:
                mean[name].add_(value, alpha=share)
        for grad, part in zip(grads, search.meta_gradient(store, split), strict=True):
            grad.add_(part, alpha=share)
    parameters = [nn.Parameter(alpha) for alpha in alphas]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    torch.optim.Adam(parameters, alpha_lr).step()
    return {**mean, "alphas_normal": alphas[0], "alphas_reduce": alphas[1]}
