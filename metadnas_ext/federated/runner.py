"""Runs methods on a federation, with a run folder that survives a crash at any point.

The folder holds `config.json`, `metrics.jsonl` (one JSON object an event), `checkpoints/`,
`models/` (the clients' final networks), and at the end `results.json` and `genotypes.json`. A
resumed run continues behind the last checkpoint and ends bit for bit as an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.errors import DivergenceError, RunError
from metadnas_ext.federated import checkpoint
from metadnas_ext.federated.engine import Engine, InProcess, save_models
from metadnas_ext.federated.federation import Federation
from metadnas_ext.files import LOCK, write_json, writing
from metadnas_ext.methods import METHODS, Method, RoundFigures
from metadnas_ext.placement import to_device
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search.finite import DIVERGENCE_HINT

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
GENOTYPES = "genotypes.json"
FLOWER = "flower.json"
"""Of a run over Flower: the name its nodes know it by. What they keep is in no checkpoint."""
UNFINISHED = {METRICS, f".{CONFIG}.tmp", LOCK}
"""What a run folder may hold before its configuration: it is none yet."""


class Observer(Protocol):
    """Told what happens; the command line shows it."""

    def method_started(self, method: Method, done_rounds: int) -> None: ...

    def round_finished(self, method: Method, index: int, figures: RoundFigures) -> None: ...

    def clients_finished(self, method: Method, results: Sequence[ClientResult]) -> None: ...


class Silent:
    """An observer that does nothing."""

    def method_started(self, method: Method, done_rounds: int) -> None: ...

    def round_finished(self, method: Method, index: int, figures: RoundFigures) -> None: ...

    def clients_finished(self, method: Method, results: Sequence[ClientResult]) -> None: ...


@dataclass
class MethodProgress:
    """How far one method has come, in JSON values."""

    history: list[dict[str, Any]] = field(default_factory=list)
    trained: bool = False  # all rounds done
    results: list[dict[str, Any]] = field(default_factory=list)
    meta_genotype: dict[str, Any] | None = None
    trained_as: str | None = None  # the method whose rounds these are, if it is another one


@dataclass
class Progress:
    """How far the run has come; with the tensors it decides everything that follows.

    `fingerprint` is that of the federation it runs on.
    """

    step: int = 0
    metrics_bytes: int = 0
    methods: dict[str, MethodProgress] = field(default_factory=dict)
    fingerprint: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        methods = {name: MethodProgress(**values) for name, values in data["methods"].items()}
        return cls(data["step"], data["metrics_bytes"], methods, data.get("fingerprint"))


def check_free(run_dir: Path) -> None:
    """RunError if something is at `run_dir` already, but for a run that was never quite made."""
    if run_dir.exists() and not _unfinished(run_dir):
        raise RunError(f"{run_dir} exists already; choose another --out, or go on with --resume")


def _unfinished(path: Path) -> bool:
    """Whether a folder, of a run or of one a seed, holds no more than one that is being made."""
    if not path.is_dir():
        return path.name in UNFINISHED and (path.name != METRICS or path.stat().st_size == 0)
    return all(_unfinished(entry) for entry in path.iterdir())


def create_run(run_dir: Path, config: Config, methods: Sequence[str]) -> None:
    """Makes the run folder. RunError if something is there already or it cannot be made."""
    check_free(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / METRICS).touch()
        write_json(run_dir / CONFIG, {**config.to_json(), "methods": list(methods)})
    except OSError as error:
        raise RunError(f"cannot make the run folder {run_dir}: {error.strerror}") from None


def load_config(run_dir: Path) -> tuple[Config, list[str]]:
    """Configuration and methods of an existing run. RunError if it is not one."""
    path = run_dir / CONFIG
    try:
        data = json.loads(path.read_bytes())
        methods = data.pop("methods")
        return Config.from_json(data), list(methods)
    except FileNotFoundError:
        raise RunError(f"{run_dir} is not a run folder: {path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def _check_survivors(method: Method, history: Sequence[RoundFigures]) -> None:
    """DivergenceError if for too many rounds in a row, or in all of them, no client was left."""
    limit = min(method.config.server.lost_rounds, method.rounds)
    recent = history[-limit:] if limit else []
    if recent and len(recent) == limit and all(figures.lost for figures in recent):
        last = recent[-1].dropped[0]
        raise DivergenceError(
            f"{method.title}: every client diverged in each of the last {limit} rounds, at last "
            f"client {last['client']}: {last['reason']}; {DIVERGENCE_HINT}"
        )


def _cut(metrics: Path, size: int) -> None:
    """Removes lines behind the checkpoint: they belong to work that is done again."""
    try:
        found = metrics.stat().st_size
        if found >= size:
            os.truncate(metrics, size)
            return
    except OSError as error:
        raise RunError(f"cannot go on with {metrics}: {error.strerror}") from None
    raise RunError(f"{metrics} is damaged: it has {found} bytes of {size} that were saved")


class Runner:
    """Runs `methods` one after another in `run_dir`, from its last checkpoint.

    `engine` runs their rounds, by default in this process. Whoever runs holds the folder's lock
    (`files.locked`), from before the Runner is made.
    """

    def __init__(
        self,
        federation: Federation,
        methods: Sequence[str],
        run_dir: Path,
        observer: Observer | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.federation = federation
        self.methods = list(methods)
        self.run_dir = run_dir
        self.observer: Observer = observer or Silent()
        self.engine: Engine = engine or InProcess()
        self.progress = Progress()
        self._tensors: dict[str, dict[str, Tensor]] = {}  # by training key
        latest = checkpoint.load_latest(run_dir)
        if latest is not None:
            self.progress = Progress.from_json(latest.progress)
            self._check_federation()
            for name, tensor in latest.tensors.items():
                key, _, part = name.partition("/")
                self._tensors.setdefault(key, {})[part] = tensor
        self.progress.fingerprint = federation.fingerprint()
        _cut(run_dir / METRICS, self.progress.metrics_bytes)

    def run(self) -> dict[str, list[ClientResult]]:
        """Runs to the end; results by method, clients in ascending order."""
        for name in self.methods:
            self._run_method(name)
        results = {
            name: [ClientResult.from_json(r) for r in self.progress.methods[name].results]
            for name in self.methods
        }
        with writing(self.run_dir):
            write_json(
                self.run_dir / RESULTS, {n: [r.to_json() for r in v] for n, v in results.items()}
            )
            write_json(self.run_dir / GENOTYPES, self._genotypes())
        return results

    def _run_method(self, name: str) -> None:
        method = METHODS[name](self.federation)
        progress = self.progress.methods.setdefault(name, MethodProgress())
        self._adopt_training(method, progress)
        key = method.trains_as(self.federation.config)
        if key in self._tensors:
            device = self.federation.device
            method.load_state({n: to_device(t, device) for n, t in self._tensors[key].items()})
        self.observer.method_started(method, len(progress.history))
        self._train(method, progress)
        self._personalise(method, progress)

    def _adopt_training(self, method: Method, progress: MethodProgress) -> None:
        """A method that trains as an earlier one did starts from its end."""
        config = self.federation.config
        for name, earlier in self.progress.methods.items():
            same = METHODS[name].trains_as(config) == method.trains_as(config)
            same &= name != method.name
            if same and earlier.trained and not progress.trained:
                progress.trained = True
                progress.meta_genotype = earlier.meta_genotype
                progress.history = list(earlier.history)
                progress.trained_as = earlier.trained_as or name

    def _train(self, method: Method, progress: MethodProgress) -> None:
        history = [RoundFigures(**figures) for figures in progress.history]
        while not progress.trained:
            _check_survivors(method, history)
            if len(history) >= method.rounds or method.converged(history):
                if history:
                    self.engine.conclude(method, history)
                    self._keep_state(method)
                progress.trained = True
                genotype = method.shared_genotype()
                progress.meta_genotype = None if genotype is None else genotype.to_json()
                break
            start = time.monotonic()
            figures = self.engine.round(method, history)
            seconds = time.monotonic() - start
            history.append(figures)
            progress.history.append(figures.to_json())
            self._keep_state(method)
            self._save(
                {
                    "event": "round",
                    "method": method.name,
                    "round": len(history) - 1,
                    **figures.to_json(),
                    "seconds": seconds,
                }
            )
            self.observer.round_finished(method, len(history) - 1, figures)

    def _personalise(self, method: Method, progress: MethodProgress) -> None:
        done = {result["client"] for result in progress.results}
        history = [RoundFigures(**figures) for figures in progress.history]
        for group in self.engine.groups(self.federation):
            if done.issuperset(group):
                continue
            start = time.monotonic()
            results = self.engine.personalise(method, group, history)
            seconds = time.monotonic() - start
            progress.results += [result.to_json() for result in results]
            with writing(self.run_dir):  # before the checkpoint that says these clients are done
                save_models(self.run_dir, self.federation, method.name, results)
            self._save(
                {
                    "event": "personalised",
                    "method": method.name,
                    "trained_as": progress.trained_as or method.name,
                    "clients": group,
                    "test_accuracy": [result.to_json()["test_accuracy"] for result in results],
                    "seconds": seconds,
                }
            )
            self.observer.clients_finished(method, results)

    def _keep_state(self, method: Method) -> None:
        self._tensors[method.trains_as(self.federation.config)] = method.state()

    def _check_federation(self) -> None:
        """RunError if the data, a device profile or what is made of them has changed."""
        saved = self.progress.fingerprint
        if saved is not None and saved != self.federation.fingerprint():
            raise RunError(
                f"the images, their split over clients or a device profile of {self.run_dir} "
                f"have changed since the run was started; put them back, or start another run"
            )

    def _save(self, event: dict[str, Any]) -> None:
        with writing(self.run_dir):
            self._commit(event)

    def _commit(self, event: dict[str, Any]) -> None:
        """One line of metrics, then a checkpoint that includes it."""
        with open(self.run_dir / METRICS, "ab") as file:
            file.write((json.dumps(event, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            self.progress.metrics_bytes = file.tell()
        self.progress.step += 1
        tensors = {
            f"{key}/{part}": tensor
            for key, parts in self._tensors.items()
            for part, tensor in parts.items()
        }
        checkpoint.save(
            self.run_dir,
            checkpoint.Checkpoint(self.progress.step, tensors, asdict(self.progress)),
            self.federation.config.run.keep_checkpoints,
        )

    def _genotypes(self) -> dict[str, Any]:
        return {
            name: {
                "meta": progress.meta_genotype,
                **{str(r["client"]): r["genotype"] for r in progress.results},
            }
            for name, progress in self.progress.methods.items()
        }
