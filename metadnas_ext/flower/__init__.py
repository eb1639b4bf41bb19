"""Flower as the engine: clients on other machines (extra `flower`; docs/flower.md)."""

from metadnas_ext.extras import require

require("flower", "flwr")

from metadnas_ext.flower.apps import client_app, server_app  # noqa: E402

__all__ = ["client_app", "server_app"]
