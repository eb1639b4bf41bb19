"""Values, statistics and gradients against torch.nn modules: shapes, cohorts, layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ._relu_conv_bn import Case, assert_identical, assert_same, make_case, run, truth, twin

CHANNELS = (1, 2, 3, 5, 8, 15, 16, 17, 33, 48, 64)
# float32 rounding, with room for a rectifier that flips where its input is near 0.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}

MODES = [
    pytest.param(stride, affine, training, id=f"{stride}-{affine=}-{training=}")
    for stride in (1, 2)
    for affine in (False, True)
    for training in (True, False)
]


def check(shape, channels, dtype=torch.float64, **options):
    case = make_case(shape, channels, dtype=dtype, **options)
    try:
        assert_same(run(case), truth(case.to(torch.float64)), TOLERANCE[dtype])
    except AssertionError as error:
        raise AssertionError(f"{shape} to {channels} channels, {options}: {error}") from error


@pytest.mark.parametrize(("stride", "affine", "training"), MODES)
@pytest.mark.parametrize("clients", [1, 3])
def test_modes(clients, stride, affine, training):
    options = {"stride": stride, "affine": affine, "training": training}
    case = make_case((clients, 3, 7, 6, 5), 6, **options)
    expected = truth(case)
    assert_same(run(case), expected)
    assert_same(run(case, twin), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", CHANNELS)
def test_output_channels(channels, stride, dtype):
    check((2, 2, 5, 7, 9), channels * stride, dtype, stride=stride, affine=channels % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels_in", [*CHANNELS, 192, 257])
def test_input_channels(channels_in, stride, dtype):
    for channels in (4, 32):
        check((2, 2, 5, 7, channels_in), channels, dtype, stride=stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_heights_and_widths(stride):
    for size in (*range(1, 20), 33):
        check((1, 2, 3, size, 5), 6, stride=stride, affine=bool(size % 2))
        check((1, 2, size, 2, 5), 6, stride=stride, training=size % 3 > 0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 67, 5, 7, 4), (1, 3, 33, 31, 4), (2, 2, 64, 64, 2)])
def test_clients_of_several_tasks(shape, stride):
    """Tasks take 512 pixels: within an image, of several images, with a small last one."""
    check(shape, 6, stride=stride, affine=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_one_pixel_in_eval_mode(stride):
    check((2, 1, 1, 1, 4), 6, stride=stride, training=False)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_relu(stride):
    case = make_case((2, 3, 5, 7, 5), 6, stride=stride, relu=False)
    expected = truth(case)
    assert_same(run(case), expected)
    assert_same(run(case, twin), expected)


def test_eps_is_used():
    case = replace(make_case(), eps=0.3)
    assert_same(run(case), truth(case))


@pytest.mark.parametrize("training", [True, False])
def test_gamma_of_zero(training):
    case = make_case(affine=True, training=training)
    case.params[:, 4 * 6 : 4 * 6 + 3] = 0
    assert_same(run(case), truth(case))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("counts", [(0, 2, 9), (9, 9, 9), (5, 0, 0), (0, 0, 0), (1, 8, 4)])
def test_ragged_counts(counts, stride, training, affine):
    """Images that do not count reach nothing, and to the bit: not even the cut into tasks."""
    options = {"stride": stride, "training": training, "affine": affine, "counts": counts}
    case = make_case((3, 9, 13, 11, 5), 6, **options)
    ignored, grad = case.x.clone(), case.grad_out.clone()
    for g, count in enumerate(counts):
        ignored[g, count:] = torch.nan
        grad[g, count:] = torch.nan
    result = run(replace(case, x=ignored, grad_out=grad))
    assert_same(result, truth(case))
    for g, count in enumerate(counts):
        assert not result.out[g, count:].any()
        assert not result.grad_x[g, count:].any()
        if count:
            assert_identical(result.client(g, count), run(case.client(g, count)))


@pytest.mark.parametrize("stride", [1, 2])
def test_layouts(stride):
    """NCHW activations, params as columns of a wider buffer or of no unit stride."""
    case = make_case((2, 3, 4, 5, 5), stride=stride, affine=True)
    wide = torch.randn(2, case.params.shape[1] + 7, dtype=torch.float64)
    wide[:, 3:-4] = case.params
    laid_out = replace(
        case,
        x=case.x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),
        params=wide[:, 3:-4],
        grad_out=case.grad_out.transpose(2, 3).contiguous().transpose(2, 3),
    )
    assert not any(t.is_contiguous() for t in laid_out.tensors().values())
    assert_identical(run(laid_out), run(case))
    spread = case.params.repeat_interleave(2, 1)[:, ::2]
    assert_identical(run(replace(case, params=spread)), run(case))


def test_one_row_of_parameters_for_all_clients():
    case = make_case((2, 3, 4, 5, 5))
    shared: Case = replace(case, params=case.params[:1].expand(2, -1))
    assert_identical(run(shared), run(replace(case, params=shared.params.contiguous())))
