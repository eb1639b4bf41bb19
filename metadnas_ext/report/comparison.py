"""Methods side by side: one row of figures for each, over all clients and seeds of a study."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metadnas_ext.errors import ConfigError
from metadnas_ext.files import write_atomic, write_json
from metadnas_ext.report import statistics
from metadnas_ext.report.run import Run
from metadnas_ext.report.statistics import Interval
from metadnas_ext.report.study import Study

OWN = "meta_dnas"
"""The method that others are compared with, if it ran."""
BASELINE = "fedavg_ft"
"""The method that a client is harmed against: FedAvg + fine-tuning."""


@dataclass(frozen=True)
class MethodFigures:
    """One method. Accuracies and shares in 0..1; NaN: not measured, or there is no such figure.

    All but `clients`, `missing`, `diverged` and `violations`, which are sums, are means over seeds.
    """

    method: str
    seeds: int
    clients: int
    missing: int
    """Clients without a test accuracy; no figure counts them."""
    diverged: int
    """Clients whose own training diverged: their network is what the server has for them."""
    mean: float
    std: float
    """Over the clients of a seed (population)."""
    seed_std: float
    """Of the means over seeds (n - 1)."""
    worst_decile: float
    """Mean of the lowest 10 % of clients."""
    seen_mean: float
    unseen_mean: float
    harmed: float
    """Share of clients that are worse off than under BASELINE."""
    gain: float
    """Mean over clients of the reference's accuracy minus this method's."""
    gain_low: float
    gain_high: float
    """Paired 95 % bootstrap interval of `gain`; see `statistics.bootstrap_interval`."""
    mean_cost: float
    unit: str
    violations: int
    """Clients whose network costs more than they allow."""
    seconds: float
    """Of search: rounds and personalisation."""
    rounds: float
    bytes_up: float
    bytes_down: float
    bytes_up_round: float
    bytes_down_round: float
    rounds_to_target: float
    """First round whose validation accuracy reaches the target; the mean over seeds that do."""
    reached: int
    """Seeds that reach the target."""
    epochs_to_match: float
    """Local epochs of adaptation after which the reference is as accurate as this method's end.

    NaN, too, if in one of the seeds it never is.
    """


@dataclass(frozen=True)
class Comparison:
    """Rows in the order in which methods ran; `reference` is what `gain` is the gain of.

    `target` is the validation accuracy of `rounds_to_target`, NaN if there is none to reach.
    """

    rows: tuple[MethodFigures, ...]
    reference: str
    target: float
    seeds: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Strict JSON values: what is not finite becomes null."""
        return {
            "reference": self.reference,
            "baseline": BASELINE,
            "target": _finite(self.target),
            "seeds": list(self.seeds),
            "confidence": statistics.CONFIDENCE,
            "methods": [{k: _finite(v) for k, v in asdict(row).items()} for row in self.rows],
        }

    def to_csv(self) -> str:
        """One line a method, under the names of `MethodFigures`; empty: not measured."""
        text = io.StringIO()
        names = list(MethodFigures.__dataclass_fields__)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_json()["methods"])
        return text.getvalue()


def compare(study: Study, target: float | None = None) -> Comparison:
    """Compares every method of the study that has results.

    `target` is a validation accuracy in 0..1; None: the highest that every method with rounds
    reaches in every seed. ConfigError if it is out of range.
    """
    check_target(target)
    methods = [method for method in study.methods if study.of(method)]
    reference = OWN if OWN in methods else next(iter(methods), "")
    reached = _common_accuracy(study, methods) if target is None else target
    rows = tuple(_figures(study, method, reference, reached) for method in methods)
    return Comparison(rows, reference, reached, tuple(study.seeds))


def check_target(target: float | None) -> None:
    """ConfigError unless None or an accuracy that can be reached."""
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target is {target}, expected a validation accuracy above 0, up to 1")


def write_comparison(comparison: Comparison, markdown: str, folder: Path) -> list[Path]:
    """Writes `comparison.csv`, `.json` and, given as text, `.md`, each whole or not at all."""
    paths = [folder / f"comparison.{kind}" for kind in ("csv", "json", "md")]
    write_atomic(paths[0], comparison.to_csv().encode())
    write_json(paths[1], comparison.to_json())
    write_atomic(paths[2], markdown.encode())
    return paths


def _figures(study: Study, method: str, reference: str, target: float) -> MethodFigures:
    runs = study.of(method)
    parts = [statistics.summary(run.results[method]) for run in runs]

    def average(key: str) -> float:
        return statistics.mean_of_finite([part[key] for part in parts])

    def total(key: str) -> int:
        return round(sum(part[key] for part in parts))

    up, down = zip(*(run.traffic(method) for run in runs), strict=True)
    rounds = [float(len(run.history(method))) for run in runs]
    hits = [_rounds_to(run, method, target) for run in runs]
    gain, interval = _gain(study, reference, method)
    units = {result.unit for _, result in study.clients(method)}
    return MethodFigures(
        method=method,
        seeds=len(runs),
        clients=total("clients"),
        missing=total("missing"),
        diverged=sum(result.diverged is not None for _, result in study.clients(method)),
        mean=average("mean"),
        std=average("std"),
        seed_std=statistics.sample_std([part["mean"] for part in parts]),
        worst_decile=average("worst_decile"),
        seen_mean=average("seen_mean"),
        unseen_mean=average("unseen_mean"),
        harmed=statistics.harmed_share(_paired(study, method, BASELINE)),
        gain=gain,
        gain_low=interval.low,
        gain_high=interval.high,
        mean_cost=average("mean_cost") if len(units) == 1 else math.nan,
        unit=units.pop() if len(units) == 1 else "",
        violations=total("violations"),
        seconds=statistics.mean_of_finite([run.seconds(method) for run in runs]),
        rounds=statistics.mean(rounds),
        bytes_up=statistics.mean_of_finite(up),
        bytes_down=statistics.mean_of_finite(down),
        bytes_up_round=_per_round(up, rounds),
        bytes_down_round=_per_round(down, rounds),
        rounds_to_target=statistics.mean_of_finite(hits),
        reached=sum(math.isfinite(hit) for hit in hits),
        epochs_to_match=_epochs_to_match(study, reference, method),
    )


def _paired(study: Study, one: str, other: str) -> list[statistics.Array]:
    """one - other for every client that has both, by seed."""
    mine, theirs = study.accuracy(one), study.accuracy(other)
    return [statistics.differences(mine[s], theirs[s]) for s in sorted(mine) if s in theirs]


def _gain(study: Study, reference: str, method: str) -> tuple[float, Interval]:
    if method == reference:
        return math.nan, statistics.UNKNOWN
    strata = _paired(study, reference, method)
    interval = statistics.bootstrap_interval(strata, reference, method)
    return statistics.stratified_mean(strata), interval


def _common_accuracy(study: Study, methods: list[str]) -> float:
    """The highest validation accuracy that every method with rounds reaches in every seed."""
    best = [
        max((r.val_accuracy for r in rounds if math.isfinite(r.val_accuracy)), default=math.nan)
        for method in methods
        for run in study.of(method)
        if (rounds := run.history(method))
    ]
    return min((value for value in best if math.isfinite(value)), default=math.nan)


def _rounds_to(run: Run, method: str, target: float) -> float:
    return statistics.rounds_to([r.val_accuracy for r in run.history(method)], target)


def _per_round(totals: tuple[float, ...], rounds: list[float]) -> float:
    pairs = zip(totals, rounds, strict=True)
    return statistics.mean_of_finite([total / n for total, n in pairs if n])


def _epochs_to_match(study: Study, reference: str, method: str) -> float:
    if method == reference:
        return math.nan
    targets = study.accuracy(method)
    return statistics.mean(
        [
            statistics.epochs_to(run.results[reference], targets[run.seed], size)
            for run in study.of(reference)
            if run.seed in targets and (size := run.setting("client", "batch_size")) is not None
        ]
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
