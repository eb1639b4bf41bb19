"""Optimiser steps on rows: torch's own as the truth, bits, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metadnas_ext import build_info
from metadnas_ext.ops import adam_rows_, reference_layers, sgd_rows_

from ._cases import relative_error

ISAS = ("baseline", "avx2", "avx512")
WIDTHS = (1, 7, 16, 37, 40_000)
"""Around vector widths, and of several tasks."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(rows: int, width: int, dtype: torch.dtype, steps: int = 4) -> Iterator[Tensor]:
    for step in range(steps):
        yield normal(rows, width, seed=step + 1, dtype=dtype) * 10.0 ** (step - 2)


def adam_state(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros_like(rows), torch.zeros_like(rows), torch.zeros(len(rows))


def run_adam(start: Tensor, clip: float, step=adam_rows_) -> list[Tensor]:
    """The rows and their state after four steps."""
    rows, state = start.clone(), adam_state(start)
    for grad in gradients(*start.shape, start.dtype):
        step(rows, grad, *state, lr=0.05, betas=(0.8, 0.99), weight_decay=0.03, clip=clip)
    return [rows, *state]


def run_sgd(start: Tensor, clip: float, step=sgd_rows_) -> list[Tensor]:
    rows, velocity = start.clone(), torch.zeros_like(start)
    for grad in gradients(*start.shape, start.dtype):
        rates = [0.1 / (1 + r) for r in range(len(rows))]
        step(rows, grad, velocity, rates, momentum=0.9, weight_decay=0.03, clip=clip)
    return [rows, velocity]


def truth(kind: str, start: Tensor, clip: float) -> Tensor:
    """Of torch's optimisers in float64, one a row."""
    results = []
    for r, row in enumerate(start.double()):
        parameter = row.clone().requires_grad_()
        if kind == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(
                [parameter], 0.05, betas=(0.8, 0.99), weight_decay=0.03
            )
        else:
            optimizer = torch.optim.SGD([parameter], 0.1 / (1 + r), momentum=0.9, weight_decay=0.03)
        for grad in gradients(*start.shape, start.dtype):
            parameter.grad = grad[r].double()
            if clip:
                torch.nn.utils.clip_grad_norm_([parameter], clip)
            optimizer.step()
        results.append(parameter.detach())
    return torch.stack(results)


RUN = {"adam": run_adam, "sgd": run_sgd}


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", RUN)
def test_values_are_torchs(kind, width, clip):
    start = normal(2, width)
    actual = RUN[kind](start, clip)[0]
    torch.testing.assert_close(actual, truth(kind, start, clip), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("kind", RUN)
def test_values_in_float32_are_a_few_ulps_off(kind, clip):
    """By norm: where gradient and weight decay cancel, Adam's direction is as good as chance."""
    start = normal(2, 40_000, dtype=torch.float32)
    assert relative_error(RUN[kind](start, clip)[0], truth(kind, start, clip)) < 2 * 2**-23


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", RUN)
def test_twin(kind, dtype, clip):
    def adam(rows, grad, *state, lr, betas, weight_decay, clip):
        reference_layers.adam_rows_(rows, grad, *state, lr, *betas, weight_decay, 1e-8, clip)

    def sgd(*state, momentum, weight_decay, clip):
        reference_layers.sgd_rows_(*state, momentum, weight_decay, clip)

    start = normal(3, 37, dtype=dtype)
    expected = RUN[kind](start, clip, {"adam": adam, "sgd": sgd}[kind])
    torch.testing.assert_close(RUN[kind](start, clip), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", RUN)
def test_bits_do_not_depend_on_threads_or_cohort(kind, width, dtype):
    """A row in the middle starts at any lane of the rows' memory."""
    same = normal(1, width, dtype=dtype).expand(3, -1)

    def step(rows: Tensor) -> Tensor:
        grad = rows.cos()
        if kind == "adam":
            adam_rows_(rows, grad, *adam_state(rows), lr=0.1, weight_decay=0.03, clip=0.5)
        else:
            sgd_rows_(rows, grad, torch.zeros_like(rows), [0.1] * len(rows), clip=0.5)
        return rows

    together = step(same.contiguous())
    torch.set_num_threads(2)
    assert torch.equal(step(same.contiguous()), together)
    alone = step(same[:1].clone())
    for r in range(3):
        assert torch.equal(together[r], alone[0])


@pytest.mark.parametrize("kind", RUN)
def test_an_element_does_not_depend_on_its_place_in_a_row(kind):
    """The elements behind the last whole vector are computed as those in it."""
    value, width = normal(1, 1, dtype=torch.float32), 37
    rows, grad = value.expand(1, width).contiguous(), value.cos().expand(1, width)
    for _ in range(3):
        if kind == "adam":
            adam_rows_(rows, grad, *adam_state(rows), lr=0.1, weight_decay=0.03)
        else:
            sgd_rows_(rows, grad, torch.zeros_like(rows), [0.1], weight_decay=0.03)
    assert rows.unique().numel() == 1


def test_rows_that_finished_stay_as_they_are():
    rows, grad = normal(3, 5), normal(1, 5, seed=1)
    mean, square, steps = adam_state(rows)
    before = rows.clone()
    adam_rows_(rows, grad, mean, square, steps, lr=0.1)
    assert (rows[0] != before[0]).all()
    assert torch.equal(rows[1:], before[1:])
    assert steps.tolist() == [1, 0, 0]
    assert not mean[1:].any()
    adam_rows_(rows, grad[:0], mean, square, steps, lr=0.1)
    assert steps.tolist() == [1, 0, 0]


def test_gradients_of_any_strides():
    rows, grad = normal(2, 6), normal(6, 2, seed=1)
    strided, dense = rows.clone(), rows.clone()
    sgd_rows_(strided, grad.t(), torch.zeros_like(rows), [0.1, 0.2])
    sgd_rows_(dense, grad.t().contiguous(), torch.zeros_like(rows), [0.1, 0.2])
    assert torch.equal(strided, dense)


def test_a_gradient_that_is_not_finite_is_not_hidden_by_clipping():
    rows, grad = torch.zeros(2, 5), torch.ones(2, 5)
    grad[0, 1] = torch.inf
    sgd_rows_(rows, grad, torch.zeros_like(rows), [0.1, 0.1], clip=1.0)
    assert rows[0, 1].isnan()
    assert rows[1].isfinite().all()


def test_a_tensor_saved_for_backward_notices_the_step():
    rows = normal(1, 5).requires_grad_()
    value = (rows * rows).sum()
    sgd_rows_(rows.detach(), torch.ones(1, 5).double(), normal(1, 5), [0.1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_opcheck():
    rows, grad = normal(3, 5), normal(2, 5)
    ops = torch.ops.metadnas_ext
    torch.library.opcheck(
        ops.adam_rows_.default, (rows, grad, *adam_state(rows), 0.1, 0.9, 0.999, 0.03, 1e-8, 0.5)
    )
    torch.library.opcheck(
        ops.sgd_rows_.default, (rows, grad, torch.zeros_like(rows), [0.1, 0.2], 0.9, 0.03, 0.5)
    )


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_every_instruction_set(isa):
    widest = str(build_info()["cpu_isa"])
    if ISAS.index(isa) >= ISAS.index(widest):
        pytest.skip(f"{isa} is not below {widest}, which the other tests run on")
    here = Path(__file__)
    files = (here, here.parents[1] / "test_native.py")
    options = ("-p", "no:cacheprovider", "-k", "values or bits or obeys")
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options, *files],
        env={**os.environ, "METADNAS_EXT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": torch.zeros(())}, "rows has shape (), expected (G, ...)"),
        ({"rows": torch.zeros(3, 5).half()}, "rows is Half, expected Float or Double"),
        ({"rows": torch.zeros(5, 3).t()}, "rows is not contiguous"),
        ({"grad": torch.zeros(4, 5)}, "grad has 4 rows, expected at most 3"),
        ({"grad": torch.zeros(2, 4)}, "grad has shape (2, 4), expected (2, 5)"),
        ({"grad": torch.zeros(2, 5).double()}, "grad is not of rows' dtype and device"),
        ({"mean": torch.zeros(2, 5)}, "mean has shape (2, 5), expected (3, 5)"),
        ({"mean": torch.zeros(3, 5).double()}, "mean is Double, expected Float as rows"),
        ({"square": torch.zeros(5, 3).t()}, "square is not contiguous"),
        ({"steps": torch.zeros(2)}, "steps has shape (2), expected (3)"),
        ({"steps": torch.zeros(3).double()}, "steps is not a contiguous Float tensor"),
    ],
)
def test_adam_refuses(changes, message):
    arguments = {
        **dict.fromkeys(("rows", "mean", "square"), torch.zeros(3, 5)),
        "grad": torch.zeros(2, 5),
        "steps": torch.zeros(3),
    }
    with pytest.raises(RuntimeError) as error:
        adam_rows_(**{**arguments, **changes}, lr=0.1)
    assert str(error.value).startswith(f"adam_rows_: {message}")


def test_sgd_refuses():
    rows = torch.zeros(3, 5)
    with pytest.raises(RuntimeError, match=r"^sgd_rows_: 1 rates for 2 rows of grad"):
        sgd_rows_(rows, rows[:2], rows.clone(), [0.1])
    with pytest.raises(RuntimeError, match=r"^sgd_rows_: velocity has shape \(2, 5\), expected"):
        sgd_rows_(rows, rows[:2], rows[:2].clone(), [0.1, 0.2])
