"""Cells against the twin, which adds up mixed operations edge by edge, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from metadnas_ext.ops import batch_norms, cell, packed_shapes, reference
from metadnas_ext.ops.mixed_op import KEEP
from metadnas_ext.space.primitives import PRIMITIVES

from ._cases import assert_identical, assert_same

DARTS = ((0, 1, 0, 1, 2), (0, 0, 1, 1, 1))  # sources and targets of two nodes
DISCRETE = ("skip_connect", "sep_conv_3x3", "none", "dil_conv_5x5", "max_pool_3x3")


@dataclass(frozen=True)
class Case:
    s0: Tensor
    s1: Tensor
    weights: Tensor
    params: Tensor
    grad_out: Tensor
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    candidates: tuple[tuple[str, ...], ...]
    reduction: bool = False
    affine: bool = False
    running: Tensor | None = None
    counts: Tensor | None = None
    keep: str = "all"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.s0, self.s1, self.weights, self.params

    @property
    def options(self) -> dict[str, object]:
        names = ("reduction", "affine", "running", "counts")
        return {name: getattr(self, name) for name in names}


class Result(NamedTuple):
    out: Tensor
    stats: Tensor
    grad_s0: Tensor
    grad_s1: Tensor
    grad_weights: Tensor
    grad_params: Tensor


def make_case(
    shape=(2, 3, 5, 4, 4),
    graph=DARTS,
    candidates=None,
    *,
    reduction=False,
    affine=False,
    training=True,
    counts=None,
    keep="all",
    dtype=torch.float64,
) -> Case:
    sources, targets = graph
    names = tuple((PRIMITIVES,) * len(sources) if candidates is None else candidates)
    clients, images, height, width, channels = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    strides = [2 if reduction and source < 2 else 1 for source in sources]
    parameters = sum(
        torch.Size(s).numel()
        for edge, stride in zip(names, strides, strict=True)
        for s in packed_shapes(edge, channels, stride, affine).values()
    )
    norms = sum(len(batch_norms(e, channels, s)) for e, s in zip(names, strides, strict=True))
    running = normal(clients, norms, 2, channels)
    running[:, :, 1] = running[:, :, 1].abs() + 0.5
    step = 2 if reduction else 1
    size = (-(-height // step), -(-width // step))
    return Case(
        normal(*shape),
        normal(*shape),
        normal(clients, len(sources), len(names[0])),
        normal(clients, parameters),
        normal(clients, images, *size, channels * (max(targets) + 1)),
        sources,
        targets,
        names,
        reduction,
        affine,
        None if training else running,
        None if counts is None else torch.tensor(counts),
        keep,
    )


def run(case: Case, keep: str | None = None) -> Result:
    leaves = [t.detach().requires_grad_() for t in case.inputs]
    out, stats = cell(
        *leaves,
        case.sources,
        case.targets,
        case.candidates,
        keep=keep or case.keep,
        **case.options,
    )
    return Result(out.detach(), stats, *torch.autograd.grad(out, leaves, case.grad_out))


def truth(case: Case) -> Result:
    leaves = [t.detach().requires_grad_() for t in case.inputs]
    flat = [PRIMITIVES.index(name) for edge in case.candidates for name in edge]
    out, stats = reference.cell(
        *(*leaves, case.running, case.counts, case.sources, case.targets, flat),
        *(case.reduction, case.affine, 1e-5),
    )
    grads = torch.autograd.grad(out, leaves, case.grad_out, materialize_grads=True)
    return Result(out.detach(), stats.detach(), *grads)


@pytest.mark.parametrize("counts", [None, (3, 1), (0, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("reduction", [False, True])
def test_all_candidates(reduction, affine, training, counts):
    case = make_case(reduction=reduction, affine=affine, training=training, counts=counts)
    expected = truth(case)
    for keep in KEEP:
        assert_same(run(case, keep), expected)


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("shift", range(5))
def test_one_candidate_an_edge(shift, reduction):
    names = [(DISCRETE[(e + shift) % 5],) for e in range(5)]
    case = make_case((2, 3, 7, 6, 6), candidates=names, reduction=reduction)
    case = replace(case, weights=torch.ones_like(case.weights))
    assert_same(run(case), truth(case))


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(((0,), (0,)), id="one edge"),
        pytest.param(((1, 2), (0, 1)), id="s0 unread"),
        pytest.param(((0, 0, 0), (0, 1, 2)), id="nodes unread"),
        pytest.param(((0, 2, 3, 1), (0, 1, 2, 2)), id="chain"),
        pytest.param(((0, 0), (0, 0)), id="two edges of one pair"),
    ],
)
def test_graphs(graph):
    case = make_case(graph=graph)
    assert_same(run(case), truth(case))


def test_many_edges_of_one_state():
    """More units and edges than one launch of a CUDA kernel takes."""
    edges = 17
    case = make_case((1, 1, 3, 4, 2), ((0,) * edges, range(edges)), keep="middle")
    assert_same(run(case), truth(case))


def test_clients_are_independent():
    case = make_case((3, 3, 5, 4, 4), dtype=torch.float32)
    together = run(case)
    for g in range(3):
        alone = replace(
            case,
            **{
                name: getattr(case, name)[g : g + 1]
                for name in ("s0", "s1", "weights", "params", "grad_out")
            },
        )
        assert_identical(run(alone), Result(*(t[g : g + 1] for t in together)))


def test_threads_do_not_matter():
    case = make_case((2, 9, 8, 8, 16), dtype=torch.float32, reduction=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(case)
        torch.set_num_threads(3)
        assert_identical(run(case), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 2), (2, 3)])
def test_gradients_that_are_asked_for(needed):
    case = make_case(reduction=True)
    expected = run(case)[2:]
    inputs = [t.detach() for t in case.inputs]
    for i in needed:
        inputs[i].requires_grad_()
    out, _ = cell(*inputs, case.sources, case.targets, case.candidates, **case.options)
    grads = torch.autograd.grad(out, [inputs[i] for i in needed], case.grad_out)
    for i, grad in zip(needed, grads, strict=True):
        assert torch.equal(grad, expected[i])


def test_gradcheck():
    case = make_case((1, 2, 3, 3, 2), reduction=True)
    function = lambda *a: cell(*a, case.sources, case.targets, case.candidates, reduction=True)[0]  # noqa: E731
    leaves = [t.detach().requires_grad_() for t in case.inputs]
    assert gradcheck(function, leaves, fast_mode=True, atol=1e-4)


def test_second_derivative():
    """Through the twin: the gradient of a gradient's norm agrees with the twin's own."""
    case = make_case((1, 2, 3, 3, 2))
    flat = [PRIMITIVES.index(name) for edge in case.candidates for name in edge]

    def second(out_of) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in case.inputs]
        grads = torch.autograd.grad(out_of(*leaves), leaves, case.grad_out, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))

    ours = second(lambda *a: cell(*a, case.sources, case.targets, case.candidates)[0])
    twin = second(
        lambda *a: reference.cell(
            *(*a, None, None, case.sources, case.targets, flat, False, False, 1e-5)
        )[0]
    )
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))


def test_opcheck():
    names = [("dil_conv_3x3",), ("skip_connect",), ("max_pool_3x3",), ("none",), ("avg_pool_3x3",)]
    case = make_case((2, 2, 3, 3, 2), candidates=names)
    flat = [PRIMITIVES.index(name) for (name,) in names]
    leaves = [t.detach().requires_grad_() for t in case.inputs]
    rest = (None, None, list(case.sources), list(case.targets), flat, False, False, 1e-5, 0)
    forward = torch.ops.metadnas_ext.cell_forward.default
    torch.library.opcheck(forward, (*leaves, *rest))
    with torch.no_grad():
        out, stats, z = forward(*leaves, *rest)
    backward = torch.ops.metadnas_ext.cell_backward.default
    grad_out = case.grad_out.clone().requires_grad_()
    torch.library.opcheck(
        backward,
        (grad_out, *leaves, out, stats, z, *rest[1:], True, True, True, True),
        test_utils=["test_schema", "test_autograd_registration", "test_faketensor"],
    )


def test_compiles_without_graph_breaks():
    case = make_case(reduction=True, counts=(2, 1))
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    expected = run(case)
    leaves = [t.detach().requires_grad_() for t in case.inputs]
    out, _ = compiled(*leaves, case.sources, case.targets, case.candidates, **case.options)
    assert torch.equal(out, expected.out)
    for a, b in zip(torch.autograd.grad(out, leaves, case.grad_out), expected[2:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"s1": torch.zeros(2, 3, 5, 4, 3)}, RuntimeError, "s1 has shape (2, 3, 5, 4, 3), expec"),
        ({"weights": torch.zeros(2, 5, 7)}, RuntimeError, "weights has shape (2, 5, 7), expected"),
        ({"params": torch.zeros(2, 7)}, RuntimeError, "params has shape (2, 7), expected (2, "),
        ({"sources": (0, 1, 0, 1, 3)}, RuntimeError, "sources[4] is 3, expected a state before"),
        ({"sources": (0, 1, 0, 1, -1)}, RuntimeError, "sources[4] is -1, expected a state before"),
        ({"targets": (0, 0, 2, 2, 2)}, RuntimeError, "no edge ends at node 1"),
        ({"targets": (0, 0, 1, 1)}, RuntimeError, "sources has 5 edges, targets 4"),
        ({"candidates": (PRIMITIVES,) * 4}, ValueError, "for 5 edges, expected one number"),
        ({"candidates": (("conv",),) * 5}, ValueError, "conv"),
        ({"keep": "some"}, ValueError, "keep='some' is unknown"),
    ],
)
def test_refuses(changes, error, message):
    case = make_case(dtype=torch.float32)
    given = {f: getattr(case, f) for f in ("s0", "s1", "weights", "params", "sources", "targets")}
    with pytest.raises(error) as caught:
        cell(**{**given, "candidates": case.candidates, **changes})
    assert message in str(caught.value)
