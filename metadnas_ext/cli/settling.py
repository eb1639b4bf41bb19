"""From a request to the run folders, configurations and methods it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metadnas_ext.cli.options import DEFAULT_PRESET, Request, assignments, preset_of
from metadnas_ext.config import Config, load_file
from metadnas_ext.config_checks import did_you_mean
from metadnas_ext.errors import ConfigError, RunError

MOVING = (
    "; a run keeps its device: another one rounds differently, and what follows would not be what "
    "{} had computed. To go on elsewhere all the same, change run.device in its config.json"
)


def settled(
    command: str,
    wanted: list[str] | None,
    request: Request,
    seeds: str | None,
    target: float | None,
) -> tuple[Path, list[tuple[Path, Config]], list[str]]:
    """The folder, (run folder, configuration) of each seed, methods (wanted None: Table 1's).

    Raises on whatever is wrong with them.
    """
    from metadnas_ext.extras import require
    from metadnas_ext.federated import runner
    from metadnas_ext.methods import METHODS, TABLE_1
    from metadnas_ext.placement import settled_name
    from metadnas_ext.report.comparison import check_target

    if wanted == ["all"]:
        wanted = list(METHODS)
    for name in wanted or []:
        if name not in METHODS:
            raise ConfigError(
                f"unknown method {name!r}; known: {', '.join(METHODS)}{did_you_mean(name, METHODS)}"
            )
    if wanted is not None and len(set(wanted)) < len(wanted):
        raise ConfigError(f"--methods is {','.join(wanted)!r}, expected each method once")
    check_target(target)
    if request.tensorboard:
        require("tensorboard", "tensorboard")
    from_file = load_file(request.config) if request.config else {}
    values = from_file | request.flags | assignments(request.assignments)
    if "run.device" in values:
        values["run.device"] = settled_name(str(values["run.device"]))
    numbers = None if seeds is None else _seeds(seeds, values)
    if request.resume:
        out, runs, methods = _settled_resume(request, values, wanted, numbers)
        if command != "flower" and (out / runner.FLOWER).exists():
            raise RunError(
                f"{out} is a run over Flower: what its clients keep is on the nodes; go on with "
                f"metadnas flower --resume"
            )
        return out, runs, methods
    config = preset_of(request.preset or DEFAULT_PRESET).updated(values)
    out = request.out or _free_folder(command, config.data.dataset)
    runner.check_free(out)
    return out, _seeded(out, config, numbers), wanted or list(TABLE_1)


def _seeds(text: str, values: dict[str, Any]) -> list[int]:
    """The numbers of --seeds, ascending."""
    if "run.seed" in values:
        raise ConfigError(f"--seeds is {text!r} and run.seed is given too; give one of them")
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise ConfigError(f"--seeds is {text!r}, expected different whole numbers, as in 0,1,2")
    return sorted(map(int, parts))


def _seeded(out: Path, config: Config, seeds: list[int] | None) -> list[tuple[Path, Config]]:
    from metadnas_ext.report.study import SEED_FOLDER

    if seeds is None:
        return [(out, config)]
    return [(out / SEED_FOLDER.format(s), config.updated({"run.seed": s})) for s in seeds]


def _settled_resume(
    request: Request, values: dict[str, Any], wanted: list[str] | None, seeds: list[int] | None
) -> tuple[Path, list[tuple[Path, Config]], list[str]]:
    """As `settled`, of the run or the runs in the folder to go on with."""
    from metadnas_ext.federated import runner
    from metadnas_ext.report.study import run_folders

    out = request.out
    if out is None:
        raise ConfigError("--resume needs --out, the run folder to go on with")
    runs, methods = [], wanted or []
    for folder in run_folders(out):
        saved = runner.load_config(folder)
        given = (saved[0] if request.preset is None else preset_of(request.preset)).updated(values)
        if folder != out and "run.seed" not in values:  # --seeds gave each run its own
            given = given.updated({"run.seed": saved[0].run.seed})
        if "run.device" not in values:  # a run stays where it has started, whatever the preset
            given = given.updated({"run.device": saved[0].run.device})
        config, methods = _resumed(saved, given, wanted)
        runs.append((folder, config))
    found = [config.run.seed for _, config in runs]
    if seeds is not None and found != seeds:
        raise ConfigError(f"{out} holds the seeds {found}; given: {seeds}")
    return out, runs, methods


def _resumed(
    saved: tuple[Config, list[str]], given: Config, methods: list[str] | None
) -> tuple[Config, list[str]]:
    """The saved configuration and methods, if what was given now agrees with them."""
    config, saved_methods = saved
    if given.run.threads is None:  # a run keeps the number it has started with
        given = given.updated({"run.threads": config.run.threads})
    differences = config.differences(given)
    if differences:
        moved = config.run.device != given.run.device
        hint = MOVING.format(config.run.device) if moved else ""
        raise ConfigError(
            f"the run was started with another configuration (saved, given): "
            f"{'; '.join(differences)}{hint}"
        )
    if methods is not None and methods != saved_methods:
        raise ConfigError(f"the run holds {', '.join(saved_methods)}; given: {', '.join(methods)}")
    return config, saved_methods


def _free_folder(command: str, dataset: str) -> Path:
    number = 0
    while (folder := Path("runs") / f"{command}-{dataset}-{number}").exists():
        number += 1
    return folder
