"""Kills a run with SIGKILL again and again, goes on with it, and compares every file it leaves with
those of a run that nobody disturbed.

    python tests/federated/kill_test.py --points 50

Points take turns: at a random moment, and at a random one of the calls that change the run folder,
writes half done. Every process is a fork of this one, which has imported everything.
"""

from __future__ import annotations

import argparse
import builtins
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _tiny import tiny_config

from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import CONFIG, Runner, create_run
from metadnas_ext.files import locked

METHODS = ["meta_dnas", "fedavg", "fedavg_ft", "ditto"]
CHANGES = ("fsync", "replace", "truncate", "unlink", "mkdir")
MOST_KILLS = 3  # of one run, at a point
TIMED = ("seconds", "training_seconds", "personal_seconds", "metrics_bytes")
"""What the clock decides; the length of the metrics follows from the seconds in them."""

Counted = Callable[[], bool]
"""Told of every call that changes a file; True: this is the one to die in."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    federation = Federation.build(tiny_config(server__cohort=2))
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        calls, seconds = undisturbed(federation, base / "whole")
        expected = contents(base / "whole")
        print(f"undisturbed: {seconds:.1f} s, {calls} calls, {len(expected)} files", flush=True)
        good = kills = 0
        for point in range(arguments.points):
            rng = random.Random(arguments.seed * 1_000_003 + point)
            folder = base / f"point {point}"
            story = disturbed(federation, folder, rng, calls if point % 2 else 0, seconds)
            wrong = differences(contents(folder), expected)
            shutil.rmtree(folder)
            good, kills = good + (not wrong), kills + len(story)
            outcome = f"DIFFERENT: {', '.join(wrong)}" if wrong else "the same"
            print(f"{point + 1}: killed {', '.join(story) or 'too late'}: {outcome}", flush=True)
    print(f"{good} of {arguments.points} the same after {kills} kills")
    return int(good != arguments.points)


def undisturbed(federation: Federation, folder: Path) -> tuple[int, float]:
    """Calls that change files in a run that is left alone, and its seconds."""
    start = time.monotonic()
    status = finish(fork(federation, folder, count_calls_in(folder)))
    assert status == 0, f"the run failed with status {status}"
    return int(calls_file(folder).read_text()), time.monotonic() - start


def disturbed(
    federation: Federation, folder: Path, rng: random.Random, calls: int, seconds: float
) -> list[str]:
    """A run that is killed up to MOST_KILLS times and then left alone; when it was killed.

    In one of `calls` calls, or, if that is 0, at moments within `seconds`.
    """
    story = []
    for _ in range(rng.randint(1, MOST_KILLS)):
        if calls:
            at = rng.randrange(calls)
            status, when = finish(fork(federation, folder, die_in(at))), f"in call {at}"
        else:
            delay = rng.uniform(0, seconds)
            child = fork(federation, folder, None)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            status, when = finish(child), f"after {delay:.2f} s"
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"the run failed with status {status}"
        story.append(when)
    status = finish(fork(federation, folder, None))
    assert status == 0, f"the run could not be resumed: status {status}"
    return story


def fork(federation: Federation, folder: Path, counted: Counted | None) -> int:
    """The number of a process that starts or resumes the run, and ends with it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with watched(counted):
            start_or_resume(federation, folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start_or_resume(federation: Federation, folder: Path) -> None:
    """As the command line does it with and without --resume."""
    with locked(folder):
        if not (folder / CONFIG).exists():
            create_run(folder, federation.config, METHODS)
        Runner(federation, METHODS, folder).run()


def finish(child: int) -> int:
    """The exit status; negative: the signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def calls_file(folder: Path) -> Path:
    return folder.with_suffix(".calls")


def count_calls_in(folder: Path) -> Counted:
    count = 0

    def counted() -> bool:
        nonlocal count
        count += 1
        handle = os.open(calls_file(folder), os.O_WRONLY | os.O_CREAT)
        os.write(handle, str(count).encode())
        os.close(handle)
        return False

    return counted


def die_in(at: int) -> Counted:
    left = at

    def counted() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return counted


@contextmanager
def watched(counted: Counted | None) -> Iterator[None]:
    """Every call that changes a file goes through `counted`. Never undone: the process ends."""
    if counted is not None:
        for name in CHANGES:
            setattr(os, name, dying(getattr(os, name), counted))
        plain_open = builtins.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            handle = plain_open(file, mode, *rest, **named)
            return Torn(handle, counted) if set(mode) & set("wa") else handle

        builtins.open = opened  # type: ignore[assignment]
    yield


def dying(function: Callable[..., Any], counted: Counted) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if counted():
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return call


class Torn:
    """A file whose process may die when half of what it writes is there."""

    def __init__(self, file: Any, counted: Counted) -> None:
        self._file, self._counted = file, counted

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        if self._counted():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self._file.write(data)


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file, leaving out what the clock decides."""
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        with suppress(ValueError, KeyError):  # what is damaged differs as it is
            if path.name == "metrics.jsonl":
                data = as_json([timeless(json.loads(line)) for line in data.splitlines()])
            elif path.parent.name == "checkpoints" and path.suffix == ".json":
                data = as_json(timeless(json.loads(data)["body"]))
        hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return hashes


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMED}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))


if __name__ == "__main__":
    sys.exit(main())
