"""Two runs, compared."""

from __future__ import annotations

from pathlib import Path

from metadnas_ext.federated import checkpoint

from ..federated._tiny import assert_identical, events


def assert_same_run(found: Path, expected: Path) -> None:
    """Tensors, figures and results to the bit."""
    one, other = checkpoint.load_latest(found), checkpoint.load_latest(expected)
    assert one is not None
    assert other is not None
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in other.tensors.items():
        assert_identical(one.tensors[name], tensor, name)
    assert checkpoint.state_hash(one.tensors) == checkpoint.state_hash(other.tensors)
    assert events(found) == events(expected)
    for name in ("results.json", "genotypes.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
