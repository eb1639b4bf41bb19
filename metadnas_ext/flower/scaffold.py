"""An app folder for Flower's commands."""

from __future__ import annotations

import json
from pathlib import Path

from metadnas_ext import __version__
from metadnas_ext.config import Config
from metadnas_ext.errors import RunError
from metadnas_ext.files import write_atomic
from metadnas_ext.flower.settings import FlowerSettings, to_run_config

APP = '''"""Server and clients of a run of metadnas_ext; its configuration is in pyproject.toml."""

from metadnas_ext.flower import client_app, server_app

server = server_app()
client = client_app()
'''

PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "metadnas-app"
version = "{version}"
description = "A federated architecture search; every machine has metadnas_ext installed"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "metadnas"

[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"

# Of the run: change a value here, or for one run with `flwr run . --run-config 'server.rounds=3'`.
{config}"""


def write_app(folder: Path, settings: FlowerSettings, config: Config) -> None:
    """Writes `app.py` and `pyproject.toml`. RunError if the folder is in the way."""
    if folder.exists() and not (folder.is_dir() and _is_ours(folder)):
        raise RunError(f"{folder} exists and is no app folder of metadnas; choose another --app")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "app.py", APP.encode())
        text = PROJECT.format(version=__version__, config=_sections(settings, config))
        write_atomic(folder / "pyproject.toml", text.encode())
    except OSError as error:
        raise RunError(f"cannot write the app folder {folder}: {error.strerror}") from None


def _is_ours(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return not names or ((folder / "app.py").exists() and "pyproject.toml" in names)


def _sections(settings: FlowerSettings, config: Config) -> str:
    """A table of TOML for each section."""
    sections: dict[str, list[str]] = {}
    for key, value in to_run_config(settings, config).items():
        section, name = key.split(".")
        # JSON's strings, numbers and truth values are TOML's too.
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value, allow_nan=False)}")
    return "\n".join(
        f"[tool.flwr.app.config.{section}]\n" + "\n".join(lines) + "\n"
        for section, lines in sections.items()
    )
