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

from metadnas_ext._native import _C, REFERENCE
from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.space.cost import CostTable, cheapest_cost, dearest_cost, edges
from metadnas_ext.space.genotype import KEPT, Genotype
from metadnas_ext.space.primitives import PRIMITIVES

CELL_TYPES = ("normal", "reduce")

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
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


def reference_solve(
    scores: Array, costs: Array, nodes: int, forbidden: int, fixed: float, budget: float, gap: float
) -> tuple[float, float, list[int], list[int]]:
    """Twin of `_C.discretize_solve` (csrc/discretize/solver.h) without its bounds: same answers.

    `scores`, `costs`: [types, edges, candidates]; the answer is (score, cost, edges, candidates),
    the latter two [types * nodes * 2]. ValueError when nothing fits the budget.
    """
    types, count, candidates = scores.shape
    step = gap / (2 * types * nodes)  # one loss per node front and per merge
    fronts = []
    for node in range(types * nodes):
        cell, first = node // nodes, node % nodes * (node % nodes + 3) // 2
        operations = np.arange(first * candidates, (first + node % nodes + 2) * candidates)
        operations = operations[operations % candidates != forbidden]
        a, b = (x.ravel() for x in np.meshgrid(operations, operations, indexing="ij"))
        distinct = a // candidates < b // candidates
        pairs = np.stack([a[distinct], b[distinct]], -1)  # (choices, 2)
        cost, score = (t[cell].reshape(count * candidates)[pairs].sum(-1) for t in (costs, scores))
        fronts.append(_front(cost, score, pairs, step))
    cost, score, taken = np.array([fixed]), np.zeros(1), np.zeros((1, 0), dtype=np.int64)
    for node, (node_cost, node_score, pairs) in enumerate(fronts):
        i, j = (x.ravel() for x in np.indices((len(cost), len(node_cost))))
        total = cost[i] + node_cost[j]
        least = total.copy()  # folds the cheapest rest exactly as a complete choice would be
        for rest_cost, _, _ in fronts[node + 1 :]:
            least += rest_cost[0]
        fits = least <= budget
        i, j, total = i[fits], j[fits], total[fits]
        if not len(i):
            raise ValueError("discretize_solve: no architecture fits the budget")
        taken = np.concatenate([taken[i], pairs[j]], -1)  # (states, 2 * (node + 1))
        cost, score, taken = _front(total, score[i] + node_score[j], taken, step)
    best = taken[-1]  # a front rises in score
    return (
        float(score[-1]),
        float(cost[-1]),
        (best // candidates).tolist(),
        (best % candidates).tolist(),
    )


def _front(cost: Array, score: Array, choice: Indices, step: float) -> tuple[Array, Array, Indices]:
    """Entries by rising cost whose score exceeds every cheaper one's by more than `step`."""
    order = np.lexsort((*choice.T[::-1], -score, cost))
    kept, best = [], -math.inf
    for index, value in zip(order.tolist(), score[order].tolist(), strict=True):
        if value > best + step:
            kept.append(index)
            best = value
    return cost[kept], score[kept], choice[kept]


def _solve(
    scores: Array,
    costs: Array,
    nodes: int,
    candidates: tuple[str, ...],
    fixed: float,
    budget: float,
    gap: float = 0.0,
) -> Genotype:
    forbidden = candidates.index("none") if "none" in candidates else -1
    solve = reference_solve if REFERENCE else _C.discretize_solve
    _, _, kept, chosen = solve(scores, costs, nodes, forbidden, fixed, budget, gap)
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


def _costs_array(costs: CostTable) -> Array:
    return torch.stack([costs.normal, costs.reduce]).detach().cpu().numpy()
