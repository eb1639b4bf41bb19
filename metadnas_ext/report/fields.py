"""Typed access to values of parsed JSON; every complaint is a RunError that names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metadnas_ext.errors import RunError


def take(record: Mapping[str, Any], key: str) -> Any:
    """Value of a key that has to be there."""
    try:
        return record[key]
    except KeyError:
        raise RunError(f"{key!r} is missing") from None


def text(record: Mapping[str, Any], key: str) -> str:
    """A required string."""
    value = take(record, key)
    if not isinstance(value, str):
        raise RunError(f"{key!r} must be a string, got {value!r}")
    return value


def integer(record: Mapping[str, Any], key: str) -> int:
    """A required integer."""
    value = take(record, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RunError(f"{key!r} must be an integer, got {value!r}")
    return value


def boolean(record: Mapping[str, Any], key: str) -> bool:
    """A required truth value."""
    value = take(record, key)
    if not isinstance(value, bool):
        raise RunError(f"{key!r} must be true or false, got {value!r}")
    return value


def number(record: Mapping[str, Any], key: str) -> float:
    """A number; an absent key or null is NaN, the one mark for 'not measured'."""
    value = record.get(key)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RunError(f"{key!r} must be a number or null, got {value!r}")
    return float(value)


def fraction(record: Mapping[str, Any], key: str) -> float:
    """A number between 0 and 1, or NaN; catches accuracies written in percent."""
    value = number(record, key)
    if value < 0 or value > 1:
        raise RunError(f"{key!r} must be between 0 and 1, got {value!r}")
    return value


def mapping(value: Any, what: str) -> dict[str, Any]:
    """`value` itself if it is a JSON object."""
    if not isinstance(value, dict):
        raise RunError(f"{what} must be a JSON object, got {type(value).__name__}")
    return value
