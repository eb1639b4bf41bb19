"""Every tile, vector and edge path: sizes around their widths, ragged cohorts, layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ._cases import Result, assert_identical, assert_same, make_case, run, truth

WIDTHS = (*range(1, 21), 31, 32, 33)
CHANNELS = (1, 2, 3, 5, 8, 15, 16, 17, 24, 32, 33, 64)
# In float64 these select, on an AVX-512 machine, SSE2, AVX2, and AVX-512 with even and odd blocks.
CHANNELS_PER_ISA = (2, 4, 16, 17)
# float32 rounding, with room for a rectifier that flips where its input is near 0.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}


def check(shape, dtype=torch.float64, **options):
    case = make_case(shape, dtype=dtype, **options)
    try:
        assert_same(run(case), truth(case.to(torch.float64)), TOLERANCE[dtype])
    except AssertionError as error:
        raise AssertionError(f"shape {shape}, {options}: {error}") from error


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", CHANNELS_PER_ISA)
def test_widths_and_heights(channels, stride):
    for i, size in enumerate(WIDTHS):
        affine, training = bool(i % 2), i % 3 > 0
        check((1, 2, 3, size, channels), stride=stride, affine=affine, training=training)
        check((1, 2, size, 2, channels), stride=stride, affine=not affine, training=training)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(channels, stride, dtype):
    check((2, 2, 5, 7, channels), dtype, stride=stride, affine=channels % 2 == 0)
    check((1, 1, 8, 16, channels), dtype, stride=stride, training=channels % 3 > 0)


def test_windows_of_few_channels():
    """Of so tall a tile at stride 2, shared memory holds few channels at a time."""
    check((1, 1, 32, 1, 40), stride=2)


def test_halves_of_a_factorized_reduce_that_part_a_vector():
    """A GPU's thread has four channels; a half here 18."""
    check((1, 1, 16, 16, 36), torch.float32, stride=2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 9, 67])  # 67: tasks of more than 4 images
def test_images(images, stride):
    check((2, images, 3, 5, 4), stride=stride, affine=True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2, 2), (1, 2, 1, 1, 2), (1, 1, 2, 1, 3)])
def test_two_values_per_channel(shape):
    check(shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_one_pixel_in_eval_mode(stride):
    check((2, 1, 1, 1, 4), stride=stride, training=False)


def test_matrices_with_several_tasks():
    """Weight gradients so large that their memory caps the number of tasks."""
    check((1, 20, 2, 2, 160), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("counts", [(0, 2, 9), (9, 9, 9), (5, 0, 0), (0, 0, 0), (1, 8, 4)])
def test_ragged_counts(counts, stride, training):
    case = make_case((3, 9, 4, 5, 4), stride=stride, training=training, affine=True, counts=counts)
    ignored = case.x.clone()
    for g, count in enumerate(counts):
        ignored[g, count:] = torch.nan
    result = run(replace(case, x=ignored))
    assert_same(result, truth(case))
    for g, count in enumerate(counts):
        assert not result.out[g, count:].any()
        assert not result.grad_x[g, count:].any()
        if count:
            alone = run(case.client(g, count))
            together = Result(
                result.out[g : g + 1, :count],
                result.stats[g : g + 1],
                result.grad_x[g : g + 1, :count],
                result.grad_weights[g : g + 1],
                result.grad_params[g : g + 1],
            )
            assert_same(together, alone, 1e-12)


def test_full_counts_change_nothing():
    case = make_case((2, 5, 4, 5, 4))
    assert_identical(run(replace(case, counts=torch.tensor([5, 5]))), run(case))


@pytest.mark.parametrize("stride", [1, 2])
def test_layouts(stride):
    """NCHW activations, params as columns of a wider buffer, transposed weights."""
    case = make_case((2, 3, 4, 5, 6), stride=stride, affine=True)
    wide = torch.randn(2, case.params.shape[1] + 7, dtype=torch.float64)
    wide[:, 3:-4] = case.params
    laid_out = replace(
        case,
        x=case.x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),
        weights=case.weights.t().contiguous().t(),
        params=wide[:, 3:-4],
        grad_out=case.grad_out.transpose(2, 3).contiguous().transpose(2, 3),
    )
    assert not any(t.is_contiguous() for t in laid_out.tensors().values())
    assert_identical(run(laid_out), run(case))


def test_activations_that_are_not_aligned():
    """Contiguous, but one element behind what vectors need."""
    case = make_case((2, 3, 4, 5, 8))
    shifted = torch.empty(case.x.numel() + 1, dtype=case.x.dtype)[1:].view(case.x.shape)
    shifted.copy_(case.x)
    assert_same(run(replace(case, x=shifted)), run(case))


def test_params_that_are_not_dense():
    """params[:, ::2] has no unit stride; an expanded row serves every client."""
    case = make_case((2, 3, 4, 5, 4))
    spread = case.params.repeat_interleave(2, 1)[:, ::2]
    assert_identical(run(replace(case, params=spread)), run(case))
    shared = case.params[:1].expand(2, -1)
    assert_identical(
        run(replace(case, params=shared)), run(replace(case, params=shared.contiguous()))
    )
