"""Configuration keys: every one by file, by text and by JSON; what is wrong is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from metadnas_ext.config import Config, keys, load_file
from metadnas_ext.config_checks import CHOICES, RANGES
from metadnas_ext.errors import ConfigError
from metadnas_ext.presets import PRESETS
from metadnas_ext.space import SPACES

OTHER: dict[str, Any] = {
    "data.dataset": "imagefolder",
    "data.data_dir": "some/folder, with a comma",
    "data.download": True,
    "data.image_size": 16,
    "data.max_images": 500,
    "data.clients": 7,
    "data.partition": "iid",
    "data.dirichlet": 0.1,
    "data.classes_per_client": 3,
    "data.min_size": 20,
    "data.val_fraction": 0.25,
    "data.test_fraction": 0.15,
    "data.unseen": 0.0,
    "data.augment": False,
    "space.space": "nasbench201",
    "space.channels": 6,
    "space.layers": 5,
    "space.nodes": 3,
    "space.stem_multiplier": 2,
    "space.partial": 2,
    "space.candidates": ("skip_connect", "none"),
    "client.epochs": 5,
    "client.batch_size": 17,
    "client.alpha_lr": 0.3,
    "client.alpha_beta1": 0.9,
    "client.alpha_weight_decay": 0.0,
    "client.alpha_warmup": 3,
    "client.order": "second",
    "client.relaxation": "gdas",
    "client.temperature": 5.0,
    "client.final_temperature": 0.1,
    "client.optimizer": "sgd",
    "client.lr": 1e-05,
    "client.final_lr": 1e-06,
    "client.momentum": 0.5,
    "client.weight_decay": 0.1,
    "client.clip": 0.0,
    "client.graphs": True,
    "client.penalty": 2.0,
    "client.penalty_kind": "dual",
    "client.dual_rate": 0.7,
    "client.kl": 0.0,
    "client.beta_decay": 0.0,
    "client.zero_one": 1.0,
    "client.max_skips": 2,
    "server.rounds": 0,
    "server.search_rounds": 4,
    "server.clients_per_round": 3,
    "server.cohort": 1,
    "server.meta": "reptile",
    "server.meta_on": "both",
    "server.maml_steps": 7,
    "server.alpha_lr": 0.1,
    "server.w_lr": 0.2,
    "server.aggregator": "median",
    "server.trim": 0.25,
    "server.byzantine": 2,
    "server.select": 3,
    "server.patience": 4,
    "server.tolerance": 0.1,
    "server.lost_rounds": 1,
    "server.hessian_every": 2,
    "server.local": ("head", "alpha"),
    "budget.unit": "params",
    "budget.devices": ("params", "some/phone.json"),
    "budget.device_shares": (0.3, 0.7),
    "budget.levels": (0.5, 12345.0, 1.0),
    "budget.absolute": True,
    "personalise.adapt_epochs": 0,
    "personalise.adapt_lr": 0.004,
    "personalise.temperature": 1.0,
    "personalise.finetune_epochs": 9,
    "personalise.finetune_lr": 0.1,
    "personalise.gate": False,
    "personalise.curve_for": "all",
    "personalise.curve_steps": (2, 0),
    "rivals.per_fedavg_lr": 0.5,
    "rivals.per_fedavg_kind": "hessian_free",
    "rivals.ditto_lambda": 2.0,
    "run.save_models": False,
    "run.seed": 2**63 - 1,
    "run.device": "cuda:1",
    "run.threads": 3,
    "run.keep_checkpoints": 5,
}
"""For every key a value that is not its default."""


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def as_text(value: Any) -> str:
    """As one writes it behind `--set key=`."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_toml(values: dict[str, Any]) -> str:
    """A TOML file of `section.name` keys; JSON writes these values as TOML does."""
    lines = []
    for section in dict.fromkeys(key.split(".")[0] for key in values):
        lines.append(f"[{section}]")
        for key, value in values.items():
            if key.startswith(f"{section}."):
                lines.append(f"{key.split('.')[1]} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)


def test_every_key_is_here() -> None:
    assert sorted(OTHER) == sorted(keys())
    for key, value in OTHER.items():
        assert value_of(Config(), key) != value, key


@pytest.mark.parametrize("key", sorted(OTHER))
def test_a_key_alone(key: str) -> None:
    """By value and by text; all else stays; through JSON; named where it differs."""
    value = OTHER[key]
    config = Config().updated({key: value})
    assert value_of(config, key) == value
    assert type(value_of(config, key)) is type(value)
    assert Config().updated({key: as_text(value)}) == config
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    (difference,) = Config().differences(config)
    assert difference == f"{key} ({value_of(Config(), key)!r}, {value!r})"
    assert config.updated({key: value_of(Config(), key)}) == Config()


def test_all_keys_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text(as_toml(OTHER))
    values = load_file(path)
    assert list(values) == list(OTHER)
    config = Config().updated(values)
    for key, value in OTHER.items():
        assert value_of(config, key) == value, key
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert len(Config().differences(config)) == len(OTHER)


@pytest.mark.parametrize(
    "key",
    [
        "data.data_dir",
        "data.image_size",
        "data.max_images",
        "server.byzantine",
        "server.select",
    ],
)
def test_optional_keys_can_be_emptied(key: str) -> None:
    config = Config().updated({key: OTHER[key]})
    assert value_of(config.updated({key: "none"}), key) is None
    assert config.updated({key: None}) == Config()


def test_a_file_gives_defaults_where_it_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert load_file(tmp_path / "empty.toml") == {}
    assert Config.from_json({}) == Config.from_json({"data": {}}) == Config()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("client.alpha_lrr", "did you mean client.alpha_lr?"),
        ("clients.alpha_lr", "did you mean client.alpha_lr?"),
        ("data.datset", "did you mean data.dataset?"),
        ("alpha_lr", "did you mean"),
        ("zzz", "known: data.dataset, "),
        ("data", "unknown parameter 'data'"),
        ("data.clients.x", "did you mean data.clients?"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config().updated({key: 1})
    assert f"unknown parameter {key!r}" in str(caught.value)
    assert hint in str(caught.value)


WRONG: list[tuple[str, list[Any]]] = [
    ("data.clients", ["ten", "1.5", 1.5, True, None, [3], {}, math.inf, "inf", ""]),
    ("client.lr", ["fast", True, None, [0.1], {"a": 1}, 10**400]),
    ("data.augment", ["yes", 2, 0.5, None, []]),
    ("data.dataset", [3, True, None, ["digits"]]),
    ("data.image_size", ["big", 1.5, False]),
    ("budget.levels", ["a,b", [True], ["x"], None, "0.5,,1", ""]),
    ("space.candidates", [3, [1], None]),
]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG for value in values], ids=repr
)
def test_wrong_types_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} is .*, expected "):
        Config().updated({key: value})


def test_every_number_has_a_range() -> None:
    numbers = {key for key, value in OTHER.items() if isinstance(value, int | float)}
    flags = {key for key, value in OTHER.items() if isinstance(value, bool)}
    assert set(RANGES) == numbers - flags


@pytest.mark.parametrize("key", sorted(RANGES))
def test_out_of_range(key: str) -> None:
    least, most = RANGES[key]
    whole = isinstance(OTHER[key], int)
    # So small that each may take its largest value.
    kept = Config().updated({"data.val_fraction": 0.01, "data.test_fraction": 0.01})
    assert value_of(kept.updated({key: least}), key) == least
    wrong: list[Any] = [least - 1, -(10**30)]
    if not whole:
        wrong += [least - 1e-9, math.nan, math.inf, -math.inf, "nan", "inf"]
    if most < math.inf:
        assert value_of(kept.updated({key: most}), key) == most
        wrong.append(most + 1 if whole else most + 1e-6)
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"{key} is .*, expected at least"):
            kept.updated({key: value})


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_choices(key: str) -> None:
    for choice in CHOICES[key]:
        assert value_of(Config().updated({key: choice}), key) == choice
    with pytest.raises(ConfigError, match=rf"{key} is 'x', expected one of {CHOICES[key][0]}, "):
        Config().updated({key: "x"})


def test_a_misspelt_choice_is_recognised() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'cifar10'\?"):
        Config().updated({"data.dataset": "cifar-10"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget.levels": []}, "budget.levels is .*positive"),
        ({"budget.levels": [0.5, 0]}, "budget.levels is .*positive"),
        ({"budget.levels": [-1]}, "budget.levels is .*positive"),
        ({"budget.levels": [math.inf]}, "budget.levels is .*positive"),
        ({"budget.levels": "nan"}, "budget.levels is .*positive"),
        ({"space.candidates": "none,conv_9x9"}, "space.candidates holds conv_9x9; known: none, "),
        ({"server.meta": "maml", "client.order": "second"}, "client.order is 'second', .* finite"),
        ({"server.meta": "maml", "client.order": "single"}, "client.order is 'single', .* at once"),
        ({"server.meta": "maml", "client.relaxation": "gdas"}, "relaxation is 'gdas', .* straight"),
        ({"server.local": "head,stem"}, "server.local is 'head,stem', expected some of head, bn"),
        ({"server.local": "bn,bn"}, "server.local is 'bn,bn', .* each once"),
        ({"personalise.curve_steps": "0,-1"}, r"curve_steps is \(0, -1\), .* none below 0"),
        ({"personalise.curve_steps": [1, 1]}, r"curve_steps is \(1, 1\), expected different"),
        ({"data.val_fraction": 0.5, "data.test_fraction": 0.5}, "leave no training data"),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().updated(values)


def test_an_empty_text_is_an_empty_list() -> None:
    config = Config().updated({"server.local": "head", "personalise.curve_steps": "3"})
    assert config.updated({"server.local": ""}).server.local == ()
    assert config.updated({"personalise.curve_steps": " "}).personalise.curve_steps == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[data", "is not valid TOML"),
        (b"clients = 3", "clients must be a section"),
        (b"\xff\xfe\x00", "is not valid TOML"),
        (b"[data]\nclients = 3\nclients = 4", "is not valid TOML"),
    ],
)
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_file(path)
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            load_file(path)


def test_json_of_another_shape() -> None:
    with pytest.raises(ConfigError, match="data must be a section"):
        Config.from_json({"data": 3})  # type: ignore[dict-item]


def test_presets() -> None:
    assert list(PRESETS) == ["quick", "paper"]
    assert PRESETS["quick"] == Config()
    for preset in PRESETS.values():
        assert Config.from_json(preset.to_json()) == preset


def test_paper_preset_has_the_papers_values() -> None:
    """Those that algorithm.md marks as the paper's: n = 100, 10 local epochs, Adam with 1e-2 on
    the client and 1e-3 on the server, linear penalty, 8 candidates, 4 nodes."""
    paper = PRESETS["paper"]
    assert paper.data.clients == 100
    assert paper.client.epochs == 10
    assert (paper.client.optimizer, paper.client.lr, paper.client.alpha_lr) == ("adam", 0.01, 0.01)
    assert paper.server.alpha_lr == 0.001
    assert paper.client.penalty > 0
    assert paper.client.penalty_kind == "linear"
    assert paper.space.nodes == 4
    assert paper.space.candidates == ()  # all that the space defines
    assert tuple(SPACES[paper.space.space].own) == (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    )
