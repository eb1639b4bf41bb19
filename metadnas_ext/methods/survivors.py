"""Rounds and personalisation go on without a client whose numbers are no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from metadnas_ext.errors import DivergenceError
from metadnas_ext.methods.base import Method, RoundFigures
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import Trained, client_result, finetune
from metadnas_ext.report.result import ClientResult

T = TypeVar("T")


def without_diverged(
    groups: Iterable[Sequence[int]], run: Callable[[list[int]], T]
) -> tuple[list[T], dict[int, str]]:
    """`run` of each group without the clients that diverge in it, and why those did, by client.

    A group with such a client is run again without it. A client's result is that of training alone,
    so the others get what they would have had without it; `run` must change nothing before its end.
    """
    finished: list[T] = []
    dropped: dict[int, str] = {}
    for group in groups:
        left = list(group)
        while left:
            try:
                finished.append(run(left))
                break
            except DivergenceError as error:
                found = {c: reason for c, reason in error.diverged.items() if c in left}
                if not found:
                    raise
                dropped |= found
                left = [client for client in left if client not in found]
    return finished, dict(sorted(dropped.items()))


def dropped_json(dropped: Mapping[int, str]) -> list[dict[str, Any]]:
    """As `RoundFigures.dropped` has it."""
    return [{"client": client, "reason": reason} for client, reason in dropped.items()]


def lost_round(sampled: list[int], dropped: Mapping[int, str], bytes_down: int) -> RoundFigures:
    """Figures of a round that no client survived."""
    return RoundFigures(sampled, None, None, None, 0, bytes_down, dropped=dropped_json(dropped))


def personalised(method: Method, clients: Sequence[int]) -> list[ClientResult]:
    """`method.personalise`; a client that diverges gets the method's fallback, without training.

    Its result says why in `diverged`. Clients in ascending order.
    """
    finished, dropped = without_diverged([clients], method.personalise)
    results = [result for results in finished for result in results]
    results += [_untrained(method, client, reason) for client, reason in dropped.items()]
    return sorted(results, key=lambda result: result.client)


def _untrained(method: Method, client: int, reason: str) -> ClientResult:
    model, federation = method.fallback(client), method.federation
    try:
        trained = finetune(
            federation,
            {client: model.genotype},
            {client: (model.theta, model.running)},
            0,
            "fallback",
            curve=AdaptationCurve(federation),
            recalibrated=model.recalibrated,
        )[client]
    except DivergenceError:  # even without training: nothing can be measured
        trained = Trained(model.genotype, math.nan, math.nan)
    return replace(client_result(federation, client, trained, model.kept), diverged=reason)
