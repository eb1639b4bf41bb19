"""Differentiation any number of times, and the promises of a torch operator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from metadnas_ext.ops import mixed_op
from metadnas_ext.ops.mixed_op import KEEP
from metadnas_ext.space.primitives import PRIMITIVES

from ._cases import Case, assert_identical, make_case, run, twin

OPTIONS = [
    pytest.param(
        {"stride": stride, "affine": affine, "training": training, "counts": counts, "keep": keep}
    )
    for stride, affine, training, counts, keep in [
        (1, True, True, None, "all"),
        (2, False, True, (2, 1), "middle"),
        (1, False, False, (1, 2), "input"),
        (2, True, False, None, "all"),
    ]
]


def smooth_case(shape=(2, 2, 2, 3, 2), **options) -> Case:
    """x well away from 0 and without ties, where relu and max pooling have kinks.

    Inputs of inner rectifiers are not under control; the seed is one where they are far enough from
    0 for a finite difference of 1e-6.
    """
    case = make_case(shape, **options)
    generator = torch.Generator().manual_seed(1)
    size = case.x.numel()
    values = (torch.randperm(size, generator=generator).double() - size / 2 + 0.5) / 8
    return replace(case, x=values.view(case.x.shape))


def leaves(case: Case) -> list[torch.Tensor]:
    return [t.clone().requires_grad_() for t in (case.x, case.weights, case.params)]


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    case = smooth_case(**options)
    assert gradcheck(lambda *a: mixed_op(*a, **case.options)[0], leaves(case), fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradgradcheck(options):
    case = smooth_case(**options)
    function = lambda *a: mixed_op(*a, **case.options)[0]  # noqa: E731
    assert gradgradcheck(function, leaves(case), fast_mode=True)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_gradcheck_of_each_candidate_in_full(name):
    case = smooth_case((1, 1, 2, 3, 2), candidates=(name,))
    function = lambda *a: mixed_op(*a, **case.options)[0]  # noqa: E731
    assert gradcheck(function, leaves(case))
    assert gradgradcheck(function, leaves(case))


def scalar(op, case: Case, inputs: list[torch.Tensor]) -> torch.Tensor:
    return (op(*inputs, **case.options)[0] * case.grad_out).tanh().sum()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("order", [2, 3])
def test_higher_derivatives_equal_the_twins(order, options):
    """Hessian-vector products and the third derivative along one direction, by every input."""
    case = make_case((2, 2, 4, 5, 4), **options)
    derivatives = []
    for op in (mixed_op, twin):
        inputs = leaves(case)
        directions = [torch.cos(torch.arange(t.numel()).double()).view(t.shape) for t in inputs]
        value = scalar(op, case, inputs)
        for _ in range(order):
            grads = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
            value = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        assert all(grad.abs().sum() > 0 for grad in grads)
        derivatives.append(grads)
    torch.testing.assert_close(derivatives[0], derivatives[1], rtol=1e-8, atol=1e-6)


def test_gradient_penalty_reaches_the_parameters():
    """create_graph over some inputs, backward into others."""
    case = make_case((1, 2, 4, 4, 4))
    penalties = []
    for op in (mixed_op, twin):
        x, weights, params = leaves(case)
        (grad,) = torch.autograd.grad(
            op(x, weights, params, **case.options)[0].sum(), weights, create_graph=True
        )
        grad.square().sum().backward()
        penalties.append((x.grad, params.grad))
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_inputs(wanted):
    case = make_case((2, 2, 4, 5, 4))
    everything = run(case)[2:]
    inputs = [case.x.clone(), case.weights.clone(), case.params.clone()]
    for i in wanted:
        inputs[i].requires_grad_()
    mixed_op(*inputs, **case.options)[0].backward(case.grad_out)
    for i, (tensor, grad) in enumerate(zip(inputs, everything, strict=True)):
        assert tensor.grad is None if i not in wanted else torch.equal(tensor.grad, grad)


def test_no_graph_without_a_need():
    case = make_case()
    out, stats = mixed_op(case.x, case.weights, case.params)
    assert not out.requires_grad
    with torch.no_grad():
        out, stats = mixed_op(*leaves(case))
    assert not out.requires_grad
    out, stats = mixed_op(*leaves(case))
    assert out.requires_grad
    assert not stats.requires_grad


def op_arguments(case: Case) -> tuple:
    keep = KEEP.index(case.keep)
    return (case.running, case.counts, case.indices, case.stride, case.affine, case.eps, keep)


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_forward(options):
    case = make_case((2, 2, 4, 5, 4), **options)
    op = torch.ops.metadnas_ext.mixed_op_forward.default
    torch.library.opcheck(op, (*leaves(case), *op_arguments(case)))


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_backward(options):
    # One candidate: symbolic tracing of the double backward takes seconds for each.
    case = make_case((2, 2, 3, 3, 2), ("dil_conv_3x3",), **options)
    arguments = op_arguments(case)
    inputs = leaves(case)
    with torch.no_grad():
        _, stats, z = torch.ops.metadnas_ext.mixed_op_forward(*inputs, *arguments)
    grad_out = case.grad_out.clone().requires_grad_()
    rest = (stats, z, *arguments[1:], case.running is None, True, True)
    op = torch.ops.metadnas_ext.mixed_op_backward.default
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # The twin reads counts, which a symbolic trace cannot; nor does one of torch 2.11 get
    # through the second derivative of a convolution.
    if case.counts is None and torch.torch_version.__version__ >= (2, 13):
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, (grad_out, *inputs, *rest), test_utils=checks)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_graph_breaks(backend):
    case = make_case((2, 2, 5, 4, 4), stride=2, affine=True, counts=(2, 1))
    compiled = torch.compile(mixed_op, fullgraph=True, backend=backend)
    assert_identical(run(case, compiled), run(case))


@pytest.mark.parametrize("stride", [1, 2])
def test_meta_tensors_have_the_shapes(stride):
    case = make_case((2, 3, 5, 4, 4), stride=stride)
    meta = [t.to("meta") for t in (case.x, case.weights, case.params)]
    for actual, expected in zip(
        mixed_op(*meta, stride=stride),
        mixed_op(case.x, case.weights, case.params, stride=stride),
        strict=True,
    ):
        assert actual.is_meta
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
