"""Methods side by side over one and several seeds, against figures worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metadnas_ext.errors import ConfigError, RunError
from metadnas_ext.report.build import build_report
from metadnas_ext.report.comparison import MethodFigures, compare, write_comparison
from metadnas_ext.report.study import load_study
from metadnas_ext.report.tables import accuracy_grid, cost_grid

Accuracies = dict[str, list[float | None]]


def write_seed(
    make: SimpleNamespace,
    folder: Path,
    accuracies: Accuracies,
    seed: int = 0,
    rounds: dict[str, list[float]] | None = None,
    more: list[dict[str, Any]] | None = None,
    **config: Any,
) -> Path:
    """A run with these test accuracies by method, and validation accuracies of rounds."""
    events = [
        make.round(method, index, val_accuracy=value)
        for method, values in (rounds or {}).items()
        for index, value in enumerate(values, 1)
    ]
    results = {
        method: [make.result(client, value) for client, value in enumerate(values)]
        for method, values in accuracies.items()
    }
    path: Path = make.run(folder, events + (more or []), results)
    sections = {"run": {"seed": seed, "threads": seed + 1}, "client": {"batch_size": 60}, **config}
    (path / "config.json").write_text(json.dumps(sections))
    return path


def rows(*paths: Path, target: float | None = None) -> dict[str, MethodFigures]:
    return {row.method: row for row in compare(load_study(*paths), target).rows}


def test_one_seed(tmp_path: Path, make: SimpleNamespace) -> None:
    run = write_seed(
        make,
        tmp_path / "run",
        {
            "fedavg_ft": [0.5, 0.6, 0.7, 0.8],
            "meta_dnas": [0.6, 0.6, 0.6, 1.0],
            "darts": [0.4, None, 0.4, 0.4],
        },
        rounds={"meta_dnas": [0.3, 0.5, 0.4]},
    )
    found = rows(run)
    assert list(found) == ["meta_dnas", "fedavg_ft", "darts"]  # in the order they were found
    own, tuned, alone = found.values()
    assert (own.mean, own.clients, own.missing) == (pytest.approx(0.7), 4, 0)
    assert own.std == pytest.approx(math.sqrt((3 * 0.1**2 + 0.3**2) / 4))
    assert own.worst_decile == pytest.approx(0.6)
    assert own.harmed == pytest.approx(1 / 4)  # client 2 alone; client 1 is as good
    assert tuned.harmed == 0
    assert (alone.harmed, alone.missing) == (1, 1)
    assert tuned.gain == pytest.approx((0.1 + 0 - 0.1 + 0.2) / 4)
    assert tuned.gain_low < tuned.gain < tuned.gain_high
    assert alone.gain == pytest.approx((0.2 + 0.2 + 0.6) / 3)  # of the clients with both
    assert math.isnan(own.gain)
    assert math.isnan(own.seed_std)
    assert (own.rounds, own.rounds_to_target, own.reached) == (3, 2, 1)
    assert (own.bytes_up, own.bytes_down) == (3000, 6000)
    assert (own.bytes_up_round, own.bytes_down_round) == (1000, 2000)
    assert own.seconds == pytest.approx(4.5)
    assert math.isnan(alone.rounds_to_target)
    assert math.isnan(alone.seconds)  # neither rounds nor personalisation were recorded


def test_several_seeds(tmp_path: Path, make: SimpleNamespace) -> None:
    """Seeds of different sizes count the same, also in the bootstrap and in the share harmed."""
    one = write_seed(
        make,
        tmp_path / "one",
        {"meta_dnas": [0.5, 0.7], "fedavg_ft": [0.4, 0.8]},
        rounds={"meta_dnas": [0.2, 0.6], "fedavg_ft": [0.7]},
    )
    two = write_seed(
        make,
        tmp_path / "two",
        {"meta_dnas": [0.9, 0.9, 0.9, 0.7], "fedavg_ft": [0.5, 0.5, 0.5, 0.3]},
        seed=7,
        rounds={"meta_dnas": [0.3, 0.4, 0.5], "fedavg_ft": [0.8]},
    )
    comparison = compare(load_study(two, one))
    assert comparison.seeds == (0, 7)
    assert comparison.target == pytest.approx(0.5)  # Meta-DNAS's best in seed 7
    own, tuned = comparison.rows
    assert (own.seeds, own.clients) == (2, 6)
    assert own.mean == pytest.approx((0.6 + 0.85) / 2)
    assert own.seed_std == pytest.approx((0.85 - 0.6) / math.sqrt(2))
    assert own.worst_decile == pytest.approx((0.5 + 0.7) / 2)
    assert own.harmed == pytest.approx((1 / 2 + 0) / 2)
    assert tuned.gain == pytest.approx((0 + 0.4) / 2)
    # Seed 7's clients all gain 0.4; seed 0's mean gain is -0.1, 0 or 0.1.
    assert (tuned.gain_low, tuned.gain_high) == pytest.approx((0.15, 0.25))
    assert (own.rounds_to_target, own.reached) == (2.5, 2)
    assert own.rounds == 2.5
    harder = rows(one, two, target=0.55)["meta_dnas"]
    assert (harder.rounds_to_target, harder.reached) == (2, 1)
    never = rows(one, two, target=0.95)["meta_dnas"]
    assert (math.isnan(never.rounds_to_target), never.reached) == (True, 0)


def test_methods_of_one_seed_may_come_from_several_runs(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    one = write_seed(make, tmp_path / "one", {"fedavg_ft": [0.5, 0.7]})
    two = write_seed(make, tmp_path / "two", {"meta_dnas": [0.6, 0.8]})
    found = rows(one, two)
    assert found["fedavg_ft"].gain == pytest.approx(0.1)
    assert found["meta_dnas"].harmed == 0


def test_rounds_taken_over_from_another_method_count(tmp_path: Path, make: SimpleNamespace) -> None:
    def personalised(method: str, trained_as: str) -> dict[str, Any]:
        event = {"event": "personalised", "method": method, "trained_as": trained_as}
        return event | {"clients": [0], "test_accuracy": [0.5], "seconds": 2.0}

    more = [personalised("fedavg", "fedavg"), *[personalised("fedavg_ft", "fedavg")] * 2]
    more.append(personalised("darts", "darts"))
    run = write_seed(
        make,
        tmp_path / "run",
        {"fedavg": [0.5], "fedavg_ft": [0.5], "darts": [0.5]},
        rounds={"fedavg": [0.3, 0.5]},
        more=more,
    )
    plain, tuned, alone = rows(run).values()
    assert (plain.seconds, tuned.seconds, alone.seconds) == (5, 7, 2)
    assert (tuned.bytes_up, tuned.rounds, tuned.rounds_to_target) == (2000, 2, 2)
    assert (alone.bytes_up, alone.bytes_down, alone.rounds) == (0, 0, 0)
    assert math.isnan(alone.bytes_up_round)


def test_epochs_until_the_reference_matches_a_rival(tmp_path: Path, make: SimpleNamespace) -> None:
    """60 of 120 images a batch: 2 steps an epoch."""
    run = write_seed(make, tmp_path / "run", {"meta_dnas": [0.9, 0.9], "darts": [0.5, 0.6]})
    results = json.loads((run / "results.json").read_bytes())
    for entry in results["meta_dnas"]:
        entry["adaptation"] = {"0": 0.2, "1": 0.5, "5": 0.6, "10": 0.8}
    (run / "results.json").write_text(json.dumps(results))
    found = rows(run)
    assert found["darts"].epochs_to_match == pytest.approx(5 / 2)
    assert math.isnan(found["meta_dnas"].epochs_to_match)


def test_a_rival_that_one_seed_never_matches_is_not_matched(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    """The mean over the seeds that do would get the better the fewer there are."""
    paths = []
    for seed, end in ((0, 0.9), (1, 0.3)):
        methods = {"meta_dnas": [end, end], "darts": [0.5, 0.6]}
        paths.append(write_seed(make, tmp_path / str(seed), methods, seed=seed))
        results = json.loads((paths[-1] / "results.json").read_bytes())
        for entry in results["meta_dnas"]:
            entry |= {"adaptation": {"0": 0.2, "1": end}, "steps": 2}
        (paths[-1] / "results.json").write_text(json.dumps(results))
    assert rows(paths[0])["darts"].epochs_to_match == pytest.approx(1 / 2)
    assert math.isnan(rows(*paths)["darts"].epochs_to_match)


def test_violations_are_added_up(tmp_path: Path, make: SimpleNamespace) -> None:
    paths = []
    for seed in (0, 1):
        over = [make.result(c, 0.5, cost=3e6 if c <= seed else 1e6) for c in range(4)]
        paths.append(make.run(tmp_path / str(seed), [], {"darts": over}))
        (paths[-1] / "config.json").write_text(json.dumps({"run": {"seed": seed}}))
    (row,) = rows(*paths).values()
    assert row.violations == 1 + 2
    assert row.mean_cost == pytest.approx((1.5e6 + 2e6) / 2)


def test_tables_of_several_seeds(tmp_path: Path, make: SimpleNamespace) -> None:
    one = write_seed(make, tmp_path / "one", {"meta_dnas": [0.5, 0.7], "fedavg_ft": [0.4, 0.8]},
                     rounds={"meta_dnas": [0.6]})  # fmt: skip
    two = write_seed(make, tmp_path / "two", {"meta_dnas": [0.7, 0.9], "fedavg_ft": [0.5, 0.5]},
                     seed=1, rounds={"meta_dnas": [0.2]})  # fmt: skip
    comparison = compare(load_study(one, two), target=0.5)
    grid = accuracy_grid(comparison)
    assert grid.rows[0][:2] == ("Meta-DNAS", "70.00 ± 14.14")
    assert grid.rows[0][5] == "25.0"
    assert grid.rows[1][6].startswith("+15.00 [+")
    costs = cost_grid(comparison)
    assert costs.headers[-1] == "rounds to 50.0 %"
    assert costs.rows[0][-1] == "1 (1 of 2)"


def test_written_as_data(tmp_path: Path, make: SimpleNamespace) -> None:
    """Both files hold the figures, strict JSON and nothing where nothing was measured."""
    run = write_seed(make, tmp_path / "run", {"meta_dnas": [0.5, 0.7], "a,b": [0.25, None]})
    comparison = compare(load_study(run))
    written = write_comparison(comparison, "# table\n", run)
    assert [path.name for path in written] == [f"comparison.{k}" for k in ("csv", "json", "md")]

    def forbidden(name: str) -> None:
        raise AssertionError(name)

    data = json.loads((run / "comparison.json").read_bytes(), parse_constant=forbidden)
    assert data["reference"] == "meta_dnas"
    assert data["seeds"] == [0]
    assert data["methods"][1]["mean"] == 0.25
    assert data["methods"][1]["seconds"] is None
    table = list(csv.DictReader(io.StringIO((run / "comparison.csv").read_text())))
    assert [line["method"] for line in table] == ["meta_dnas", "a,b"]
    assert float(table[0]["mean"]) == pytest.approx(0.6)
    assert table[1]["seconds"] == ""
    assert set(table[0]) == set(data["methods"][0])


def test_folder_of_seeds(tmp_path: Path, make: SimpleNamespace) -> None:
    for seed in (10, 2):
        write_seed(make, tmp_path / f"seed-{seed}", {"darts": [0.5]}, seed=seed)
    (tmp_path / "seed-plan.txt").touch()
    study = load_study(tmp_path)
    assert [run.path.name for run in study.runs] == ["seed-2", "seed-10"]
    assert study.seeds == [2, 10]
    assert study.name == tmp_path.name


def test_runs_that_do_not_belong_together(tmp_path: Path, make: SimpleNamespace) -> None:
    one = write_seed(make, tmp_path / "one", {"darts": [0.5]})
    other = write_seed(make, tmp_path / "two", {"darts": [0.5]}, seed=1, data={"clients": 3})
    with pytest.raises(RunError, match=r"one and .*two cannot .* data\.clients \(None, 3\)"):
        load_study(one, other)
    again = write_seed(make, tmp_path / "again", {"darts": [0.5]})
    with pytest.raises(RunError, match=r"one and .*again both hold darts with seed 0"):
        load_study(one, again)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is not a run folder"):
        load_study(tmp_path / "empty")


def test_variants_are_compared_with_the_first_run(tmp_path: Path, make: SimpleNamespace) -> None:
    """Each under the name of what differs, its clients paired with those of the first."""
    client = {"batch_size": 60, "kl": 1.0}
    base = write_seed(make, tmp_path / "base", {"meta_dnas": [0.5, 0.7]}, client=client)
    no_kl = write_seed(
        *(make, tmp_path / "no-kl", {"meta_dnas": [0.4, 0.5]}),
        rounds={"meta_dnas": [0.3]},
        client=client | {"kl": 0.0},
        server={"local": ["head", "bn"], "gate": False},
    )
    study = load_study(base, no_kl, variants=True)
    comparison = compare(study)
    other = "meta_dnas:client.kl=0, server.gate=false, server.local=head,bn"
    assert [row.method for row in comparison.rows] == ["meta_dnas", other]
    assert comparison.rows[1].gain == pytest.approx((0.1 + 0.2) / 2)
    assert comparison.rows[1].rounds == 1
    name = "Meta-DNAS, client.kl=0, server.gate=false, server.local=head,bn"
    assert accuracy_grid(comparison).rows[1][0] == name
    written = build_report(study, tmp_path / "out")
    assert all(path.exists() and path.name.isascii() for path in written)
    assert name in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_variants_of_other_data_are_not_compared(tmp_path: Path, make: SimpleNamespace) -> None:
    one = write_seed(make, tmp_path / "one", {"darts": [0.5]}, data={"dirichlet": 0.1})
    two = write_seed(make, tmp_path / "two", {"darts": [0.5]}, data={"dirichlet": 0.5})
    with pytest.raises(RunError, match=r"differ in: data\.dirichlet \(0\.1, 0\.5\)"):
        load_study(one, two, variants=True)
    again = write_seed(make, tmp_path / "again", {"darts": [0.5]}, data={"dirichlet": 0.1})
    with pytest.raises(RunError, match="both hold darts with seed 0"):
        load_study(one, again, variants=True)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.5, math.nan, 70])
def test_target_out_of_range(tmp_path: Path, make: SimpleNamespace, target: float) -> None:
    run = write_seed(make, tmp_path / "run", {"darts": [0.5]})
    with pytest.raises(ConfigError, match="--target is"):
        compare(load_study(run), target)
