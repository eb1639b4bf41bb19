"""Names, numbers and units as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

METHOD_NAMES = {
    "meta_dnas": "Meta-DNAS",
    "fedavg": "FedAvg",
    "fedavg_ft": "FedAvg + fine-tuning",
    "darts": "DARTS per client",
    "fedavg_head": "FedAvg + head fine-tuning",
    "fedper": "FedPer + FedBN + fine-tuning",
    "local_only": "Local only",
    "per_fedavg": "Per-FedAvg",
    "ditto": "Ditto",
    "shared_alpha": "Shared α + fine-tuning",
    "random": "Random + fine-tuning",
}
UNIT_NAMES = {"macs": "MACs", "params": "params"}
NOT_MEASURED = "\N{EN DASH}"
_VARIANT = ":"


def method_name(method: str) -> str:
    """A method's name for people; an unknown method keeps the name it has."""
    name, _, settings = method.partition(_VARIANT)
    return METHOD_NAMES.get(name, name) + (f", {settings}" if settings else "")


def variant(settings: Mapping[str, Any]) -> str:
    """What a method's identifier ends in if it ran with other settings: ':client.kl=0'."""
    return _VARIANT + ", ".join(f"{key}={_setting(value)}" for key, value in settings.items())


def unit_name(unit: str) -> str:
    """A cost unit for people; an unknown unit keeps the name it has."""
    return UNIT_NAMES.get(unit, unit)


def percent(fraction: float, digits: int = 2) -> str:
    """0.934 → '93.40'."""
    return f"{100 * fraction:.{digits}f}" if math.isfinite(fraction) else NOT_MEASURED


def number(value: float) -> str:
    """A count that may be a mean: '5', '5.3'."""
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else NOT_MEASURED


def quantity(value: float | None, unit: str) -> str:
    """A cost with its unit: '1.23 M MACs', '950 MACs', '3.21 ms'."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if unit not in UNIT_NAMES:
        return f"{value:.3g} {unit}"
    digits, prefix = _scaled(value)
    return " ".join(part for part in (digits, prefix, unit_name(unit)) if part)


def byte_count(value: float) -> str:
    """A volume of data: '1.23 MB'; powers of ten, as networks are sold."""
    if not math.isfinite(value):
        return NOT_MEASURED
    digits, prefix = _scaled(value)
    return f"{digits} {prefix}B"


def duration(seconds: float) -> str:
    """'12.3 s', '4 min 05 s', '2 h 07 min'."""
    if not math.isfinite(seconds):
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _setting(value: Any) -> str:
    """A setting as `--set` takes it."""
    if isinstance(value, list):
        return ",".join(map(_setting, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scaled(value: float) -> tuple[str, str]:
    """The number to three digits and its decimal prefix: ('1.23', 'M'), ('950', '')."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}", prefix
    return f"{value:.0f}", ""
