"""Every parameter of a run: sections of plain values, TOML files, overrides by name.

A key is written `section.name`, e.g. `client.alpha_lr`; the same names serve the file, the command
line and `config.json` in a run folder.
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metadnas_ext.data import DATASETS, SCHEMES
from metadnas_ext.errors import ConfigError
from metadnas_ext.space.candidates import registered
from metadnas_ext.space.spaces import SPACES


@dataclass(frozen=True)
class DataConfig:
    """Images and their split over clients."""

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    image_size: int | None = None  # pixels; None: the images' own
    max_images: int | None = None  # a stratified subset; None: all
    clients: int = 10
    partition: str = "dirichlet"
    dirichlet: float = 0.5  # concentration; smaller is more skewed
    classes_per_client: int = 2  # of the pathological partition
    min_size: int = 10  # samples every client must have
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    unseen: float = 0.2  # share of clients that never train and are adapted at the end
    augment: bool = True


@dataclass(frozen=True)
class SpaceConfig:
    """The search space."""

    space: str = "darts"  # darts or nasbench201
    channels: int = 8
    layers: int = 3  # searched cells; nasbench201: a multiple of 3
    nodes: int = 4
    stem_multiplier: int = 3  # of DARTS' stem
    partial: int = 1  # candidates see 1 / partial of the channels (PC-DARTS); darts only
    candidates: tuple[str, ...] = ()  # of the space or registered; empty: all of the space


@dataclass(frozen=True)
class ClientConfig:
    """Local differentiable search of one client."""

    epochs: int = 2  # local epochs a round
    batch_size: int = 32
    alpha_lr: float = 0.01  # Adam
    alpha_beta1: float = 0.5
    alpha_weight_decay: float = 0.001
    alpha_warmup: int = 0  # local epochs, counted over the rounds, before alpha first moves
    order: str = "first"  # of the step on alpha: first, second (unrolled) or single (level)
    relaxation: str = "softmax"  # softmax, gumbel, gdas or sigmoid
    temperature: float = 1.0  # of the relaxation in the first round
    final_temperature: float | None = None  # in the last round, geometrically; None: constant
    optimizer: str = "adam"  # of w: adam or sgd (momentum, cosine decay)
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0003
    clip: float = 5.0  # largest norm of w's gradient; 0: no clipping
    penalty: float = 0.1  # weight of the complexity penalty
    penalty_kind: str = "linear"  # linear, hinge, squared_hinge or dual (ascent)
    dual_rate: float = 0.1  # step of dual ascent
    kl: float = 0.01  # weight of KL(client's mixing weights, server's)
    beta_decay: float = 0.01  # weight of mean logsumexp of alpha
    zero_one: float = 10.0  # weight of sigmoid's loss that drives it to 0 or 1
    max_skips: int | None = None  # skip connections in a cell of a derived network; None: any


@dataclass(frozen=True)
class ServerConfig:
    """Rounds and the meta-learner (FOMAML on alpha, average on w)."""

    rounds: int = 8
    clients_per_round: int = 8
    cohort: int = 16  # clients trained together in one batch of kernels
    alpha_lr: float = 0.001  # Adam
    patience: int = 0  # stop after as many flat rounds; 0: never
    tolerance: float = 0.002  # change of accuracy and entropy that still counts as flat
    hessian_every: int = 0  # rounds between eigenvalues of the Hessian in alpha; 0: never
    local: tuple[str, ...] = ()  # parts that stay on the clients: head, bn, alpha


@dataclass(frozen=True)
class BudgetConfig:
    """Compute budgets. Levels go round-robin over clients (device classes)."""

    unit: str = "macs"  # macs or params
    levels: tuple[float, ...] = (0.35, 0.6)  # up to 1: share of the dearest network; above: units


@dataclass(frozen=True)
class PersonaliseConfig:
    """From the meta-learned state to a client's own network."""

    adapt_epochs: int = 2  # local search from the server's state
    temperature: float = 0.5  # factor on the relaxation's at the end of adaptation; 1: no annealing
    finetune_epochs: int = 8
    finetune_lr: float = 0.003
    gate: bool = True  # keep the personal network only if not worse than the meta one on val
    curve_for: str = "unseen"  # whose test accuracy is followed: none, unseen or all
    curve_steps: tuple[int, ...] = (0, 1, 5, 10)  # after how many optimiser steps


@dataclass(frozen=True)
class RivalsConfig:
    """What only one of the rivals has."""

    per_fedavg_lr: float = 0.01  # of the inner step, plain gradient descent
    per_fedavg_kind: str = "first_order"  # first_order or hessian_free
    ditto_lambda: float = 0.1  # pull of the personal model towards the global one


@dataclass(frozen=True)
class RunConfig:
    """Seed and outputs."""

    seed: int = 0
    threads: int | None = None  # None: as many as torch takes; fixed when the run starts
    keep_checkpoints: int = 2
    save_models: bool = True  # every client's final network, below models/


@dataclass(frozen=True)
class Config:
    """A whole run. Raises ConfigError on values out of range."""

    data: DataConfig = field(default_factory=DataConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    personalise: PersonaliseConfig = field(default_factory=PersonaliseConfig)
    rivals: RivalsConfig = field(default_factory=RivalsConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> dict[str, dict[str, Any]]:
        return asdict(self)

    def updated(self, values: Mapping[str, Any]) -> Config:
        """A copy with `section.name` keys replaced; text is read as the key's type."""
        sections: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            section, name = _known(key)
            sections.setdefault(section, {})[name] = _converted(key, value)
        return replace(
            self,
            **{name: replace(getattr(self, name), **new) for name, new in sections.items()},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> Config:
        """The inverse of `to_json`; keys left out have their defaults."""
        flat = {}
        for section, values in data.items():
            if not isinstance(values, Mapping):
                raise ConfigError(f"{section} must be a section with keys, got {values!r}")
            flat.update({f"{section}.{name}": value for name, value in values.items()})
        return cls().updated(flat)

    def differences(self, other: Config) -> list[str]:
        """Keys whose values differ, with both values, for messages."""
        mine, theirs = _flat(self), _flat(other)
        return [
            f"{key} ({mine[key]!r}, {theirs[key]!r})" for key in mine if mine[key] != theirs[key]
        ]


def load_file(path: str | Path) -> dict[str, Any]:
    """`section.name` keys of a TOML file."""
    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except ValueError as error:  # of its syntax or encoding
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    flat: dict[str, Any] = {}
    for section, values in data.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} must be a section, as in [data]")
        flat.update({f"{section}.{name}": value for name, value in values.items()})
    return flat


def keys() -> list[str]:
    """Every `section.name`."""
    return list(_flat(Config()))


def _flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, values in config.to_json().items()
        for name, value in values.items()
    }


def _known(key: str) -> tuple[str, str]:
    if key not in keys():
        close = difflib.get_close_matches(key, keys(), n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(keys())}"
        raise ConfigError(f"unknown parameter {key!r}{hint}")
    section, name = key.split(".")
    return section, name


def _converted(key: str, value: Any) -> Any:
    section, name = key.split(".")
    section_class = typing.get_type_hints(Config)[section]
    wanted = typing.get_type_hints(section_class)[name]
    optional = isinstance(wanted, types.UnionType)
    if optional:
        if value is None or value == "none":
            return None
        wanted = next(t for t in typing.get_args(wanted) if t is not type(None))
    try:
        return _as(wanted, value)
    except (TypeError, ValueError, OverflowError):
        name = getattr(wanted, "__name__", str(wanted))
        raise ConfigError(f"{key} is {value!r}, expected {name}") from None


def _as(wanted: Any, value: Any) -> Any:
    if typing.get_origin(wanted) is tuple:
        item = typing.get_args(wanted)[0]
        parts = value
        if isinstance(parts, str):
            parts = parts.split(",") if parts.strip() else ()
        if isinstance(parts, (int, float)):
            parts = [parts]
        return tuple(_as(item, part.strip() if isinstance(part, str) else part) for part in parts)
    if wanted is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False, "1": True, "0": False}[_lower(value)]
    if wanted is str:
        if not isinstance(value, str):
            raise TypeError
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    if wanted is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return wanted(value)


def _lower(value: Any) -> str:
    text = str(value).lower()
    if text not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text


# key -> (least, most); integers and floats alike.
_RANGES: dict[str, tuple[float, float]] = {
    "data.image_size": (1, math.inf),
    "data.max_images": (1, math.inf),
    "data.clients": (1, math.inf),
    "data.dirichlet": (1e-6, math.inf),
    "data.classes_per_client": (1, math.inf),
    "data.min_size": (4, math.inf),
    "data.val_fraction": (0.01, 0.9),
    "data.test_fraction": (0.01, 0.9),
    "data.unseen": (0, 0.99),
    "space.channels": (1, math.inf),
    "space.layers": (1, math.inf),
    "space.nodes": (1, math.inf),
    "space.stem_multiplier": (1, math.inf),
    "space.partial": (1, math.inf),
    "client.epochs": (1, math.inf),
    "client.batch_size": (2, math.inf),
    "client.alpha_lr": (0, math.inf),
    "client.alpha_beta1": (0, 0.999),
    "client.alpha_weight_decay": (0, math.inf),
    "client.alpha_warmup": (0, math.inf),
    "client.temperature": (1e-3, math.inf),
    "client.final_temperature": (1e-3, math.inf),
    "client.lr": (0, math.inf),
    "client.momentum": (0, 1),
    "client.weight_decay": (0, math.inf),
    "client.clip": (0, math.inf),
    "client.penalty": (0, math.inf),
    "client.dual_rate": (0, math.inf),
    "client.kl": (0, math.inf),
    "client.beta_decay": (0, math.inf),
    "client.zero_one": (0, math.inf),
    "client.max_skips": (0, math.inf),
    "server.rounds": (0, math.inf),
    "server.clients_per_round": (1, math.inf),
    "server.cohort": (1, math.inf),
    "server.alpha_lr": (0, math.inf),
    "server.patience": (0, math.inf),
    "server.tolerance": (0, math.inf),
    "server.hessian_every": (0, math.inf),
    "personalise.adapt_epochs": (0, math.inf),
    "personalise.temperature": (1e-3, math.inf),
    "personalise.finetune_epochs": (0, math.inf),
    "personalise.finetune_lr": (0, math.inf),
    "rivals.per_fedavg_lr": (0, math.inf),
    "rivals.ditto_lambda": (0, math.inf),
    "run.seed": (0, 2**63 - 1),
    "run.threads": (1, math.inf),
    "run.keep_checkpoints": (1, math.inf),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.dataset": DATASETS,
    "data.partition": SCHEMES,
    "space.space": tuple(SPACES),
    "client.order": ("first", "second", "single"),
    "client.relaxation": ("softmax", "gumbel", "gdas", "sigmoid"),
    "client.optimizer": ("adam", "sgd"),
    "client.penalty_kind": ("linear", "hinge", "squared_hinge", "dual"),
    "budget.unit": ("macs", "params"),
    "personalise.curve_for": ("none", "unseen", "all"),
    "rivals.per_fedavg_kind": ("first_order", "hessian_free"),
}

LOCAL_PARTS = ("head", "bn", "alpha")
"""What `server.local` may keep on the clients."""


def _check(config: Config) -> None:
    values = _flat(config)
    for key, (least, most) in _RANGES.items():
        value = values[key]
        if value is not None and not (least <= value <= most and value < math.inf):
            upper = "" if most == math.inf else f" and at most {most:g}"
            upper = " and finite" if value == math.inf else upper
            raise ConfigError(f"{key} is {value}, expected at least {least:g}{upper}")
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            close = difflib.get_close_matches(str(values[key]), choices, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(
                f"{key} is {values[key]!r}, expected one of {', '.join(choices)}{hint}"
            )
    epochs = config.server.rounds * config.client.epochs
    if 0 < epochs <= config.client.alpha_warmup:
        raise ConfigError(
            f"client.alpha_warmup is {config.client.alpha_warmup}, expected less than the {epochs} "
            f"local epochs of all rounds: alpha would never move"
        )
    levels = config.budget.levels
    if not levels or not all(math.isfinite(level) and level > 0 for level in levels):
        raise ConfigError(f"budget.levels is {levels}, expected one or more positive numbers")
    known = {**SPACES[config.space.space].own, **registered()}
    unknown = [c for c in config.space.candidates if c not in known]
    if unknown:
        raise ConfigError(
            f"space.candidates holds {', '.join(unknown)}; known: {', '.join(known)} "
            f"(others have to be registered first: register_primitive, --import)"
        )
    local = config.server.local
    if len(set(local)) < len(local) or not set(local) <= set(LOCAL_PARTS):
        raise ConfigError(
            f"server.local is {','.join(local)!r}, expected some of {', '.join(LOCAL_PARTS)}, "
            f"each once"
        )
    steps = config.personalise.curve_steps
    if len(set(steps)) < len(steps) or min(steps, default=0) < 0:
        raise ConfigError(
            f"personalise.curve_steps is {steps}, expected different numbers, none below 0"
        )
    if config.data.val_fraction + config.data.test_fraction >= 0.95:
        raise ConfigError(
            f"data.val_fraction {config.data.val_fraction} and data.test_fraction "
            f"{config.data.test_fraction} leave no training data"
        )
