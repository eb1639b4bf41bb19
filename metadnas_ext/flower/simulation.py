"""A run in Flower's simulation: server and nodes on this machine, no network."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from metadnas_ext.config import Config
from metadnas_ext.extras import require
from metadnas_ext.federated.runner import Observer
from metadnas_ext.flower.settings import FlowerSettings

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""Nothing is reported to anybody; Ray leaves the devices visible that there are, and its processes,
which do all the work, are as important as this one."""


def simulate(
    settings: FlowerSettings, config: Config, state: Path, observer: Observer | None = None
) -> None:
    """Runs to the end; what clients keep is below `state`.

    Nodes work side by side as far as there are cores for their threads: two that share a core
    would wait for each other at every step.
    """
    require("flower", "flwr", "ray")
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from metadnas_ext.flower.apps import client_app, serve

    logging.getLogger("flwr").setLevel(logging.ERROR)
    failed: list[Exception] = []
    app = ServerApp()

    def main(grid: object, _: object) -> None:
        try:
            serve(grid, settings, config, observer)
        except Exception as error:  # Flower would end the process with one of its own
            failed.append(error)

    app.main()(main)
    threads = config.run.threads or torch.get_num_threads()
    at_once = min(settings.nodes, max((os.cpu_count() or 1) // threads, 1))
    backend = {
        "init_args": {"num_cpus": at_once, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(app, client_app(state), settings.nodes, backend_config=backend)
    if failed:
        raise failed[0]
