"""What values the parameters of a run may have, alone and together."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from metadnas_ext import aggregation
from metadnas_ext.data import DATASETS, SCHEMES
from metadnas_ext.errors import ConfigError
from metadnas_ext.space.candidates import registered
from metadnas_ext.space.spaces import SPACES

if TYPE_CHECKING:
    from metadnas_ext.config import Config

# key -> (least, most); integers and floats alike.
RANGES: dict[str, tuple[float, float]] = {
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
    "client.final_lr": (1e-9, math.inf),
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
    "server.search_rounds": (1, math.inf),
    "server.clients_per_round": (1, math.inf),
    "server.cohort": (1, math.inf),
    "server.maml_steps": (0, math.inf),
    "server.alpha_lr": (0, math.inf),
    "server.w_lr": (0, math.inf),
    "server.trim": (0, 0.499),
    "server.byzantine": (0, math.inf),
    "server.select": (1, math.inf),
    "server.patience": (0, math.inf),
    "server.tolerance": (0, math.inf),
    "server.lost_rounds": (1, math.inf),
    "server.hessian_every": (0, math.inf),
    "personalise.adapt_epochs": (0, math.inf),
    "personalise.adapt_lr": (0, math.inf),
    "personalise.temperature": (1e-3, math.inf),
    "personalise.finetune_epochs": (0, math.inf),
    "personalise.finetune_lr": (0, math.inf),
    "rivals.per_fedavg_lr": (0, math.inf),
    "rivals.ditto_lambda": (0, math.inf),
    "run.seed": (0, 2**63 - 1),
    "run.threads": (1, math.inf),
    "run.keep_checkpoints": (1, math.inf),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "data.dataset": DATASETS,
    "data.partition": SCHEMES,
    "space.space": tuple(SPACES),
    "client.order": ("first", "second", "single"),
    "client.relaxation": ("softmax", "gumbel", "gdas", "sigmoid"),
    "client.optimizer": ("adam", "sgd"),
    "client.penalty_kind": ("linear", "hinge", "squared_hinge", "absolute", "dual"),
    "server.meta": ("fomaml", "reptile", "maml"),
    "server.meta_on": ("alpha", "w", "both"),
    # Similarity makes a state for each client; a meta-learner's start is one for all.
    "server.aggregator": tuple(how for how in aggregation.METHODS if how != "similarity"),
    "budget.unit": ("macs", "params"),
    "personalise.curve_for": ("none", "unseen", "all"),
    "rivals.per_fedavg_kind": ("first_order", "hessian_free"),
}

LOCAL_PARTS = ("head", "bn", "alpha")
"""What `server.local` may keep on the clients."""


def check(config: Config, values: Mapping[str, Any]) -> None:
    """ConfigError if the `values` of `config` by key are out of range or do not go together."""
    for key, (least, most) in RANGES.items():
        value = values[key]
        if value is not None and not (least <= value <= most and value < math.inf):
            upper = "" if most == math.inf else f" and at most {most:g}"
            upper = " and finite" if value == math.inf else upper
            raise ConfigError(f"{key} is {value}, expected at least {least:g}{upper}")
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            hint = did_you_mean(str(values[key]), choices)
            raise ConfigError(
                f"{key} is {values[key]!r}, expected one of {', '.join(choices)}{hint}"
            )
    check_device_name(config.run.device)
    _check_lists(config)
    _check_krum(config)
    _check_maml(config)
    _check_search_rounds(config)
    if config.client.final_lr is not None and config.client.lr == 0:
        raise ConfigError(
            f"client.final_lr is {config.client.final_lr} and client.lr 0, expected client.lr "
            f"above 0: the rate goes geometrically from one to the other"
        )
    epochs = config.server.rounds * config.client.epochs
    if 0 < epochs <= config.client.alpha_warmup:
        raise ConfigError(
            f"client.alpha_warmup is {config.client.alpha_warmup}, expected less than the {epochs} "
            f"local epochs of all rounds: alpha would never move"
        )
    if config.data.val_fraction + config.data.test_fraction >= 0.95:
        raise ConfigError(
            f"data.val_fraction {config.data.val_fraction} and data.test_fraction "
            f"{config.data.test_fraction} leave no training data"
        )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message on a misspelt name; empty if no known one is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check_lists(config: Config) -> None:
    levels = config.budget.levels
    if not levels or not all(math.isfinite(level) and level > 0 for level in levels):
        raise ConfigError(f"budget.levels is {levels}, expected one or more positive numbers")
    known = {**SPACES[config.space.space].own, **registered()}
    unknown = [c for c in config.space.candidates if c not in known]
    if unknown:
        raise ConfigError(
            f"space.candidates holds {', '.join(unknown)}; known: {', '.join(known)}"
            f"{did_you_mean(unknown[0], known)} (others have to be registered first: "
            f"register_primitive, --import)"
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


def _check_krum(config: Config) -> None:
    """A round must have the clients that Krum was asked for."""
    server = config.server
    seen = config.data.clients - round(config.data.unseen * config.data.clients)
    clients = min(server.clients_per_round, seen)
    byzantine, select = server.byzantine, server.select
    if "krum" in server.aggregator and byzantine is not None and 2 * byzantine + 3 > clients:
        raise ConfigError(
            f"server.byzantine is {byzantine}, expected 2 * byzantine + 3 clients a round at "
            f"least; there are {clients}"
        )
    if server.aggregator == "multi_krum" and select is not None and select > clients:
        raise ConfigError(
            f"server.select is {select}, expected at most the {clients} clients of a round"
        )


def _check_maml(config: Config) -> None:
    """What is differentiated must be a sequence of gradient steps."""
    if config.server.meta != "maml":
        return
    if config.client.order != "first":
        why = {
            "second": "its gradient of alpha is a finite difference already",
            "single": "alpha and w move at once there, not one after the other",
        }[config.client.order]
        raise ConfigError(
            f"client.order is {config.client.order!r}, expected 'first' with server.meta=maml, "
            f"which differentiates every step again: {why}"
        )
    if config.client.relaxation == "gdas":
        raise ConfigError(
            "client.relaxation is 'gdas', expected softmax, gumbel or sigmoid with "
            "server.meta=maml, which differentiates every step again: a straight-through gradient "
            "is that of no loss"
        )


def check_device_name(name: str, setting: str = "run.device") -> None:
    """ConfigError unless a device may be called so, whether it is there or not."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"{setting} is {name!r}, expected cpu, cuda, cuda:<n> or auto")


def check_graphs(config: Config) -> None:
    """ConfigError if `client.graphs` is on in a run whose steps cannot be captured.

    Of a run, not of any configuration: its device is known by then.
    """
    device, client = config.run.device, config.client
    if not client.graphs:
        return
    own = SPACES[config.space.space].own
    obstacles = {
        "run.device is 'cpu'": device == "cpu",
        "client.order is 'second', which takes a rate from outside": client.order == "second",
        f"client.relaxation is {client.relaxation!r}, which draws noise in every step": (
            client.relaxation in ("gumbel", "gdas")
        ),
        "server.meta is 'maml', which keeps every step": config.server.meta == "maml",
        f"space.space is {config.space.space!r}, whose modules read sizes on the CPU": (
            config.space.space != "darts"
        ),
        "space.candidates holds registered primitives, which read sizes on the CPU": any(
            name not in own for name in config.space.candidates
        ),
    }
    for obstacle, there in obstacles.items():
        if there:
            raise ConfigError(f"client.graphs is true, expected false: {obstacle}")


def _check_search_rounds(config: Config) -> None:
    """Sub-networks of different architectures have only a mean in common."""
    server = config.server
    if server.search_rounds is None or server.search_rounds >= server.rounds:
        return
    if server.aggregator != "mean":
        raise ConfigError(
            f"server.aggregator is {server.aggregator!r}, expected mean with server.search_rounds: "
            f"clients with different sub-networks cannot be compared"
        )
    if server.meta_on != "alpha":
        raise ConfigError(
            f"server.meta_on is {server.meta_on!r}, expected alpha with server.search_rounds: "
            f"weights of sub-networks are averaged"
        )
