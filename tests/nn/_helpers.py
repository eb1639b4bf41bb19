"""Random states, steps and comparison of modules by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metadnas_ext.nn import Supernet

Tensors = Mapping[str, Tensor]

ALPHAS = ("alphas_normal", "alphas_reduce")
CLASSES = 3
FEW = ("skip_connect", "none", "sep_conv_3x3", "avg_pool_3x3")
"""Some candidates in an order of their own, for what does not depend on which."""


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Random parameters and running statistics, none at its default, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            t.fill_(seed)
        else:
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float64)
            t.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)


def tiny_supernet(seed: int = 0, **options: object) -> Supernet:
    """A random supernet in float64: 3 cells of 2 nodes, C = 4, a few candidates."""
    settings = {"nodes": 2, "image_size": 8, "candidates": FEW, **options}
    layers = int(settings.pop("layers", 3))
    net = Supernet(4, CLASSES, layers, **settings).double()
    randomise(net, seed)
    return net


def images(*shape: int, seed: int = 0) -> Tensor:
    """Random float64 images; (4, 3, 8, 8) by default."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (4, 3, 8, 8), generator=generator, dtype=torch.float64)


def mixture(*shape: int, seed: int = 0) -> Tensor:
    """Random float64 mixing weights, summing to 1, as a leaf."""
    return images(*shape, seed=seed).softmax(-1).requires_grad_()


def labels(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % CLASSES


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of `loss` with respect to every parameter, by name; zeros where it has no part."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


def alone(tensors: Tensors, client: int) -> dict[str, Tensor]:
    """One client's part of tensors with a leading client axis."""
    return {name: t[client] for name, t in tensors.items()}


def without_alphas(tensors: Tensors) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if name not in ALPHAS}


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.named_buffers()}


def assert_close(
    actual: Tensor, expected: Tensor, what: str = "", tolerance: float = 1e-10
) -> None:
    """Equal up to `tolerance` times the largest magnitude (at least 1)."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} instead of {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} instead of {expected.dtype}"
    if actual.numel():
        scale = max(1.0, float(expected.detach().abs().max()))
        error = float((actual - expected).detach().abs().max())
        assert error <= tolerance * scale, f"{what}: off by {error:.2e}, magnitude {scale:.2e}"


def assert_same(actual: Tensors, expected: Tensors, tolerance: float = 1e-10) -> None:
    assert set(actual) == set(expected)
    for name, t in expected.items():
        assert_close(actual[name], t, name, tolerance)


def assert_identical(actual: Tensors, expected: Tensors) -> None:
    assert set(actual) == set(expected)
    for name, t in expected.items():
        assert torch.equal(actual[name], t), f"{name} differs"
