"""Mixed operations and cells on kernels that read and write half precision: CUDA's, on a GPU or on
the shim. Results between two convolutions are rounded where they are stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metadnas_ext.ops import cell, mixed_op, precision
from metadnas_ext.ops.mixed_op import KEEP
from metadnas_ext.space.primitives import PRIMITIVES

from ._cases import Case, Result, assert_identical, make_case, relative_error, run, truth

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def native_half(request, monkeypatch):
    if request.config.getoption("--device") == "cpu":
        pytest.skip("the CPU's kernels take no half precision")
    monkeypatch.setattr(precision, "HALF_DEVICES", {"cpu", "cuda"})


def half_case(dtype, shape=(2, 4, 7, 8, 16), candidates=None, **options) -> Case:
    """Values that half precision holds; weights and parameters in float32."""
    case = make_case(shape, candidates, **options).to(torch.float32)
    return replace(case, x=case.x.to(dtype), grad_out=case.grad_out.to(dtype))


def check(case: Case, factor: float) -> None:
    """Dtypes, and relative errors of at most `factor` roundings: of stored results, of what tensor
    cores multiply, and of the rectifiers that those flip."""
    dtype = case.x.dtype
    expected, actual = truth(case.to(torch.float64)), run(case)
    single = torch.float32
    wanted = (dtype, single, dtype, single, single)
    for name, a, e, of in zip(Result._fields, actual, expected, wanted, strict=True):
        assert a.dtype == of, name
        error, allowed = relative_error(a, e), factor * torch.finfo(dtype).eps
        assert error < allowed, f"{name}: relative error {error:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_all_candidates(stride, training, dtype):
    options = {"stride": stride, "training": training, "affine": True, "counts": (4, 3)}
    check(half_case(dtype, mean=0.5, **options), 6)


@pytest.mark.parametrize("name", [p for p in PRIMITIVES if p != "none"])
def test_each_candidate(name):
    for stride in (1, 2):
        check(half_case(torch.bfloat16, (1, 2, 5, 6, 6), (name,), stride=stride), 4)


@pytest.mark.parametrize("dtype", HALF)
def test_keep_changes_no_bit(dtype):
    """What is made again is rounded again."""
    case = half_case(dtype, counts=(4, 3))
    expected = run(case)
    for keep in KEEP[1:]:
        assert_identical(run(replace(case, keep=keep)), expected)


@pytest.mark.parametrize("dtype", HALF)
def test_bits_do_not_depend_on_the_cohort(dtype):
    case = half_case(dtype)
    together = run(case)
    for g in range(2):
        assert_identical(run(case.client(g)), Result(*(part[g : g + 1] for part in together)))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_is_the_same_as_half_activations(dtype):
    case = half_case(dtype)
    with torch.autocast(case.x.device.type, dtype):
        out, stats = mixed_op(case.x.float(), case.weights, case.params, **case.options)
    same_out, same_stats = mixed_op(case.x, case.weights, case.params, **case.options)
    assert out.dtype == dtype
    assert torch.equal(out, same_out)
    assert torch.equal(stats, same_stats)


@pytest.mark.parametrize("dtype", HALF)
def test_cell(dtype):
    """Against the same cell in float32: nodes are rounded where they are stored."""
    generator = torch.Generator().manual_seed(0)
    graph = ((0, 1, 2, 0), (0, 0, 1, 1), (("sep_conv_3x3", "avg_pool_3x3"),) * 4)
    s0, s1 = (torch.randn(2, 3, 6, 6, 8, generator=generator).to(dtype) for _ in range(2))
    weights = torch.rand(2, 4, 2, generator=generator)
    params = torch.randn(2, 4 * 2 * 8 * (9 + 8), generator=generator)
    grad_out = torch.randn(2, 3, 6, 6, 16, generator=generator).to(dtype)

    def both(activations: torch.dtype) -> list[torch.Tensor]:
        leaves = [s0.to(activations), s1.to(activations), weights.clone(), params.clone()]
        for leaf in leaves:
            leaf.requires_grad_()
        out, _ = cell(*leaves, *graph)
        assert out.dtype == activations
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(activations))]

    for half, single in zip(both(dtype), both(torch.float32), strict=True):
        assert relative_error(half, single) < 8 * torch.finfo(dtype).eps


def test_second_derivative():
    case = half_case(torch.float16, (1, 2, 4, 4, 4))
    x, weights, params = (t.clone().requires_grad_() for t in (case.x, case.weights, case.params))
    out, _ = mixed_op(x, weights, params)
    (grad,) = torch.autograd.grad(out.float().square().sum(), weights, create_graph=True)
    grad.sum().backward()
    assert x.grad.dtype == torch.float16
    assert params.grad.isfinite().all()


def test_parameters_in_half_are_refused():
    case = half_case(torch.float16, (1, 2, 4, 4, 4))
    forward = torch.ops.metadnas_ext.mixed_op_forward
    rest = (None, None, case.indices, 1, False, 1e-5, 0)
    with pytest.raises(RuntimeError, match="params is Half, expected Float beside x"):
        forward(case.x, case.weights, case.params.half(), *rest)
