"""The mixed operation out of ordinary `torch.nn` modules: NCHW, one client at a time.

Written from the public DARTS definitions and independent of the package: nothing here imports it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """DARTS' module; zeros behind an odd size give both grids as many pixels."""

    def __init__(self, channels: int, affine: bool, eps: float) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        first = self.conv_1(x)
        second = self.conv_2(x[:, :, 1:, 1:])
        return self.bn(torch.cat([first, second], 1))


def candidate(name: str, channels: int, stride: int, affine: bool, eps: float) -> nn.Module:
    def half(kernel: int, dilation: int, stride: int) -> list[nn.Module]:
        pad = kernel // 2 * dilation
        return [
            nn.ReLU(),
            nn.Conv2d(
                channels, channels, kernel, stride, pad, dilation, groups=channels, bias=False
            ),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, eps=eps, affine=affine),
        ]

    norm = nn.BatchNorm2d(channels, eps=eps, affine=affine)
    match name:
        case "none":
            return Zero(stride)
        case "max_pool_3x3":
            return nn.Sequential(nn.MaxPool2d(3, stride, 1), norm)
        case "avg_pool_3x3":
            return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), norm)
        case "skip_connect" if stride == 1:
            return nn.Identity()
        case "skip_connect":
            return FactorizedReduce(channels, affine, eps)
        case "sep_conv_3x3" | "sep_conv_5x5":
            kernel = int(name[-1])
            return nn.Sequential(*half(kernel, 1, stride), *half(kernel, 1, 1))
        case _:
            return nn.Sequential(*half(int(name[-1]), 2, stride))


class Mixture(nn.Module):
    """One client: sum over candidates of weight times candidate(x)."""

    def __init__(
        self, candidates: tuple[str, ...], channels: int, stride: int, affine: bool, eps: float
    ) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(
            candidate(name, channels, stride, affine, eps) for name in candidates
        )
        self.statistics: list[Tensor] = []
        for norm in self.norms():
            norm.register_forward_pre_hook(self._record)

    def norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.candidates.modules() if isinstance(m, nn.BatchNorm2d)]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        self.statistics = []
        results = [op(x) for op in self.candidates]
        return sum(w * result for w, result in zip(weights, results, strict=True))

    def _record(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if norm.training:
            var, mean = torch.var_mean(inputs[0].detach(), (0, 2, 3), correction=0)
        else:
            mean, var = norm.running_mean, norm.running_var
        self.statistics.append(torch.stack([mean, var]))


def run_client(
    x: Tensor,
    weights: Tensor,
    params: Tensor,
    running: Tensor | None,
    grad_out: Tensor,
    candidates: tuple[str, ...],
    stride: int,
    affine: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x (N, H, W, C) -> out (N, H', W', C), stats (S, 2, C), gradients of x, weights, params."""
    channels = x.shape[-1]
    mixture = Mixture(candidates, channels, stride, affine, eps).to(x.dtype)
    if params.numel():
        vector_to_parameters(params, mixture.parameters())
    if running is not None:
        mixture.eval()
        for norm, (mean, var) in zip(mixture.norms(), running, strict=True):
            norm.running_mean, norm.running_var = mean, var
    x = x.permute(0, 3, 1, 2).contiguous().requires_grad_()
    weights = weights.detach().clone().requires_grad_()
    out = mixture(x, weights)
    leaves = [x, weights, *mixture.parameters()]
    grad_x, grad_weights, *grads = torch.autograd.grad(
        out, leaves, grad_out.permute(0, 3, 1, 2), materialize_grads=True
    )
    return (
        out.detach().permute(0, 2, 3, 1),
        torch.stack(mixture.statistics) if mixture.statistics else x.new_zeros(0, 2, channels),
        grad_x.permute(0, 2, 3, 1),
        grad_weights,
        parameters_to_vector(grads) if grads else params.clone(),
    )
