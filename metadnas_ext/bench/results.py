"""The figures of a run of benchmarks, and the JSON they are kept in."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metadnas_ext.bench.case import COMPILED, GRAPH, OURS, Work
from metadnas_ext.errors import BenchmarkError
from metadnas_ext.files import write_json

SCHEMA = 1


@dataclass
class VariantResult:
    """Times of one variant in seconds a step, in the order measured.

    first: seconds of the first step, with all that is set up or compiled on the way. error: largest
    relative L2 error, None where there is nothing to compare. saved_bytes: most bytes of
    activations held for the backward pass at once. peak_bytes: what a step adds to the resident
    memory.
    """

    seconds: list[float]
    first: float
    error: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds; 0 of a single run."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low


@dataclass
class CaseResult:
    """One case. sgemm: FLOP/s of a large matrix product, copy: bytes/s of a large copy, both
    medians over the same minutes; None where the case's work is not known in that unit."""

    name: str
    title: str
    params: dict[str, int]
    variants: dict[str, VariantResult]
    work: Work = field(default_factory=Work)
    sgemm: float | None = None
    copy: float | None = None
    note: str = ""

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    @property
    def ours(self) -> VariantResult:
        """What the others are measured by: the CUDA graph, if there is one."""
        return self.variants.get(OURS + GRAPH, self.variants[OURS])

    def shown(self) -> dict[str, VariantResult]:
        """Variants as reports show them: of torch.compile's modes only the fastest; ours last."""
        modes = {n: v for n, v in self.variants.items() if n.startswith(COMPILED)}
        own = {n: v for n, v in self.variants.items() if n in (OURS, OURS + GRAPH)}
        shown = {n: v for n, v in self.variants.items() if n not in modes and n not in own}
        if modes:
            shown[COMPILED] = min(modes.values(), key=lambda variant: variant.median)
        return {**shown, **own}

    def ratios(self) -> dict[str, float]:
        """How many times as long as ours each other variant takes."""
        shown = self.shown()
        return {n: v.median / self.ours.median for n, v in shown.items() if v is not self.ours}

    def to_json(self) -> dict[str, Any]:
        variants = {
            name: {
                **asdict(variant),
                "median": variant.median,
                "min": min(variant.seconds),
                "iqr": variant.spread,
            }
            for name, variant in self.variants.items()
        }
        return {**asdict(self), "variants": variants, "ratios": self.ratios()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseResult:
        variants = {
            name: VariantResult(**{key: entry[key] for key in VariantResult.__annotations__})
            for name, entry in data["variants"].items()
        }
        plain = ("name", "title", "params", "sgemm", "copy", "note")
        result = cls(
            **{key: data[key] for key in plain}, variants=variants, work=Work(**data["work"])
        )
        if OURS not in variants or not all(_timed(variant) for variant in variants.values()):
            raise ValueError(f"{result.name} lacks times")
        return result


@dataclass
class Results:
    """A whole run. date: ISO 8601, UTC. commit: of the checkout, if it was one."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    date: str
    commit: str | None
    settings: dict[str, Any]
    cases: list[CaseResult]

    def add(self, case: CaseResult) -> None:
        """Keeps cases of one group together, groups in the order in which they came."""
        groups = list(dict.fromkeys(known.group for known in (*self.cases, case)))
        self.cases = sorted((*self.cases, case), key=lambda known: groups.index(known.group))

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        data = {**vars(self), "cases": [case.to_json() for case in self.cases]}
        write_json(path, {"schema": SCHEMA, **data})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads what `save` wrote. Raises BenchmarkError on anything else."""
        try:
            data = json.loads(path.read_bytes())
            if data["schema"] != SCHEMA:
                raise BenchmarkError(
                    f"{path} has schema {data['schema']}, this version reads {SCHEMA}"
                )
            cases = [CaseResult.from_json(case) for case in data["cases"]]
            names = ("machine", "versions", "date", "commit", "settings")
            return cls(**{name: data[name] for name in names}, cases=cases)
        except OSError as error:
            raise BenchmarkError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(
                f"{path} does not hold benchmark results ({type(error).__name__}: {error})"
            ) from None


def _timed(variant: VariantResult) -> bool:
    return bool(variant.seconds) and all(
        math.isfinite(seconds) and seconds > 0 for seconds in variant.seconds
    )
