"""Checkpoints: tensors as safetensors, everything else as JSON, both checked by hash on loading."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from metadnas_ext.errors import RunError
from metadnas_ext.files import write_atomic

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """tensors by name, loaded to the CPU, and the JSON values beside them."""

    step: int
    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def save(run_dir: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes `checkpoints/<step>.safetensors`, then its manifest; keeps the last `keep` of both.

    A checkpoint exists once its manifest does: a crash at any point leaves the one before.
    """
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    data = safetensors.torch.save(tensors)
    path = folder / f"{checkpoint.step:08d}.safetensors"
    write_atomic(path, data)
    body = {
        "step": checkpoint.step,
        "sha256": hashlib.sha256(data).hexdigest(),
        "progress": checkpoint.progress,
    }
    manifest = {"sha256": _hash(body), "body": body}
    write_atomic(path.with_suffix(".json"), json.dumps(manifest, allow_nan=False).encode())
    _remove_before(folder, _steps(folder)[-keep:][0])


def load_latest(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none yet.

    A damaged one is passed over with a warning. Raises RunError if all are damaged.
    """
    folder = run_dir / FOLDER
    steps = _steps(folder)
    for step in reversed(steps):
        try:
            return _load(folder, step)
        except RunError as error:
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    if steps:
        raise RunError(f"every checkpoint in {folder} is damaged ({len(steps)} of them)")
    return None


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and every bit of some tensors, in whatever order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _remove_before(folder: Path, first: int) -> None:
    """Removes older checkpoints, and what a crash while removing one has left of it."""
    old = [p for p in folder.iterdir() if p.stem.isdigit() and int(p.stem) < first]
    # The manifest first: what has none is no checkpoint.
    for path in sorted(old, key=lambda p: (p.suffix != ".json", p.name)):
        path.unlink(missing_ok=True)


def _load(folder: Path, step: int) -> Checkpoint:
    manifest_path = folder / f"{step:08d}.json"
    path = manifest_path.with_suffix(".safetensors")
    try:
        manifest = json.loads(manifest_path.read_bytes())
        body = manifest["body"]
        if _hash(body) != manifest["sha256"]:
            raise RunError(f"{manifest_path} does not match its hash")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != body["sha256"]:
            raise RunError(f"{path} does not match its hash")
        return Checkpoint(step, safetensors.torch.load(data), body["progress"])
    except OSError as error:
        raise RunError(f"cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise RunError(f"{manifest_path} is damaged: {error}") from None


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit())


def _hash(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
