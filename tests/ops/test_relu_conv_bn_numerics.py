"""float32 accuracy, NaN and infinity, errors, and results that depend on nothing but the inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metadnas_ext import build_info
from metadnas_ext.ops import relu_conv_bn

from ._cases import relative_error
from ._relu_conv_bn import Result, assert_identical, assert_same, make_case, run, truth

ISAS = ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels_in", [16, 192])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_float32_is_as_accurate_as_eager(mean, channels_in, stride):
    """Relative L2 error against float64, at most twice that of float32 modules, and a few ulps."""
    case = make_case((1, 8, 16, 16, channels_in), 32, stride=stride, affine=True, mean=mean)
    case = case.to(torch.float32)
    exact = truth(case.to(torch.float64))
    eager, native = truth(case), run(case)
    for name, e, t, n in zip(Result._fields, eager, exact, native, strict=True):
        error, allowed = relative_error(n, t), 2 * relative_error(e, t) + 5e-7
        assert error <= allowed, f"{name}: relative error {error:.1e}, allowed {allowed:.1e}"


def test_statistics_of_a_large_mean():
    """A plain sum of squares would lose every digit of the variance."""
    case = make_case((1, 4, 16, 16, 1), 1, mean=3000.0).to(torch.float32)
    exact = truth(case.to(torch.float64)).stats
    torch.testing.assert_close(run(case).stats.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [6, 32])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_stay_where_they_are_in_eval_mode(value, channels, stride):
    case = make_case((1, 2, 5, 7, 4), channels, stride=stride, training=False, affine=True)
    case.x[0, 0, 2, 3, 1] = value
    case.x[0, 1, 4, 4, 0] = value
    case.x[0, 1, 1, 1, 3] = value
    assert_same(run(case), truth(case))


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_of_a_gradient_stays_at_its_pixel_in_eval_mode(stride):
    """At stride 2 that is the pixel of one grid: neither the other grid's nor those between."""
    case = make_case((1, 2, 5, 5, 3), 4, stride=stride, training=False)
    case = replace(case, x=case.x.abs())
    case.grad_out[0, 1, 1, 1, 0] = torch.nan  # conv_1's: the pixel at (2, 2)
    expected, actual = truth(case), run(case)
    assert expected.grad_x.isnan().any()
    assert_same(actual, expected)


def test_nan_poisons_batch_statistics():
    case = make_case((1, 2, 4, 4, 3), 5)
    case.x[0, 0, 1, 1, 1] = torch.nan
    assert run(case).out.isnan().all()


def test_sparse_rectified_input():
    """Exact zeros, as behind a rectifier: the gradient of relu at 0 is 0."""
    case = make_case((1, 3, 6, 6, 4))
    case = replace(case, x=case.x.relu())
    assert_same(run(case), truth(case))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_threads_or_cohort(dtype, stride, affine):
    case = make_case((3, 9, 23, 24, 19), 34, stride=stride, affine=affine, dtype=dtype)
    together = run(case)
    torch.set_num_threads(2)
    assert_identical(run(case), together)
    for g in range(3):
        assert_identical(run(case.client(g)), together.client(g))


def test_bits_do_not_depend_on_earlier_calls():
    """Scratch memory is kept between calls; nothing of it may show."""
    case = make_case((2, 3, 5, 6, 5), dtype=torch.float32)
    first = run(case)
    poison = make_case((2, 5, 9, 9, 24), 24, dtype=torch.float32)
    run(replace(poison, x=poison.x * torch.nan))
    assert_identical(run(case), first)


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_every_instruction_set(isa):
    """The sweeps again, in a process that runs on the kernels of another instruction set."""
    widest = str(build_info()["cpu_isa"])
    if ISAS.index(isa) >= ISAS.index(widest):
        pytest.skip(f"{isa} is not below {widest}, which the other tests run on")
    here = Path(__file__).parent
    files = (here / "test_relu_conv_bn.py", here.parent / "test_native.py")
    options = ("-p", "no:cacheprovider", "-k", "channels or modes or obeys")
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options, *files],
        env={**os.environ, "METADNAS_EXT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": zeros(3, 4, 5, 4)}, "x has shape (3, 4, 5, 4), expected (G, N, H, W, C)"),
        ({"x": zeros(2, 0, 4, 5, 4)}, "x has shape (2, 0, 4, 5, 4), expected every size to be at"),
        ({"x": zeros(2, 3, 4, 5, 4).cfloat()}, "x is ComplexFloat, expected Float or Double"),
        ({"x": zeros(2, 3, 4, 5, 4).float()}, "params is Double, expected Float as x"),
        ({"params": zeros(2, 9)}, "params has shape (2, 9), expected (2, 24)"),
        ({"params": zeros(24)}, "params has shape (24), expected (2, 24)"),
        ({"affine": True}, "params has shape (2, 24), expected (2, 36)"),
        ({"channels": 0}, "channels is 0, expected at least 1"),
        ({"channels": 5, "stride": 2}, "factorized reduce) needs an even number of channels, got"),
        ({"stride": 3}, "stride is 3, expected 1 or 2"),
        ({"running": zeros(2, 2, 6)}, "running has shape (2, 2, 6), expected (2, 1, 2, 6)"),
        ({"running": zeros(2, 1, 2, 6).float()}, "running is Float, expected Double as x"),
        ({"counts": torch.tensor([1])}, "counts has shape (1), expected (2)"),
        (
            {"counts": torch.tensor([1, 2]).int()},
            "counts is not int64 on the device of x",
        ),
        ({"counts": torch.tensor([1, 4])}, "counts[1] is 4, expected 0 to 3"),
        ({"counts": torch.tensor([-1, 3])}, "counts[0] is -1, expected 0 to 3"),
    ],
)
def test_refuses(changes, message):
    case = make_case((2, 3, 4, 5, 4))
    arguments = {"x": case.x, "params": case.params, **case.options}
    with pytest.raises(RuntimeError) as error:
        relu_conv_bn(**{**arguments, **changes})
    assert message in str(error.value)
    assert str(error.value).startswith("relu_conv_bn: ")


@pytest.mark.host
@pytest.mark.parametrize("counts", [None, (1, 1), (1, 0)])
def test_one_value_per_channel_in_training(counts):
    case = make_case((2, 1 if counts is None else 2, 2, 1, 4), stride=2, counts=counts)
    with pytest.raises(RuntimeError, match="batch statistics need more than 1 value per channel"):
        relu_conv_bn(case.x, case.params, **case.options)


def test_backward_checks_what_it_is_given():
    case = make_case((2, 3, 4, 5, 4))
    rest = (None, 6, 1, True, False, 1e-5)
    out, stats, _ = torch.ops.metadnas_ext.relu_conv_bn_forward(case.x, case.params, None, *rest)
    backward = torch.ops.metadnas_ext.relu_conv_bn_backward
    inputs = (case.x, case.params, stats)
    with pytest.raises(RuntimeError, match=r"grad_out has shape \(2, 3, 4, 5, 3\), expected"):
        backward(case.grad_out[..., :3], *inputs, out, *rest, True, True, True)
    with pytest.raises(RuntimeError, match="normal is Float, expected Double"):
        backward(case.grad_out, *inputs, out.float(), *rest, True, True, True)
