"""The cut between client and server: apart, each with a method of its own, they end as in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS
from metadnas_ext.methods.rounds import Rounds

from ..federated._tiny import assert_identical, tiny_federation

THREE = {"server__clients_per_round": 2, "server__rounds": 3}
SETTLED = {"server__search_rounds": 2, "client__alpha_lr": 0.5}


def made(name: str, federation: Federation) -> Rounds:
    method = METHODS[name](federation)
    assert isinstance(method, Rounds)
    return method


def collect(server: Rounds, devices: dict[int, Rounds]) -> None:
    """What stays on the clients, put together where the server's would be."""
    for at, rows in enumerate(server.client_rows):
        for client, device in devices.items():
            if device.client_rows[at].knows(client):
                default = torch.zeros(rows.width)
                rows.put([client], device.client_rows[at].of([client], default))
    server.collected()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("meta_dnas", {}),
        ("meta_dnas", {"server__local": "head,bn,alpha"}),
        ("meta_dnas", SETTLED),
        ("meta_dnas", SETTLED | {"server__local": "head,bn"}),
        ("meta_dnas", {"server__meta": "reptile", "server__meta_on": "both"}),
        ("meta_dnas", {"server__meta": "maml", "server__aggregator": "median"}),
        ("shared_alpha", SETTLED),
        ("fedavg", {}),
        ("fedper", {}),
        ("ditto", {}),
        ("per_fedavg", {}),
    ],
)
def test_devices_and_a_server_of_their_own(name: str, changes: dict[str, Any]) -> None:
    """Only what `shared` and the replies hold passes; replies come in any order."""
    federation = tiny_federation(**(THREE | changes))
    whole, server = made(name, federation), made(name, federation)
    devices = {client: made(name, federation) for client in range(4)}
    for index in range(3):
        expected = whole.round(index)
        sampled, replies = federation.sample(index), []
        for client in reversed(sampled):
            device = devices[client]
            device.receive({n: t.clone() for n, t in server.shared(final=False).items()})
            part = device.work(index, [client])
            device.keep(part)
            replies += part.replies
        replies.sort(key=lambda reply: reply.client)
        server.step(index, replies)
        if (
            "alpha" not in federation.config.server.local
        ):  # else α's figures are the collected one's
            assert server.figures(index, sampled, replies, {}) == expected
    collect(server, devices)
    for key, tensor in whole.state().items():
        assert_identical(server.state()[key], tensor, key)
    expected_results = {r.client: r for r in whole.personalise(range(4))}
    for client, device in devices.items():
        device.receive(server.shared(final=True))
        assert device.personalise([client]) == [expected_results[client]]


def test_local_parts_are_zeros_on_the_way() -> None:
    federation = tiny_federation(server__local="head,bn,alpha")
    method = made("meta_dnas", federation)
    client = federation.sample(0)[0]
    (reply,) = method.work(0, [client]).replies
    masks = method.local.masks(*method._shared())
    for tensors in (method.shared(final=False), reply.tensors):
        for (name, tensor), mask in zip(tensors.items(), masks, strict=True):
            assert mask.any(), name
            assert not tensor[mask].any(), name
            assert mask.all() or tensor[~mask].any(), name
