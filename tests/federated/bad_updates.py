"""Every kind of bad update against every aggregator: only its sender is dropped.

    python tests/federated/bad_updates.py --write docs/reliability.md

puts the table between the page's markers; without --write it is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from _tiny import tiny_federation

from metadnas_ext.aggregation import METHODS, WEIGHTED, aggregate
from metadnas_ext.federated.packing import pack
from metadnas_ext.federated.screening import (
    Arrived,
    Screened,
    Where,
    packed_excuse,
    packed_reply,
    screened,
)
from metadnas_ext.methods import MetaDNAS
from metadnas_ext.methods.exchange import Reply, weights

CLIENTS = {"data__clients": 8, "data__unseen": 0.1, "server__clients_per_round": 7}
HERE = Where("run 1", "meta_dnas", 1)
START, END = "<!-- bad updates -->", "<!-- bad updates: end -->"


@dataclass
class Sent:
    """A good reply, taken apart; `bad` kinds change what is put together of it."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]
    good: bytes
    clients: list[int] = field(default_factory=list)

    def with_header(self, **changes: Any) -> bytes:
        return pack(self.header | changes, self.tensors)

    def with_tensor(self, name: str, change: Callable[[Tensor], Tensor]) -> bytes:
        return pack(self.header, self.tensors | {name: change(self.tensors[name].clone())})

    def with_number(self, name: str, value: float) -> bytes:
        def put(tensor: Tensor) -> Tensor:
            tensor.view(-1)[-1] = value
            return tensor

        return self.with_tensor(name, put)

    def with_raw_header(self, text: str) -> bytes:
        """Header text that `pack` would refuse to write."""
        return safetensors.torch.save(self.tensors, {"header": text})

    def with_metric(self, name: str, value: str) -> bytes:
        marked = json.dumps(self.header | {"metrics": self.header["metrics"] | {name: "MARK"}})
        return self.with_raw_header(marked.replace('"MARK"', value))

    def with_weight(self, value: str) -> bytes:
        return self.with_raw_header(
            json.dumps(self.header | {"weight": "MARK"}).replace('"MARK"', value)
        )

    def without_metric(self, name: str) -> bytes:
        kept = {n: v for n, v in self.header["metrics"].items() if n != name}
        return self.with_header(metrics=kept)


KINDS: dict[str, Callable[[Sent], bytes | list[bytes]]] = {
    "NaN in w": lambda s: s.with_number("theta", math.nan),
    "infinity in w": lambda s: s.with_number("theta", math.inf),
    "minus infinity in α": lambda s: s.with_number("alpha", -math.inf),
    "NaN in running statistics": lambda s: s.with_number("running", math.nan),
    "finite, but overflows when squared": lambda s: s.with_number("theta", 3e38),
    "negative variance": lambda s: s.with_number("running", -1.0),
    "wrong shape": lambda s: s.with_tensor("theta", lambda t: t[:-1]),
    "shape that broadcasts": lambda s: s.with_tensor("theta", lambda t: t[:1]),
    "extra axis": lambda s: s.with_tensor("theta", lambda t: t[None]),
    "scalar": lambda s: s.with_tensor("alpha", lambda t: t.sum()),
    "empty tensor": lambda s: s.with_tensor("theta", lambda t: t[:0]),
    "missing key": lambda s: pack(s.header, {"theta": s.tensors["theta"]}),
    "extra key": lambda s: pack(s.header, s.tensors | {"more": torch.zeros(1)}),
    "no tensors": lambda s: pack(s.header, {}),
    "float64": lambda s: s.with_tensor("theta", Tensor.double),
    "float16": lambda s: s.with_tensor("running", Tensor.half),
    "integers": lambda s: s.with_tensor("theta", Tensor.int),
    "booleans": lambda s: s.with_tensor("alpha", Tensor.bool),
    "negative weight": lambda s: s.with_header(weight=-1.0),
    "weight 0": lambda s: s.with_header(weight=0),
    "NaN weight": lambda s: s.with_weight("NaN"),
    "infinite weight": lambda s: s.with_weight("Infinity"),
    "weight 1e12": lambda s: s.with_header(weight=1e12),
    "weight of 400 digits": lambda s: s.with_weight("9" * 400),
    "weight as text": lambda s: s.with_header(weight="12"),
    "weight true": lambda s: s.with_header(weight=True),
    "NaN metric": lambda s: s.with_metric("val_loss", "NaN"),
    "infinite metric": lambda s: s.with_metric("train_loss", "Infinity"),
    "accuracy above 1": lambda s: s.with_metric("val_accuracy", "1.5"),
    "metric as text": lambda s: s.with_metric("val_loss", '"low"'),
    "missing metric": lambda s: s.without_metric("val_images"),
    "extra metric": lambda s: s.with_metric("bonus", "1"),
    "duplicate": lambda s: [s.good, s.good],
    "two different replies": lambda s: [s.good, s.with_number("theta", 0.5)],
    "replay of the round before": lambda s: s.with_header(round=HERE.round - 1),
    "round to come": lambda s: s.with_header(round=HERE.round + 1),
    "round 1.0": lambda s: s.with_header(round=float(HERE.round)),
    "another run": lambda s: s.with_header(run="run 2"),
    "another method": lambda s: s.with_header(method="fedavg"),
    "another client's reply": lambda s: s.with_header(client=s.clients[-1]),
    "architecture in a search": lambda s: s.with_header(architecture={"arch": "|x~0|"}),
    "nothing at all": lambda _: [],
    "no bytes": lambda _: b"",
    "garbage bytes": lambda _: bytes(range(256)) * 40,
    "cut in half": lambda s: s.good[: len(s.good) // 2],
    "pickle": lambda s: pickle.dumps({"theta": s.tensors["theta"].tolist()[:99]}),
    "header without fields": lambda s: pack({}, s.tensors),
    "header that is a list": lambda s: s.with_raw_header("[1]"),
    "header nested 20,000 deep": lambda s: s.with_raw_header("[" * 20_000),
    "oversize": lambda s: s.good + bytes(1 << 20),
    "tells of divergence": lambda s: packed_excuse(HERE, s.header["client"], "loss is nan"),
}


@dataclass(frozen=True)
class Round:
    """Good replies of a round, by client, and the server that has asked for them."""

    method: MetaDNAS
    replies: dict[int, Reply]

    @property
    def holders(self) -> dict[int, int]:
        """Two clients a node."""
        return {client: client // 2 for client in self.replies}

    @property
    def bad(self) -> int:
        return list(self.replies)[2]

    def arrived(self, kind: str) -> list[Arrived]:
        """What comes in: good replies but for that of the bad client."""
        found = []
        for client, reply in self.replies.items():
            good = packed_reply(HERE, reply)
            sent: bytes | list[bytes] = good
            if client == self.bad:
                header = {
                    **vars(HERE),
                    "client": client,
                    "weight": reply.weight,
                    "metrics": reply.metrics,
                    "architecture": None,
                }
                sent = KINDS[kind](Sent(header, reply.tensors, good, list(self.replies)))
            for data in sent if isinstance(sent, list) else [sent]:
                found.append(Arrived(self.holders[client], client, data))
        return found

    def screened(self, kind: str) -> Screened:
        return screened(self.method, HERE, self.holders, self.arrived(kind))


def good_round() -> Round:
    method = MetaDNAS(tiny_federation(**CLIENTS))
    method.round(0)
    clients = method.federation.sample(1)
    replies = sorted(method.work(1, clients).replies, key=lambda reply: reply.client)
    return Round(method, {reply.client: reply for reply in replies})


def combined(good: Round, replies: list[Reply], how: str) -> dict[str, Tensor]:
    """The server's state behind its step; of what a server cannot step by, all mixtures."""
    if how == "similarity":
        share = weights(replies) if how in WEIGHTED else None
        mixtures = aggregate([reply.tensors for reply in replies], share, how)
        return {f"{c}/{n}": t for c, mixture in enumerate(mixtures) for n, t in mixture.items()}
    server = MetaDNAS(tiny_federation(**CLIENTS, server__aggregator=how))
    server.load_state({name: tensor.clone() for name, tensor in good.method.state().items()})
    server.step(1, replies)
    return server.state()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """To the bit, and finite."""
    equal = found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )
    return equal and all(bool(tensor.isfinite().all()) for tensor in found.values())


def outcomes(good: Round, kinds: list[str]) -> dict[str, tuple[str, list[str]]]:
    """By kind, the reason that is named and the aggregators whose result is that of the others."""
    others = [reply for client, reply in good.replies.items() if client != good.bad]
    expected = {how: combined(good, others, how) for how in METHODS}
    found = {}
    for kind in kinds:
        done = good.screened(kind)
        assert list(done.dropped) == [good.bad], f"{kind}: dropped {done.dropped}"
        assert [reply.client for reply in done.replies] == [reply.client for reply in others]
        right = [how for how in METHODS if same(combined(good, done.replies, how), expected[how])]
        found[kind] = (done.dropped[good.bad], right)
    return found


def table(found: dict[str, tuple[str, list[str]]]) -> str:
    lines = [
        "| bad update | reason named | result that of the others, to the bit |",
        "|---|---|---|",
    ]
    for kind, (reason, right) in found.items():
        short = reason if len(reason) <= 70 else reason[:67] + "..."
        count = f"{len(right)} of {len(METHODS)} aggregators"
        lines.append(f"| {kind} | {short.replace('|', '/')} | {count} |")
    cells = sum(len(right) for _, right in found.values())
    lines.append("")
    lines.append(
        f"{len(found)} kinds, {len(METHODS)} aggregators ({', '.join(METHODS)}): "
        f"{cells} of {len(found) * len(METHODS)} right, 0 exceptions."
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page with the markers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = outcomes(good_round(), list(KINDS))
    text = table(found)
    if arguments.write is None:
        print(text)
    else:
        page = arguments.write.read_text()
        before, rest = page.split(START)
        after = rest.split(END)[1]
        arguments.write.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")
    return int(any(len(right) < len(METHODS) for _, right in found.values()))


if __name__ == "__main__":
    sys.exit(main())
