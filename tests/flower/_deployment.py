"""A SuperLink and SuperNodes on this machine: real processes, real sockets, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import metadnas_ext
from metadnas_ext.flower.simulation import ENVIRONMENT

BIN = Path(sys.executable).parent
ROOT = str(Path(metadnas_ext.__file__).parents[1])


class Deployment:
    """Processes below `folder`, each in a group of its own, all ended on leaving.

    isolated: the ServerApp runs under a SuperExec of its own and survives the SuperLink. tls: a
    folder with ca.crt, server.pem and server.key; then SuperNodes need keys too.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, isolated: bool = False, tls: Path | None = None
    ) -> None:
        self.folder, self.nodes, self.isolated, self.tls = folder, nodes, isolated, tls
        self.port, *self.node_ports = free_ports(1 + 2 * nodes)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        home = folder / "home"
        home.mkdir(parents=True)
        trust = f'root-certificates = "{tls}/ca.crt"' if tls else "insecure = true"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "lo"\n\n[superlink.lo]\naddress = "127.0.0.1:{self.port}"\n'
            f"{trust}\n"
        )
        # Flower's own commands are found by name, by the processes that it starts.
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home), "PATH": path}
        self.environment |= {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        (folder / "secret").write_text("a secret of thirty-two characters!")

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)

    def start_superlink(self) -> None:
        safe = ["--insecure"]
        if self.tls:
            safe = [f"--ssl-certfile={self.tls}/server.pem", f"--ssl-keyfile={self.tls}/server.key"]
            safe += [f"--ssl-ca-certfile={self.tls}/ca.crt", "--enable-supernode-auth"]
        own = ["--isolation=process"] if self.isolated else ["--isolation=subprocess"]
        if self.isolated:
            own.append(f"--superexec-auth-secret-file={self.folder}/secret")
        where = ["--host=127.0.0.1", f"--port={self.port}", f"--database={self.folder}/link.db"]
        self._start(
            "superlink",
            *("flower-superlink", *safe, *where, *own),
            "--disable-runtime-dependency-installation",
        )
        self.wait_for(lambda: listens(self.port), 90, "the SuperLink")

    def start_superexec(self) -> None:
        self._start(
            "superexec",
            *("flower-superexec", "--insecure", f"--runtime-api-address=127.0.0.1:{self.port}"),
            f"--superexec-auth-secret-file={self.folder}/secret",
        )

    def start_node(
        self, partition: int, *more: str, name: str | None = None, secure: bool = True
    ) -> None:
        safe = ["--insecure"]
        if self.tls and secure:
            safe = [f"--root-certificates={self.tls}/ca.crt"]
        state = self.folder / "clients"
        config = f'partition-id={partition} num-partitions={self.nodes} state="{state}"'
        port = self.node_ports[partition if name is None else self.nodes + partition]
        self._start(
            name or f"node{partition}",
            *("flower-supernode", *safe, f"--superlink=127.0.0.1:{self.port}", *more),
            *("--host=127.0.0.1", f"--port={port}", f"--node-config={config}"),
        )

    def flwr(self, *arguments: str, seconds: float = 120) -> str:
        """One of Flower's commands, to its end."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, app: Path) -> None:
        self.flwr("run", str(app), "lo")

    def kill(self, name: str) -> None:
        """SIGKILL for the process and all that it has started in its group."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait_for(self, there: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < end, f"no {what} within {seconds} s; {self.log_tails()}"
            time.sleep(0.3)

    def wait_for_results(self, out: Path, seconds: float) -> None:
        self.wait_for((out / "results.json").exists, seconds, "results")

    def wait_for_round(self, out: Path, count: int, seconds: float) -> None:
        self.wait_for(lambda: rounds_done(out) >= count, seconds, f"round {count}")

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log_tails(self) -> str:
        names = [path.stem for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in names)

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def rounds_done(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    if not metrics.exists():
        return 0
    lines = metrics.read_text().splitlines()
    return sum(json.loads(line)["event"] == "round" for line in lines if line.endswith("}"))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
