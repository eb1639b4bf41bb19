"""Four clients of unequal size on random images of an odd size, and their local search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.data import ClientSplit, MemoryStore
from metadnas_ext.meta import Adapted, outer_gradient
from metadnas_ext.nn import NetworkPlan, Supernet, supernet_plan
from metadnas_ext.search.architect import ARCHITECTS
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import Training, cohort_of, train
from metadnas_ext.search.trajectory import Trajectory
from metadnas_ext.space import CohortCosts, CostTable, NetworkShape, cost_table

BATCH = 8
PARTS = {0: (23, 7, 4), 1: (9, 3, 9), 2: (5, 2, 3), 3: (41, 12, 17)}
"""Train, validation and test images of each client: 3, 2, 1 and 6 batches of at most 8; client 2
never fills one."""
CANDIDATES = ("none", "skip_connect", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_5x5")
SHAPE = NetworkShape(4, 3, nodes=2, classes=3, image_size=7, candidates=CANDIDATES)
COSTS = cost_table(SHAPE)
BUDGETS = torch.tensor([3e4, 4e4, 6e4, 9e4], dtype=torch.float64)
FINAL_TEMPERATURE = 0.5


def _store() -> MemoryStore:
    count = sum(map(sum, PARTS.values()))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    pixels = torch.randint(0, 200, (count, 7, 7, 3), generator=generator, dtype=torch.uint8)
    pixels[..., 0] += 25 * labels.to(torch.uint8)[:, None, None]
    return MemoryStore(
        name="random",
        labels=labels,
        classes=("a", "b", "c"),
        image_size=7,
        mean=(0.5, 0.4, 0.4),
        std=(0.25, 0.2, 0.2),
        augmentation="crop_flip",
        pixels=pixels,
    )


def _splits() -> list[ClientSplit]:
    sizes = [size for parts in PARTS.values() for size in parts]
    pieces = torch.arange(sum(sizes)).split(sizes)
    return [ClientSplit(c, *pieces[3 * c : 3 * c + 3]) for c in PARTS]


STORE, SPLITS = _store(), _splits()


def client_config(**changes: Any) -> Config:
    values = {"client.batch_size": BATCH, "client.penalty": 0.3, "client.kl": 0.2}
    changed = {f"client.{key}": value for key, value in changes.items()}
    return Config().updated(values | changed)


def start(plan: NetworkPlan, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The server's state: theta (P), running (R), alpha (2, E, O)."""
    generator = torch.Generator().manual_seed(1)
    theta = plan.initial(1, generator)[0].to(dtype)
    alpha = torch.randn(2, 5, len(CANDIDATES), generator=generator) * 0.1
    return theta, plan.initial_running(1)[0].to(dtype), alpha.to(dtype)


def fresh_cohort(clients: Sequence[int], dtype: torch.dtype = torch.float64) -> Cohort:
    """The clients at the server's state, in the order of a cohort."""
    return cohort_of(
        ordered([SPLITS[c] for c in clients], BATCH), *start(supernet_plan(SHAPE), dtype)
    )


def budgets_of(cohort: Cohort) -> Tensor:
    return BUDGETS[cohort.clients]


def train_batches(cohort: Cohort, epochs: int, augment: bool = True) -> TrainBatches:
    return TrainBatches(
        STORE, cohort.splits, BATCH, epochs, augment, 0, "round", 3, dtype=cohort.theta.dtype
    )


def search(
    clients: Sequence[int], config: Config, dtype: torch.dtype = torch.float64, epochs: int = 2
) -> dict[int, dict[str, Tensor]]:
    """Local search, then the meta-gradient; every tensor of each client."""
    cohort, losses = searched(clients, config, dtype, epochs)
    grad, val = outer_gradient(adapted(cohort, config), with_theta=False)
    assert cohort.alpha is not None
    assert grad.alpha is not None
    everything = {
        "theta": cohort.theta,
        "running": cohort.running,
        "alpha": cohort.alpha,
        "training loss": losses,
        "meta-gradient": grad.alpha,
        "validation loss": val.loss,
        "validation accuracy": val.accuracy,
    }
    return {
        client: {name: t[row] for name, t in everything.items()}
        for row, client in enumerate(cohort.clients)
    }


def searched(
    clients: Sequence[int],
    config: Config,
    dtype: torch.dtype = torch.float64,
    epochs: int = 2,
    trajectory: Trajectory | None = None,
    start_from: tuple[Tensor, Tensor, Tensor] | None = None,
    costs: CostTable | None = None,
) -> tuple[Cohort, Tensor]:
    """Local search from `start`, or from another state; training losses (G).

    costs: client 1's own table, beside COSTS for the others.
    """
    plan = supernet_plan(SHAPE)
    theta, running, alpha = start_from or start(plan, dtype)
    splits = ordered([SPLITS[c] for c in clients], BATCH)
    cohort = cohort_of(splits, theta, running, alpha)
    relaxation = relaxation_in(config)
    tables = costs_of(cohort, costs)
    objective = Objective.of(config.client, relaxation, tables, budgets_of(cohort), alpha)
    architect = ARCHITECTS[config.client.order](
        *(plan, cohort, config.client, objective, relaxation, "round 3"),
        warmup=config.client.alpha_warmup,
        trajectory=trajectory,
    )
    batches, how = train_batches(cohort, epochs), Training.of(config.client)
    done = train(plan, cohort, batches, how, "round 3", architect, trajectory=trajectory)
    return cohort, done


def relaxation_in(config: Config) -> Relaxation:
    """That of the search, which grows sharper."""
    return relaxation_of(config.client, 0, 1, FINAL_TEMPERATURE)


def costs_of(cohort: Cohort, costs: CostTable | None) -> CostTable | CohortCosts:
    """One table for all, or one each if client 1 has its own."""
    if costs is None:
        return COSTS
    return CohortCosts.of([costs if client == 1 else COSTS for client in cohort.clients])


def adapted(
    cohort: Cohort,
    config: Config,
    trajectory: Trajectory | None = None,
    costs: CostTable | None = None,
) -> Adapted:
    """What a meta-learner gets of a cohort that has searched from the server's state."""
    plan = supernet_plan(SHAPE)
    theta, _, alpha = start(plan, cohort.theta.dtype)
    tables, budgets = costs_of(cohort, costs), budgets_of(cohort)
    return Adapted(
        *(plan, cohort, theta, alpha, config.client, tables, budgets, STORE, "round 1"),
        relaxation_in(config),
        trajectory,
    )


def random_rows(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def images(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images (N, C, H, W) in double precision, and labels, by hand."""
    scaled = STORE.gather(indices).double() / 255
    mean, std = (torch.tensor(t, dtype=torch.float64) for t in (STORE.mean, STORE.std))
    return ((scaled - mean) / std).permute(0, 3, 1, 2), STORE.labels[indices]


def supernet_at(theta: Tensor, running: Tensor, alpha: Tensor) -> Supernet:
    """A supernet without client axis in the state of the first client."""
    net = Supernet(4, 3, 3, nodes=2, image_size=7, candidates=CANDIDATES).double()
    targets = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for layout, row in ((net.plan.parameters, theta[0]), (net.plan.running, running[0])):
            for name, view in layout.views(row).items():
                targets[name].copy_(view)
        net.alphas_normal.copy_(alpha[0, 0])
        net.alphas_reduce.copy_(alpha[0, 1])
    return net
