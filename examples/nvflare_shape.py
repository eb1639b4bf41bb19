"""The part of NVFlare that the example meets, where NVFlare is not installed: sites are threads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

_here = threading.local()  # each site's mailboxes


@dataclass
class FLModel:
    params: dict[str, Any] | None = None
    metrics: dict[str, float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    current_round: int | None = None
    total_rounds: int | None = None


class ModelAggregator(ABC):
    @abstractmethod
    def accept_model(self, model: FLModel): ...

    @abstractmethod
    def aggregate_model(self) -> FLModel: ...

    @abstractmethod
    def reset_stats(self): ...


def init() -> None:
    """Connects a site; here `simulate` has."""


def get_site_name() -> str:
    return _here.name


def is_running() -> bool:
    return True


def receive() -> FLModel | None:
    """None behind the last round."""
    return _here.inbox.get()


def send(model: FLModel) -> None:
    _here.outbox.put(model)


def simulate(
    script: Callable[[], None],
    params: dict[str, Any],
    aggregator: ModelAggregator,
    sites: int,
    rounds: int,
) -> None:
    """All rounds, sites one after the other, replies in their order."""
    boxes = [(Queue(), Queue()) for _ in range(sites)]

    def site(index: int) -> None:
        _here.name = f"site-{index + 1}"
        _here.inbox, _here.outbox = boxes[index]
        script()

    threads = [threading.Thread(target=site, args=(i,), daemon=True) for i in range(sites)]
    for thread in threads:
        thread.start()
    for index in range(rounds):
        aggregator.reset_stats()
        for inbox, outbox in boxes:
            inbox.put(FLModel(params, current_round=index, total_rounds=rounds))
            aggregator.accept_model(outbox.get(timeout=300))
        params = aggregator.aggregate_model().params
    for inbox, _ in boxes:
        inbox.put(None)
    for thread in threads:
        thread.join()
