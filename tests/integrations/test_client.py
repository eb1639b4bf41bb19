"""A client's part in other codebases, against plain torch in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metadnas_ext.errors import ConfigError
from metadnas_ext.integrations import (
    Budget,
    LocalSearch,
    SearchSettings,
    accuracy,
    derive,
    held_out,
    recalibrate,
    train_epoch,
    weight_parameters,
)
from metadnas_ext.nn import NASBench201Supernet, Supernet
from metadnas_ext.space import cheapest_cost, cost_table, dearest_cost, genotype_cost

Batches = list[tuple[Tensor, Tensor]]
CLASSES = 3
NETWORKS = {
    "darts": lambda: Supernet(4, CLASSES, 3, nodes=2, image_size=8),
    "partial": lambda: Supernet(8, CLASSES, 3, nodes=2, image_size=8, partial=2),
    "bench201": lambda: NASBench201Supernet(4, CLASSES, 1, image_size=8),
}
every_space = pytest.mark.parametrize("space", NETWORKS)


def network(space: str = "darts") -> Supernet | NASBench201Supernet:
    torch.manual_seed(0)
    return NETWORKS[space]().double()


def batches(count: int, size: int = 4, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, size, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (count, size), generator=generator)
    return list(zip(images, labels, strict=True))


def assert_states_agree(actual: nn.Module, expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(actual.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


def by_hand(
    net: Supernet | NASBench201Supernet,
    optimizer: torch.optim.Optimizer,
    budget: Budget,
    train: Batches,
    validation: Batches,
) -> list[float]:
    """The same search with `backward` on everything and the cost written out edge by edge."""
    costs, losses = budget.costs, []
    adam = torch.optim.Adam(net.arch_parameters(), 0.01, betas=(0.5, 0.999), weight_decay=0.001)
    net.train()
    for step, (images, labels) in enumerate(train):
        x, y = validation[step % len(validation)]
        expected = torch.tensor(costs.fixed, dtype=torch.float64)
        for index, name in enumerate(costs.space.types):
            chances = getattr(net, f"alphas_{name}").softmax(-1)
            for edge in costs.space.edges:
                keeps = 1.0 if name == "cell" else 2 / (2 + edge.target_node)
                expected = expected + keeps * (chances[edge.index] @ costs.cells[index, edge.index])
        loss = F.cross_entropy(net(x), y) + 0.1 * (expected / budget.limit - 1)
        net.zero_grad()
        loss.backward()
        adam.step()
        net.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 5.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@every_space
def test_search_is_first_order_darts(space: str) -> None:
    net, other = network(space), network(space)
    budget = Budget(net.shape, 0.7)
    optimizers = [
        torch.optim.SGD(weight_parameters(n), 0.05, momentum=0.9, weight_decay=1e-3)
        for n in (net, other)
    ]
    train, validation = batches(3), batches(2, seed=1)
    loss = LocalSearch(net, optimizers[0], budget).epoch(train, validation)
    losses = by_hand(other, optimizers[1], budget, train, validation)
    assert math.isclose(loss, sum(losses) / len(losses), rel_tol=1e-9)
    assert_states_agree(net, other)
    for alpha, start in zip(net.arch_parameters(), network(space).arch_parameters(), strict=True):
        assert not alpha.equal(start)
        assert alpha.grad is None
        assert alpha.requires_grad
    assert all(p.requires_grad for p in net.parameters())


def test_a_model_around_a_supernet_is_searched_alike() -> None:
    whole, body = network(), network()
    head, body.fc = body.fc, nn.Identity()
    split = nn.Sequential(body, head)
    budget = Budget(whole.shape, 0.5)
    for model in (whole, split):
        optimizer = torch.optim.SGD(weight_parameters(model), 0.05)
        LocalSearch(model, optimizer, budget).epoch(batches(2), batches(2, seed=1))
    for mine, theirs in zip(body.arch_parameters(), whole.arch_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.weight, whole.fc.weight, rtol=1e-10, atol=1e-12)


def test_frozen_parameters_stay_frozen() -> None:
    net = network()
    net.stem.requires_grad_(False)
    before = copy.deepcopy(net.stem.state_dict())
    optimizer = torch.optim.SGD([p for p in weight_parameters(net) if p.requires_grad], 0.05)
    LocalSearch(net, optimizer, Budget(net.shape, 0.5)).epoch(batches(2), batches(2))
    assert not any(p.requires_grad for p in net.stem.parameters())
    assert net.stem[0].weight.equal(before["0.weight"])


def test_the_penalty_draws_towards_cheap_candidates() -> None:
    reached = []
    for penalty in (0.0, 10.0):
        net = network()
        optimizer = torch.optim.SGD(weight_parameters(net), 1e-9)
        search = LocalSearch(
            net, optimizer, Budget(net.shape, 0.4), SearchSettings(0.1, penalty=penalty)
        )
        search.epoch(batches(6), batches(6, seed=1))
        costs = cost_table(net.shape)
        reached.append(genotype_cost(costs, net.genotype()))
    assert reached[1] < reached[0]


@every_space
def test_derived_networks_fit_the_budget(space: str) -> None:
    net = network(space)
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.copy_(torch.randn_like(alpha))
    dear = dearest_cost(cost_table(net.shape, "params"))
    for level, limit in ((0.5, 0.5 * dear), (1.0, dear), (0.8 * dear, 0.8 * dear)):
        budget = Budget(net.shape, level, "params")
        assert budget.limit == limit
        own = derive(net, budget)
        assert genotype_cost(budget.costs, own.genotype) <= limit
        assert own.genotype == net.genotype(budget.costs, limit)
        assert own.fc.weight.equal(net.fc.weight)


def test_recalibration_is_the_mean_over_batches() -> None:
    net = derive(network(), Budget(network().shape, 0.5))
    data = batches(3, 5)
    means: dict[str, Tensor] = {}
    for images, _ in data:
        one = copy.deepcopy(net).train()
        one.load_state_dict(
            {n: t * 0 if "running" in n else t for n, t in net.state_dict().items()}
        )
        one(images)
        for name, buffer in one.named_buffers():
            means[name] = means.get(name, 0) + buffer / (0.1 * len(data))
    recalibrate(net, data)
    for name, buffer in net.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, means[name], rtol=1e-12, atol=1e-13)
    first = net.get_buffer("stem.1.running_mean")
    stem = F.conv2d(torch.cat([x for x, _ in data]), net.stem[0].weight, padding=1)
    torch.testing.assert_close(first, stem.mean((0, 2, 3)))


def test_training_and_accuracy_of_an_ordinary_module() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).double()
    data = batches(4, 8)
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in data)
    assert accuracy(net, data) == right / 32
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    losses = [train_epoch(net, data, optimizer) for _ in range(5)]
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy(net, data) == 1.0


def test_the_gradient_of_w_is_clipped() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).double()
    before = copy.deepcopy(net)
    train_epoch(net, batches(1), torch.optim.SGD(net.parameters(), 1.0), clip=1e-3)
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(net.parameters(), before.parameters(), strict=True)]
    )
    assert math.isclose(float(moved.norm()), 1e-3, rel_tol=1e-3)


def test_held_out_parts_are_a_partition_by_seed() -> None:
    data = TensorDataset(torch.arange(10))
    train, validation = held_out(data, 0.3, seed=1)
    assert sorted([*train.indices, *validation.indices]) == list(range(10))
    assert len(validation) == 3
    assert held_out(data, 0.3, seed=1)[1].indices == validation.indices
    assert held_out(data, 0.3, seed=2)[1].indices != validation.indices
    for share in (0.0, 0.04, 1.0):
        with pytest.raises(ValueError, match=f"share={share} of 10 images leaves a part empty"):
            held_out(data, share, seed=0)


def test_what_is_refused() -> None:
    net = network()
    budget = Budget(net.shape, 0.5)
    with pytest.raises(ValueError, match="optimizer holds α"):
        LocalSearch(net, torch.optim.SGD(net.parameters(), 0.1), budget)
    with pytest.raises(ValueError, match="model is Linear without a Supernet"):
        derive(nn.Linear(2, 2), budget)
    with pytest.raises(ValueError, match="clients=2, expected None"):
        weight_parameters(Supernet(4, layers=1, nodes=1, clients=2))
    with pytest.raises(ValueError, match="level=2 is a budget of 2 macs, expected at least"):
        Budget(net.shape, 2)
    with pytest.raises(ConfigError, match="'macs' or 'params'"):
        Budget(net.shape, 0.5, "ms")
    assert Budget(net.shape, cheapest_cost(budget.costs)).limit == cheapest_cost(budget.costs)
    search = LocalSearch(net, torch.optim.SGD(weight_parameters(net), 0.1), budget)
    empty = DataLoader(TensorDataset(*batches(1)[0]), 8, drop_last=True)
    for parts in ((empty, batches(1)), (batches(1), empty)):
        with pytest.raises(ValueError, match="the loader yields no batch"):
            search.epoch(*parts)
    for use in (recalibrate, accuracy):
        with pytest.raises(ValueError, match="the loader yields no batch"):
            use(net, empty)
