"""Replies as they come from elsewhere: nothing in them is believed before it has been looked at.

A reply that is not what was asked for costs its sender its part in the round, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


Tensors = dict[str, Tensor]


class RefusedError(Exception):
    """What came is not what was asked for; the reason is its message."""


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


def packed_excuse(where: Where, client: int, reason: str) -> bytes:
    """In place of a reply: why there is none."""
    return pack({**vars(where), "client": client, "excuse": reason}, {})


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
    own, refused = by_client(holders, arrived)
    replies, dropped = [], {}
    for client, sent in own.items():
        try:
            data = only_one(sent, (silent or {}).get(client, "no reply"))
            replies.append(_opened(method, where, client, data))
        except RefusedError as error:
            dropped[client] = str(error)[:_LONGEST]
    return Screened(replies, dropped, refused)


def by_client(
    holders: Mapping[int, int], arrived: Iterable[Arrived]
) -> tuple[dict[int, list[bytes]], list[str]]:
    """What the holders of clients have sent for each, and what others have."""
    own: dict[int, list[bytes]] = {client: [] for client in sorted(holders)}
    refused = []
    for sender, client, data in arrived:
        if client not in own:
            refused.append(f"{sender} sent a reply of {client!r}, which has no part in the round")
        elif holders[client] != sender:
            refused.append(f"{sender} sent a reply of client {client}, which is not its own")
        else:
            own[client].append(data)
    return own, refused


def only_one(sent: Sequence[bytes], nothing: str) -> bytes:
    """RefusedError, with the reason `nothing` where nothing was sent."""
    if len(sent) != 1:
        raise RefusedError(f"sent {len(sent)} replies" if sent else nothing)
    return sent[0]


def opened(where: Where, client: int, data: bytes, most: int) -> tuple[dict[str, Any], Tensors]:
    """Header and tensors of at most `most` bytes of this client. RefusedError if they are not."""
    if len(data) > most:
        raise RefusedError(f"{len(data)} bytes, expected at most {most}")
    try:
        header, tensors = unpack(data)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    for name, wanted in {**vars(where), "client": client}.items():
        found = header.get(name)
        if type(found) is not type(wanted) or found != wanted:
            raise RefusedError(f"{name} is {_text(found)}, expected {wanted}")
    if header.keys() == {*vars(where), "client", "excuse"} and not tensors:
        raise RefusedError(_text(header["excuse"]))
    return header, tensors


def _opened(method: Rounds, where: Where, client: int, data: bytes) -> Reply:
    most = HEADER_BYTES + sum(t.numel() * t.element_size() for t in method.server_state().values())
    header, tensors = opened(where, client, data, most)
    _check_keys("header", header.keys(), _FIELDS)
    try:
        found = header["architecture"]
        architecture = None if found is None else architecture_from_json(found)
        form = method.form(where.round, client, architecture)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError(f"architecture: {error}") from None
    images = float(len(method.federation.splits[client].train))
    weight = _number("weight", header["weight"], 0.0, images)
    if weight == 0:
        raise RefusedError(f"weight is 0, expected more than 0 and at most {images:g}")
    metrics = _checked_metrics(header["metrics"], form)
    return Reply(client, _checked_tensors(tensors, form, method), weight, metrics, architecture)


def _check_keys(what: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    found, wanted = set(found), set(wanted)
    if missing := wanted - found:
        raise RefusedError(f"{what}: {', '.join(sorted(missing))} missing")
    if extra := found - wanted:
        raise RefusedError(f"{what}: {_text(min(extra))} not expected")


def _number(what: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RefusedError(f"{what} is {_text(value)}, expected a number")
    if not least <= value <= most:  # as it came: a whole number may be too long for a float
        raise RefusedError(f"{what} is {_text(value)}, expected {least:g} to {most:g}")
    return float(value)


def _checked_metrics(found: Any, form: Form) -> dict[str, float]:
    if not isinstance(found, dict):
        raise RefusedError(f"metrics is {_text(found)}, expected an object")
    _check_keys("metrics", found, form.metrics)
    return {name: _number(name, found[name], *form.metrics[name]) for name in form.metrics}


def _checked_tensors(found: Mapping[str, Tensor], form: Form, method: Rounds) -> dict[str, Tensor]:
    check_tensors(tensors=found, least=form.tensors)
    return {name: found[name].to(method.federation.device) for name in form.tensors}


def check_tensors(tensors: Mapping[str, Tensor], least: Mapping[str, Tensor]) -> None:
    """RefusedError unless keys, shapes and dtypes are those of `least`, and no value is below."""
    _check_keys("tensors", tensors, least)
    for name, floor in least.items():
        tensor = tensors[name]
        if tensor.dtype != floor.dtype:
            raise RefusedError(f"{name} is {tensor.dtype}, expected {floor.dtype}")
        if tensor.shape != floor.shape:
            shape, wanted = list(tensor.shape), list(floor.shape)
            raise RefusedError(f"{name} has shape {shape}, expected {wanted}")
        if bool((bad := ~(tensor.abs() <= LARGEST)).any()):  # so is NaN
            value = float(tensor[bad][0])
            raise RefusedError(f"{name} holds {value:g}, at most {LARGEST:g} is expected")
        if bool((bad := tensor < floor).any()):
            value = float(tensor[bad][0])
            raise RefusedError(f"{name} holds {value:g} where no negative number can be")


def _text(value: Any) -> str:
    """What somebody else has written, fit for one line of a log."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST]
