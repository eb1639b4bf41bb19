"""Every parameter of a run: sections of plain values, TOML files, overrides by name.

A key is written `section.name`, e.g. `client.alpha_lr`; the same names serve the file, the command
line and `config.json` in a run folder.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metadnas_ext.config_checks import check
from metadnas_ext.errors import ConfigError


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
    final_lr: float | None = None  # of w in the last round, geometrically; None: constant
    momentum: float = 0.9
    weight_decay: float = 0.0003
    clip: float = 5.0  # largest norm of w's gradient; 0: no clipping
    graphs: bool = False  # on a GPU: capture the passes of a step once, then replay them
    penalty: float = 0.1  # weight of the complexity penalty
    penalty_kind: str = "linear"  # linear, hinge, squared_hinge, absolute, dual (ascent)
    dual_rate: float = 0.1  # step of dual ascent
    kl: float = 0.01  # weight of KL(client's mixing weights, server's)
    beta_decay: float = 0.01  # weight of mean logsumexp of alpha
    zero_one: float = 10.0  # weight of sigmoid's loss that drives it to 0 or 1
    max_skips: int | None = None  # skip connections in a cell of a derived network; None: any


@dataclass(frozen=True)
class ServerConfig:
    """Rounds, the meta-learner and the aggregator."""

    rounds: int = 8
    search_rounds: int | None = None  # then clients train their own sub-networks; None: all
    clients_per_round: int = 8
    cohort: int = 16  # clients trained together in one batch of kernels
    meta: str = "fomaml"  # meta-learner: fomaml, reptile, or maml (second order)
    meta_on: str = "alpha"  # what it learns: alpha, w or both; the rest is averaged
    maml_steps: int = 0  # maml: a client's last steps that are differentiated; 0: all
    alpha_lr: float = 0.001  # Adam
    w_lr: float = 0.001  # Adam, where w is meta-learned
    aggregator: str = "mean"  # over clients; median, krum, multi_krum, ... resist bad ones
    trim: float = 0.1  # trimmed_mean: share of the clients cut off at each end
    byzantine: int | None = None  # krum: bad clients a round; None: the most it tolerates
    select: int | None = None  # multi_krum: clients averaged; None: all but the bad ones
    patience: int = 0  # stop after as many flat rounds; 0: never
    tolerance: float = 0.002  # change of accuracy and entropy that still counts as flat
    lost_rounds: int = 3  # stop with an error when every client diverged in as many rounds in a row
    hessian_every: int = 0  # rounds between eigenvalues of the Hessian in alpha; 0: never
    local: tuple[str, ...] = ()  # parts that stay on the clients: head, bn, alpha


@dataclass(frozen=True)
class BudgetConfig:
    """Compute budgets. Levels go round-robin over clients, each on the client's own device."""

    unit: str = "macs"  # macs or params, of all clients unless there are devices
    devices: tuple[str, ...] = ()  # device classes: macs, params or a profile (metadnas profile)
    device_shares: tuple[float, ...] = ()  # of clients, drawn by seed; empty: round-robin
    levels: tuple[float, ...] = (0.35, 0.6)  # up to 1: share of the dearest network; above: units
    absolute: bool = False  # levels up to 1 are units too: 0.8 is 0.8 ms


@dataclass(frozen=True)
class PersonaliseConfig:
    """From the meta-learned state to a client's own network."""

    adapt_epochs: int = 2  # local search from the server's state
    adapt_lr: float | None = None  # of w in that search; None: client.lr
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
    """Seed, device and outputs."""

    seed: int = 0
    device: str = "cpu"  # cpu, cuda, cuda:<n> or auto; fixed when the run starts
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
        check(self, _flat(self))

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
        item, *_ = typing.get_args(wanted) or (None,)
        expected = wanted.__name__ if item is None else f"a list of {item.__name__}"
        raise ConfigError(f"{key} is {value!r}, expected {expected}") from None


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
