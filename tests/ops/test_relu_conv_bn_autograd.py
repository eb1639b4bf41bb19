"""Differentiation any number of times, and the promises of a torch operator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from metadnas_ext.ops import relu_conv_bn

from ._relu_conv_bn import Case, assert_identical, make_case, run, twin

OPTIONS = [
    pytest.param({"stride": stride, "affine": affine, "training": training, "counts": counts})
    for stride, affine, training, counts in [
        (1, True, True, None),
        (1, False, True, (2, 1)),
        (2, False, True, (2, 1)),
        (1, False, False, (1, 2)),
        (2, True, False, None),
    ]
] + [pytest.param({"relu": False, "affine": True}, id="without relu")]


def smooth_case(**options) -> Case:
    """x well away from 0, where relu has its kink."""
    case = make_case((2, 2, 3, 3, 3), 4, **options)
    return replace(case, x=case.x + 0.2 * case.x.sign())


def leaves(case: Case) -> list[torch.Tensor]:
    return [t.clone().requires_grad_() for t in (case.x, case.params)]


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    case = smooth_case(**options)
    function = lambda *a: relu_conv_bn(*a, **case.options)[0]  # noqa: E731
    assert gradcheck(function, leaves(case))
    assert gradgradcheck(function, leaves(case))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("order", [2, 3])
def test_higher_derivatives_equal_the_twins(order, options):
    """Hessian-vector products and the third derivative along one direction, by every input."""
    case = make_case((2, 2, 4, 5, 4), **options)
    derivatives = []
    for op in (relu_conv_bn, twin):
        inputs = leaves(case)
        directions = [torch.cos(torch.arange(t.numel()).double()).view(t.shape) for t in inputs]
        value = (op(*inputs, **case.options)[0] * case.grad_out).tanh().sum()
        for _ in range(order):
            grads = torch.autograd.grad(value, inputs, create_graph=True)
            value = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        assert all(grad.abs().sum() > 0 for grad in grads)
        derivatives.append(grads)
    torch.testing.assert_close(derivatives[0], derivatives[1], rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("options", OPTIONS)
def test_second_derivative_of_one_gradient(options, wanted):
    """create_graph over one input, the other a constant: the backward pass skips its gradient."""
    case = make_case((2, 2, 4, 5, 4), **options)
    penalties = []
    for op in (relu_conv_bn, twin):
        inputs = [case.x.clone(), case.params.clone()]
        inputs[wanted].requires_grad_()
        value = op(*inputs, **case.options)[0].square().sum()
        (grad,) = torch.autograd.grad(value, inputs[wanted], create_graph=True)
        grad.square().sum().backward()
        penalties.append(inputs[wanted].grad)
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("wanted", [0, 1])
def test_gradients_of_one_input(wanted, stride, training, affine):
    case = make_case((2, 2, 4, 5, 4), stride=stride, training=training, affine=affine)
    everything = run(case)[2:]
    inputs = [case.x.clone(), case.params.clone()]
    inputs[wanted].requires_grad_()
    relu_conv_bn(*inputs, **case.options)[0].backward(case.grad_out)
    assert torch.equal(inputs[wanted].grad, everything[wanted])
    assert inputs[1 - wanted].grad is None


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradients_nobody_needs_are_empty(needs):
    case = make_case()
    rest = (None, case.channels, 1, True, False, 1e-5)
    out, stats, _ = torch.ops.metadnas_ext.relu_conv_bn_forward(case.x, case.params, None, *rest)
    grads = torch.ops.metadnas_ext.relu_conv_bn_backward(
        case.grad_out, case.x, case.params, stats, out, *rest, True, *needs
    )
    for grad, tensor, needed in zip(grads, (case.x, case.params), needs, strict=True):
        assert grad.shape == (tensor.shape if needed else (0,))


def test_no_graph_without_a_need():
    case = make_case()
    assert not relu_conv_bn(case.x, case.params, case.channels)[0].requires_grad
    out, stats = relu_conv_bn(*leaves(case), case.channels)
    assert out.requires_grad
    assert not stats.requires_grad


def op_arguments(case: Case) -> tuple:
    return (case.running, case.counts, case.channels, case.stride, case.relu, case.affine, case.eps)


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_forward(options):
    case = make_case((2, 2, 4, 5, 4), **options)
    op = torch.ops.metadnas_ext.relu_conv_bn_forward.default
    torch.library.opcheck(op, (*leaves(case), *op_arguments(case)))


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"affine": True}, (True, True)),
        ({"stride": 2}, (False, True)),
        ({"stride": 2, "training": False}, (True, False)),
        ({"counts": (2, 1)}, (True, True)),
    ],
)
def test_opcheck_backward(options, needs):
    case = make_case((2, 2, 3, 3, 2), 4, **options)
    arguments = op_arguments(case)
    inputs = leaves(case)
    with torch.no_grad():
        out, stats, normal = torch.ops.metadnas_ext.relu_conv_bn_forward(*inputs, *arguments)
    saved = normal if case.affine else out
    rest = (stats, saved, *arguments[1:], case.running is None, *needs)
    op = torch.ops.metadnas_ext.relu_conv_bn_backward.default
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # The twin reads counts, which a symbolic trace cannot; nor does one of torch 2.11 get
    # through the second derivative of a convolution.
    if case.counts is None and torch.torch_version.__version__ >= (2, 13):
        checks.append("test_aot_dispatch_dynamic")
    grad_out = case.grad_out.clone().requires_grad_()
    torch.library.opcheck(op, (grad_out, *inputs, *rest), test_utils=checks)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("affine", [False, True])
def test_compiles_without_graph_breaks(affine, backend):
    case = make_case((2, 2, 5, 4, 4), stride=2, affine=affine, counts=(2, 1))
    compiled = torch.compile(relu_conv_bn, fullgraph=True, backend=backend)
    assert_identical(run(case, compiled), run(case))


@pytest.mark.parametrize("stride", [1, 2])
def test_meta_tensors_have_the_shapes(stride):
    case = make_case((2, 3, 5, 4, 4), stride=stride)
    meta = relu_conv_bn(case.x.to("meta"), case.params.to("meta"), 6, stride=stride)
    for actual, expected in zip(meta, run(case)[:2], strict=True):
        assert actual.is_meta
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
