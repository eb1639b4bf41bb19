"""A step's passes recorded and replayed on buffers of their own, without a GPU to do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadnas_ext.config import Config
from metadnas_ext.config_checks import check_graphs
from metadnas_ext.errors import ConfigError
from metadnas_ext.nn import supernet_plan
from metadnas_ext.search.architect import ARCHITECTS
from metadnas_ext.search.graphs import EagerReplay, GraphedStep, Inputs, Passes
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.steps import Pass
from metadnas_ext.search.training import Training, cohort_of, train

from ._clients import (
    SHAPE,
    budgets_of,
    client_config,
    costs_of,
    fresh_cohort,
    relaxation_in,
    searched,
    start,
    train_batches,
)

EVERYONE = [0, 1, 2, 3]
"""6, 3, 2 and 1 steps an epoch; client 2 never fills a batch."""


class Counted(EagerReplay):
    """Counts recordings and replays."""

    def __init__(self, run: Passes, inputs: Inputs) -> None:
        super().__init__(run, inputs)
        made.append(self)
        self.calls = 0

    def __call__(self, new: Inputs) -> Pass:
        self.calls += 1
        return super().__call__(new)


made: list[Counted] = []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha_warmup": 1},
        {"order": "single", "penalty_kind": "dual"},
        {"relaxation": "sigmoid", "optimizer": "sgd"},
    ],
)
def test_a_replayed_search_is_the_search(changes: dict[str, Any]) -> None:
    """To the bit; the temperature falls, clients leave the warm-up and the training."""
    config = client_config(**changes)
    expected, losses = searched(EVERYONE, config, epochs=4)

    plan = supernet_plan(SHAPE)
    cohort = fresh_cohort(EVERYONE)
    relaxation = relaxation_in(config)
    alpha = start(plan, torch.float64)[2]
    costs, budgets = costs_of(cohort, None), budgets_of(cohort)
    objective = Objective.of(config.client, relaxation, costs, budgets, alpha)
    architect = ARCHITECTS[config.client.order](
        *(plan, cohort, config.client, objective, relaxation, "round 3"),
        warmup=config.client.alpha_warmup,
    )
    made.clear()
    step: Any = GraphedStep(architect, Counted)
    batches = train_batches(cohort, 4)
    found = train(plan, cohort, batches, Training.of(config.client), "round 3", step)

    assert torch.equal(found, losses)
    for name in ("theta", "running", "alpha"):
        assert torch.equal(getattr(cohort, name), getattr(expected, name)), name
    assert len(made) >= 3, "clients leave at three steps"
    assert sum(replay.calls for replay in made) >= len(batches) // 2


def test_a_replay_reads_its_own_copy_of_a_batch() -> None:
    """And the recorded step is called on what came with each call, not on what it was made with."""
    cohort = fresh_cohort(EVERYONE)
    batches = train_batches(cohort, 1)
    first, second = (
        Inputs(batches.train(1), batches.val(1), batches.progress(step)[:1]) for step in (0, 1)
    )
    seen: list[Inputs] = []

    def run(inputs: Inputs) -> Pass:
        seen.append(inputs)
        return Pass(inputs.train.x.sum((1, 2, 3, 4)), inputs.progress, inputs.progress)

    replay = EagerReplay(run, first)
    assert torch.equal(replay(second).losses, second.train.x.sum((1, 2, 3, 4)))
    assert seen[0].train.x.data_ptr() not in (first.train.x.data_ptr(), second.train.x.data_ptr())
    first_again = replay(first)
    assert torch.equal(first_again.losses, first.train.x.sum((1, 2, 3, 4)))


def test_noise_in_a_recorded_step_is_refused() -> None:
    """It would be the same in every step."""
    config = client_config(relaxation="gumbel")
    plan = supernet_plan(SHAPE)
    cohort = cohort_of(fresh_cohort(EVERYONE).splits, *start(plan, torch.float64))
    relaxation = relaxation_in(config)
    architect = ARCHITECTS["first"](
        *(plan, cohort, config.client, Objective([]), relaxation, "round 3")
    )
    step: Any = GraphedStep(architect, EagerReplay)
    with pytest.raises(RuntimeError, match="asked for random numbers"):
        train(plan, cohort, train_batches(cohort, 1), Training.of(config.client), "x", step)


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"run.device": "cpu"}, "run.device is 'cpu'"),
        ({"client.order": "second"}, "client.order is 'second'"),
        ({"client.relaxation": "gdas"}, "client.relaxation is 'gdas'"),
        ({"server.meta": "maml"}, "server.meta is 'maml'"),
        ({"space.space": "nasbench201"}, "space.space is 'nasbench201'"),
    ],
)
def test_what_cannot_be_captured_is_refused(changes: dict[str, str], obstacle: str) -> None:
    captured = Config().updated({"run.device": "cuda", "client.graphs": True})
    check_graphs(captured)
    with pytest.raises(ConfigError, match=f"client.graphs is true, expected false: {obstacle}"):
        check_graphs(captured.updated(changes))
    check_graphs(captured.updated(changes | {"client.graphs": False}))
