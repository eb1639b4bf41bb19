"""What a run over Flower has beside its configuration, and both as Flower's run configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from metadnas_ext.config import Config
from metadnas_ext.errors import ConfigError
from metadnas_ext.methods import METHODS

SECTION = "flower."


@dataclass(frozen=True)
class FlowerSettings:
    """Where the server keeps the run, what it runs, on how many nodes, how long it waits.

    Args:
        out: the run folder, on the server.
        nodes: clients are dealt to partitions 0 to nodes - 1, one node each.
        start_seconds: for all nodes to be there.
        round_seconds: for the replies of a round; then it goes on without those that are missing.
        final_seconds: for results, and what else is asked for behind the rounds.
    """

    out: Path
    methods: tuple[str, ...] = ("meta_dnas",)
    nodes: int = 2
    start_seconds: float = 120.0
    round_seconds: float = 600.0
    final_seconds: float = 3600.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise ConfigError(
                f"flower.methods is {','.join(self.methods)!r}, expected some of "
                f"{', '.join(METHODS)}"
            )
        for name in ("nodes", "start_seconds", "round_seconds", "final_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"flower.{name} is {getattr(self, name)}, expected more than 0")


def to_run_config(settings: FlowerSettings, config: Config) -> dict[str, str | int | float | bool]:
    """Flower's scalars by `section.name`: lists as text with commas, None as "none"."""
    flat = {f"{SECTION}{name}": value for name, value in asdict(settings).items()}
    for section, values in config.to_json().items():
        flat |= {f"{section}.{name}": value for name, value in values.items()}
    return {name: _scalar(value) for name, value in flat.items()}


def from_run_config(values: Mapping[str, Any]) -> tuple[FlowerSettings, Config]:
    """The inverse of `to_run_config`. ConfigError naming what is unknown or wrong."""
    own = {n.removeprefix(SECTION): v for n, v in values.items() if n.startswith(SECTION)}
    known = {field.name: field.type for field in fields(FlowerSettings)}
    if unknown := own.keys() - known.keys():
        raise ConfigError(f"unknown flower.{min(unknown)}; known: {', '.join(known)}")
    if "out" not in own:
        raise ConfigError("flower.out is missing, expected the server's run folder")
    read: dict[str, Any] = {"Path": Path, "int": int, "float": float}
    read["tuple[str, ...]"] = lambda text: tuple(part.strip() for part in text.split(","))
    try:
        settings = FlowerSettings(**{n: read[str(known[n])](v) for n, v in own.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"flower: {error}") from None
    rest = {name: value for name, value in values.items() if not name.startswith(SECTION)}
    return settings, Config().updated(rest)


def _scalar(value: Any) -> str | int | float | bool:
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return value if isinstance(value, (bool, int, float)) else str(value)
