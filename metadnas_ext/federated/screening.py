"""Replies as they come from elsewhere: nothing in them is believed before it has been looked at.

A reply that is not what was asked for costs its sender its part in the round, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from metadnas_ext.federated.packing import pack, unpack
from metadnas_ext.methods.exchange import LARGEST, Form, Reply
from metadnas_ext.methods.rounds import Rounds
from metadnas_ext.space import architecture_from_json

HEADER_BYTES = 1 << 16
"""What a reply may have beside its tensors."""

_FIELDS = {"run", "method", "round", "client", "weight", "metrics", "architecture"}
_LONGEST = 200  # characters of a reason that is handed on


@dataclass(frozen=True)
class Where:
    """Which round of which method of which run."""

    run: str
    method: str
    round: int


class Arrived(NamedTuple):
    """Bytes that `sender` has sent as `client`'s reply."""

    sender: int
    client: int
    data: bytes


@dataclass(frozen=True, eq=False)
class Screened:
    """Replies by client; why the other clients are dropped; what came from where it should not."""

    replies: list[Reply]
    dropped: dict[int, str]
    refused: list[str]


class _RefusedError(Exception):
    """The reason is its message."""


def packed_reply(where: Where, reply: Reply) -> bytes:
    architecture = None if reply.architecture is None else reply.architecture.to_json()
    header = {
        **vars(where),
        "client": reply.client,
        "weight": reply.weight,
        "metrics": reply.metrics,
        "architecture": architecture,
    }
    return pack(header, reply.tensors)


def packed_divergence(where: Where, client: int, reason: str) -> bytes:
    """In place of a reply: the client's numbers are not finite."""
    return pack({**vars(where), "client": client, "diverged": reason}, {})


def screened(
    method: Rounds,
    where: Where,
    holders: Mapping[int, int],
    arrived: Iterable[Arrived],
    silent: Mapping[int, str] | None = None,
) -> Screened:
    """Sorts what has arrived in a round of `method`; `holders`: who answers for each client of it.

    `silent`: what is known of clients that nothing came for.

    A client is dropped if nothing came for it, more than one reply, or one that is not as the
    method's `form` says; what somebody else than its holder has sent for it does not count.
    """
    own: dict[int, list[bytes]] = {client: [] for client in sorted(holders)}
    refused = []
    for sender, client, data in arrived:
        if client not in own:
            refused.append(f"{sender} sent a reply of {client!r}, which has no part in the round")
        elif holders[client] != sender:
            refused.append(f"{sender} sent a reply of client {client}, which is not its own")
        else:
            own[client].append(data)
    replies, dropped = [], {}
    for client, sent in own.items():
        try:
            if len(sent) != 1:
                nothing = (silent or {}).get(client, "no reply")
                raise _RefusedError(f"sent {len(sent)} replies" if sent else nothing)
            replies.append(_opened(method, where, client, sent[0]))
        except _RefusedError as error:
            dropped[client] = str(error)[:_LONGEST]
    return Screened(replies, dropped, refused)


def _opened(method: Rounds, where: Where, client: int, data: bytes) -> Reply:
    most = HEADER_BYTES + sum(t.numel() * t.element_size() for t in method.server_state().values())
    if len(data) > most:
        raise _RefusedError(f"{len(data)} bytes, expected at most {most}")
    try:
        header, tensors = unpack(data)
    except ValueError as error:
        raise _RefusedError(str(error)) from None
    _check_identity(where, client, header)
    if header.keys() == {*vars(where), "client", "diverged"} and not tensors:
        raise _RefusedError(_text(header["diverged"]))
    _check_keys("header", header.keys(), _FIELDS)
    try:
        found = header["architecture"]
        architecture = None if found is None else architecture_from_json(found)
        form = method.form(where.round, client, architecture)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _RefusedError(f"architecture: {error}") from None
    images = float(len(method.federation.splits[client].train))
    weight = _number("weight", header["weight"], 0.0, images)
    if weight == 0:
        raise _RefusedError(f"weight is 0, expected more than 0 and at most {images:g}")
    metrics = _checked_metrics(header["metrics"], form)
    return Reply(client, _checked_tensors(tensors, form, method), weight, metrics, architecture)


def _check_identity(where: Where, client: int, header: Mapping[str, Any]) -> None:
    for name, wanted in {**vars(where), "client": client}.items():
        found = header.get(name)
        if type(found) is not type(wanted) or found != wanted:
            raise _RefusedError(f"{name} is {_text(found)}, expected {wanted}")


def _check_keys(what: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    found, wanted = set(found), set(wanted)
    if missing := wanted - found:
        raise _RefusedError(f"{what}: {', '.join(sorted(missing))} missing")
    if extra := found - wanted:
        raise _RefusedError(f"{what}: {_text(min(extra))} not expected")


def _number(what: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError(f"{what} is {_text(value)}, expected a number")
    if not least <= value <= most:  # as it came: a whole number may be too long for a float
        raise _RefusedError(f"{what} is {_text(value)}, expected {least:g} to {most:g}")
    return float(value)


def _checked_metrics(found: Any, form: Form) -> dict[str, float]:
    if not isinstance(found, dict):
        raise _RefusedError(f"metrics is {_text(found)}, expected an object")
    _check_keys("metrics", found, form.metrics)
    return {name: _number(name, found[name], *form.metrics[name]) for name in form.metrics}


def _checked_tensors(found: Mapping[str, Tensor], form: Form, method: Rounds) -> dict[str, Tensor]:
    _check_keys("tensors", found, form.tensors)
    for name, least in form.tensors.items():
        tensor = found[name]
        if tensor.dtype != least.dtype:
            raise _RefusedError(f"{name} is {tensor.dtype}, expected {least.dtype}")
        if tensor.shape != least.shape:
            shape, wanted = list(tensor.shape), list(least.shape)
            raise _RefusedError(f"{name} has shape {shape}, expected {wanted}")
        if not bool((tensor.abs() <= LARGEST).all()):  # neither has NaN
            value = tensor[~(tensor.abs() <= LARGEST)][0]
            raise _RefusedError(f"{name} holds {float(value):g}, at most {LARGEST:g} is expected")
        if bool((tensor < least).any()):
            value = tensor[tensor < least][0]
            raise _RefusedError(f"{name} holds {float(value):g} where no negative number can be")
    return {name: found[name].to(method.federation.device) for name in form.tensors}


def _text(value: Any) -> str:
    """What somebody else has written, fit for one line of a log."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST]
