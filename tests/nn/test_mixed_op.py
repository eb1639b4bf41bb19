"""`MixedOp` against ordinary modules with the public DARTS names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from metadnas_ext.nn import MixedOp
from metadnas_ext.space import PRIMITIVES

from . import _darts
from ._helpers import (
    alone,
    assert_close,
    assert_identical,
    assert_same,
    buffers,
    gradients,
    images,
    mixture,
    randomise,
)

MODES = [(stride, affine) for stride in (1, 2) for affine in (False, True)]


def pair(
    stride: int = 1, affine: bool = False, candidates: Sequence[str] = PRIMITIVES, seed: int = 0
) -> tuple[MixedOp, _darts.MixedOp]:
    """Ours and the plain one, in one random state."""
    plain = _darts.MixedOp(4, stride, candidates, affine)
    randomise(plain, seed)
    op = MixedOp(4, stride, candidates, affine=affine).double()
    op.load_state_dict(plain.state_dict(), strict=True)
    return op, plain


def assert_agree(op: MixedOp, plain: _darts.MixedOp, x: Tensor) -> None:
    """Outputs, gradients of everything, and buffers afterwards."""
    weights = mixture(len(plain._ops))
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    ours, truth = op(leaf, weights), plain(leaf, weights)
    assert_close(ours, truth, "output")
    cotangent = images(*truth.shape, seed=9)
    for what, wanted in (("x", leaf), ("weights", weights)):
        a, b = (
            torch.autograd.grad(o, wanted, cotangent, retain_graph=True, materialize_grads=True)
            for o in (ours, truth)
        )
        assert_close(a[0], b[0], f"gradient of {what}")
    if list(op.parameters()):
        losses = [(out * cotangent).sum() for out in (ours, truth)]
        assert_same(gradients(op, losses[0]), gradients(plain, losses[1]))
    assert_same(buffers(op), buffers(plain))


@pytest.mark.parametrize(("stride", "affine"), MODES)
def test_state_dicts_load_both_ways(stride: int, affine: bool) -> None:
    op = MixedOp(4, stride, affine=affine).double()
    plain = _darts.MixedOp(4, stride, affine=affine)
    randomise(op, 3)
    plain.load_state_dict(op.state_dict(), strict=True)
    assert_identical(plain.state_dict(), op.state_dict())
    assert plain.state_dict()["_ops.1.1.num_batches_tracked"] == 3
    randomise(plain, 4)
    op.load_state_dict(plain.state_dict(), strict=True)
    assert_identical(op.state_dict(), plain.state_dict())
    assert [n for n, _ in op.named_parameters()] == [n for n, _ in plain.named_parameters()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "affine"), MODES)
def test_agrees_with_modules(stride: int, affine: bool, training: bool) -> None:
    op, plain = pair(stride, affine)
    op.train(training)
    plain.train(training)
    for seed, layout in enumerate([torch.contiguous_format, torch.channels_last]):
        x = images(3, 4, 6, 5, seed=seed).contiguous(memory_format=layout)
        assert_agree(op, plain, x)


@pytest.mark.parametrize(
    "candidates",
    [(name,) for name in PRIMITIVES] + [("none", "skip_connect"), PRIMITIVES[::-1]],
    ids=lambda names: "+".join(names) if len(names) < 3 else "reversed",
)
def test_candidate_subsets(candidates: tuple[str, ...]) -> None:
    for stride in (1, 2):
        assert_agree(*pair(stride, candidates=candidates), images(2, 4, 5, 4))


def test_training_steps_and_eval() -> None:
    op, plain = pair()
    optimisers = [torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (op, plain)]
    weights = mixture(8)
    for step in range(4):
        x = images(2 + step, 4, 5, 5, seed=step)
        for module, optimiser in zip((op, plain), optimisers, strict=True):
            optimiser.zero_grad()
            module(x, weights).square().mean().backward()
            optimiser.step()
    assert_same(op.state_dict(), plain.state_dict())
    assert_agree(op.eval(), plain.eval(), images(2, 4, 5, 5, seed=7))


def test_running_statistics_start_and_stay_put_in_eval() -> None:
    op = MixedOp(4, 2)
    for name, buffer in op.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, name.endswith("running_var")))
    before = buffers(op.eval())
    op(images(2, 4, 4, 4).float(), mixture(8).float())
    assert_identical(buffers(op), before)


def test_result_is_channels_last() -> None:
    op = MixedOp(4, 1)
    out = op(images(2, 4, 6, 5).float(), mixture(8).float())
    assert out.shape == (2, 4, 6, 5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "affine"), MODES)
def test_client_axis(stride: int, affine: bool, training: bool) -> None:
    op = MixedOp(4, stride, affine=affine, clients=2).double().train(training)
    randomise(op)
    singles = [MixedOp(4, stride, affine=affine).double().train(training) for _ in range(2)]
    for g, single in enumerate(singles):
        single.load_state_dict(alone(op.state_dict(), g), strict=True)
    x, weights = images(2, 3, 4, 6, 5), mixture(2, 8)
    out = op(x, weights)
    grads = gradients(op, out.square().sum())
    for g, single in enumerate(singles):
        expected = single(x[g], weights[g])
        assert torch.equal(out[g], expected)
        assert_identical(alone(grads, g), gradients(single, expected.square().sum()))
        assert_identical(alone(buffers(op), g), buffers(single))


@pytest.mark.parametrize("candidates", [PRIMITIVES, ("none", "skip_connect"), ("avg_pool_3x3",)])
def test_dtypes(candidates: tuple[str, ...]) -> None:
    op = MixedOp(4, 1, candidates)
    x, weights = images(2, 4, 5, 5), mixture(len(candidates))
    single = op(x.float(), weights.float())
    assert single.dtype == torch.float32
    double = op.to(torch.float64)(x, weights)
    assert double.dtype == torch.float64
    assert_close(single.double(), double, "output", 1e-4)
    assert all(
        not t.is_floating_point() or t.dtype == torch.float64 for t in op.state_dict().values()
    )


def test_default_initialisation_is_torchs() -> None:
    torch.manual_seed(0)
    op, plain = MixedOp(8, 1, affine=True), _darts.MixedOp(8, 1, affine=True)
    for (name, ours), theirs in zip(op.named_parameters(), plain.parameters(), strict=True):
        bound = float(theirs.detach().abs().max())
        if theirs.dim() == 1:
            assert_identical({name: ours.double()}, {name: theirs})
        else:
            limit = theirs[0].numel() ** -0.5 * (1 + 1e-6)  # rounded to float32
            assert bound <= limit
            assert 0.7 * limit < float(ours.detach().abs().max()) <= limit
            assert abs(float(ours.detach().mean())) < 0.25 * limit


@pytest.mark.parametrize(
    ("x", "p", "message"),
    [
        ((4, 5, 5), (8,), r"x has shape \(4, 5, 5\), expected \(N, 4, H, W\)"),
        ((2, 6, 5, 5), (8,), r"x has shape \(2, 6, 5, 5\), expected \(N, 4, H, W\)"),
        ((2, 4, 5, 5), (7,), "weights"),
        ((2, 4, 5, 5), (1, 8), "weights"),
    ],
)
def test_wrong_shapes(x: tuple[int, ...], p: tuple[int, ...], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        MixedOp(4, 1)(torch.zeros(x), torch.zeros(p))


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (3, 2, 4, 5, 5), (2, 2, 6, 5, 5)])
def test_wrong_client_axis(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x has shape .* expected \(2, N, 4, H, W\)"):
        MixedOp(4, 1, clients=2)(torch.zeros(shape), torch.zeros(2, 8))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"unknown primitive 'conv'.*sep_conv_3x3"):
        MixedOp(4, 1, ["conv"])
    with pytest.raises(ValueError, match="stride must be 1 or 2, got 3"):
        MixedOp(4, 3)
    with pytest.raises(ValueError, match="even number of channels, got 5"):
        MixedOp(5, 2)
    with pytest.raises(RuntimeError, match="Float, expected Double"):
        MixedOp(4, 1)(images(2, 4, 5, 5), mixture(8))
    with pytest.raises(RuntimeError, match="more than 1 value per channel"):
        MixedOp(4, 1)(torch.zeros(1, 4, 1, 1), torch.zeros(8))


def test_compiles() -> None:
    op, plain = pair(2)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    x, weights = images(2, 4, 5, 5), mixture(8)
    truth = plain(x, weights)
    out = compiled(x, weights)
    assert_close(out, truth)
    assert_same(gradients(op, out.square().sum()), gradients(plain, truth.square().sum()))
    assert_same(buffers(op), buffers(plain))
