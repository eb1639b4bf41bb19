"""Rounds over Flower's messages against the same rounds in this process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra flower)")

from flwr.app import Array, ArrayRecord, Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from metadnas_ext.errors import ConfigError, DeadlineError, RunError
from metadnas_ext.federated import checkpoint
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.node import Node
from metadnas_ext.flower import nodes
from metadnas_ext.flower.apps import _work, serve
from metadnas_ext.flower.engine import last_rounds
from metadnas_ext.flower.messages import Order
from metadnas_ext.flower.settings import FlowerSettings
from metadnas_ext.methods import FedPer, RoundFigures
from metadnas_ext.methods.exchange import Task

from ..federated._tiny import assert_identical, events, run_in, tiny_config
from ._grid import Change, LocalGrid
from ._same import assert_same_run

THREE = {"server__clients_per_round": 3, "run__threads": 1}
SETTLED = {"server__rounds": 3, "server__search_rounds": 2, "client__alpha_lr": 0.5}


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


def over_flower(
    base: Path, config: Any, methods: tuple[str, ...], change: Change | None = None, **more: Any
) -> LocalGrid:
    grid = LocalGrid(base / "state", 2, change)
    serve(grid, FlowerSettings(base / "out", methods, **more), config)
    return grid


@pytest.mark.parametrize(
    ("methods", "changes"),
    [
        (("meta_dnas", "fedavg", "fedavg_ft"), {}),
        (("meta_dnas",), SETTLED | {"server__local": "head,bn"}),
        (("meta_dnas",), {"server__local": "alpha", "server__meta": "reptile"}),
        (("fedper", "ditto"), {}),
        # One of the three seen clients is in none of the rounds.
        (("fedper", "meta_dnas"), {"server__clients_per_round": 1, "server__local": "head,bn"}),
        (("shared_alpha", "random"), SETTLED),
        (("darts", "local_only"), {}),
    ],
)
def test_a_run_is_that_of_one_process(
    methods: tuple[str, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(**(THREE | changes))
    run_in(tmp_path / "in process", Federation.build(config), list(methods))
    over_flower(tmp_path, config, methods)
    if "alpha" in config.server.local:  # the server knows α only at the end
        for one in ("out", "in process"):
            assert (tmp_path / one / "results.json").exists()
        first, second = (checkpoint.load_latest(tmp_path / n) for n in ("out", "in process"))
        assert first is not None
        assert second is not None
        assert checkpoint.state_hash(first.tensors) == checkpoint.state_hash(second.tensors)
    else:
        assert_same_run(tmp_path / "out", tmp_path / "in process")
    models = sorted(p.relative_to(tmp_path / "in process") for p in tmp_path.glob("in*/models/*/*"))
    (state,) = (tmp_path / "state").iterdir()
    for model in models:
        assert (state / model).read_bytes() == (tmp_path / "in process" / model).read_bytes()
    assert models


class ServerKilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_server_that_dies_in_a_round_goes_on_to_the_same_end(at: int, tmp_path: Path) -> None:
    """Clients have trained already: asked again, they start from the round before."""
    config = tiny_config(**(THREE | SETTLED | {"server__local": "head,bn"}))
    run_in(tmp_path / "in process", Federation.build(config), ["meta_dnas"])
    rounds = 0

    def dying(message: Message, reply: Message) -> Message:
        nonlocal rounds
        rounds += message.metadata.message_type.startswith("train")
        if rounds == 2 * at:
            rounds += 1
            raise ServerKilledError
        return reply

    with pytest.raises(ServerKilledError):
        over_flower(tmp_path, config, ("meta_dnas",), dying)
    over_flower(tmp_path, config, ("meta_dnas",))
    assert_same_run(tmp_path / "out", tmp_path / "in process")


@pytest.mark.parametrize("code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED])
def test_a_node_that_dies_and_comes_back_is_asked_again(code: int, tmp_path: Path) -> None:
    """Under another number, as Flower has it, with what is on its disk."""
    config = tiny_config(**THREE, server__local="bn")
    run_in(tmp_path / "in process", Federation.build(config), ["meta_dnas"])
    died = []

    def once(message: Message, reply: Message) -> Message:
        node = message.metadata.dst_node_id
        if message.metadata.message_type.startswith("train") and len(grid.pushed) > 4 and not died:
            died.append(node)
            _, config = grid.nodes.pop(node)
            grid.add(config["partition-id"])
            return Message(Error(code, "gone"), reply_to=message)
        return reply

    grid = LocalGrid(tmp_path / "state", 2, once)
    serve(grid, FlowerSettings(tmp_path / "out"), config)
    assert died
    assert_same_run(tmp_path / "out", tmp_path / "in process")


def test_a_node_that_is_silent_costs_its_clients_the_round(tmp_path: Path) -> None:
    """As a round without them; what they trained in vain is not gone on with."""
    config = tiny_config(**THREE, server__local="bn", server__rounds=3)
    federation = Federation.build(config)
    lost = {c for c in federation.sample(1) if c % 2}

    def silent(message: Message, reply: Message) -> Message | None:
        record = message.content.config_records.get("task")
        mute = record is not None and record["index"] == 1 and lost & set(record["clients"])
        return None if mute and message.metadata.message_type.startswith("train") else reply

    over_flower(tmp_path, config, ("fedper",), silent, round_seconds=3)
    second = events(tmp_path / "out")[1]
    assert second["dropped"] == [
        {"client": client, "reason": "no reply within 3 s"} for client in sorted(lost)
    ]
    method = FedPer(federation)
    for index in range(3):
        left = [c for c in federation.sample(index) if index != 1 or c not in lost]
        part = method.work(index, left)
        method.step(index, sorted(part.replies, key=lambda reply: reply.client))
        method.keep(part)
        method.collected()
    found = checkpoint.load_latest(tmp_path / "out")
    assert found is not None
    for name, tensor in method.state().items():
        assert_identical(found.tensors[f"fedper/{name}"], tensor, name)


def garbage(_: Array) -> Array:
    return Array(dtype="uint8", shape=(3,), stype="safetensors", data=b"\x80\x04.")


def test_bad_bytes_on_the_way_drop_their_client_in_every_phase(tmp_path: Path) -> None:
    config = tiny_config(**THREE, server__rounds=1)

    def bad(_: Message, reply: Message) -> Message:
        arrays = dict(reply.content.array_records.get("replies") or {})
        if "0" in arrays:
            arrays["0"] = garbage(arrays["0"])
            reply.content.array_records["replies"] = ArrayRecord(arrays)
        return reply

    over_flower(tmp_path, config, ("fedavg",), bad)
    (first, last) = events(tmp_path / "out")
    assert [one["client"] for one in first["dropped"]] == [0]
    assert "not packed tensors" in first["dropped"][0]["reason"]
    assert last["test_accuracy"][0] is None
    assert None not in last["test_accuracy"][1:]


def test_a_missing_node_is_named(tmp_path: Path) -> None:
    grid = LocalGrid(tmp_path / "state", 2)
    grid.nodes = {node: found for node, found in grid.nodes.items() if found[1]["partition-id"]}
    grid.add(0, **{"num-partitions": 3})
    message = r"no node for partition 0 within 1 s .*num-partitions is 3, expected 2"
    with pytest.raises(DeadlineError, match=message):
        serve(grid, FlowerSettings(tmp_path / "out", start_seconds=1), tiny_config(**THREE))


def test_a_node_with_other_data_is_refused(tmp_path: Path) -> None:
    grid = LocalGrid(tmp_path / "state", 1)

    def other(message: Message, reply: Message) -> Message:
        if "node" in reply.content.config_records:
            reply.content.config_records["node"]["fingerprint"] = "0" * 64
        return reply

    grid.change = other
    settings = FlowerSettings(tmp_path / "out", nodes=1, start_seconds=1)
    with pytest.raises(DeadlineError, match="its images, their split over clients"):
        serve(grid, settings, tiny_config(**THREE))


def test_results_that_do_not_come_are_waited_for_and_then_named(tmp_path: Path) -> None:
    config = tiny_config(**THREE, server__rounds=1)

    def silent(message: Message, reply: Message) -> Message | None:
        return None if message.metadata.message_type.startswith("evaluate") else reply

    with pytest.raises(DeadlineError, match=r"partition 0: no reply within 2 s"):
        over_flower(tmp_path, config, ("fedavg",), silent, final_seconds=2)
    over_flower(tmp_path, config, ("fedavg",))  # goes on behind the round
    run_in(tmp_path / "in process", Federation.build(config), ["fedavg"])
    assert_same_run(tmp_path / "out", tmp_path / "in process")


def test_a_client_whose_state_is_gone_or_damaged_says_so(tmp_path: Path) -> None:
    config = tiny_config(**THREE, server__rounds=2)
    done = []

    def damaging(message: Message, reply: Message) -> Message:
        done.append(message.metadata.message_type)
        if len([kind for kind in done if kind.startswith("train")]) == 2:
            (first,) = (tmp_path / "state").glob("*/fedper/0/*.state")
            data = bytearray(first.read_bytes())
            data[-1] ^= 1
            first.write_bytes(data)
        return reply

    federation = Federation.build(config)
    assert all(0 in federation.sample(index) for index in range(2))
    over_flower(tmp_path, config, ("fedper",), damaging)
    dropped = events(tmp_path / "out")[1]["dropped"]
    assert [one["client"] for one in dropped] == [0]
    assert "is damaged: it does not match its hash" in dropped[0]["reason"]


def test_a_node_answers_only_for_its_own_clients(tmp_path: Path) -> None:
    order = Order("ab" * 8, tiny_config(**THREE), "fedavg", Task(0, {}), {1: -1})
    place = {"partition-id": 0, "num-partitions": 2}
    with pytest.raises(RunError, match="client 1 is not of partition 0 of 2"):
        _work(order.to_records(), place, tmp_path, Node.round)
    with pytest.raises(RunError, match=r"run '\.\./x' of 'fedavg': expected hexadecimal"):
        _work(replace(order, run="../x", last={0: -1}).to_records(), place, tmp_path, Node.round)
    with pytest.raises(RunError, match="state is missing in the node's --node-config"):
        _work(order.to_records(), place, None, Node.round)


def test_another_configuration_is_not_gone_on_with(tmp_path: Path) -> None:
    config = tiny_config(**THREE, server__rounds=1)
    over_flower(tmp_path, config, ("fedavg",))
    with pytest.raises(ConfigError, match=r"client\.lr"):
        over_flower(tmp_path, config.updated({"client.lr": 0.5}), ("fedavg",))
    with pytest.raises(ConfigError, match="holds fedavg; given: fedper"):
        over_flower(tmp_path, config, ("fedper",))
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server__local": "alpha", "server__patience": 2}, "server.local has alpha"),
        ({"data__clients": 1, "data__unseen": 0}, "flower.nodes is 2, expected at most"),
    ],
)
def test_what_cannot_be_had_over_a_network(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = tiny_config(**(THREE | changes))
    with pytest.raises(ConfigError, match=message):
        serve(None, FlowerSettings(tmp_path / "out"), config)


def test_the_last_round_that_counted() -> None:
    def figures(clients: list[int], dropped: list[int]) -> RoundFigures:
        reasons = [{"client": client, "reason": "r"} for client in dropped]
        return RoundFigures(clients, None, None, None, 0, 0, dropped=reasons)

    history = [figures([0, 1], []), figures([1, 2], [1]), figures([0, 2], [0])]
    assert last_rounds(history) == {0: 0, 1: 0, 2: 2}


def test_a_run_of_one_process_is_not_gone_on_with_over_flower(tmp_path: Path) -> None:
    """What its clients keep is in its checkpoints, and on no node."""
    config = tiny_config(**THREE)
    run_in(tmp_path / "out", Federation.build(config), ["ditto"])
    with pytest.raises(RunError, match="out was started in one process, so no node has"):
        over_flower(tmp_path, config, ("ditto",))
    assert not (tmp_path / "out" / "flower.json").exists()
