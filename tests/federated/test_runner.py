"""A run interrupted anywhere and resumed ends, to the bit, as one that was not."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metadnas_ext import load_client
from metadnas_ext.errors import DivergenceError, RunError
from metadnas_ext.federated import checkpoint, runner
from metadnas_ext.federated.engine import save_models
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import (
    Runner,
    Silent,
    check_free,
    create_run,
    load_config,
)
from metadnas_ext.files import LOCK
from metadnas_ext.methods import FedAvg
from metadnas_ext.methods.survivors import personalised
from metadnas_ext.report.comparison import compare
from metadnas_ext.report.run import load_run
from metadnas_ext.report.study import load_study

from ._tiny import METHODS, assert_identical, events, resume_in, run_in, tiny_federation

COMMITS = 12
"""Meta-DNAS and FedAvg: 2 rounds each; every method: 2 cohorts of 2 clients personalised."""


@pytest.fixture(scope="module")
def federation() -> Federation:
    return tiny_federation(server__cohort=2)


class Watch(Silent):
    """Calls `on_commit` after every commit."""

    def __init__(self, on_commit: Any) -> None:
        self._on_commit = on_commit

    def round_finished(self, *_: Any) -> None:
        self._on_commit()

    def clients_finished(self, *_: Any) -> None:
        self._on_commit()


class Killed(Exception):
    pass


class Interrupt(Watch):
    """Raises after `commits` of them."""

    def __init__(self, commits: int) -> None:
        self.left = commits
        super().__init__(self._count)

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(scope="module")
def whole(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path]]:
    """An uninterrupted run, and its folder as it was after each commit."""
    base = tmp_path_factory.mktemp("whole")
    snapshots: list[Path] = []

    def copy() -> None:
        snapshots.append(base / f"after {len(snapshots) + 1}")
        shutil.copytree(base / "run", snapshots[-1])

    # As in each test: MKL rounds a single client's product differently with other threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_in(base / "run", federation, METHODS, Watch(copy))
    torch.set_num_threads(threads)
    assert len(snapshots) == COMMITS
    return base / "run", snapshots


def assert_same_end(folder: Path, expected: Path) -> None:
    """Tensors, results, genotypes, metrics and progress, apart from what the clock decides."""
    for name in ("results.json", "genotypes.json", "config.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    models = sorted((expected / "models").rglob("*.safetensors"))
    assert len(models) == 4 * len(load_config(expected)[1])
    for path in models:
        assert (folder / path.relative_to(expected)).read_bytes() == path.read_bytes(), path
    assert events(folder) == events(expected)
    mine, other = checkpoint.load_latest(folder), checkpoint.load_latest(expected)
    assert mine is not None
    assert other is not None
    assert mine.step == other.step
    assert mine.tensors.keys() == other.tensors.keys()
    for name, tensor in other.tensors.items():
        assert_identical(mine.tensors[name], tensor, name)
    assert timeless(mine.progress) == timeless(other.progress)


def timeless(progress: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {k: v for k, v in method.items() if not k.endswith("seconds")}
        for name, method in progress["methods"].items()
    }


def copied(snapshot: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(snapshot, tmp_path / "run"))


def quietly_resume(folder: Path, federation: Federation) -> list[str]:
    """Resumes and returns the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume_in(folder, federation, METHODS)
    return [str(warning.message) for warning in caught]


def test_what_a_run_leaves(whole: tuple[Path, list[Path]], federation: Federation) -> None:
    folder, _ = whole
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    last = [
        f"checkpoints/{step:08d}.{kind}"
        for step in (COMMITS - 1, COMMITS)
        for kind in ("json", "safetensors")
    ]
    files = ["config.json", "genotypes.json", "metrics.jsonl", "results.json"]
    models = [f"models/{name}/{client}.safetensors" for name in METHODS for client in range(4)]
    assert found == sorted([*files, *last, *models])
    kinds = [(e["event"], e["method"]) for e in events(folder)]
    rounds, personalised = ["round"] * 2, ["personalised"] * 2
    expected = {
        "meta_dnas": rounds + personalised,
        "fedavg": rounds + personalised,
        "fedavg_ft": personalised,  # starts from FedAvg's end
        "darts": personalised,
    }
    assert kinds == [(event, name) for name, parts in expected.items() for event in parts]
    results = json.loads((folder / "results.json").read_bytes())
    genotypes = json.loads((folder / "genotypes.json").read_bytes())
    for name in METHODS:
        assert [r["client"] for r in results[name]] == [0, 1, 2, 3]
        assert list(genotypes[name]) == ["meta", "0", "1", "2", "3"]
    assert genotypes["darts"]["meta"] is None
    assert genotypes["fedavg"]["meta"] == genotypes["fedavg_ft"]["meta"]
    assert genotypes["fedavg"]["meta"] == results["fedavg"][0]["genotype"]
    assert set(genotypes["meta_dnas"]["meta"]) == set(genotypes["fedavg"]["meta"])
    assert load_config(folder) == (federation.config, METHODS)


@pytest.mark.parametrize("commits", range(1, COMMITS + 1))
def test_killed_after_a_commit(
    commits: int, whole: tuple[Path, list[Path]], federation: Federation, tmp_path: Path
) -> None:
    folder = copied(whole[1][commits - 1], tmp_path)
    assert not (folder / "results.json").exists()
    assert quietly_resume(folder, federation) == []
    assert_same_end(folder, whole[0])


def test_killed_again_and_again(
    whole: tuple[Path, list[Path]], federation: Federation, tmp_path: Path
) -> None:
    """After each single commit; and before the first."""
    folder, killed = tmp_path / "run", 0
    create_run(folder, federation.config, METHODS)
    while True:
        try:
            resume_in(folder, federation, METHODS, Interrupt(1))
            break
        except Killed:
            killed += 1
    assert killed == COMMITS
    assert_same_end(folder, whole[0])
    resume_in(folder, federation, METHODS, Interrupt(1))  # nothing left to do
    assert_same_end(folder, whole[0])


@pytest.mark.parametrize("step", [3, 4, 7])
@pytest.mark.parametrize("damage", ["torn line", "no manifest", "tensors", "manifest", "temporary"])
def test_killed_while_writing(
    step: int,
    damage: str,
    whole: tuple[Path, list[Path]],
    federation: Federation,
    tmp_path: Path,
) -> None:
    """The files of the last commit in every half-written state: at most it is done again."""
    folder = copied(whole[1][step - 1], tmp_path)
    manifest = folder / "checkpoints" / f"{step:08d}.json"
    tensors = manifest.with_suffix(".safetensors")
    if damage == "torn line":
        with open(folder / "metrics.jsonl", "ab") as file:
            file.write(b'{"event": "round", "method": "meta')
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif damage == "manifest":
        data = bytearray(manifest.read_bytes())
        data[len(data) // 2] ^= 1
        manifest.write_bytes(data)
    else:
        manifest.unlink()
        (folder / "checkpoints" / f".{manifest.name}.tmp").write_bytes(b'{"sha256": ')
    messages = quietly_resume(folder, federation)
    assert len(messages) == (damage in ("tensors", "manifest"))
    assert all("falling back" in message for message in messages)
    assert_same_end(folder, whole[0])


def test_all_checkpoints_damaged(
    whole: tuple[Path, list[Path]], federation: Federation, tmp_path: Path
) -> None:
    folder = copied(whole[1][5], tmp_path)
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"\0" * 100)
    with (
        pytest.warns(UserWarning, match="does not match its hash"),
        pytest.raises(RunError, match=r"every checkpoint in .* is damaged \(2 of them\)"),
    ):
        Runner(federation, METHODS, folder)


@pytest.mark.parametrize("left", [None, 0, 100])
def test_metrics_lost(
    left: int | None, whole: tuple[Path, list[Path]], federation: Federation, tmp_path: Path
) -> None:
    """Lines that a checkpoint vouches for are gone: not a crash, and never filled with zeros."""
    folder = copied(whole[1][5], tmp_path)
    metrics = folder / "metrics.jsonl"
    if left is None:
        metrics.unlink()
    else:
        os.truncate(metrics, left)
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        Runner(federation, METHODS, folder)
    assert (metrics.stat().st_size if metrics.exists() else None) == left


@pytest.mark.parametrize("keep", [1, 3])
def test_keep_checkpoints(keep: int, federation: Federation, tmp_path: Path) -> None:
    config = federation.config.updated({"run.keep_checkpoints": keep})
    counts = []

    def count() -> None:
        folder = tmp_path / "run" / "checkpoints"
        counts.append((len(list(folder.glob("*.json"))), len(list(folder.iterdir()))))

    run_in(tmp_path / "run", replace(federation, config=config), ["fedavg"], Watch(count))
    assert counts == [(min(keep, n), 2 * min(keep, n)) for n in range(1, 5)]


def test_no_pickle(
    federation: Federation,
    whole: tuple[Path, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither written nor read: the run works where every unpickler raises."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle")

    for module, name in (
        (torch, "load"),
        (torch, "save"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    folder = copied(whole[1][2], tmp_path)
    resume_in(folder, federation, METHODS)
    assert_same_end(folder, whole[0])
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")


def test_a_full_disk_is_an_error_and_can_be_resumed(
    federation: Federation,
    whole: tuple[Path, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copied(whole[1][2], tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(RunError, match=r"cannot write to .*run: No space left"):
        resume_in(folder, federation, METHODS)
    monkeypatch.undo()
    assert quietly_resume(folder, federation) == []
    assert_same_end(folder, whole[0])


@pytest.mark.parametrize("method", ["meta_dnas", "fedavg"])
@pytest.mark.parametrize("limit", [2, 9])
def test_rounds_without_survivors_end_the_run(method: str, limit: int, tmp_path: Path) -> None:
    """After `server.lost_rounds` of them, or all there are; each is recorded, with its reasons."""
    rates = {"client__lr": 1e30, "client__clip": 0, "client__batch_size": 256}
    rounds = 3 if limit == 2 else 2
    federation = tiny_federation(**rates, server__lost_rounds=limit, server__rounds=rounds)
    message = r"every client diverged in each of the last 2 rounds, at last client \d: .* is"
    with pytest.raises(DivergenceError, match=message):
        run_in(tmp_path / "run", federation, [method])
    lines = events(tmp_path / "run")
    assert [line["round"] for line in lines] == [0, 1]
    for line in lines:
        assert [one["client"] for one in line["dropped"]] == line["clients"]
        assert line["val_accuracy"] is None
    with pytest.raises(DivergenceError, match=message):  # nothing else can come of it
        resume_in(tmp_path / "run", federation, [method])
    assert events(tmp_path / "run") == lines


def test_divergence_in_fine_tuning_does_not_end_the_run(
    federation: Federation, tmp_path: Path
) -> None:
    """Without Adam's bound on a step: some clients diverge, and are marked in their results."""
    rates = {"client.optimizer": "sgd", "client.clip": 0.0, "personalise.finetune_lr": 1e30}
    run_in(tmp_path / "run", replace(federation, config=federation.config.updated(rates)), METHODS)
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    for name in METHODS:
        trained = name != "fedavg"
        assert [r["diverged"] is not None for r in results[name]] == [trained] * 4
        assert all(r["cost"] <= r["budget"] for r in results[name])
        for result in results[name]:  # what is kept is what was judged
            net = load_client(tmp_path / "run", result["client"], name)
            assert net.genotype.to_json() == result["genotype"]
            assert all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values())
    assert [row.diverged for row in compare(load_study(tmp_path / "run")).rows] == [4, 0, 4, 4]


def test_no_network_is_kept_of_a_client_that_has_none(
    federation: Federation, tmp_path: Path
) -> None:
    """Not even the shared model can be judged: results without an accuracy, no file, no error."""
    run_in(tmp_path / "run", federation, ["fedavg"])
    shutil.rmtree(tmp_path / "run" / "models")
    method = FedAvg(federation)
    method.load_state({name: tensor * float("nan") for name, tensor in method.state().items()})
    results = personalised(method, range(4))
    save_models(tmp_path / "run", federation, "fedavg", results)
    assert not (tmp_path / "run" / "models").exists()
    with pytest.raises(RunError, match="keeps no networks"):
        load_client(tmp_path / "run", 2, "fedavg")


def test_another_split_or_other_costs_are_not_gone_on_with(
    federation: Federation, whole: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    folder = copied(whole[1][2], tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    first, *rest = federation.splits
    table = federation.costs
    for changed in (
        {"splits": (replace(first, train=first.train.flip(0)), *rest)},
        {"tables": (replace(table, fixed=table.fixed + 1),)},
        {"budgets": federation.budgets * 2},
    ):
        with pytest.raises(RunError, match="have changed since the run was started"):
            Runner(replace(federation, **changed), METHODS, folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_global_random_numbers_are_neither_used_nor_drawn(
    federation: Federation, tmp_path: Path
) -> None:
    """Every draw of a run comes from a generator of its own."""
    states = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        run_in(tmp_path / str(seed), federation, METHODS)
        after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        assert str(before[:2]) == str(after[:2])
        assert torch.equal(before[2], after[2])
        states.append(tmp_path / str(seed))
    assert_same_end(*states)


def test_a_run_that_was_never_quite_made_can_be_made_again(
    federation: Federation, tmp_path: Path
) -> None:
    """Killed while the folder was made: what is there is not in the way. Anything else is."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.tmp").write_text('{"da')
    (folder / runner.METRICS).touch()
    (folder / LOCK).write_text("123\n")
    check_free(tmp_path)  # as the folder of a study with this seed
    create_run(folder, federation.config, METHODS)
    assert load_config(folder) == (federation.config, METHODS)
    with pytest.raises(RunError, match="exists already"):
        check_free(tmp_path)
    for name in ("thesis.tex", runner.METRICS):
        other = tmp_path / name
        other.mkdir()
        (other / name).write_text("mine")
        with pytest.raises(RunError, match="exists already"):
            create_run(other, federation.config, METHODS)


def test_create_run_refuses_what_is_there(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(RunError, match=r"exists already; choose another --out"):
            create_run(tmp_path / name, federation.config, METHODS)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="cannot make the run folder"):
        create_run(tmp_path / "file" / "run", federation.config, METHODS)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/er"):
        create_run(tmp_path / name, federation.config, METHODS)
        assert load_config(tmp_path / name) == (federation.config, METHODS)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"methods": 3}', '{"methods": [], "data": {"sparkles": 1}}']
)
def test_damaged_config(text: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder: .*config\.json is missing"):
        load_config(tmp_path)
    (tmp_path / runner.CONFIG).write_text(text)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        load_config(tmp_path)


def test_time_and_traffic_survive_a_resume(
    federation: Federation, whole: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    folder = copied(whole[1][5], tmp_path)
    before = load_run(folder).seconds("meta_dnas")
    resume_in(folder, federation, METHODS)
    resumed = load_run(folder)
    assert resumed.seconds("meta_dnas") == before > 0
    rounds = [e for e in events(folder) if e["event"] == "round"]
    for name in ("meta_dnas", "fedavg"):
        for way, sent in zip(("bytes_up", "bytes_down"), resumed.traffic(name), strict=True):
            assert sent == sum(e[way] for e in rounds if e["method"] == name) > 0
    timed = events(folder, timed=True)
    for name, parts in {"darts": ["darts"], "fedavg_ft": ["fedavg", "fedavg_ft"]}.items():
        own = [e for e in timed if e["method"] == name]
        shared = [e for e in timed if e["method"] in parts[:-1] and e["event"] == "round"]
        assert resumed.seconds(name) == pytest.approx(sum(e["seconds"] for e in own + shared))
    assert resumed.trained_as["fedavg_ft"] == "fedavg"
    assert resumed.traffic("fedavg_ft") == resumed.traffic("fedavg")
    assert resumed.traffic("darts") == (0, 0)
