"""A discrete architecture: which candidate each node of a cell applies to which earlier states.

The fields, and the textual form that `Genotype.parse` reads and `str` writes, are those of the
genotypes published with Liu et al., "DARTS: Differentiable Architecture Search" (ICLR 2019).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from metadnas_ext.space.candidates import FUSED, candidate
from metadnas_ext.space.cell_space import KEPT, Architecture

Pairs = tuple[tuple[str, int], ...]

INPUTS = 2
"""States a cell starts with: the outputs of the two cells before it."""


@dataclass(frozen=True)
class Genotype(Architecture):
    """The normal and the reduction cell of a discrete network.

    `normal` and `reduce` hold (primitive, source state), two per node, nodes in order; states 0 and
    1 are the cell's inputs, state 2 + i is node i. `normal_concat` and `reduce_concat` are the
    states that the cell's output concatenates: here always all nodes. Lists and ranges are taken
    and stored as tuples. Raises ValueError on an unknown primitive or `none`, a wrong number of
    pairs, a source that is not earlier than its node, one source used twice by a node, or a
    concatenation other than all nodes.
    """

    normal: Pairs
    normal_concat: tuple[int, ...]
    reduce: Pairs
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        normal = _checked_pairs("normal", self.normal)
        reduce = _checked_pairs("reduce", self.reduce)
        if len(normal) != len(reduce):
            raise ValueError(
                f"normal and reduce must have as many nodes, got {len(normal) // KEPT} "
                f"and {len(reduce) // KEPT}"
            )
        object.__setattr__(self, "normal", normal)  # frozen, but not yet handed out
        object.__setattr__(self, "reduce", reduce)
        everything = _all_nodes(self.nodes)
        for name in ("normal_concat", "reduce_concat"):
            concat = getattr(self, name)
            if len(concat) != self.nodes or tuple(concat) != everything:
                raise ValueError(f"{name} must be all nodes {everything}, got {concat!r}")
            object.__setattr__(self, name, everything)

    @classmethod
    def of(cls, normal: Sequence[tuple[str, int]], reduce: Sequence[tuple[str, int]]) -> Genotype:
        """Genotype whose cells concatenate all their nodes."""
        return cls(
            tuple(normal),
            _all_nodes(len(normal) // KEPT),
            tuple(reduce),
            _all_nodes(len(reduce) // KEPT),
        )

    @property
    def nodes(self) -> int:
        """Intermediate nodes of a cell."""
        return len(self.normal) // KEPT

    def operations(self) -> tuple[str, ...]:
        return tuple(primitive for primitive, _ in (*self.normal, *self.reduce))

    def to_json(self) -> dict[str, object]:
        """Plain lists under the field names, ready for `json.dump`."""
        return {
            "normal": [list(pair) for pair in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(pair) for pair in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Genotype:
        """Inverse of `to_json`. ValueError names missing, unknown or malformed fields."""
        known = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(known):
            got = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"a genotype has exactly the fields {', '.join(known)}; got {got}")
        for name in known:
            if not isinstance(data[name], (list, tuple, range)):
                raise ValueError(f"{name} must be a list, got {data[name]!r}")
        return cls(**data)  # type: ignore[arg-type]  # __post_init__ checks the elements

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Read the published form `Genotype(normal=[('skip_connect', 0), ...], ...)`.

        A concatenation may be a list or `range(start, stop)`. Nothing is evaluated. ValueError on
        anything else.
        """
        try:
            call = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"not a genotype: {error}") from None
        if (
            not isinstance(call, ast.Call)
            or not isinstance(call.func, ast.Name)
            or call.func.id != "Genotype"
            or call.args
        ):
            raise ValueError("not a genotype: expected Genotype(normal=[...], ...)")
        return cls.from_json({str(item.arg): _value(item) for item in call.keywords})

    def __str__(self) -> str:
        parts = (f"{field.name}={list(getattr(self, field.name))!r}" for field in fields(self))
        return f"Genotype({', '.join(parts)})"


def _all_nodes(nodes: int) -> tuple[int, ...]:
    return tuple(range(INPUTS, INPUTS + nodes))


def _checked_pairs(cell: str, pairs: Sequence[tuple[str, int]]) -> Pairs:
    """`pairs` as tuples, or a ValueError that names the cell and the node."""
    if not pairs or len(pairs) % KEPT:
        raise ValueError(f"{cell} must have {KEPT} pairs per node, got {len(pairs)}")
    checked = []
    for position, pair in enumerate(pairs):
        where = f"{cell} node {position // KEPT}"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{where}: expected (primitive, source), got {pair!r}")
        primitive, source = pair
        candidate(primitive, FUSED)
        if primitive == "none":
            raise ValueError(f"{where}: a discrete cell has no 'none'")
        earlier = INPUTS + position // KEPT
        if type(source) is not int or not 0 <= source < earlier:
            raise ValueError(f"{where}: the source must be an earlier state, got {source!r}")
        checked.append((primitive, source))
    for node in range(len(checked) // KEPT):
        first, second = checked[KEPT * node : KEPT * (node + 1)]
        if first[1] == second[1]:
            raise ValueError(f"{cell} node {node}: both edges come from state {first[1]}")
    return tuple(checked)


def _value(item: ast.keyword) -> object:
    """Value of a list literal or `range(...)` of integers."""
    node = item.value
    try:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "range" and not node.keywords:
            return range(*(ast.literal_eval(bound) for bound in node.args))
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"not a genotype: cannot read {item.arg}={ast.unparse(node)}") from None


DARTS_V1 = Genotype.of(
    normal=(
        *(("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
        *(("skip_connect", 0), ("sep_conv_3x3", 1)),
        *(("skip_connect", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 0), ("skip_connect", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("skip_connect", 2), ("max_pool_3x3", 0)),
        *(("max_pool_3x3", 0), ("skip_connect", 2)),
        *(("skip_connect", 2), ("avg_pool_3x3", 0)),
    ),
)
"""First-order DARTS on CIFAR-10 (Liu et al. 2019)."""

DARTS_V2 = Genotype.of(
    normal=(
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 1), ("skip_connect", 0)),
        *(("skip_connect", 0), ("dil_conv_3x3", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("skip_connect", 2)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
    ),
)
"""Second-order DARTS on CIFAR-10 (Liu et al. 2019)."""
