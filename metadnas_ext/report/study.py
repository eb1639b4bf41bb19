"""Runs that belong together: one configuration or variants of it, one or more seeds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metadnas_ext.errors import RunError
from metadnas_ext.report.names import variant
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import Run, load_run

SEED_FOLDER = "seed-{}"
"""Name of one seed's run folder below the folder of a comparison with several."""
_SEED_FOLDER = re.compile(r"seed-(\d+)")

# What may differ between runs that are compared: it changes no figure but by rounding, or is what
# is averaged over.
_FREE = (
    "methods",
    "data.data_dir",
    "data.download",
    "client.graphs",
    "run.seed",
    "run.device",
    "run.threads",
    "run.keep_checkpoints",
    "run.save_models",
)


@dataclass(frozen=True)
class Study:
    """Runs by ascending seed; each method, and variant of one, at most once for a seed."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """What a report is titled."""
        first = self.runs[0].path.resolve()
        seeded = len(self.runs) > 1 and _SEED_FOLDER.fullmatch(first.name)
        return first.parent.name if seeded else ", ".join(r.path.resolve().name for r in self.runs)

    @property
    def seeds(self) -> list[int]:
        """Every seed once, ascending."""
        return sorted({run.seed for run in self.runs})

    @property
    def methods(self) -> list[str]:
        """All methods, in the order in which they ran."""
        return list(dict.fromkeys(method for run in self.runs for method in run.methods))

    @property
    def ended(self) -> bool:
        return all(run.ended for run in self.runs)

    def of(self, method: str) -> list[Run]:
        """The runs that have results of `method`."""
        return [run for run in self.runs if run.results.get(method)]

    def clients(self, method: str) -> list[tuple[int, ClientResult]]:
        """(seed, result) of every client, in the order of the results."""
        return [(run.seed, result) for run in self.of(method) for result in run.results[method]]

    def accuracy(self, method: str) -> dict[int, dict[int, float]]:
        """Test accuracies by seed and client, those that are finite."""
        return {
            run.seed: {
                r.client: r.test_accuracy
                for r in run.results[method]
                if math.isfinite(r.test_accuracy)
            }
            for run in self.of(method)
        }


def load_study(*paths: str | Path, variants: bool = False) -> Study:
    """Reads run folders, or folders that hold one run folder a seed.

    With `variants` settings may differ, other than those of the data: methods of a run that differs
    from the first one given carry what differs in their names, see `names.variant`.

    Raises RunError if one is no run folder or damaged, if their configurations differ in more than
    the seed and what changes no figure, or if a method occurs twice for a seed.
    """
    runs = [load_run(folder) for path in paths for folder in run_folders(Path(path))]
    if variants:
        runs = [_as_variant(runs[0], run) for run in runs]
    runs.sort(key=lambda run: run.seed)
    for run in runs[1:] if not variants else ():
        _check_same(runs[0], run, _differing(runs[0], run))
    seen: dict[tuple[int, str], Run] = {}
    for run in runs:
        for method in run.methods:
            other = seen.setdefault((run.seed, method), run)
            if other is not run:
                raise RunError(
                    f"{other.path} and {run.path} both hold {method} with seed {run.seed}"
                )
    return Study(tuple(runs))


def run_folders(path: Path) -> list[Path]:
    """`path` itself, or the run folders of its seeds if it holds those instead."""
    if (path / "config.json").exists() or not path.is_dir():
        return [path]
    matches = ((_SEED_FOLDER.fullmatch(p.name), p) for p in path.iterdir() if p.is_dir())
    seeds = sorted((int(match[1]), folder) for match, folder in matches if match)
    return [folder for _, folder in seeds] or [path]


def _as_variant(base: Run, run: Run) -> Run:
    keys = _differing(base, run)
    # Clients with other images cannot be paired.
    _check_same(base, run, [key for key in keys if key.startswith("data.")])
    settings = _flat(run.config)
    return run.renamed(variant({key: settings.get(key) for key in keys})) if keys else run


def _differing(one: Run, other: Run) -> list[str]:
    """Settings, but those that are free, in which two runs differ."""
    mine, theirs = _flat(one.config), _flat(other.config)
    return [
        key
        for key in sorted(mine.keys() | theirs.keys())
        if key not in _FREE and mine.get(key) != theirs.get(key)
    ]


def _check_same(one: Run, other: Run, differing: list[str]) -> None:
    mine, theirs = _flat(one.config), _flat(other.config)
    if differing:
        shown = "; ".join(f"{key} ({mine.get(key)!r}, {theirs.get(key)!r})" for key in differing)
        raise RunError(f"{one.path} and {other.path} cannot be compared, they differ in: {shown}")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for section, values in config.items():
        if isinstance(values, dict):
            flat.update({f"{section}.{name}": value for name, value in values.items()})
        else:
            flat[section] = values
    return flat
