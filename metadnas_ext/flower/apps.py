"""The ServerApp and the ClientApp."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from metadnas_ext.config import Config
from metadnas_ext.errors import ConfigError, RunError
from metadnas_ext.federated import checkpoint
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.node import Node, Sent, clients_of
from metadnas_ext.federated.runner import (
    CONFIG,
    FLOWER,
    Observer,
    Runner,
    create_run,
    load_config,
)
from metadnas_ext.files import locked, write_json
from metadnas_ext.flower import messages
from metadnas_ext.flower.engine import OverFlower, check_config
from metadnas_ext.flower.messages import Order
from metadnas_ext.flower.settings import FlowerSettings, from_run_config
from metadnas_ext.methods.exchange import Task
from metadnas_ext.placement import device_of, make_repeatable


def server_app(
    given: tuple[FlowerSettings, Config] | None = None, observer: Observer | None = None
) -> ServerApp:
    """Runs methods to their end, or goes on with them, in `flower.out`.

    What is to be run is `given`, or in the app's configuration.
    """
    app = ServerApp()

    def main(grid: Any, context: Context) -> None:
        settings, config = given or from_run_config(context.run_config)
        serve(grid, settings, config, observer)

    app.main()(main)
    return app


def serve(
    grid: Any, settings: FlowerSettings, config: Config, observer: Observer | None = None
) -> None:
    """The server's side of a run, from its last checkpoint if there is one."""
    check_config(config, settings)
    out = settings.out
    with locked(out):
        if (out / CONFIG).exists():
            config = _resumed(out, settings, config)
        else:
            threads = config.run.threads or torch.get_num_threads()
            config = config.updated({"run.threads": threads})
            federation = _federation(config)
            create_run(out, federation.config, settings.methods)
            config = federation.config
        if not (out / FLOWER).exists():
            if (out / checkpoint.FOLDER).exists():
                raise RunError(
                    f"{out} was started in one process, so no node has what its clients keep; go "
                    f"on with metadnas compare --resume"
                )
            write_json(out / FLOWER, {"run": secrets.token_hex(16)})
        run = json.loads((out / FLOWER).read_bytes())["run"]
        federation = _federation(config)
        engine = OverFlower(grid, federation, settings, run)
        runner = Runner(federation, settings.methods, out, observer, engine)
        engine.wait_for_nodes()
        runner.run()


def _resumed(out: Path, settings: FlowerSettings, config: Config) -> Config:
    """The run's own configuration. ConfigError if another one was given."""
    saved, methods = load_config(out)
    own = {"run.threads": saved.run.threads, "run.device": saved.run.device}
    if differences := saved.differences(config.updated(own)):
        raise ConfigError(
            f"the run in {out} was started with another configuration (saved, given): "
            f"{'; '.join(differences)}"
        )
    if methods != list(settings.methods):
        raise ConfigError(
            f"the run in {out} holds {', '.join(methods)}; given: {', '.join(settings.methods)}"
        )
    return saved


def client_app(state: Path | None = None) -> ClientApp:
    """Holds the clients of its node; what they keep is below `state`, or the node's own folder.

    A node is told by `--node-config`: `partition-id`, `num-partitions`, `state`, a folder that
    outlives it, and, where it differs from the server's, `data-dir` and `device`.
    """
    app = ClientApp()

    def answering(work: Callable[[Node, Task, dict[int, int]], Sent]) -> Callable[..., Message]:
        def answer(message: Message, context: Context) -> Message:
            sent = _work(message.content, context.node_config, state, work)
            return Message(messages.replies_to_records(sent), reply_to=message)

        return answer

    def introduce(message: Message, context: Context) -> Message:
        config = messages.config_of(message.content)
        federation = _federation(_own(config, context.node_config))
        partition, partitions = _place(context.node_config)
        records = messages.introduction(partition, partitions, federation.fingerprint())
        return Message(records, reply_to=message)

    app.query()(introduce)
    app.train()(answering(Node.round))
    app.query("collect")(answering(Node.collect))
    app.evaluate()(answering(Node.personalise))
    return app


def _work(
    content: RecordDict,
    node_config: Mapping[str, Any],
    state: Path | None,
    work: Callable[[Node, Task, dict[int, int]], Sent],
) -> Sent:
    order = Order.of(content)
    folder = state or Path(str(_given(node_config, "state")))
    federation = _federation(_own(order.config, node_config))
    partition, partitions = _place(node_config)
    held = clients_of(partition, partitions, order.config.data.clients)
    if others := order.last.keys() - set(held):
        raise RunError(f"client {min(others)} is not of partition {partition} of {partitions}")
    return work(Node(federation, folder, order.run, order.method), order.task, order.last)


def _place(node_config: Mapping[str, Any]) -> tuple[int, int]:
    return int(_given(node_config, "partition-id")), int(_given(node_config, "num-partitions"))


def _given(node_config: Mapping[str, Any], name: str) -> Any:
    if name not in node_config:
        raise RunError(f"{name} is missing in the node's --node-config")
    return node_config[name]


def _own(config: Config, node_config: Mapping[str, Any]) -> Config:
    """The server's configuration with what is this machine's own."""
    names = {"data-dir": "data.data_dir", "device": "run.device"}
    return config.updated({key: node_config[n] for n, key in names.items() if n in node_config})


def _federation(config: Config) -> Federation:
    """The clients, made once a process, with the number of threads the run has."""
    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    make_repeatable(device_of(config.run.device))
    return _built(json.dumps(config.to_json()))


@functools.lru_cache(maxsize=2)
def _built(config: str) -> Federation:
    return Federation.build(Config.from_json(json.loads(config)))
