"""The last layer as a module, with and without a client axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadnas_ext.nn import functional as fn


class ClientLinear(nn.Linear):
    """G linear layers side by side: (G, N, in_features) -> (G, N, out_features).

    `weight` is (G, out_features, in_features), `bias` (G, out_features).
    """

    def forward(self, x: Tensor) -> Tensor:
        return fn.linear(x, self.weight, self.bias)

    def client(self, index: int) -> nn.Linear:
        """One client's layer, a copy."""
        return linear_of(self.weight[index].detach().clone(), self.bias[index].detach().clone())


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The layer of these tensors, with a client axis if they have one; draws no random number."""
    kind = nn.Linear if weight.dim() == 2 else ClientLinear
    outputs, inputs = weight.shape[-2:]
    layer = kind(inputs, outputs, device=torch.device("meta"))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
