"""Kernels that read and write half precision themselves: CUDA's, on a GPU or on the shim."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metadnas_ext.ops import conv3x3_bn, precision, relu_conv_bn

from ._cases import relative_error
from ._relu_conv_bn import Result, assert_identical, make_case, run, truth

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def native_half(request, monkeypatch):
    if request.config.getoption("--device") == "cpu":
        pytest.skip("the CPU's kernels take no half precision")
    monkeypatch.setattr(precision, "HALF_DEVICES", {"cpu", "cuda"})


def half_case(dtype, **options):
    """Values that half precision holds; parameters in float32."""
    case = make_case((2, 4, 7, 8, 19), 34, counts=(4, 3), **options).to(torch.float32)
    halves = {name: getattr(case, name).to(dtype) for name in ("x", "grad_out")}
    return replace(case, **halves)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_values_are_rounded_where_they_are_stored(stride, affine, training, dtype):
    case = half_case(dtype, stride=stride, affine=affine, training=training, mean=2.0)
    expected, actual = truth(case.to(torch.float64)), run(case)
    epsilon = torch.finfo(dtype).eps
    wanted = (dtype, torch.float32, dtype, torch.float32)
    allowed = (epsilon / 2, 1e-6, 2 * epsilon, 2 * epsilon)
    parts = zip(Result._fields, actual, expected, wanted, allowed, strict=True)
    for name, a, e, of, error in parts:
        assert a.dtype == of, name
        assert relative_error(a, e) < error, name


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_is_the_same_as_half_activations(dtype):
    case = half_case(dtype, affine=True)
    wide = replace(case, x=case.x.float())
    with torch.autocast(case.x.device.type, dtype):
        out, stats = relu_conv_bn(wide.x, wide.params, **wide.options)
    same_out, same_stats = relu_conv_bn(case.x, case.params, **case.options)
    assert torch.equal(out, same_out)
    assert torch.equal(stats, same_stats)
    images, stem = torch.randn(1, 4, 8, 8, 3), torch.randn(1, 48 * 27 + 2 * 48)
    with torch.autocast(images.device.type, dtype):
        assert conv3x3_bn(images, stem, 48)[0].dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
def test_bits_do_not_depend_on_the_cohort(dtype):
    case = half_case(dtype, affine=True)
    together = run(case)
    for g, images in enumerate((4, 3)):
        assert_identical(run(case.client(g, images)), together.client(g, images))


def test_second_derivative():
    case = half_case(torch.float16)
    x, params = (t.clone().requires_grad_() for t in (case.x, case.params))
    out, _ = relu_conv_bn(x, params, case.channels)
    (grad,) = torch.autograd.grad(out.float().square().sum(), params, create_graph=True)
    grad.sum().backward()
    assert x.grad.dtype == torch.float16
    assert params.grad.isfinite().all()


def test_parameters_in_half_are_refused():
    x, params = torch.zeros(1, 2, 3, 3, 4).half(), torch.zeros(1, 24).half()
    forward = torch.ops.metadnas_ext.relu_conv_bn_forward
    with pytest.raises(RuntimeError, match="params is Half, expected Float beside x"):
        forward(x, params, None, None, 6, 1, True, False, 1e-5)
