"""Values, statistics and gradients against ordinary torch.nn modules, in float64."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from metadnas_ext.ops import batch_norms, mixed_op, packed_shapes
from metadnas_ext.ops.mixed_op import KEEP
from metadnas_ext.space.primitives import PRIMITIVES

from ._cases import Case, Result, assert_same, make_case, run, truth, twin

MODES = [
    pytest.param(stride, affine, training, id=f"{stride}-{affine=}-{training=}")
    for stride in (1, 2)
    for affine in (False, True)
    for training in (True, False)
]


def subsets() -> list[tuple[str, ...]]:
    """Every non-empty subset of the candidates, each in a shuffled order."""
    rng = random.Random(0)
    return [
        tuple(rng.sample(chosen, size))
        for size in range(1, len(PRIMITIVES) + 1)
        for chosen in combinations(PRIMITIVES, size)
    ]


def single_case(full: Case, k: int) -> Case:
    """Candidate k of a case alone, with mixing weight 1."""
    parameters, norms = spans(full)
    return replace(
        full,
        weights=torch.ones_like(full.weights[:, :1]),
        params=full.params[:, parameters[k]],
        running=None if full.running is None else full.running[:, norms[k]],
        candidates=(full.candidates[k],),
    )


def spans(case: Case) -> tuple[list[slice], list[slice]]:
    """Where each candidate's parameters and batch norms lie."""
    parameters, norms = [], []
    at_parameter = at_norm = 0
    channels = case.x.shape[-1]
    for name in case.candidates:
        shapes = packed_shapes((name,), channels, case.stride, case.affine).values()
        size = sum(torch.Size(shape).numel() for shape in shapes)
        count = len(batch_norms((name,), channels, case.stride))
        parameters.append(slice(at_parameter, at_parameter + size))
        norms.append(slice(at_norm, at_norm + count))
        at_parameter += size
        at_norm += count
    return parameters, norms


def subset_case(full: Case, chosen: list[int]) -> Case:
    parameters, norms = spans(full)
    return replace(
        full,
        weights=full.weights[:, chosen],
        params=torch.cat([full.params[:, parameters[k]] for k in chosen], 1),
        running=None
        if full.running is None
        else torch.cat([full.running[:, norms[k]] for k in chosen], 1),
        candidates=tuple(full.candidates[k] for k in chosen),
    )


def superpose(case: Case, singles: list[Result]) -> Result:
    """The mixture is linear in its candidates, and so are the gradients."""
    w = case.weights.unbind(1)
    fives = [weight[:, None, None, None, None] for weight in w]
    return Result(
        sum(five * single.out for five, single in zip(fives, singles, strict=True)),
        torch.cat([single.stats for single in singles], 1),
        sum(five * single.grad_x for five, single in zip(fives, singles, strict=True)),
        torch.cat([single.grad_weights for single in singles], 1),
        torch.cat([a[:, None] * s.grad_params for a, s in zip(w, singles, strict=True)], 1),
    )


@pytest.mark.parametrize(("stride", "affine", "training"), MODES)
@pytest.mark.parametrize(
    "keep", [KEEP[0], *(pytest.param(keep, marks=pytest.mark.long) for keep in KEEP[1:])]
)
def test_every_subset_of_candidates(keep, stride, affine, training):
    full = make_case((2, 2, 5, 4, 4), stride=stride, affine=affine, training=training, keep=keep)
    singles = [truth(single_case(full, k)) for k in range(len(PRIMITIVES))]
    for names in subsets():
        chosen = [PRIMITIVES.index(name) for name in names]
        case = subset_case(full, chosen)
        try:
            assert_same(run(case), superpose(case, [singles[k] for k in chosen]))
        except AssertionError as error:
            raise AssertionError(f"{names}: {error}") from error


@pytest.mark.parametrize(("stride", "affine", "training"), MODES)
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_all_candidates(clients, stride, affine, training):
    case = make_case((clients, 3, 7, 6, 6), stride=stride, affine=affine, training=training)
    expected = truth(case)
    for keep in KEEP:
        assert_same(run(replace(case, keep=keep)), expected)
    assert_same(run(case, twin), expected)


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_gradients_that_are_asked_for(needed, keep):
    case = make_case((2, 3, 7, 6, 6), keep=keep)
    every = run(case)
    inputs = [case.x, case.weights, case.params]
    leaves = [inputs[i].detach().requires_grad_() for i in needed]
    for i, leaf in zip(needed, leaves, strict=True):
        inputs[i] = leaf
    out, _ = mixed_op(*inputs, **case.options)
    expected = (every.grad_x, every.grad_weights, every.grad_params)
    for i, grad in zip(needed, torch.autograd.grad(out, leaves, case.grad_out), strict=True):
        assert torch.equal(grad, expected[i])


@pytest.mark.parametrize("keep", KEEP)
def test_what_is_kept(keep):
    case = make_case((2, 3, 4, 6, 6), keep=keep)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mixed_op(case.x.requires_grad_(), case.weights, case.params, **case.options)
    (z,) = (t for t in saved if t.dim() == 6)
    assert z.shape == ({"all": 6, "middle": 2, "input": 0}[keep], *case.x.shape)


def test_nothing_is_kept_of_an_unknown_name():
    case = make_case()
    with pytest.raises(ValueError, match="keep='some' is unknown; known: all, middle, input"):
        mixed_op(case.x, case.weights, case.params, keep="some")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_twin_of_each_candidate(name, stride):
    for affine, training in [(True, True), (False, False)]:
        case = make_case(candidates=(name,), stride=stride, affine=affine, training=training)
        assert_same(run(case, twin), truth(case))


def test_eps_is_used():
    case = replace(make_case(), eps=0.3)
    assert_same(run(case), truth(case))
