"""From architecture parameters to a discrete architecture, exactly and within a cost budget.

Without a budget this is the rule of Liu et al., "DARTS" (ICLR 2019), section 2.4: each node keeps
the two incoming edges with the largest max-over-candidates p, each with that candidate. With one,
the architecture of largest summed log p among those that fit it; both coincide where the budget
does not bind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._C import discretize_solve
from ..errors import BudgetError, ConfigError
from ..space.cost import CostTable, cheapest_cost, dearest_cost, edges
from ..space.genotype import KEPT, Genotype
from ..space.primitives import PRIMITIVES

CELL_TYPES = ("normal", "reduce")

Alpha = tuple[Tensor, Tensor] | Mapping[str, Tensor]


def discretize(
    alpha: Alpha, costs: CostTable | None = None, budget: float | None = None
) -> Genotype:
    """Best architecture under `alpha`, jointly over both cell types, with cost <= `budget`.

    `alpha`: logits [edges, candidates] of the normal and the reduction cell, as a pair or under the
    keys "normal" and "reduce". `costs` names the candidates (without it: PRIMITIVES) and the unit
    of `budget`. p = softmax over candidates in float64; `none` takes part in it but is never
    chosen. Ties: lower cost if there is a budget, then the lexicographically smallest sequence of
    (edge, candidate). A node's edges come in the order of their sources.

    Raises ValueError on non-finite or misshapen logits, ConfigError on a budget without costs or
    not a number, BudgetError when nothing is as cheap as the budget.
    """
    candidates = PRIMITIVES if costs is None else costs.candidates
    logits = _logits(alpha, len(candidates))  # (2, edges, candidates)
    nodes = _nodes(logits.shape[1])
    scores = torch.log_softmax(logits, dim=-1).numpy()
    if budget is None:
        return _solve(scores, np.zeros_like(scores), nodes, candidates, 0.0, math.inf)
    if costs is None:
        raise ConfigError("a budget needs a cost table")
    if nodes != costs.nodes:
        raise ValueError(f"the cost table has {costs.nodes} nodes, alpha {nodes}")
    _check_budget(costs, budget)
    return _solve(scores, _costs_array(costs), nodes, candidates, costs.fixed, budget)


def max_cost_genotype(costs: CostTable, budget: float, gap: float = 2**-8) -> Genotype:
    """The dearest architecture within a budget: a fixed design for baselines; deterministic.

    Its cost misses the largest possible by at most `gap` of the span between the cheapest
    architecture and the budget; 0 is exact, but may take forever on measured costs (it is a subset
    sum). Ties go to the lexicographically smallest sequence of (edge, candidate), so among
    candidates of equal cost the first of the table wins. Errors as in `discretize`.
    """
    _check_budget(costs, budget)
    if not 0 <= gap < 1:
        raise ConfigError(f"gap must be in [0, 1), got {gap}")
    span = min(budget, dearest_cost(costs)) - cheapest_cost(costs)
    array = _costs_array(costs)
    return _solve(array, array, costs.nodes, costs.candidates, costs.fixed, budget, gap * span)


def _solve(
    scores: NDArray[np.float64],
    costs: NDArray[np.float64],
    nodes: int,
    candidates: tuple[str, ...],
    fixed: float,
    budget: float,
    gap: float = 0.0,
) -> Genotype:
    forbidden = candidates.index("none") if "none" in candidates else -1
    _, _, kept, chosen = discretize_solve(scores, costs, nodes, forbidden, fixed, budget, gap)
    sources = [edge.source for edge in edges(nodes)]
    pairs = [
        (candidates[candidate], sources[edge]) for edge, candidate in zip(kept, chosen, strict=True)
    ]
    return Genotype.of(normal=pairs[: KEPT * nodes], reduce=pairs[KEPT * nodes :])


def _logits(alpha: Alpha, candidates: int) -> Tensor:
    """Both cells' logits as one float64 [2, edges, candidates] on the CPU."""
    if isinstance(alpha, Mapping):
        missing = [name for name in CELL_TYPES if name not in alpha]
        if missing:
            raise ValueError(f"alpha has no {missing[0]!r}, only {', '.join(map(str, alpha))}")
        pair = tuple(alpha[name] for name in CELL_TYPES)
    else:
        pair = tuple(alpha)
    if len(pair) != len(CELL_TYPES) or pair[0].shape != pair[1].shape:
        raise ValueError("alpha must be two matrices of one shape, for normal and reduce")
    for name, logits in zip(CELL_TYPES, pair, strict=True):
        if logits.dim() != 2 or logits.shape[1] != candidates:
            raise ValueError(
                f"{name} alpha must be [edges, {candidates}], got {list(logits.shape)}"
            )
        if not bool(torch.isfinite(logits).all()):
            edge, column = (~torch.isfinite(logits)).nonzero()[0].tolist()
            raise ValueError(
                f"{name} alpha is not finite at edge {edge}, candidate {column}: "
                f"{logits[edge, column].item()}"
            )
    return torch.stack([logits.detach().cpu().double() for logits in pair])


def _nodes(count: int) -> int:
    """Nodes of a cell with `count` edges: the n with n * (n + 3) / 2 = count."""
    nodes = (math.isqrt(9 + 8 * count) - 3) // 2
    if nodes < 1 or nodes * (nodes + 3) // 2 != count:
        raise ValueError(f"no cell has {count} edges (2, 5, 9, 14, ...)")
    return nodes


def _check_budget(costs: CostTable, budget: float) -> None:
    if math.isnan(budget):
        raise ConfigError("the budget is not a number")
    cheapest = cheapest_cost(costs)
    if budget < cheapest:
        raise BudgetError(
            f"no architecture fits a budget of {budget:.10g} {costs.unit}; "
            f"the cheapest costs {cheapest:.10g} {costs.unit}"
        )


def _costs_array(costs: CostTable) -> NDArray[np.float64]:
    return torch.stack([costs.normal, costs.reduce]).detach().cpu().numpy()
