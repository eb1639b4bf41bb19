"""Local search of a cohort: each client as if it were alone, and as plain DARTS code has it."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.nn import Supernet
from metadnas_ext.search.cohort import TrainBatches
from metadnas_ext.space import expected_cost

from ..federated._tiny import assert_close, assert_identical
from ._clients import (
    BATCH,
    BUDGETS,
    COSTS,
    FINAL_TEMPERATURE,
    PARTS,
    SPLITS,
    STORE,
    client_config,
    fresh_cohort,
    search,
    supernet_at,
    train_batches,
)

EPOCHS = 2


@functools.cache
def alone(client: int, optimizer: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return search([client], client_config(optimizer=optimizer), dtype, EPOCHS)[client]


def test_clients_are_unequal() -> None:
    """Different steps, ragged last batches, a client that never fills a batch."""
    batches = train_batches(fresh_cohort(range(4)), EPOCHS)
    assert batches.steps == [12, 6, 4, 2]
    sizes = [batches.train(batches.active(step)).sizes.tolist() for step in range(12)]
    assert sizes[0] == [7, 8, 5, 5]
    assert sizes[2] == [7, 7, 5]
    assert sizes[5] == [6, 7]
    assert PARTS[2][0] < BATCH


@pytest.mark.parametrize("cohort", [[0, 1, 2, 3], [2, 3], [0, 1]], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_cohort_equals_each_client_alone(
    cohort: list[int], optimizer: str, dtype: torch.dtype
) -> None:
    """To the bit, in both precisions: how clients are grouped must not change a run.

    Three things would cost a few ulp a step, and have: batches padded to the cohort's longest (the
    classifier's GEMM and sums over images add up in an order that depends on the width), Adam on
    the rows as one block (a row's end falls into another vector register), and a batched GEMM whose
    kernel depends on the number of clients.
    """
    together = search(cohort, client_config(optimizer=optimizer), dtype, EPOCHS)
    for client in cohort:
        for name, tensor in alone(client, optimizer, dtype).items():
            assert_identical(together[client][name], tensor, f"{name} of client {client}")


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "second", "optimizer": "sgd"},
        {"order": "second", "relaxation": "gdas", "alpha_warmup": 1},
        {"order": "single", "relaxation": "gumbel", "alpha_warmup": 1, "penalty_kind": "dual"},
        {"relaxation": "sigmoid"},
    ],
    ids=["unrolled", "unrolled gdas, warm-up", "single level gumbel, warm-up", "sigmoid"],
)
def test_variants_equal_each_client_alone(changes: dict[str, str]) -> None:
    """In single precision; clients leave their warm-up at different steps, last ones first."""
    config = client_config(**changes)
    together = search([0, 1, 2, 3], config, torch.float32, EPOCHS)
    for client in PARTS:
        single = search([client], config, torch.float32, EPOCHS)[client]
        for name, tensor in single.items():
            assert_identical(together[client][name], tensor, f"{name} of client {client}")


def test_alpha_stays_during_the_warmup() -> None:
    """One as long as the search or longer leaves α, and w as it is without steps on α."""
    clients = [0, 1, 2, 3]  # of 12, 6, 4 and 2 steps
    start = fresh_cohort(clients)
    assert start.alpha is not None
    still = search(clients, client_config(alpha_lr=0.0), epochs=EPOCHS)
    for order, warmup in (("first", EPOCHS), ("second", EPOCHS + 1), ("single", EPOCHS + 1)):
        config = client_config(order=order, alpha_warmup=warmup)
        after = search(clients, config, epochs=EPOCHS)
        for client in clients:
            assert torch.equal(after[client]["alpha"], start.alpha[0])
            assert_identical(after[client]["theta"], still[client]["theta"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_something_is_learned(dtype: torch.dtype) -> None:
    before = fresh_cohort([3], dtype)
    after = alone(3, "adam", dtype)
    for name in ("theta", "running", "alpha"):
        assert float((after[name] - getattr(before, name)[0]).abs().max()) > 0.01, name
        assert after[name].dtype == dtype


def test_single_precision_follows_double() -> None:
    """Up to what Adam's division by tiny second moments makes of rounding."""
    for client in PARTS:
        single, double = (alone(client, "sgd", t) for t in (torch.float32, torch.float64))
        for name in ("theta", "running", "alpha", "validation loss"):
            assert_close(single[name], double[name], 1e-3, f"{name} of client {client}")


@pytest.mark.parametrize(
    "config",
    [
        client_config(),
        client_config(optimizer="sgd", clip=0.5),
        client_config(penalty_kind="squared_hinge", kl=0.0, beta_decay=0.5, clip=0),
        client_config(penalty_kind="absolute", kl=0.0),
        client_config(penalty_kind="dual", dual_rate=0.4, beta_decay=0.0),
        client_config(order="single", optimizer="sgd"),
        client_config(order="single", penalty_kind="dual", alpha_warmup=1),
        client_config(relaxation="sigmoid", zero_one=0.5),
        client_config(alpha_warmup=1, penalty_kind="dual"),
        client_config(temperature=4.0, final_temperature=2.0, optimizer="sgd"),
    ],
    ids=[
        *("defaults", "sgd", "no kl, squared hinge", "absolute", "dual", "single level"),
        *("single level, warm-up", "sigmoid", "warm-up", "temperatures"),
    ],
)
def test_equals_a_plain_darts_loop(config: Config) -> None:
    together = search(range(4), config, torch.float64, EPOCHS)
    for client in PARTS:
        net, losses = plain_search(client, config)
        expected = {
            "theta": net.flat()[0].detach(),
            "running": net.flat_running()[0],
            "alpha": torch.stack([a.detach() for a in net.arch_parameters()]),
            "training loss": torch.tensor(sum(losses) / len(losses), dtype=torch.float64),
        }
        for name, tensor in expected.items():
            assert_close(together[client][name], tensor, 1e-11, f"{name} of client {client}")


def plain_search(client: int, config: Config) -> tuple[Supernet, list[float]]:
    """One client's search with an ordinary module, ordinary optimisers and no client axis."""
    settings = config.client
    cohort = fresh_cohort([client])
    assert cohort.alpha is not None
    net = supernet_at(cohort.theta, cohort.running, cohort.alpha).train()
    server = cohort.alpha[0].clone()
    batches = TrainBatches(
        STORE, [SPLITS[client]], BATCH, EPOCHS, True, 0, "round", 3, dtype=torch.float64
    )
    on_alpha = torch.optim.Adam(
        net.arch_parameters(),
        settings.alpha_lr,
        betas=(settings.alpha_beta1, 0.999),
        weight_decay=settings.alpha_weight_decay,
    )
    weights = net.weight_parameters()
    on_weights: torch.optim.Optimizer
    schedule = None
    if settings.optimizer == "adam":
        on_weights = torch.optim.Adam(weights, settings.lr, weight_decay=settings.weight_decay)
    else:
        on_weights = torch.optim.SGD(
            weights, settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(on_weights, len(batches))
    multiplier, losses = settings.penalty, []
    end = (settings.final_temperature or settings.temperature) * FINAL_TEMPERATURE
    warm_steps = settings.alpha_warmup * len(batches) // EPOCHS
    for step in range(len(batches)):
        progress = step / torch.tensor(len(batches))  # single
        temperature = float(settings.temperature * (end / settings.temperature) ** progress)
        excess, regulariser = plain_terms(net, client, config, temperature, multiplier, server)
        two_levels = settings.order == "first" and step >= warm_steps
        one_level = settings.order == "single" and step >= warm_steps

        if two_levels:
            x, y = own_images(batches.val(1))
            # The α step reads batch statistics but does not count for the running ones.
            statistics = {name: t.clone() for name, t in net.named_buffers()}
            loss = F.cross_entropy(run(net, x, temperature, settings.relaxation), y) + regulariser
            on_alpha.zero_grad()
            loss.backward()
            on_alpha.step()
            net.load_state_dict(statistics, strict=False)

        x, y = own_images(batches.train(1))
        on_weights.zero_grad()
        on_alpha.zero_grad()
        loss = F.cross_entropy(run(net, x, temperature, settings.relaxation), y)
        (loss + regulariser if one_level else loss).backward()
        if settings.clip > 0:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        on_weights.step()
        if one_level:
            on_alpha.step()
        if schedule is not None:
            schedule.step()
        if settings.penalty_kind == "dual" and step >= warm_steps:
            multiplier = max(0.0, multiplier + settings.dual_rate * excess)
        losses.append(float(loss.detach()))
    return net, losses


def run(net: Supernet, x: Tensor, temperature: float, relaxation: str) -> Tensor:
    """Logits with mixing weights softmax(alpha / temperature), or sigmoid."""
    scaled = [a / temperature for a in net.arch_parameters()]
    if relaxation == "sigmoid":
        return net._run(x, tuple(torch.sigmoid(a)[None] for a in scaled))
    return net._run(x, tuple(a.softmax(-1)[None] for a in scaled))


def own_images(batch) -> tuple[Tensor, Tensor]:
    """The one client's images (N, C, H, W) and labels, without padding."""
    size = int(batch.sizes[0])
    return batch.x[0, :size].permute(0, 3, 1, 2), batch.labels[0, :size]


def plain_terms(
    net: Supernet,
    client: int,
    config: Config,
    temperature: float,
    multiplier: float,
    server: Tensor,
) -> tuple[float, Tensor]:
    """The cost's excess over the budget, and all terms of the loss beside the cross-entropy."""
    settings = config.client
    normal, reduce = net.arch_parameters()

    def chances(alpha: Tensor, temperature: float = 1.0) -> Tensor:
        if settings.relaxation == "sigmoid":
            p = torch.sigmoid(alpha / temperature)
            return p / p.sum(-1, keepdim=True)
        return (alpha / temperature).softmax(-1)

    weights = [chances(a, temperature) for a in (normal, reduce)]
    excess = expected_cost(COSTS, *weights) / BUDGETS[client] - 1
    phi = {
        "linear": excess,
        "dual": excess,
        "squared_hinge": F.relu(excess) ** 2,
        "absolute": excess.abs(),
    }[settings.penalty_kind]
    kl = decay = torch.zeros((), dtype=torch.float64)
    for own, other in ((normal, server[0]), (reduce, server[1])):
        target, own_p = chances(other), chances(own)  # a mean over the edges of both cells
        kl = kl + (own_p * (own_p.log() - target.log())).sum() / (2 * len(own))
        decay = decay + own.exp().sum(-1).log().sum() / (2 * len(own))
    total = multiplier * phi + settings.kl * kl + settings.beta_decay * decay
    if settings.relaxation == "sigmoid":
        both = torch.stack([normal, reduce])
        total = total - settings.zero_one * ((torch.sigmoid(both) - 0.5) ** 2).mean()
    return float(excess.detach()), total
