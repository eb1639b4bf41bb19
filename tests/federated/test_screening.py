"""Bad updates: none raises, none gets in, and only its sender is dropped."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from metadnas_ext.aggregation import METHODS
from metadnas_ext.federated.packing import pack, unpack
from metadnas_ext.federated.screening import Arrived, packed_reply, screened
from metadnas_ext.methods import FedAvg, MetaDNAS
from metadnas_ext.space import Architecture, genotype_cost

from . import bad_updates
from ._tiny import assert_identical, tiny_federation
from .bad_updates import HERE, KINDS, Round, outcomes

REASONS = {
    "NaN in w": "theta holds nan",
    "shape that broadcasts": r"theta has shape \[1\], expected \[\d+\]",
    "missing key": "tensors: alpha, running missing",
    "float64": "theta is torch.float64, expected torch.float32",
    "weight 1e12": "weight is 1000000000000.0, expected 0 to",
    "NaN metric": "val_loss is nan",
    "duplicate": "sent 2 replies",
    "replay of the round before": "round is 0, expected 1",
    "another run": "run is run 2, expected run 1",
    "garbage bytes": "not packed tensors",
    "pickle": "not packed tensors",
    "oversize": r"\d+ bytes, expected at most \d+",
    "tells of divergence": "loss is nan",
}


@cache
def good_round() -> Round:
    torch.set_num_threads(1)
    return bad_updates.good_round()


@pytest.mark.parametrize("kind", list(KINDS))
def test_only_the_sender_is_dropped(kind: str) -> None:
    """The round against one of the others alone, which has seen no screening; every aggregator."""
    reason, right = outcomes(good_round(), [kind])[kind]
    assert right == list(METHODS)
    assert re.search(REASONS.get(kind, "."), reason), reason
    assert len(reason) <= 200
    assert reason.isprintable()


def test_good_replies_come_through_to_the_bit() -> None:
    good = good_round()
    arrived = [
        Arrived(good.holders[client], client, packed_reply(HERE, reply))
        for client, reply in reversed(good.replies.items())
    ]
    done = screened(good.method, HERE, good.holders, arrived)
    assert (done.dropped, done.refused) == ({}, [])
    assert [reply.client for reply in done.replies] == sorted(good.replies)
    for reply in done.replies:
        own = good.replies[reply.client]
        assert (reply.weight, reply.metrics) == (own.weight, own.metrics)
        for name, tensor in own.tensors.items():
            assert_identical(reply.tensors[name], tensor, name)


def test_nobody_is_dropped_for_what_another_node_has_sent() -> None:
    good = good_round()
    client, stranger = good.bad, 99
    data = packed_reply(HERE, good.replies[client])
    other = good.holders[client] + 1
    arrived = [
        Arrived(good.holders[client], client, data),
        Arrived(other, client, data),
        Arrived(other, stranger, data),
    ]
    done = screened(good.method, HERE, {client: good.holders[client]}, arrived)
    assert [reply.client for reply in done.replies] == [client]
    assert done.dropped == {}
    assert done.refused == [
        f"{other} sent a reply of client {client}, which is not its own",
        f"{other} sent a reply of {stranger}, which has no part in the round",
    ]


def test_what_is_known_of_silent_clients_is_said() -> None:
    good = good_round()
    done = screened(good.method, HERE, {2: 1, 3: 1}, [], {2: "no reply within 5 s"})
    assert done.dropped == {2: "no reply within 5 s", 3: "no reply"}


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_raise(seed: int) -> None:
    """Flipped, cut, repeated: what gets through is finite and of the right form."""
    good, draw = good_round(), random.Random(seed)
    client = good.bad
    whole = packed_reply(HERE, good.replies[client])
    kept = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(draw.choice([64, 2048, len(data)]))] = draw.randrange(256)
        if draw.random() < 0.3:
            at = draw.randrange(len(data))
            data = data[:at] + draw.randbytes(draw.randint(0, 9)) + data[at:]
        holders = {client: good.holders[client]}
        arrived = [Arrived(good.holders[client], client, bytes(data))]
        done = screened(good.method, HERE, holders, arrived)
        assert len(done.replies) + len(done.dropped) == 1
        for reply in done.replies:
            kept += 1
            form = good.method.form(HERE.round, client, None)
            for name, least in form.tensors.items():
                assert reply.tensors[name].shape == least.shape
                assert torch.isfinite(reply.tensors[name]).all()
    assert kept < 150


SETTLED = {"server__search_rounds": 1, "client__alpha_lr": 0.5, "server__clients_per_round": 3}


def test_networks_of_clients_are_screened_by_their_own_form() -> None:
    method = MetaDNAS(tiny_federation(**SETTLED))
    method.round(0)
    sampled = method.federation.sample(1)
    where = replace(HERE, round=1)
    replies = {reply.client: reply for reply in method.work(1, sampled).replies}
    first, second, third = sampled
    tight = min(method.federation.budgets.tolist())
    dearest = max((method.architecture(c) for c in range(4)), key=lambda g: cost_of(method, g))
    poor = next(c for c in sampled if float(method.federation.budgets[c]) == tight)
    changed = {
        first: replace(replies[first], architecture=None),
        second: replace(
            replies[second],
            tensors={n: t[:-1] for n, t in replies[second].tensors.items()},
        ),
    }
    arrived = [Arrived(0, c, packed_reply(where, changed.get(c, replies[c]))) for c in sampled]
    done = screened(method, where, dict.fromkeys(sampled, 0), arrived)
    assert [reply.client for reply in done.replies] == [third]
    assert done.dropped[first] == "architecture: architecture is missing"
    assert "has shape" in done.dropped[second]
    assert cost_of(method, dearest) > tight
    with pytest.raises(ValueError, match="expected at most the budget"):
        method.form(1, poor, dearest)


def cost_of(method: MetaDNAS, genotype: Architecture) -> float:
    return genotype_cost(method.federation.costs, genotype)


def test_a_method_of_one_architecture_takes_no_other() -> None:
    method = FedAvg(tiny_federation())
    with pytest.raises(ValueError, match="expected none"):
        method.form(0, 0, method.genotype)


def test_packing_is_undone_and_repeatable() -> None:
    tensors = {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.zeros(0),
        "c": torch.ones((), dtype=torch.bool),
    }
    header = {"text": "α", "none": None, "list": [1, 2.5]}
    data = pack(header, tensors)
    assert data == pack(header, dict(reversed(tensors.items())))
    found, rows = unpack(data)
    assert found == header
    for name, tensor in tensors.items():
        assert_identical(rows[name], tensor, name)
    with pytest.raises(ValueError, match="JSON compliant"):
        pack({"bad": float("nan")}, {})


def test_the_table_of_the_page_is_whole() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    part = page.split(bad_updates.START)[1].split(bad_updates.END)[0]
    assert [kind for kind in KINDS if f"| {kind} |" not in part] == []
