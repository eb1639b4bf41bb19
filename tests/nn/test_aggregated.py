"""Networks of several clients under the ways in which codebases average them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metadnas_ext import aggregate
from metadnas_ext.aggregation import METHODS

from ._helpers import ALPHAS, assert_close, assert_identical, buffers, images, labels, tiny_supernet
from .test_head import NETWORKS, network

WEIGHTS = [3.0, 1.0, 4.0]
every_network = pytest.mark.parametrize("kind", NETWORKS)


def clients(kind: str) -> list[nn.Module]:
    """Three networks after different numbers of steps, on different images."""
    nets = [copy.deepcopy(network(kind)) for _ in WEIGHTS]
    for index, net in enumerate(nets):
        optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for step in range(index + 1):
            x = images(4, 3, 8, 8, seed=10 * index + step)
            nn.functional.cross_entropy(net(x), labels(4)).backward()
            optimiser.step()
            optimiser.zero_grad()
    return nets


@every_network
def test_state_dicts_average_and_load(kind: str) -> None:
    nets = clients(kind)
    states = [net.state_dict() for net in nets]
    merged = aggregate(states, WEIGHTS)
    for name, tensor in merged.items():
        stack = torch.stack([state[name].double() for state in states])
        share = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
        expected = torch.einsum("g,g...->...", share, stack)
        assert tensor.dtype == states[0][name].dtype, name
        if name.endswith("num_batches_tracked"):
            assert tensor == round((3 * 1 + 1 * 2 + 4 * 3) / 8), name  # of 1, 2 and 3 steps
        else:
            assert_close(tensor, expected, name, 1e-12)
    server = network(kind)
    server.load_state_dict(merged, strict=True)
    assert_identical(server.state_dict(), merged)
    assert torch.isfinite(server.eval()(images())).all()


@pytest.mark.parametrize("how", METHODS)
def test_every_aggregator_keeps_a_network_whole(how: str) -> None:
    states = [net.state_dict() for net in [*clients("supernet"), *clients("supernet")]]
    found = aggregate(states, how=how)
    for state in found if how == "similarity" else [found]:
        net = tiny_supernet(seed=5)
        net.load_state_dict(state, strict=True)
        variances = [b for name, b in net.named_buffers() if name.endswith("running_var")]
        assert all(bool((variance > 0).all()) for variance in variances)
        steps = [b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")]
        assert all(count.dtype == torch.int64 for count in steps)


def test_averaging_parameters_alone_leaves_statistics_to_the_first() -> None:
    """As where a server zips `.parameters()` and copies the first client's model for the rest."""
    nets = clients("supernet")
    server = copy.deepcopy(nets[0])
    for parameter in server.parameters():
        parameter.data.zero_()
    for weight, net in zip(WEIGHTS, nets, strict=True):
        for mine, theirs in zip(server.parameters(), net.parameters(), strict=True):
            mine.data += theirs.data.clone() * (weight / sum(WEIGHTS))
    merged = aggregate([net.state_dict() for net in nets], WEIGHTS)
    for name, parameter in server.named_parameters():
        assert_close(parameter, merged[name], name)
    assert set(ALPHAS) <= dict(server.named_parameters()).keys()
    assert_identical(buffers(server), buffers(nets[0]))


def test_parameters_replaced_by_data_are_what_runs_and_what_optimisers_move() -> None:
    """As where a client takes the server's parameters: `.data` is another tensor after it."""
    net, server = clients("supernet")[:2]
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    for mine, theirs in zip(net.parameters(), server.parameters(), strict=True):
        mine.data = theirs.data.clone()
    x = images()
    assert_close(net(x), server(x))
    nn.functional.cross_entropy(net(x), labels(4)).backward()
    optimiser.step()
    assert all(not a.equal(b) for a, b in zip(net.parameters(), server.parameters(), strict=True))


def test_one_flat_vector_of_the_state_dict_goes_there_and_back() -> None:
    """As where a message is the whole state dict, counters included, in one float tensor."""
    nets = clients("supernet")
    vectors = [torch.cat([t.flatten().double() for t in n.state_dict().values()]) for n in nets]
    vector = aggregate(torch.stack(vectors), WEIGHTS)
    server, start = network("supernet"), 0
    for tensor in server.state_dict().values():
        tensor.copy_(vector[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
    assert start == vector.numel()
    merged = aggregate([net.state_dict() for net in nets], WEIGHTS)
    for name, tensor in server.state_dict().items():
        off = 1 if name.endswith("num_batches_tracked") else 0  # copying cuts, aggregate rounds
        assert (tensor - merged[name]).abs().max() <= off + 1e-12, name
