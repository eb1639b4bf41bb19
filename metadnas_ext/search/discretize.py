"""From architecture parameters to a discrete architecture, exactly and within a cost budget.

Without a budget this is the rule of Liu et al., "DARTS" (ICLR 2019), section 2.4: each node keeps
the two incoming edges with the largest max-over-candidates p, each with that candidate; in
NAS-Bench-201 every edge is kept. With one, the architecture of largest summed log p among those
that fit it; both coincide where the budget does not bind. Scores are those of the relaxation. A
skip cap limits the skip connections of each cell type: a search that collapses fills cells with
them (Chen et al., "P-DARTS", ICCV 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadnas_ext._native import _C, REFERENCE
from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation
from metadnas_ext.space.cell_space import KEPT, Architecture, CellSpace, Choice
from metadnas_ext.space.cost import CostTable, cheapest_cost, dearest_cost, genotype_cost
from metadnas_ext.space.darts import DARTSCells

SKIP = "skip_connect"

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Alpha = Sequence[Tensor] | Mapping[str, Tensor]


def discretize(
    alpha: Alpha,
    costs: CostTable | None = None,
    budget: float | None = None,
    *,
    beta: Sequence[Tensor] | None = None,
    relaxation: Relaxation = SOFTMAX,
    max_skips: int | None = None,
) -> Architecture:
    """Best architecture under `alpha`, jointly over all cell types, with cost <= `budget`.

    `alpha`: logits [edges, candidates] of each cell type, in the space's order or under its names
    ("normal" and "reduce", or "cell"). `costs` names the space (without it: DARTS with all
    candidates) and the unit of `budget`. `relaxation` makes the scores, in float64: of softmax,
    log p over all candidates; `none` takes part but is never chosen in a DARTS cell. `beta`: logits
    [edges] of each cell type, whose normalised weights multiply p (PC-DARTS). At most `max_skips`
    edges of a cell are skip_connect. Ties: lower cost if there is a budget, then the
    lexicographically smallest sequence of (edge, candidate). A node's edges come in the order of
    their sources.

    Raises ValueError on non-finite or misshapen logits, ConfigError on a budget without costs or
    not a number or a cap that nothing keeps, BudgetError when nothing is as cheap as the budget.
    """
    space = DARTSCells(_nodes(alpha)) if costs is None else costs.space
    log_p = relaxation.log_scores(_logits(alpha, space))  # (types, edges, candidates)
    if beta is not None:
        edges = torch.stack([b.detach().cpu().double() for b in beta])
        log_p = log_p + space.edge_log_weights(edges)[..., None]
    scores = log_p.numpy()
    check_cap(space, max_skips)
    if budget is None:
        return _solve(scores, np.zeros_like(scores), space, 0.0, math.inf, max_skips=max_skips)
    if costs is None:
        raise ConfigError("a budget needs a cost table")
    _check_budget(costs, budget, max_skips)
    return _solve(scores, _costs_array(costs), space, costs.fixed, budget, max_skips=max_skips)


def max_cost_genotype(costs: CostTable, budget: float, gap: float = 2**-8) -> Architecture:
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
    return _solve(array, array, costs.space, costs.fixed, budget, gap * span)


def cheapest_within(costs: CostTable, max_skips: int | None = None) -> float:
    """Least cost of an architecture with at most `max_skips` skip connections in a cell."""
    if max_skips is None:
        return cheapest_cost(costs)
    check_cap(costs.space, max_skips)
    prices = _costs_array(costs)
    cheapest = _solve(-prices, prices, costs.space, costs.fixed, math.inf, max_skips=max_skips)
    return genotype_cost(costs, cheapest)


def check_cap(space: CellSpace, max_skips: int | None) -> None:
    """ConfigError if no cell has as few skip connections."""
    choosable = {space.candidates[column] for column in space.choosable()}
    needed = KEPT * len(space.groups()) if choosable == {SKIP} else 0
    if max_skips is not None and max_skips < needed:
        raise ConfigError(
            f"max_skips is {max_skips}, but only {SKIP} can be chosen, {needed} times a cell"
        )


def reference_solve(
    scores: Array,
    costs: Array,
    nodes: int,
    forbidden: int,
    fixed: float,
    budget: float,
    gap: float = 0.0,
    capped: int = -1,
    cap: int = 0,
    parts: int = 1,
) -> tuple[float, float, list[int], list[int]]:
    """Twin of `_C.discretize_solve` (csrc/discretize/solver.h) without its bounds: same answers.

    `scores`, `costs`: [types, edges, candidates]; the answer is (score, cost, edges, candidates),
    the latter two [types * nodes * 2]. ValueError when nothing fits the budget and the cap.
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
        used = (pairs % candidates == capped).sum(-1)
        fronts.append(_front(_Entries(cost, score, used, pairs), step))
    states = _Entries(
        np.array([fixed]), np.zeros(1), np.zeros(1, np.int64), np.zeros((1, 0), np.int64)
    )
    for node, front in enumerate(fronts):
        i, j = (x.ravel() for x in np.indices((len(states.cost), len(front.cost))))
        total = states.cost[i] + front.cost[j]
        least = total.copy()  # folds the cheapest rest exactly as a complete choice would be
        for rest in fronts[node + 1 :]:
            least += rest.cost.min()
        used = states.used[i] + front.used[j]
        fits = (least <= budget) & (used <= cap)
        i, j, total, used = i[fits], j[fits], total[fits], used[fits]
        if not len(i):
            raise ValueError("discretize_solve: no architecture fits the budget and the cap")
        if (node + 1) % (nodes * parts) == 0:
            used = np.zeros_like(used)  # the cap is on each cell
        choice = np.concatenate([states.choice[i], front.choice[j]], -1)  # (states, 2 (node + 1))
        merged = _Entries(total, states.score[i] + front.score[j], used, choice)
        states = _front(merged, step)
    best = states.choice[-1]  # a front rises in score
    return (
        float(states.score[-1]),
        float(states.cost[-1]),
        (best // candidates).tolist(),
        (best % candidates).tolist(),
    )


class _Entries(NamedTuple):
    """Ways to wire some nodes: sums, uses of the capped candidate in this cell, operations."""

    cost: Array
    score: Array
    used: Indices
    choice: Indices  # (entries, operations)


def _front(entries: _Entries, step: float) -> _Entries:
    """By rising use and cost, those that score by more than `step` above all cheaper ones.

    Only entries that use the capped candidate as often are compared.
    """
    cost, score, used, choice = entries
    order = np.lexsort((*choice.T[::-1], -score, cost, used))
    kept, best, level = [], -math.inf, -1
    for index in order.tolist():
        if used[index] != level:
            best, level = -math.inf, used[index]
        if score[index] > best + step:
            kept.append(index)
            best = score[index]
    return _Entries(cost[kept], score[kept], used[kept], choice[kept])


def _solve(
    scores: Array,
    costs: Array,
    space: CellSpace,
    fixed: float,
    budget: float,
    gap: float = 0.0,
    max_skips: int | None = None,
) -> Architecture:
    nodes = space.solver_nodes
    # The solver's types are the cell types of the space, or as many equal parts of each.
    each, parts = nodes * (nodes + 3) // 2, len(space.groups()) // nodes
    size = (-1, each, len(space.candidates))
    capped, cap = -1, 0
    if max_skips is not None and SKIP in space.candidates:
        capped, cap = space.candidates.index(SKIP), max_skips
    solve = reference_solve if REFERENCE else _C.discretize_solve
    scores, costs = scores.reshape(size), costs.reshape(size)
    _, _, kept, chosen = solve(
        scores, costs, nodes, space.forbidden, fixed, budget, gap, capped, cap, parts
    )
    choices = []
    for position, (edge, column) in enumerate(zip(kept, chosen, strict=True)):
        cell_type, own_edge = divmod(position // (KEPT * nodes) * each + edge, len(space.edges))
        choices.append(Choice(cell_type, own_edge, column))
    return space.architecture(choices)


def _logits(alpha: Alpha, space: CellSpace) -> Tensor:
    """All cell types' logits as one float64 [types, edges, candidates] on the CPU."""
    types, edges, candidates = space.alpha_shape
    if isinstance(alpha, Mapping):
        missing = [name for name in space.types if name not in alpha]
        if missing:
            raise ValueError(f"alpha has no {missing[0]!r}, only {', '.join(map(str, alpha))}")
        alpha = [alpha[name] for name in space.types]
    if len(alpha) != types:
        raise ValueError(f"alpha must be one matrix for each of {', '.join(space.types)}")
    for name, logits in zip(space.types, alpha, strict=True):
        if tuple(logits.shape) != (edges, candidates):
            raise ValueError(
                f"{name} alpha must be [{edges}, {candidates}], got {list(logits.shape)}"
            )
        if not bool(torch.isfinite(logits).all()):
            edge, column = (~torch.isfinite(logits)).nonzero()[0].tolist()
            raise ValueError(
                f"{name} alpha is not finite at edge {edge}, candidate {column}: "
                f"{logits[edge, column].item()}"
            )
    return torch.stack([logits.detach().cpu().double() for logits in alpha])


def _nodes(alpha: Alpha) -> int:
    """Nodes of a DARTS cell by its number of edges: the n with n * (n + 3) / 2 of them."""
    first = next(iter(alpha.values() if isinstance(alpha, Mapping) else alpha))
    count = first.shape[0]
    nodes = (math.isqrt(9 + 8 * count) - 3) // 2
    if nodes < 1 or nodes * (nodes + 3) // 2 != count:
        raise ValueError(f"no cell has {count} edges (2, 5, 9, 14, ...)")
    return nodes


def _check_budget(costs: CostTable, budget: float, max_skips: int | None = None) -> None:
    if math.isnan(budget):
        raise ConfigError("the budget is not a number")
    cheapest = cheapest_within(costs, max_skips)
    if budget < cheapest:
        raise BudgetError(
            f"no architecture fits a budget of {budget:.10g} {costs.unit}; "
            f"the cheapest costs {cheapest:.10g} {costs.unit}"
        )


def _costs_array(costs: CostTable) -> Array:
    return costs.cells.detach().cpu().numpy()
