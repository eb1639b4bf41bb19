"""Local training out of ordinary modules, autograd and optimisers, in double precision.

Nothing of it comes from the package but the batches that a client draws and where parameters lie in
a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import FedAvg
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import TrainBatches

from ..nn import _darts

Batches = list[tuple[Tensor, Tensor]]


def network(method: FedAvg, theta: Tensor, running: Tensor) -> nn.Module:
    """The method's network with parameters (P) and running statistics (R)."""
    shape, genotype = method.federation.shape, method.genotype
    net = _darts.evaluation_network(
        genotype.normal,
        genotype.reduce,
        shape.channels,
        shape.layers,
        classes=shape.classes,
        image_channels=shape.image_channels,
    )
    views = method.plan.parameters.views(theta) | method.plan.running.views(running)
    missing, unexpected = net.load_state_dict(views, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return net


def rows(net: nn.Module, plan: NetworkPlan) -> tuple[Tensor, Tensor]:
    """Its parameters (P) and running statistics (R)."""
    state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    return plan.parameters.flatten(state), plan.running.flatten(state)


def batches(federation: Federation, client: int, epochs: int, *key: str) -> Batches:
    """What the client draws in some epochs: images (N, C, H, W) and labels (N)."""
    drawn = train_batches(federation, [client], epochs, *key)
    result = []
    for _ in range(len(drawn)):
        batch = drawn.train(1)
        size = int(batch.sizes[0])
        result.append((batch.x[0, :size].permute(0, 3, 1, 2), batch.labels[0, :size]))
    return result


def train_batches(
    federation: Federation, clients: list[int], epochs: int, *key: str
) -> TrainBatches:
    config = federation.config
    return TrainBatches(
        federation.store,
        federation.of(clients),
        config.client.batch_size,
        epochs,
        config.data.augment,
        config.run.seed,
        *key,
        dtype=torch.float64,
    )


class SGD:
    """The client's optimiser for so many steps: momentum, clipping, cosine decay."""

    def __init__(
        self, federation: Federation, parameters: list[nn.Parameter], steps: int, lr: float
    ) -> None:
        client = federation.config.client
        assert client.optimizer == "sgd"
        self._parameters, self._clip = parameters, client.clip
        self._sgd = torch.optim.SGD(
            parameters, lr, client.momentum, weight_decay=client.weight_decay
        )
        self._decay = torch.optim.lr_scheduler.CosineAnnealingLR(self._sgd, steps)

    def step(self, grads: tuple[Tensor, ...]) -> None:
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad.detach().clone()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._sgd.step()
        self._decay.step()


def gradients(net: nn.Module, parameters: list[nn.Parameter], batch: tuple[Tensor, Tensor]):
    x, y = batch
    return torch.autograd.grad(F.cross_entropy(net(x), y), parameters)


def fit(federation: Federation, net: nn.Module, drawn: Batches, lr: float, only: str = "") -> None:
    """Plain training of the parameters whose names start with `only`."""
    parameters = [p for name, p in net.named_parameters() if name.startswith(only)]
    optimizer = SGD(federation, parameters, len(drawn), lr)
    for batch in drawn:
        optimizer.step(gradients(net, parameters, batch))


def part(federation: Federation, client: int, name: str) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels of a client's train, val or test part, not augmented."""
    chosen = getattr(federation.splits[client], name)
    store = federation.store
    pixels = store.gather(chosen).double() / 255
    mean, std = (torch.tensor(t, dtype=torch.float64) for t in (store.mean, store.std))
    return ((pixels - mean) / std).permute(0, 3, 1, 2), store.labels[chosen]


@torch.no_grad()
def accuracy(federation: Federation, net: nn.Module, client: int, name: str) -> float:
    x, y = part(federation, client, name)
    training = net.training
    hits = net.eval()(x).argmax(1) == y
    net.train(training)
    return float(hits.double().mean())


@torch.no_grad()
def recalibrate(federation: Federation, net: nn.Module, client: int) -> None:
    """Running statistics become the mean over batches of the training part, weighed by images.

    A last batch of one image is left out.
    """
    x, _ = part(federation, client, "train")
    size = federation.config.client.batch_size
    if len(x) % size == 1:
        x = x[:-1]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    sums = [[torch.zeros_like(norm.running_mean)] * 2 for norm in norms]
    net.train()
    for norm in norms:
        norm.momentum = 1.0
    for images in x.split(size):
        net(images)
        sums = [
            [mean + len(images) * norm.running_mean, var + len(images) * norm.running_var]
            for norm, (mean, var) in zip(norms, sums, strict=True)
        ]
    for norm, momentum, (mean, var) in zip(norms, before, sums, strict=True):
        norm.momentum = momentum
        norm.running_mean.copy_(mean / len(x))
        norm.running_var.copy_(var / len(x))
