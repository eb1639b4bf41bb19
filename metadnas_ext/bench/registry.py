"""All cases, and which of them a command line means."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from metadnas_ext.bench.case import Case
from metadnas_ext.bench.cases import aggregation, cohorts, mixed_op, networks, search, stages
from metadnas_ext.errors import BenchmarkError

CASES: dict[str, Case] = {
    case.name: case
    for module in (mixed_op, cohorts, networks, search, stages, aggregation)
    for case in module.CASES
}

GROUPS: dict[str, str] = {
    "mixed_op": "One mixed operation, forward and backward, batch 64",
    "cohort": "One mixed operation of 8 clients with 8 images each, stride 1, forward and backward",
    "supernet": "A training step of a whole supernet: cross-entropy, forward and backward",
    "supernet_cohort": "That step of a cohort of clients with supernets of their own",
    "fuse": "The same step of ordinary modules, converted by `fuse(model)`",
    "search_step": "One step on α and one on w",
    "search_epoch": "A part of an epoch: steps on α and on w in turn",
    "federated_round": "A round of Meta-DNAS: 8 channels, 3 cells, 32 images of 8×8 a client",
    "derived": "A discrete network (DARTS V2)",
    "stage": "Stages bound by memory",
    "aggregation": "Aggregation over clients",
}
"""What a group measures, in the order of reports."""


def select(patterns: Sequence[str] = (), full: bool = False, large: bool = False) -> list[Case]:
    """The cases that names, groups or glob patterns mean, in the order of the registry.

    Without patterns: the quick cases, or all with `full`, those for a GPU only if `large`. Raises
    BenchmarkError on a pattern that means nothing, naming what comes near.
    """
    ordered = sorted(CASES.values(), key=lambda case: list(GROUPS).index(case.group))
    if not patterns:
        return [case for case in ordered if case.quick or (full and (large or not case.large))]
    for pattern in patterns:
        if not any(_means(pattern, case) for case in ordered):
            raise BenchmarkError(_unknown(pattern))
    return [case for case in ordered if any(_means(pattern, case) for pattern in patterns)]


def _means(pattern: str, case: Case) -> bool:
    return pattern == case.group or fnmatch.fnmatchcase(case.name, pattern)


def _unknown(pattern: str) -> str:
    known = [*GROUPS, *CASES]
    close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"groups: {', '.join(GROUPS)}"
    return f"no benchmark case matches {pattern!r}; {hint} (all: metadnas bench --list)"
