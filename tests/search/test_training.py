"""Evaluation and recalibration against loops over ordinary modules; divergence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metadnas_ext.errors import DivergenceError
from metadnas_ext.nn import DerivedNet, NetworkPlan, derived_plan, supernet_plan
from metadnas_ext.search.cohort import Cohort, ordered
from metadnas_ext.search.finite import FiniteCheck, check_finite
from metadnas_ext.search.relaxations import SOFTMAX, Sigmoid
from metadnas_ext.search.training import Training, evaluate, recalibrate, train
from metadnas_ext.space import Genotype

from ..federated._tiny import assert_close
from ._clients import (
    BATCH,
    PARTS,
    SHAPE,
    SPLITS,
    STORE,
    fresh_cohort,
    images,
    random_rows,
    supernet_at,
    train_batches,
)

PAIRS = (("sep_conv_3x3", 0), ("avg_pool_3x3", 1), ("skip_connect", 0), ("dil_conv_5x5", 2))
GENOTYPE = Genotype.of(PAIRS, PAIRS)


def derived_cohort(clients: list[int]) -> tuple[NetworkPlan, Cohort]:
    """Clients with random weights of their own, all with one discrete network."""
    plan = derived_plan(SHAPE, GENOTYPE)
    splits = ordered([SPLITS[c] for c in clients], BATCH)
    theta = random_rows(4, plan.parameters.size, 0)[clients] * 0.5
    running = random_rows(4, plan.running.size, 1)[clients].abs() + 0.3
    order = [clients.index(split.client) for split in splits]
    return plan, Cohort(splits, theta[order], running[order])


def module_of(cohort: Cohort, row: int) -> DerivedNet:
    net = DerivedNet(SHAPE, GENOTYPE).double()
    net.load_flat(cohort.theta[row : row + 1], cohort.running[row : row + 1])
    return net


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("size", [1, BATCH, 64])
def test_evaluate_derived_networks(part: str, size: int) -> None:
    plan, cohort = derived_cohort([0, 1, 2, 3])
    figures = evaluate(plan, cohort, STORE, part, size, "here")
    for row, split in enumerate(cohort.splits):
        x, y = images(getattr(split, part))
        with torch.no_grad():
            logits = module_of(cohort, row).eval()(x)
        assert_close(figures.loss[row], F.cross_entropy(logits, y), 1e-12)
        assert float(figures.accuracy[row]) == float((logits.argmax(1) == y).double().mean())
        assert int(figures.size[row]) == len(y)
    assert len(set(figures.loss.tolist())) == 4


def test_evaluate_supernets() -> None:
    cohort = fresh_cohort([1, 3])
    cohort.theta += 0.1 * random_rows(*cohort.theta.shape, 2)
    cohort.running += random_rows(*cohort.running.shape, 3).abs()
    assert cohort.alpha is not None
    cohort.alpha += random_rows(2, cohort.alpha[0].numel(), 4).view_as(cohort.alpha)
    figures = evaluate(supernet_plan(SHAPE), cohort, STORE, "test", BATCH, "here")
    for row, split in enumerate(cohort.splits):
        state = (t[row : row + 1] for t in (cohort.theta, cohort.running, cohort.alpha))
        x, y = images(split.test)
        with torch.no_grad():
            logits = supernet_at(*state).eval()(x)
        assert_close(figures.loss[row], F.cross_entropy(logits, y), 1e-12)
        assert float(figures.accuracy[row]) == float((logits.argmax(1) == y).double().mean())


def test_evaluate_changes_nothing() -> None:
    plan, cohort = derived_cohort([0, 2])
    before = cohort.theta.clone(), cohort.running.clone()
    evaluate(plan, cohort, STORE, "val", BATCH, "here")
    assert torch.equal(cohort.theta, before[0])
    assert torch.equal(cohort.running, before[1])


@pytest.mark.parametrize("size", [4, BATCH, 64])
def test_recalibrate_is_the_mean_of_batch_statistics(size: int) -> None:
    """Weighted by images. At batches of 4 client 1 has a last one of a single image: left out."""
    plan, cohort = derived_cohort([0, 1, 2, 3])
    modules = [module_of(cohort, row) for row in range(4)]
    theta = cohort.theta.clone()
    recalibrate(plan, cohort, STORE, size)
    assert torch.equal(cohort.theta, theta)
    for row, (split, net) in enumerate(zip(cohort.splits, modules, strict=True)):
        net.train()
        total, count = torch.zeros_like(cohort.running[row]), 0
        for indices in split.train.split(size):
            if len(indices) == 1:
                continue
            for buffer in net.buffers():
                buffer.zero_()
            with torch.no_grad():
                net(images(indices)[0])
            # From zero, one step of momentum 0.1 leaves a tenth of the batch's statistics.
            total += net.flat_running()[0] / 0.1 * len(indices)
            count += len(indices)
        assert count >= len(split.train) - 1
        assert_close(cohort.running[row], total / count, 1e-10, f"client {split.client}")


def test_recalibrate_supernets() -> None:
    """With the mixing weights of alpha; all of client 3's images in one batch."""
    cohort = fresh_cohort([3])
    assert cohort.alpha is not None
    cohort.alpha += random_rows(1, cohort.alpha[0].numel(), 4).view_as(cohort.alpha)
    for relaxation in (SOFTMAX, Sigmoid()):
        net = supernet_at(cohort.theta, cohort.running, cohort.alpha).train()
        for buffer in net.buffers():
            buffer.zero_()
        x, _ = images(cohort.splits[0].train)
        with torch.no_grad():
            net._run(x, relaxation.mixture(cohort.alpha).weights)
        recalibrate(supernet_plan(SHAPE), cohort, STORE, 64, relaxation)
        assert_close(cohort.running[0], net.flat_running()[0] / 0.1, 1e-10)


def test_recalibrate_forgets_what_was_there() -> None:
    plan, cohort = derived_cohort([3])
    _, other = derived_cohort([3])
    other.running += 5.0
    recalibrate(plan, cohort, STORE, BATCH)
    recalibrate(plan, other, STORE, BATCH)
    assert torch.equal(cohort.running, other.running)


def test_no_steps_change_nothing() -> None:
    plan, cohort = derived_cohort([0, 1])
    theta, running = cohort.theta.clone(), cohort.running.clone()
    losses = train(plan, cohort, train_batches(cohort, 0), HOW, "here")
    assert losses.tolist() == [0, 0]
    assert torch.equal(cohort.theta, theta)
    assert torch.equal(cohort.running, running)


HOW = Training("adam", 0.01, 0.9, 0.0, 5.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_names_phase_and_client(value: float) -> None:
    cohort = fresh_cohort([1, 3, 0])  # in the cohort's order 3, 0, 1
    losses = torch.tensor([1.0, value, value])
    with pytest.raises(DivergenceError, match=r"round 7: the loss of client 0 is"):
        check_finite(losses, cohort, "round 7")
    check_finite(torch.tensor([1.0, -3.0, 0.0]), cohort, "round 7")
    with pytest.raises(DivergenceError, match=r"round 7: the alpha of client 1 is nan"):
        check_finite(torch.tensor([1.0, float("nan")]), cohort, "round 7", "alpha", first=1)


def test_what_is_put_off_is_told_at_the_end() -> None:
    """As where looking at once would wait: each client's first bad value, until `finish`."""
    cohort = fresh_cohort([1, 3, 0])  # in the cohort's order 3, 0, 1
    nan, inf = float("nan"), float("inf")
    at_once, later = (FiniteCheck(cohort, "round 7", at_once=now) for now in (True, False))
    for values, first in (([1.0, 2.0], 1), ([1.0, inf, 2.0], 0), ([nan, nan], 0)):
        later(torch.tensor(values), first=first)
    later(torch.tensor([[1.0, nan], [1.0, 1.0]]), "alpha", first=1)
    with pytest.raises(DivergenceError, match=r"the loss of client 3 is nan") as found:
        later.finish()
    assert found.value.diverged == {3: "loss is nan", 0: "loss is inf"}
    with pytest.raises(DivergenceError, match=r"the loss of client 0 is inf"):
        at_once(torch.tensor([1.0, inf, 2.0]))
    at_once.finish()
    fine = FiniteCheck(cohort, "round 7", at_once=False)
    fine(torch.tensor([1e38, -1e38, 3.0]))
    fine.finish()


@pytest.mark.parametrize("broken", list(PARTS))
def test_training_and_evaluation_stop_at_a_client_whose_weights_broke(broken: int) -> None:
    plan, cohort = derived_cohort([0, 1, 2, 3])
    cohort.theta[cohort.clients.index(broken), -1] = float("nan")  # a bias of the classifier
    message = rf"here: the loss of client {broken} is nan"
    with pytest.raises(DivergenceError, match=message):
        evaluate(plan, cohort, STORE, "test", BATCH, "here")
    with pytest.raises(DivergenceError, match=message):
        train(plan, cohort, train_batches(cohort, 1), HOW, "here")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_huge_rate_diverges_with_an_error(optimizer: str) -> None:
    how = Training(optimizer, 1e200, 0.9, 0.0, 0.0)
    plan, cohort = derived_cohort([0, 1, 2, 3])
    with pytest.raises(DivergenceError, match=r"round 2: the loss of client \d is (nan|inf)"):
        train(plan, cohort, train_batches(cohort, 3), how, "round 2")
