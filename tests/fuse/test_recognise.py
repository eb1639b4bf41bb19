"""What a single module is taken for, by what it computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.fuse.recognise import Block, Candidate, recognise

from . import _parts


class Functional(nn.Module):
    """A dilated convolution whose layers are called by hand, under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(4, 4, 3, 2, 2, 2, groups=4, bias=False)
        self.wide = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.wide(self.deep(torch.relu(x))))


class NewZeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return torch.zeros(n, c, h // 2, w // 2)


class TimesZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def norm(c: int = 4, **options: object) -> nn.Module:
    return nn.BatchNorm2d(c, **options)


@pytest.mark.parametrize(
    ("module", "primitive", "stride"),
    [
        *((_parts.with_norm(name, 4, s), name, s) for name in _parts.NAMES for s in (1, 2)),
        (_parts.PoolBN("avg", 4, 2, True), "avg_pool_3x3", 2),
        (_parts.PaddedReduce(4, 4), "skip_connect", 2),
        (nn.Identity(), "skip_connect", 1),
        (nn.Sequential(), "skip_connect", 1),
        (Functional(), "dil_conv_3x3", 2),
        (NewZeros(), "none", 2),
        (TimesZero(), "none", 1),
        (_parts.SepConv(4, 3, 1, True).double(), "sep_conv_3x3", 1),
    ],
)
def test_candidates(module: nn.Module, primitive: str, stride: int) -> None:
    found = recognise(module)
    assert isinstance(found, Candidate)
    assert (found.primitive, found.stride) == (primitive, stride)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (_parts.ReLUConvBN(3, 8), (3, 8, 1, True, 1)),
        (sequence(nn.Conv2d(3, 8, 1, bias=False), norm(8)), (3, 8, 1, False, 1)),
        (_parts.FactorizedReduce(4, 8), (4, 8, 2, True, 1)),
        (sequence(nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)), (3, 8, 1, False, 3)),
    ],
)
def test_blocks(module: nn.Module, expected: tuple[object, ...]) -> None:
    found = recognise(module)
    assert isinstance(found, Block)
    own = (found.channels_in, found.channels_out, found.stride, found.relu, found.kernel)
    assert own == expected


class Looks(nn.Module):
    """Looks like an identity."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "in place":
            return F.relu(x, inplace=True)
        if self.what == "random":
            return x + torch.rand(()).to(x)
        if self.what == "mode":
            return x if self.training else x.mul(0.0)
        if self.what == "more":
            self.last = x.mul(2.0)
        return [x] if self.what == "list" else x


DEEP = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
POINT = nn.Conv2d(4, 4, 1, bias=False)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (_parts.pool("max", 1), "a pool without batch norm"),
        (_parts.pool("avg", 2), "a pool without batch norm"),
        (sequence(nn.AvgPool2d(3, 1, 1), norm()), "a pool is not 3x3"),
        (sequence(nn.MaxPool2d(2, 2), norm()), "a pool is not 3x3"),
        (sequence(nn.MaxPool2d(3, 2, 1, ceil_mode=True), norm()), "a pool is not 3x3"),
        (_parts.SepConv(4, 7, 1, False), "a 7x7 convolution"),
        (_parts.ReLUConvBN(4, 4, 3, 1), "a 3x3 convolution"),
        (sequence(*_parts.half(4, 3, 1, 1, False)), "1 separable convolutions"),
        (sequence(*_parts.half(4, 3, 1, 2, False), *_parts.half(4, 3, 1, 2, False)), "2 separable"),
        (sequence(*_parts.half(4, 3, 1, 1, False), *_parts.half(4, 5, 1, 1, False)), "2 separable"),
        (sequence(nn.ReLU(), nn.Conv2d(4, 4, 1), norm()), "a convolution has a bias"),
        (sequence(nn.ReLU(), nn.Conv2d(4, 4, (1, 3), bias=False), norm()), "not square"),
        (sequence(nn.ReLU(True), POINT, norm()), "it changes its input in place"),
        (sequence(DEEP, POINT, norm()), "an arrangement of layers"),
        (sequence(nn.ReLU(), DEEP, norm(), POINT, norm()), "an arrangement of layers"),
        (sequence(nn.ReLU(), POINT, nn.GroupNorm(2, 4)), "it has group norm"),
        (sequence(nn.ReLU(), POINT, nn.SyncBatchNorm(4)), "not a torch.nn.BatchNorm2d"),
        (sequence(nn.ReLU(), POINT, norm(), nn.Dropout(0.0)), "it has dropout"),
        (sequence(nn.ReLU6(), POINT, norm()), "it calls hardtanh"),
        (nn.utils.parametrizations.weight_norm(_parts.ReLUConvBN(4, 4).op[1]), "not a parameter"),
        (Looks("in place"), "it changes its input in place"),
        (Looks("random"), "it calls add"),
        (Looks("mode"), "it computes something else in eval mode"),
        (Looks("more"), "it computes more than its result shows"),
        (Looks("list"), "its result is a list"),
        (Looks("buffer"), "its tensor 'scale' has no part in the operation"),
        (nn.Linear(3, 3), "called with one tensor it raises RuntimeError"),
    ],
)
def test_others_are_left_with_the_reason(module: nn.Module, reason: str) -> None:
    found = recognise(module)
    assert isinstance(found, str)
    assert reason in found


def test_recognising_leaves_the_module_alone() -> None:
    module = _parts.SepConv(4, 3, 1, True)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    recognise(module.eval())
    assert not module.training
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())
