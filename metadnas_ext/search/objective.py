"""Terms of a client's loss on α beside the cross-entropy. All take a leading client axis."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.space import CostTable, expected_cost


def mixing_weights(alpha: Tensor, temperature: Tensor | None = None) -> tuple[Tensor, ...]:
    """softmax(α / T): alpha (G, 2, E, O), T (G) -> weights of each cell type, each (G, E, O)."""
    if temperature is not None:
        alpha = alpha / temperature[:, None, None, None]
    return alpha.softmax(-1).unbind(1)


def entropy(alpha: Tensor) -> Tensor:
    """Mean entropy of the mixing weights over edges, in nats: (G, 2, E, O) -> (G)."""
    log_p = alpha.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean((1, 2))


def cost_ratio(
    weights: tuple[Tensor, ...], costs: CostTable, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """Expected cost of each client's mixture, and its excess over the budget, c / B - 1: (G)."""
    cost = expected_cost(costs, *weights)
    return cost, cost / budgets - 1


def penalty(excess: Tensor, kind: str, strength: Tensor | float) -> Tensor:
    """Complexity penalty strength * φ(excess): φ linear, hinge, squared_hinge, or dual (linear)."""
    if kind == "hinge":
        excess = excess.clamp(min=0)
    elif kind == "squared_hinge":
        excess = excess.clamp(min=0).square()
    return strength * excess


def dual_ascent(multiplier: Tensor, excess: Tensor, rate: float) -> Tensor:
    """λ <- max(0, λ + rate * excess)."""
    return (multiplier + rate * excess.detach()).clamp(min=0)


def kl_to_server(alpha: Tensor, server: Tensor) -> Tensor:
    """Mean over edges of KL(softmax α, softmax α_server): (G, 2, E, O), (2, E, O) -> (G)."""
    log_p = alpha.log_softmax(-1)
    return (log_p.exp() * (log_p - server.log_softmax(-1))).sum(-1).mean((1, 2))


def beta_decay(alpha: Tensor) -> Tensor:
    """Mean over edges of logsumexp α (Ye et al., β-DARTS, CVPR 2022): (G, 2, E, O) -> (G)."""
    return torch.logsumexp(alpha, -1).mean((1, 2))
