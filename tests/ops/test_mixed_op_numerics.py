"""float32 accuracy, NaN and infinity, ties, and results that depend on nothing but the inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metadnas_ext import build_info

from ._cases import (
    Result,
    assert_identical,
    assert_same,
    make_case,
    relative_error,
    run,
    truth,
)

ISAS = ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_float32_is_as_accurate_as_eager(mean, stride):
    """Relative L2 error against float64, at most twice that of float32 modules, and a few ulps.

    By norm, since a rectifier whose input is near 0 flips in float32, in eager code too.
    """
    case = make_case((1, 8, 16, 16, 16), stride=stride, affine=True, mean=mean, dtype=torch.float32)
    exact = truth(case.to(torch.float64))
    eager, native = truth(case), run(case)
    for name, e, t, n in zip(Result._fields, eager, exact, native, strict=True):
        error, allowed = relative_error(n, t), 2 * relative_error(e, t) + 5e-7
        assert error <= allowed, f"{name}: relative error {error:.1e}, allowed {allowed:.1e}"


def test_float32_statistics_of_a_large_mean():
    """A plain sum of squares would lose every digit of the variance."""
    case = make_case((1, 4, 8, 8, 16), ("max_pool_3x3", "avg_pool_3x3"), mean=3000.0)
    case = case.to(torch.float32)
    exact = truth(case.to(torch.float64)).stats
    torch.testing.assert_close(run(case).stats.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_5x5"])
def test_nan_and_infinity_reach_what_they_reach_in_pytorch(name, value, channels, stride):
    """Forward, in eval mode, where they stay local. Gradients may be NaN in more places."""
    case = make_case((1, 1, 9, 10, channels), (name,), stride=stride, training=False)
    case.x[0, 0, 4, 5, 1] = value
    case.x[0, 0, 0, 0, 0] = value
    torch.testing.assert_close(run(case).out, truth(case).out, equal_nan=True)


def test_nan_poisons_batch_statistics():
    case = make_case((1, 2, 4, 4, 3), ("max_pool_3x3",))
    case.x[0, 0, 1, 1, 1] = torch.nan
    assert run(case).out.isnan().all((0, 1, 2, 3)).tolist() == [False, True, False]


def test_nan_passes_skip_and_not_none():
    case = make_case((1, 2, 4, 4, 3), ("none", "skip_connect"))
    case.x[0, 1, 2, 3, 1] = torch.nan
    assert run(case).out.isnan().sum() == 1
    none = make_case((1, 2, 4, 4, 3), ("none",), stride=2)
    result = run(replace(none, x=none.x * torch.nan))
    assert result.out.shape == (1, 2, 2, 2, 3)
    for part in (result.out, result.grad_x, result.grad_weights):
        assert not part.any()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("training", [True, False])
def test_ties_go_to_the_first_in_row_major_order(channels, stride, training):
    case = make_case((1, 3, 7, 8, channels), ("max_pool_3x3",), stride=stride, training=training)
    case = replace(case, x=case.x.mul(0.7).round())
    assert_same(run(case), truth(case))


def test_sparse_rectified_input():
    """Exact zeros, as behind a rectifier: the gradient of relu at 0 is 0."""
    case = make_case((1, 3, 6, 6, 4))
    case = replace(case, x=case.x.relu())
    assert_same(run(case), truth(case))


def test_constant_channel():
    case = make_case((1, 3, 6, 6, 4), ("max_pool_3x3", "avg_pool_3x3", "skip_connect"))
    case.x[..., 2] = 1.5
    assert_same(run(case), truth(case))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_threads_or_cohort(dtype, stride):
    case = make_case((3, 9, 9, 8, 16), stride=stride, affine=True, dtype=dtype)
    together = run(case)
    torch.set_num_threads(2)
    assert_identical(run(case), together)
    for g in range(3):
        assert_identical(run(case.client(g)), Result(*(part[g : g + 1] for part in together)))


def test_bits_do_not_depend_on_earlier_calls():
    """Scratch memory is kept between calls; nothing of it may show."""
    case = make_case((2, 3, 5, 6, 5), dtype=torch.float32)
    first = run(case)
    poison = make_case((2, 5, 9, 9, 24), dtype=torch.float32)
    run(replace(poison, x=poison.x * torch.nan))
    assert_identical(run(case), first)


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_every_instruction_set(isa):
    """The channel sweep again, in a process that runs on the kernels of another instruction set."""
    widest = str(build_info()["cpu_isa"])
    if ISAS.index(isa) >= ISAS.index(widest):
        pytest.skip(f"{isa} is not below {widest}, which the other tests run on")
    here = Path(__file__).parent
    result = subprocess.run(
        [
            *(
                sys.executable,
                "-P",
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-k",
                "channels or obeys",
            ),
            *(here / "test_mixed_op_shapes.py", here.parent / "test_native.py"),
        ],
        env={**os.environ, "METADNAS_EXT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
