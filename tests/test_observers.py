"""TensorBoard's log, read by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metadnas_ext.errors import ExtraError
from metadnas_ext.federated.runner import Runner, Silent, create_run
from metadnas_ext.observers import Observers, TensorBoardLog

from .federated._tiny import events, tiny_federation

RAN = ["meta_dnas", "fedavg", "fedavg_ft"]
CHANGES: dict[str, Any] = {"server__rounds": 3, "server__cohort": 2}


class Killed(Exception):
    pass


class Kill(Silent):
    """Raises after so many commits."""

    def __init__(self, commits: int) -> None:
        self.left = commits

    def round_finished(self, *_: Any) -> None:
        self._count()

    def clients_finished(self, *_: Any) -> None:
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def run(folder: Path, *, logged: bool = True, commits: int | None = None) -> None:
    """The run in `folder`, from its last checkpoint, until it ends or is killed."""
    federation = tiny_federation(**CHANGES)
    if not folder.exists():
        create_run(folder, federation.config, RAN)
    with TensorBoardLog(folder) as log:
        # Killed before the log hears of the commit: the worst moment.
        watching = [Kill(-1 if commits is None else commits), *([log] if logged else [])]
        try:
            Runner(federation, RAN, folder, Observers(watching)).run()
        except Killed:
            assert commits is not None


def scalars(folder: Path, method: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every tag."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )
    # purge_orphaned_data would hide what was written twice.
    reader = accumulator.EventAccumulator(
        str(folder / "tensorboard" / method),
        size_guidance={"scalars": 0},
        purge_orphaned_data=False,
    )
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def expected(folder: Path, method: str) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event["method"] != method:
            continue
        if event["event"] == "round":
            for name, value in event.items():
                if isinstance(value, int | float) and name != "round":
                    found.setdefault(f"round/{name}", []).append((event["round"], value))
        else:
            for client, accuracy in zip(event["clients"], event["test_accuracy"], strict=True):
                found.setdefault("clients/test_accuracy", []).append((client, accuracy))
    return found


def assert_logged(folder: Path) -> None:
    for method in RAN:
        truth, log = expected(folder, method), scalars(folder, method)
        assert log.keys() == truth.keys()
        assert "clients/test_accuracy" in log
        for tag, points in truth.items():
            assert [step for step, _ in log[tag]] == [step for step, _ in points], tag
            values = [value for _, value in points]
            assert [value for _, value in log[tag]] == pytest.approx(values), tag


def test_every_figure_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    run(tmp_path / "run")
    assert_logged(tmp_path / "run")
    tags = scalars(tmp_path / "run", "meta_dnas")
    assert len(tags["round/val_accuracy"]) == 3
    assert len(tags["round/alpha_entropy"]) == 3
    assert [step for step, _ in tags["clients/test_accuracy"]] == [0, 1, 2, 3]
    assert "round/val_accuracy" not in scalars(tmp_path / "run", "fedavg_ft")


@pytest.mark.parametrize("commits", [1, 3, 4, 7])
def test_no_step_twice_and_none_missing_after_a_resume(commits: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    run(tmp_path / "run", commits=commits)
    run(tmp_path / "run")
    assert_logged(tmp_path / "run")


def test_a_log_that_begins_later_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    run(tmp_path / "run", logged=False, commits=2)
    assert not (tmp_path / "run" / "tensorboard").exists()
    run(tmp_path / "run")
    assert_logged(tmp_path / "run")


def test_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r'tensorboard is not .*"metadnas_ext\[tensorboard\]"'):
        TensorBoardLog(tmp_path)
