"""What comes from elsewhere behind the last round: rows that stayed on clients, and results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metadnas_ext.errors import RunError
from metadnas_ext.federated.screening import (
    HEADER_BYTES,
    Arrived,
    RefusedError,
    Where,
    by_client,
    check_tensors,
    only_one,
    opened,
)
from metadnas_ext.methods import Method
from metadnas_ext.methods.derived import Trained, client_result
from metadnas_ext.report.result import ClientResult
from metadnas_ext.space import architecture_from_json

OF_THE_SERVER = ("client", "seen", "train_size", "test_size", "cost", "budget", "unit", "device")
"""Fields of a result that the server knows itself."""


def screened_rows(
    method: Method, where: Where, holders: Mapping[int, int], arrived: Iterable[Arrived]
) -> tuple[dict[int, dict[str, Tensor]], dict[int, str]]:
    """Rows by client and name, and why those of other clients are missing."""
    widths = {rows.name: rows.width for rows in method.client_rows}
    most = HEADER_BYTES + 4 * sum(widths.values())
    own, _ = by_client(holders, arrived)
    found, dropped = {}, {}
    for client, sent in own.items():
        try:
            _, rows = opened(where, client, only_one(sent, "no reply"), most)
            least = {n: torch.full((widths[n],), -math.inf) for n in rows.keys() & widths.keys()}
            check_tensors(rows, least)
            found[client] = rows
        except RefusedError as error:
            dropped[client] = str(error)
    return found, dropped


def screened_results(
    method: Method, where: Where, holders: Mapping[int, int], arrived: Iterable[Arrived]
) -> list[ClientResult]:
    """One a client; what is not in order is a result without accuracy, and says why."""
    own, _ = by_client(holders, arrived)
    results = []
    for client, sent in own.items():
        try:
            data = only_one(sent, "no reply")
            header, _ = opened(where, client, data, HEADER_BYTES)
            results.append(_result(method, client, header.get("result")))
        except RefusedError as error:
            results.append(_unjudged(method, client, str(error)))
    return results


def _result(method: Method, client: int, found: Any) -> ClientResult:
    """RefusedError if it is none, or differs from what the server knows itself."""
    try:
        result = ClientResult.from_json(found)
        architecture = architecture_from_json(result.genotype or {})
        trained = Trained(architecture, result.val_accuracy, result.test_accuracy)
        expected = client_result(method.federation, client, trained, result.kept)
    except (RunError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RefusedError(f"result: {error}") from None
    for name in OF_THE_SERVER:
        own, wanted = getattr(result, name), getattr(expected, name)
        if own != wanted:
            raise RefusedError(f"result: {name} is {own!r}, expected {wanted!r}")
    if result.over_budget:
        raise RefusedError(f"result: cost is {result.cost:g}, budget {result.budget:g}")
    return result


def _unjudged(method: Method, client: int, reason: str) -> ClientResult:
    model = method.fallback(client)
    trained = Trained(model.genotype, math.nan, math.nan)
    return replace(client_result(method.federation, client, trained, model.kept), diverged=reason)
