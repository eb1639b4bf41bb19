"""Which images reach what: some are replaced by noise, and what they must not reach stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metadnas_ext.data import MemoryStore
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS, Method

from ..federated._tiny import assert_identical, tiny_federation

CLIENTS = range(4)
SETTLED = {"server__search_rounds": 1, "server__local": "head,bn"}
SEARCHING = ("meta_dnas", "darts", "shared_alpha", "random")


def with_noise(federation: Federation, images: list[Tensor]) -> Federation:
    store = federation.store
    assert isinstance(store, MemoryStore)
    pixels, chosen = store.pixels.clone(), torch.cat(images)
    noise = torch.randint(0, 256, pixels[chosen].shape, generator=torch.Generator().manual_seed(1))
    pixels[chosen] = noise.to(torch.uint8)
    return replace(federation, store=replace(store, pixels=pixels))


def behind_the_rounds(name: str, federation: Federation) -> Method:
    method = METHODS[name](federation)
    for index in range(method.rounds):
        method.round(index)
    return method


def moved(method: Method, federation: Federation) -> Method:
    """The same state among other images."""
    other = METHODS[method.name](federation)
    other.load_state({name: tensor.clone() for name, tensor in method.state().items()})
    return other


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_only_what_a_method_may_see_reaches_it(name: str, settled: bool) -> None:
    changes = SETTLED if settled else {}
    federation = tiny_federation(client__alpha_lr=0.3, personalise__curve_for="all", **changes)
    splits = federation.splits
    test, val = [s.test for s in splits], [s.val for s in splits]
    unseen = [i for c in federation.unseen for i in (splits[c].train, splits[c].val)]
    method = behind_the_rounds(name, federation)
    blind = behind_the_rounds(name, with_noise(federation, test + unseen))
    for key, tensor in method.state().items():
        assert_identical(blind.state()[key], tensor, key)

    results = method.personalise(CLIENTS)
    noisy = moved(method, with_noise(federation, test)).personalise(CLIENTS)
    for one, other in zip(results, noisy, strict=True):
        assert (one.kept, one.genotype, one.val_accuracy) == (
            other.kept, other.genotype, other.val_accuracy
        )  # fmt: skip
        assert one.weights is not None
        assert other.weights is not None
        for key, tensor in one.weights.items():
            assert_identical(other.weights[key], tensor, key)

    if name not in SEARCHING:  # nor do validation images
        blind = behind_the_rounds(name, with_noise(federation, val))
        for key, tensor in method.state().items():
            assert_identical(blind.state()[key], tensor, key)
        for one, other in zip(results, blind.personalise(CLIENTS), strict=True):
            assert one.test_accuracy == other.test_accuracy
