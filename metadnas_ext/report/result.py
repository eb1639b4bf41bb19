"""What one client reached at the end of a run; one entry of `results.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from metadnas_ext.errors import RunError
from metadnas_ext.report import fields

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["personal", "meta", "fixed"]
"""Which architecture the client ended with: its own, the server's or one not searched."""

# Costs are sums of floats, so the order of adding may move the last bits.
BUDGET_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class ClientResult:
    """Outcome of one client. Accuracies are in 0..1; NaN marks a figure that was not measured.

    None: the method has no such figure, or the run is older than it.
    """

    client: int
    seen: bool
    train_size: int
    test_size: int
    test_accuracy: float
    val_accuracy: float
    cost: float
    budget: float | None
    unit: str
    kept: Kept
    weights: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)
    """Parameters and running statistics by name, on their way to `models/`; not in the JSON.

    None or empty: there is no network that could be kept.
    """
    genotype: dict[str, Any] | None = None
    supernet_accuracy: float | None = None
    """On the test part, of the client's searched supernet: before discretisation."""
    discrete_accuracy: float | None = None
    """On the test part, of the network kept, with inherited weights, before fine-tuning."""
    expected_cost: float | None = None
    """What the searched mixture promised, beside `cost`, what its architecture has; in `unit`."""
    steps: int | None = None
    """Optimiser steps on w from the state the server sent to the network kept."""
    adaptation: dict[str, float] | None = None
    """Test accuracy by the number of those steps; behind the last one, that of the end."""
    device: str | None = None
    """On what the cost counts: a device profile, or its unit."""
    diverged: str | None = None
    """Why the client has a network without training of its own; None: it trained as it should."""

    @property
    def ended_with(self) -> str:
        """`kept` for people, with a word on a network that the client did not train."""
        return self.kept if self.diverged is None else f"{self.kept} (diverged)"

    @property
    def over_budget(self) -> bool:
        """Whether the architecture costs more than the client allows."""
        return self.budget is not None and self.cost > self.budget * (1 + BUDGET_TOLERANCE)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ClientResult:
        """Read one entry; keys this version does not know are ignored.

        Raises RunError naming the key that is missing, of the wrong type or out of range.
        """
        kept = fields.text(record, "kept")
        if kept not in get_args(Kept):
            raise RunError(f"'kept' must be one of {', '.join(get_args(Kept))}, got {kept!r}")
        genotype = record.get("genotype")
        budget = fields.number(record, "budget")
        device, diverged = (
            None if record.get(key) is None else fields.text(record, key)
            for key in ("device", "diverged")
        )
        return cls(
            client=fields.integer(record, "client"),
            seen=fields.boolean(record, "seen"),
            train_size=fields.integer(record, "train_size"),
            test_size=fields.integer(record, "test_size"),
            test_accuracy=fields.fraction(record, "test_accuracy"),
            val_accuracy=fields.fraction(record, "val_accuracy"),
            cost=fields.number(record, "cost"),
            budget=None if math.isnan(budget) else budget,
            unit=fields.text(record, "unit"),
            kept=cast(Kept, kept),
            genotype=None if genotype is None else fields.mapping(genotype, "'genotype'"),
            supernet_accuracy=_finite(fields.fraction(record, "supernet_accuracy")),
            discrete_accuracy=_finite(fields.fraction(record, "discrete_accuracy")),
            expected_cost=_finite(fields.number(record, "expected_cost")),
            steps=None if record.get("steps") is None else fields.integer(record, "steps"),
            adaptation=_adaptation(record),
            device=device,
            diverged=diverged,
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of strict JSON values: what is not finite becomes null."""
        return {
            "client": self.client,
            "seen": self.seen,
            "train_size": self.train_size,
            "test_size": self.test_size,
            "test_accuracy": _finite(self.test_accuracy),
            "val_accuracy": _finite(self.val_accuracy),
            "cost": _finite(self.cost),
            "budget": _finite(self.budget),
            "unit": self.unit,
            "kept": self.kept,
            "genotype": self.genotype,
            "supernet_accuracy": _finite(self.supernet_accuracy),
            "discrete_accuracy": _finite(self.discrete_accuracy),
            "expected_cost": _finite(self.expected_cost),
            "steps": self.steps,
            "adaptation": self.adaptation,
            "device": self.device,
            "diverged": self.diverged,
        }


def _adaptation(record: Mapping[str, Any]) -> dict[str, float] | None:
    if record.get("adaptation") is None:
        return None
    curve = fields.mapping(record["adaptation"], "'adaptation'")
    wrong = [step for step in curve if not step.isdecimal()]
    if wrong:
        raise RunError(f"'adaptation' must have numbers of steps as keys, got {wrong[0]!r}")
    return {step: fields.fraction(curve, step) for step in curve}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
