"""What a caller gets wrong is refused, with a message that names it."""

from __future__ import annotations

import pytest
import torch

from metadnas_ext.ops import mixed_op, packed_shapes
from metadnas_ext.space.primitives import PRIMITIVES

from ._cases import make_case

SIZE = sum(torch.Size(s).numel() for s in packed_shapes(PRIMITIVES, 4).values())


def call(**changes):
    case = make_case((2, 3, 4, 5, 4))
    arguments = {"x": case.x, "weights": case.weights, "params": case.params, **case.options}
    return mixed_op(**{**arguments, **changes})


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": zeros(3, 4, 5, 4)}, r"x has shape (3, 4, 5, 4), expected (G, N, H, W, C)"),
        ({"x": zeros(2, 0, 4, 5, 4)}, "x has shape (2, 0, 4, 5, 4), expected every size to be at"),
        ({"x": zeros(2, 3, 4, 5, 4, dtype=torch.cfloat)}, "x is ComplexFloat, expected Float or D"),
        ({"x": zeros(2, 3, 4, 5, 4, dtype=torch.int64)}, "x is Long, expected Float or Double"),
        ({"x": zeros(2, 3, 4, 5, 4, dtype=torch.float32)}, "weights is Double, expected Float"),
        ({"weights": zeros(8)}, "weights has shape (8), expected (2, 8)"),
        ({"weights": zeros(2, 7)}, "weights has shape (2, 7), expected (2, 8)"),
        ({"weights": zeros(1, 8)}, "weights has shape (1, 8), expected (2, 8)"),
        ({"weights": zeros(2, 8, dtype=torch.float32)}, "weights is Float, expected Double as x"),
        ({"params": zeros(2, 9)}, f"params has shape (2, 9), expected (2, {SIZE})"),
        ({"params": zeros(SIZE)}, f"params has shape ({SIZE}), expected (2, {SIZE})"),
        ({"params": zeros(2, SIZE, dtype=torch.float32)}, "params is Float, expected Double as x"),
        ({"affine": True}, f"params has shape (2, {SIZE}), expected (2, {SIZE + 16 * 4})"),
        ({"running": zeros(2, 7, 2, 4)}, "running has shape (2, 7, 2, 4), expected (2, 8, 2, 4)"),
        (
            {"running": zeros(2, 8, 2, 4, dtype=torch.float32)},
            "running is Float, expected Double as x",
        ),
        ({"counts": torch.tensor([1])}, "counts has shape (1), expected (2)"),
        (
            {"counts": torch.tensor([1, 2]).int()},
            "counts is not int64 on the device of x",
        ),
        ({"counts": torch.tensor([1, 4])}, "counts[1] is 4, expected 0 to 3"),
        ({"counts": torch.tensor([-1, 3])}, "counts[0] is -1, expected 0 to 3"),
        ({"stride": 3}, "stride is 3, expected 1 or 2"),
        ({"stride": 0}, "stride is 0, expected 1 or 2"),
        ({"candidates": ()}, "candidates is empty"),
        (
            {"candidates": ("none", "skip_connect", "none")},
            "candidate 0 is named twice",
        ),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(RuntimeError) as error:
        call(**changes)
    assert str(error.value).startswith(f"mixed_op: {message}")


def test_unknown_candidate():
    with pytest.raises(ValueError, match=r"unknown primitive 'conv_7x7'; known: none, max_pool"):
        call(candidates=("none", "conv_7x7"))


def test_factorized_reduce_of_odd_channels():
    with pytest.raises(RuntimeError, match="needs an even number of channels, got 3"):
        mixed_op(zeros(1, 2, 4, 4, 3), zeros(1, 1), zeros(1, 9), ("skip_connect",), stride=2)


@pytest.mark.host
@pytest.mark.parametrize("counts", [None, (1, 1), (1, 0)])
def test_one_value_per_channel_in_training(counts):
    case = make_case((2, 1 if counts is None else 2, 2, 1, 4), stride=2, counts=counts)
    with pytest.raises(RuntimeError, match="batch statistics need more than 1 value per channel"):
        mixed_op(case.x, case.weights, case.params, **case.options)


def test_one_value_per_channel_without_batch_norms():
    x = zeros(1, 1, 1, 1, 3) + 2
    out, stats = mixed_op(x, zeros(1, 2) + 3, zeros(1, 0), ("none", "skip_connect"))
    assert out.tolist() == [[[[[6.0] * 3]]]]
    assert stats.shape == (1, 0, 2, 3)


def test_backward_checks_what_it_is_given():
    case = make_case((2, 3, 4, 5, 4))
    inputs = (case.x, case.weights, case.params)
    rest = (None, case.indices, 1, False, 1e-5)
    _, stats, z = torch.ops.metadnas_ext.mixed_op_forward(*inputs, None, *rest, 0)
    backward = torch.ops.metadnas_ext.mixed_op_backward
    with pytest.raises(RuntimeError, match=r"grad_out has shape \(2, 3, 4, 5, 3\), expected"):
        backward(case.grad_out[..., :3], *inputs, stats, z, *rest, 0, True, True, True)
    with pytest.raises(RuntimeError, match="z is Float, expected Double"):
        backward(case.grad_out, *inputs, stats, z.float(), *rest, 0, True, True, True)
