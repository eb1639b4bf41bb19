"""A fused network beside the one it was: plain modules under autograd, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tensors = dict[str, Tensor]


@torch.no_grad()
def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """float64; no parameter, running statistic or alpha at its default."""
    generator = torch.Generator().manual_seed(seed)
    net.double()
    for name, t in net.state_dict().items():
        if t.is_floating_point():
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float64)
            t.add_(0.3 * noise) if not name.endswith("running_var") else t.mul_(0.5 + noise.abs())
    plain = [a for a in alphas(net) if not isinstance(a, nn.Parameter)]
    for index, alpha in enumerate(plain):
        noise = torch.randn(alpha.shape, generator=generator, dtype=torch.float64)
        net.alphas[index] = noise.requires_grad_()
    return net


def alphas(net: nn.Module) -> Sequence[Tensor]:
    return net.arch_parameters() if hasattr(net, "arch_parameters") else []


def images(count: int = 4, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def results(net: nn.Module, x: Tensor, dropout_seed: int = 0) -> Tensors:
    """Logits, gradients of x, of every parameter and of alpha; buffers afterwards."""
    torch.manual_seed(dropout_seed)
    x = x.clone().requires_grad_()
    logits = net(x)
    labels = torch.arange(len(x)) % logits.shape[1]
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    named |= {f"alpha {i}": a for i, a in enumerate(alphas(net))} | {"x": x}
    loss = F.cross_entropy(logits, labels)
    grads = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    found = {"logits": logits.detach()}
    found |= {f"gradient of {name}": g for name, g in zip(named, grads, strict=True)}
    return found | {name: t.clone() for name, t in net.named_buffers()}


def assert_same(actual: Tensors, expected: Tensors, tolerance: float = 1e-10) -> None:
    """Up to `tolerance` times the largest magnitude (at least 1)."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        own, truth = actual[name].detach(), wanted.detach()
        assert own.shape == truth.shape, name
        assert own.dtype == truth.dtype, name
        scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
        error = float((own - truth).abs().max()) if truth.numel() else 0.0
        assert error <= tolerance * scale, f"{name} is off by {error:.1e}, magnitude {scale:.1e}"


def twins(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The network, and a copy to be left as it is."""
    randomise(net)
    return net, copy.deepcopy(net)


def assert_twins_agree(fused: nn.Module, plain: nn.Module, size: int = 8) -> None:
    """Two batches in training mode, then one in eval mode."""
    for training, seed in ((True, 1), (True, 2), (False, 3)):
        fused.train(training)
        plain.train(training)
        x = images(size=size, seed=seed)
        assert_same(results(fused, x, seed), results(plain, x, seed))
