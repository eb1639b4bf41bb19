"""Reading run folders, whole and damaged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import pytest

from metadnas_ext.errors import RunError
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import load_run


def test_reads_every_method(compare_run):
    run = load_run(compare_run)
    assert run.ended
    assert run.methods == ["meta_dnas", "fedavg"]
    assert run.config == {"data": {"name": "made-up"}}
    assert [entry.round for entry in run.rounds["fedavg"]] == [1, 2, 3, 4, 5]
    first = run.rounds["meta_dnas"][0]
    assert (first.clients, first.train_loss, first.bytes_up) == ((0, 1), 2.0, 1000)
    assert run.results["meta_dnas"][3].test_accuracy == 0.75
    assert run.genotypes["fedavg"]["meta"]["normal_concat"] == [2, 3, 4, 5]


def test_null_and_nan_become_nan(compare_run):
    entry = load_run(compare_run).rounds["fedavg"][0]
    assert math.isnan(entry.alpha_entropy)
    assert math.isnan(entry.val_loss)
    assert entry.train_loss == 2.0


def test_run_that_has_not_ended(tmp_path, make):
    run = load_run(make.run(tmp_path / "run", [make.round()]))
    assert not run.ended
    assert run.results == {}
    assert run.genotypes == {}


def test_unknown_events_are_ignored(tmp_path, make):
    events = [{"event": "start", "method": 3}, make.round(), {"event": "personalised"}, {}]
    assert len(load_run(make.run(tmp_path, events)).rounds["meta_dnas"]) == 1


def test_repeated_round_counts_once_and_the_later_line_wins(tmp_path, make):
    rounds = [make.round(index=1), make.round(index=2, train_loss=9.0), make.round(index=2)]
    loaded = load_run(make.run(tmp_path, rounds)).rounds["meta_dnas"]
    assert [(entry.round, entry.train_loss) for entry in loaded] == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize("tail", [b'{"event": "rou', b'{"method": "\xc3', b"\x00\x00\x00\n"])
def test_torn_last_line_is_skipped_with_a_warning(tmp_path, make, tail):
    folder = make.run(tmp_path, [make.round()])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 2 is torn"):
        run = load_run(folder)
    assert len(run.rounds["meta_dnas"]) == 1


def test_last_line_without_newline_is_whole(tmp_path, make):
    folder = make.run(tmp_path, [])
    (folder / "metrics.jsonl").write_text(json.dumps(make.round()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_run(folder).rounds["meta_dnas"]) == 1


def test_broken_line_in_the_middle(tmp_path, make):
    folder = make.run(tmp_path, [make.round()])
    line = json.dumps(make.round(index=2))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"event": "rou\n' + line + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 3 is not valid JSON"):
        load_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": "3"}, "'round' must be an integer"),
        ({"round": True}, "'round' must be an integer"),
        ({"method": None}, "'method' must be a string"),
        ({"val_accuracy": 93.0}, "'val_accuracy' must be between 0 and 1"),
        ({"train_loss": "low"}, "'train_loss' must be a number or null"),
        ({"clients": "all"}, "'clients' must be a list"),
    ],
)
def test_bad_round_names_file_line_and_key(tmp_path, make, change, message):
    folder = make.run(tmp_path, [make.round(), make.round(index=2, **change), make.round()])
    with pytest.raises(RunError, match=rf"metrics\.jsonl, line 2: {message}"):
        load_run(folder)


def test_line_that_is_no_object(tmp_path, make):
    folder = make.run(tmp_path, [])
    (folder / "metrics.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(RunError, match="line 1 must be a JSON object, got list"):
        load_run(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(RunError, match="nowhere is not a folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_missing_file_is_named(compare_run, name):
    (compare_run / name).unlink()
    with pytest.raises(RunError, match=f"not a run folder: {name} is missing"):
        load_run(compare_run)


@pytest.mark.parametrize("name", ["config.json", "results.json", "genotypes.json"])
@pytest.mark.parametrize("text", [b'{"a": ', b"[]", b'{"\xff": 1}', b"[" * 100_000, b""])
def test_damaged_json_file_is_named(compare_run, name, text):
    (compare_run / name).write_bytes(text)
    with pytest.raises(RunError, match=name):
        load_run(compare_run)


def test_bad_result_names_method_entry_and_key(tmp_path, make):
    results = {"fedavg": [make.result(), make.result(kept="stolen")]}
    folder = make.run(tmp_path, [make.round()], results)
    with pytest.raises(RunError, match=r"results\.json, fedavg, entry 1: 'kept' must be one of"):
        load_run(folder)


def test_client_result_survives_json(make):
    record = make.result(client=3, budget=None)
    result = ClientResult.from_json(record)
    assert result.to_json() == record
    assert ClientResult.from_json(json.loads(json.dumps(result.to_json()))) == result


SEARCHED = {
    "supernet_accuracy": 0.8,
    "discrete_accuracy": 0.5,
    "expected_cost": 1.3e6,
    "steps": 12,
    "adaptation": {"0": 0.1, "10": 0.75},
}


def test_client_result_with_the_stages_of_its_search(make):
    record = make.result(**SEARCHED)
    result = ClientResult.from_json(json.loads(json.dumps(record)))
    assert result.to_json() == record
    assert result.adaptation == {"0": 0.1, "10": 0.75}


def test_client_result_of_an_older_version(make):
    """Without the keys that came later."""
    record = make.result()
    for key in SEARCHED:
        del record[key]
    assert ClientResult.from_json(record) == ClientResult.from_json(make.result())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supernet_accuracy": 80}, "'supernet_accuracy' must be between 0 and 1"),
        ({"steps": 1.5}, "'steps' must be an integer"),
        ({"adaptation": [0.1]}, "'adaptation' must be a JSON object"),
        ({"adaptation": {"soon": 0.1}}, "numbers of steps as keys, got 'soon'"),
        ({"adaptation": {"5": 51}}, "'5' must be between 0 and 1"),
    ],
)
def test_client_result_with_a_wrong_stage(changes, message, make):
    with pytest.raises(RunError, match=message):
        ClientResult.from_json(make.result(**changes))


def test_client_result_without_accuracy(make):
    result = ClientResult.from_json(make.result(accuracy=None, genotype=None))
    assert math.isnan(result.test_accuracy)
    assert result.to_json()["test_accuracy"] is None


@pytest.mark.parametrize("key", ["client", "seen", "train_size", "unit", "kept"])
def test_client_result_names_the_missing_key(make, key):
    record = make.result()
    del record[key]
    with pytest.raises(RunError, match=f"'{key}' is missing"):
        ClientResult.from_json(record)


def test_over_budget_forgives_rounding_only(make):
    def over(cost, budget):
        return ClientResult.from_json(make.result(cost=cost, budget=budget)).over_budget

    assert not over(0.1 + 0.2, 0.3)
    assert over(2_000_001, 2_000_000)
    assert not over(5.0, None)
    assert not over(None, 2.0)


def test_results_and_tables_load_without_matplotlib():
    code = (
        "import sys, metadnas_ext.report.result, metadnas_ext.report.run, "
        "metadnas_ext.report.tables; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
