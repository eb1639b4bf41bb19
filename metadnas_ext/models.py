"""A client's final network as a file: weights under public names, and what they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metadnas_ext.errors import MetadnasError, RunError, UnknownPrimitiveError
from metadnas_ext.files import write_atomic
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import (
    Architecture,
    Shape,
    architecture_from_json,
    shape_from_json,
    shape_to_json,
)

FOLDER = "models"
_CARD = "card"  # the one key of a file's metadata: safetensors writes several in random order


@dataclass(frozen=True)
class Card:
    """What a network is besides its weights.

    `classes` are the names of its logits; images are (pixels / 255 - mean) / std, by channel.
    """

    shape: Shape
    genotype: Architecture
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        own = {"shape": shape_to_json(self.shape), "genotype": self.genotype.to_json()}
        return {**vars(self), **own}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Card:
        """The inverse of `to_json`. KeyError, TypeError, ValueError or ConfigError if malformed."""
        return cls(
            shape_from_json(data["shape"]),
            architecture_from_json(data["genotype"]),
            *(tuple(data[name]) for name in ("classes", "mean", "std")),
        )


def model_path(run_dir: str | Path, method: str, client: int) -> Path:
    """Where a run keeps the network that `client` ended with."""
    return Path(run_dir) / FOLDER / method / f"{client}.safetensors"


def save(path: Path, card: Card, weights: Mapping[str, Tensor]) -> None:
    """Writes parameters and running statistics, by name, atomically and with a hash over all."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in sorted(weights.items())}
    text = json.dumps(card.to_json(), sort_keys=True, allow_nan=False)
    signed = json.dumps({"card": text, "sha256": _hash(text, tensors)}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(tensors, {_CARD: signed}))


def load(path: str | Path) -> tuple[DerivedNet, Card]:
    """The network, in eval mode, and its card.

    Raises RunError if the file is missing, damaged or not one that `save` wrote, or if a primitive
    of its search space is not registered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            signed = json.loads((file.metadata() or {})[_CARD])
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        text = signed["card"]
        if _hash(text, tensors) != signed["sha256"]:
            raise RunError(f"{path} does not match its hash")
        card = Card.from_json(json.loads(text))
        net = DerivedNet(card.shape, card.genotype)
        _fill(net, tensors)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except RunError:
        raise
    except UnknownPrimitiveError as error:
        raise RunError(f"cannot load {path}: {error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, MetadnasError) as error:
        raise RunError(f"{path} is not the file of a network, or damaged: {error}") from None
    return net.eval(), card


def load_client(run: str | Path, client: int, method: str = "meta_dnas") -> DerivedNet:
    """The network that a client of a run ended with, in eval mode, with public names.

    `run` is the folder of a run, `method` one that ran in it. The network maps normalised images
    (N, channels, H, W) to logits (N, classes). Raises RunError if the run keeps no such network,
    naming those it has. Primitives of your own have to be registered first.
    """
    return load(find(run, client, method))[0]


def find(run: str | Path, client: int, method: str) -> Path:
    """The file of a client's network; RunError naming what there is if it is missing."""
    path = model_path(run, method, client)
    if path.is_file():
        return path
    folder = Path(run) / FOLDER
    if not (Path(run) / "config.json").is_file():
        raise RunError(f"{run} is not a run folder: config.json is missing")
    methods = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not methods:
        raise RunError(f"{run} keeps no networks: not yet, or run.save_models is off")
    if method not in methods:
        raise RunError(f"{run} keeps no networks of {method!r}, only of {', '.join(methods)}")
    numbers = sorted(int(p.stem) for p in path.parent.glob("*.safetensors") if p.stem.isdigit())
    kept = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
    raise RunError(f"{run} keeps no network of client {client} under {method}; kept: {kept}")


@torch.no_grad()
def _fill(net: DerivedNet, tensors: Mapping[str, Tensor]) -> None:
    wanted = {*net.plan.parameters.slots, *net.plan.running.slots}
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))[0]
        raise ValueError(f"{odd!r} is {'missing' if odd in wanted else 'not expected'}")
    # Batch norms' step counters are not kept: they count steps of no use to a finished network.
    net.load_state_dict(net.state_dict() | dict(tensors))


def _hash(card: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(card.encode())
    for name, tensor in tensors.items():
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
