"""Search: one step on α and one on w of a client, and a federated round of 1, 8 and 32 clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.bench import baseline
from metadnas_ext.bench.baseline_search import LocalSearch, federated_round
from metadnas_ext.bench.case import CHANNELS_LAST, NCHW, OURS, Case, Outcome, Setup, Variant
from metadnas_ext.bench.cases.networks import compile_parts
from metadnas_ext.config import Config
from metadnas_ext.data import ClientSplit, MemoryStore
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.meta_dnas import MetaDNAS
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.placement import CPU
from metadnas_ext.search.architect import FirstOrder
from metadnas_ext.search.cohort import TrainBatches
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.relaxations import SOFTMAX
from metadnas_ext.search.training import Training, cohort_of, train
from metadnas_ext.space import NetworkShape, cost_table, dearest_cost

CLASSES = 10
TOLERANCE = (
    0.1  # Adam's first steps have the sign of the gradient, also where that is only rounding
)
ALPHA_LR = 3e-4  # as in DARTS


def search(
    channels: int,
    layers: int,
    nodes: int,
    batch: int,
    size: int,
    images: int | None = None,
    device: torch.device = CPU,
) -> Setup:
    """First-order DARTS: Adam on α on a validation batch, SGD on w on a training batch.

    One step, or an epoch of `images`, behind which rounding has led elsewhere: only timed.
    """
    shape = NetworkShape(channels, layers, nodes, CLASSES, size)
    federation = _federation(1, images or batch, batch, shape, device)
    start = _Start.of(federation)

    def eager(form: torch.memory_format, mode: str | None = None) -> Variant:
        search = _local_search(federation, start, form, mode)

        def step() -> Outcome:
            search.net.load_state_dict(start.state)
            search.run(_batches(federation, 0))
            return start.outcome(search.net.state_dict())

        return Variant(step, list(search.net.parameters()), comparable=images is None)

    def ours() -> Variant:
        def step() -> Outcome:
            config = federation.config.client
            cohort = cohort_of(federation.splits, start.theta, start.running, start.alpha)
            budgets, where = federation.budgets, "benchmark"
            objective = Objective.of(config, SOFTMAX, federation.costs, budgets, None)
            architect = FirstOrder(start.plan, cohort, config, objective, SOFTMAX, where)
            batches = _batches(federation, 0)
            train(start.plan, cohort, batches, Training.of(config), where, architect)
            assert cohort.alpha is not None
            return start.flat_outcome(cohort.theta[0], cohort.running[0], cohort.alpha[0])

        return Variant(step, [start.theta], comparable=images is None)

    return _setup(eager, ours)


def round_of(
    clients: int,
    images: int,
    channels: int,
    layers: int,
    nodes: int,
    batch: int,
    size: int,
    device: torch.device = CPU,
) -> Setup:
    """A round of Meta-DNAS, all clients in one cohort, `images` training images each."""
    federation = _federation(
        clients, images, batch, NetworkShape(channels, layers, nodes, CLASSES, size), device
    )
    start = _Start.of(federation)

    def eager(form: torch.memory_format, mode: str | None = None) -> Variant:
        search = _local_search(federation, start, form, mode)

        def step() -> Outcome:
            batches = [_batches(federation, client) for client in range(clients)]
            rate = federation.config.server.alpha_lr
            state = federated_round(
                search, start.state, federation.store, federation.splits, batches, rate
            )
            return start.outcome(state)

        return Variant(step, list(search.net.parameters()))

    def ours() -> Variant:
        method = MetaDNAS(federation)
        state = method.state()

        def step() -> Outcome:
            method.load_state({name: value.clone() for name, value in state.items()})
            method.round(0)
            server = method.server
            return start.flat_outcome(server.theta, server.running, server.alpha)

        return Variant(step, [start.theta])

    return _setup(eager, ours)


class _Start(NamedTuple):
    """The server's state, as flat tensors and as the baseline's state dict."""

    plan: NetworkPlan
    theta: Tensor
    running: Tensor
    alpha: Tensor
    state: dict[str, Tensor]

    @classmethod
    def of(cls, federation: Federation) -> _Start:
        method = MetaDNAS(federation)
        server, plan = method.server, method.plan
        assert isinstance(federation.shape, NetworkShape)
        eager = baseline.Supernet(federation.shape).to(federation.device)
        state = eager.state_dict()  # for batch norm's step counters
        state |= plan.parameters.views(server.theta) | plan.running.views(server.running)
        state |= {"alphas_normal": server.alpha[0], "alphas_reduce": server.alpha[1]}
        return cls(plan, server.theta, server.running, server.alpha, state)

    def outcome(self, state: Mapping[str, Tensor]) -> Outcome:
        """What a step made of the state dict, in the order of the flat tensors."""
        return {
            "the step on w": [
                state[name] - self.state[name] for name in self.plan.parameters.slots
            ],
            "the statistics": [state[name].clone() for name in self.plan.running.slots],
            "alpha": [state["alphas_normal"].clone(), state["alphas_reduce"].clone()],
        }

    def flat_outcome(self, theta: Tensor, running: Tensor, alpha: Tensor) -> Outcome:
        return {"the step on w": theta - self.theta, "the statistics": running, "alpha": alpha}


def _setup(eager: Callable[..., Variant], ours: Callable[[], Variant]) -> Setup:
    return Setup(
        {
            NCHW: lambda: eager(torch.contiguous_format),
            CHANNELS_LAST: lambda: eager(torch.channels_last),
            OURS: ours,
        },
        TOLERANCE,
        compiled=lambda mode: eager(torch.channels_last, mode),
    )


def _local_search(
    federation: Federation, start: _Start, form: torch.memory_format, mode: str | None
) -> LocalSearch:
    assert isinstance(federation.shape, NetworkShape)
    net = baseline.Supernet(federation.shape)
    net.load_state_dict(start.state)
    net = net.to(federation.device, memory_format=form)  # type: ignore[call-overload]
    if mode is not None:
        compile_parts(net, mode)
    return LocalSearch(net, federation.config.client, form)


def _batches(federation: Federation, client: int) -> TrainBatches:
    """The batches that the client gets in a round, whoever it trains with."""
    config = federation.config
    return TrainBatches(
        federation.store,
        [federation.splits[client]],
        config.client.batch_size,
        config.client.epochs,
        config.data.augment,
        config.run.seed,
        "round/0",
        device=federation.device,
    )


def _federation(
    clients: int, images: int, batch: int, shape: NetworkShape, device: torch.device
) -> Federation:
    """Random images; no penalty and no pull, which eager DARTS does not have."""
    config = Config().updated(
        {
            "data.clients": clients,
            "data.augment": False,
            "client.epochs": 1,
            "client.batch_size": batch,
            "client.optimizer": "sgd",
            "client.lr": 0.025,
            "client.alpha_lr": ALPHA_LR,
            "client.penalty": 0.0,
            "client.kl": 0.0,
            "client.beta_decay": 0.0,
            "server.clients_per_round": clients,
            "server.cohort": clients,
            "run.device": str(device),
            "client.graphs": device.type == "cuda",
        }
    )
    costs = cost_table(shape)
    each = images + batch  # training images, and one batch to validate on
    parts = torch.split(torch.arange(clients * each), each)
    splits = tuple(
        ClientSplit(client, part[:images], part[images:], part[:0])
        for client, part in enumerate(parts)
    )
    budgets = torch.full((clients,), dearest_cost(costs), dtype=torch.float64)
    everyone = tuple(range(clients))
    store = _store(clients * each, shape.image_size).to(device)
    facts = (config, store, splits, everyone, (), shape, (costs,), (0,) * clients, budgets)
    return Federation(*facts, device=device)


def _store(images: int, size: int) -> MemoryStore:
    draw = torch.Generator().manual_seed(0)
    return MemoryStore(
        name="random",
        labels=torch.randint(CLASSES, (images,), generator=draw),
        classes=tuple(map(str, range(CLASSES))),
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation="none",
        pixels=torch.randint(256, (images, size, size, 3), generator=draw, dtype=torch.uint8),
    )


def _search(channels: int, layers: int, batch: int, quick: bool) -> Case:
    return Case(
        f"search_step/c{channels}-{layers}-cells-b{batch}",
        f"C {channels}, {layers} cells, batch {batch}",
        search,
        {"channels": channels, "layers": layers, "nodes": 4, "batch": batch, "size": 32},
        {"channels": 4, "layers": 3, "nodes": 2, "batch": 4, "size": 8},
        quick=quick,
    )


def _epoch(images: int, channels: int, layers: int, batch: int) -> Case:
    tiny = {"images": 9, "channels": 4, "layers": 2, "nodes": 2, "batch": 4, "size": 8}
    return Case(
        f"search_epoch/c{channels}-{layers}-cells-b{batch}",
        f"C {channels}, {layers} cells, batch {batch}, {images:,} images",
        search,
        {
            "images": images,
            "channels": channels,
            "layers": layers,
            "nodes": 4,
            "batch": batch,
            "size": 32,
        },
        tiny,
        quick=False,
        large=True,
    )


def _round(clients: int, quick: bool) -> Case:
    params = {"images": 32, "channels": 8, "layers": 3, "nodes": 4, "batch": 16, "size": 8}
    return Case(
        f"federated_round/{clients}-client" + ("" if clients == 1 else "s"),
        f"{clients} client" + ("" if clients == 1 else "s in a cohort"),
        round_of,
        {"clients": clients, **params},
        {
            "clients": min(clients, 2),
            "images": 5,
            "channels": 4,
            "layers": 2,
            "nodes": 2,
            "batch": 4,
        },
        quick=quick,
    )


CASES = (
    _search(8, 5, 16, True),
    _search(16, 8, 64, False),
    _epoch(3_200, 16, 8, 64),
    _round(1, True),
    _round(8, True),
    _round(32, False),
)
