"""Checkpoint files: what is damaged is found, what is whole comes back."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from metadnas_ext import files
from metadnas_ext.errors import RunError
from metadnas_ext.federated.checkpoint import Checkpoint, load_latest, save
from metadnas_ext.files import write_atomic, write_json


def made(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "a/theta": torch.randn(7, generator=generator),
        "a/steps": torch.tensor([float(step)], dtype=torch.float64),
        "b/count": torch.arange(step).view(1, -1),
    }
    return Checkpoint(step, tensors, {"step": step, "methods": {"a": [0.1 * step, None, "é"]}})


def folder_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in folder_of(run_dir).iterdir())


def assert_is(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    expected = made(step)
    assert (found.step, found.progress) == (step, expected.progress)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with checkpoints 1 and 2."""
    for step in (1, 2):
        save(tmp_path, made(step), keep=2)
    return tmp_path


def test_saves_and_loads_to_the_bit(two: Path) -> None:
    assert_is(load_latest(two), 2)
    assert names(two) == [
        "00000001.json",
        "00000001.safetensors",
        "00000002.json",
        "00000002.safetensors",
    ]


def test_nothing_yet(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    folder_of(tmp_path).mkdir()
    assert load_latest(tmp_path) is None


def test_no_tensors_and_views(tmp_path: Path) -> None:
    save(tmp_path, Checkpoint(1, {}, {}), keep=1)
    found = load_latest(tmp_path)
    assert found is not None
    assert found.tensors == {}
    wide = torch.arange(12.0).view(3, 4)
    save(tmp_path, Checkpoint(2, {"column": wide[:, 1], "row": wide[0]}, {}), keep=1)
    found = load_latest(tmp_path)
    assert found is not None
    assert found.tensors["column"].tolist() == [1, 5, 9]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_last(tmp_path: Path, keep: int) -> None:
    for step in range(1, 12):
        save(tmp_path, made(step), keep)
        kept = range(max(1, step - keep + 1), step + 1)
        assert names(tmp_path) == sorted(
            f"{s:08d}.{kind}" for s in kept for kind in ("json", "safetensors")
        )
        assert_is(load_latest(tmp_path), step)


def damaged_load(run_dir: Path) -> Checkpoint | None:
    """load_latest, which must warn exactly where it does not return checkpoint 2."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_latest(run_dir)
    assert found is not None
    assert bool(caught) == (found.step == 1), caught
    if caught:
        assert "falling back" in str(caught[0].message)
    return found


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_every_flipped_bit_is_found(two: Path, kind: str) -> None:
    """One random bit in each byte: checkpoint 1 comes back, or 2 with every value as it was (an e
    for an E in a number)."""
    path = folder_of(two) / f"00000002.{kind}"
    whole, rng, fell_back = path.read_bytes(), random.Random(0), 0
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found = damaged_load(two)
        assert found is not None
        assert_is(found, found.step)
        fell_back += found.step == 1
    assert fell_back >= len(whole) - 3


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_every_truncation_is_found(two: Path, kind: str) -> None:
    path = folder_of(two) / f"00000002.{kind}"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_is(damaged_load(two), 1)
    path.write_bytes(whole + b"\0" * 4096)
    assert_is(damaged_load(two), 1)


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"null", b"3", b'"x"', b"{}", b'{"body": 1}', b"\xff\xfe", b"[" * 9999]
)
def test_a_manifest_of_garbage(two: Path, manifest: bytes) -> None:
    (folder_of(two) / "00000002.json").write_bytes(manifest)
    assert_is(damaged_load(two), 1)


def test_a_missing_file(two: Path) -> None:
    (folder_of(two) / "00000002.safetensors").unlink()
    assert_is(damaged_load(two), 1)
    (folder_of(two) / "00000002.json").unlink()
    assert_is(load_latest(two), 1)  # no manifest, no checkpoint: nothing to warn of


def test_files_of_two_checkpoints_do_not_mix(two: Path) -> None:
    """Whole files, but the tensors of another step."""
    folder = folder_of(two)
    shutil.copy(folder / "00000001.safetensors", folder / "00000002.safetensors")
    assert_is(damaged_load(two), 1)


def test_all_damaged(two: Path) -> None:
    for path in folder_of(two).glob("*.json"):
        path.write_bytes(b"{")
    with (
        pytest.warns(UserWarning, match="falling back"),
        pytest.raises(RunError, match=r"every checkpoint in .* is damaged"),
    ):
        load_latest(two)


def test_what_a_crash_left_of_an_old_checkpoint_is_removed(two: Path) -> None:
    """Killed between the two files that make one: a manifest or tensors alone."""
    (folder_of(two) / "00000001.json").unlink()
    save(two, made(3), keep=2)
    assert [name[:8] for name in names(two)] == ["00000002"] * 2 + ["00000003"] * 2


def test_other_files_are_no_checkpoints(two: Path) -> None:
    for name in ("notes.json", ".00000003.json.tmp", "00000009.safetensors", "9x.json"):
        (folder_of(two) / name).write_text("{}")
    assert_is(load_latest(two), 2)


def test_a_damaged_checkpoint_is_written_again(two: Path) -> None:
    """After falling back, the run comes to the same step once more."""
    (folder_of(two) / "00000002.json").write_bytes(b"torn")
    save(two, made(2), keep=2)
    assert_is(load_latest(two), 2)
    save(two, made(3), keep=2)
    assert_is(load_latest(two), 3)


@pytest.mark.parametrize("call", range(6))
def test_a_failing_disk_leaves_the_checkpoint_before(
    two: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """At every fsync and rename of a save. Once the manifest is in place the save has happened."""
    calls = iter(range(99))

    def failing(function):
        def wrapper(*args):
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args)

        return wrapper

    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, failing(getattr(os, name)))
    with pytest.raises(OSError, match="No space left"):
        save(two, made(3), keep=2)
    monkeypatch.undo()
    assert_is(load_latest(two), 3 if call == 5 else 2)
    assert not list(folder_of(two).glob(".*.tmp"))


def test_write_atomic_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"

    def torn(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", torn)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "file.json", {"é": [1, None]})
    assert json.loads((tmp_path / "file.json").read_bytes()) == {"é": [1, None]}
