"""Modules and aggregation on a GPU that is pretended; see `_pretend_gpu`."""

from __future__ import annotations

import pytest
import torch

from metadnas_ext import aggregate
from metadnas_ext.aggregation import METHODS
from metadnas_ext.nn import DerivedNet, MixedOp, Supernet

from .._pretend_gpu import GPU, PretendGPU


@pytest.mark.parametrize("clients", [None, 2])
def test_a_supernet_and_what_it_derives(clients: int | None) -> None:
    net = Supernet(4, layers=2, nodes=2, image_size=8, clients=clients)
    lead = () if clients is None else (clients,)
    x = torch.randn(*lead, 3, 3, 8, 8)
    expected = net(x)
    with PretendGPU():
        net.to(GPU)
        net.train()
        there = x.to(GPU)
        net(there).sum().backward()
        assert all(p.grad is not None and p.grad.device == GPU for p in net.parameters())
        assert torch.equal(net(there).detach().cpu(), expected)
        derived = net.derive(net.genotype())
        assert isinstance(derived, DerivedNet)
        assert derived(there[0] if clients else there).device == GPU
        assert derived.eval()(there[0] if clients else there).device == GPU


@pytest.mark.parametrize("training", [True, False])
def test_a_mixed_op(training: bool) -> None:
    with PretendGPU():
        op = MixedOp(4, 1).to(GPU).train(training)
        x, p = torch.randn(2, 4, 6, 6, device=GPU), torch.ones(8, device=GPU, requires_grad=True)
        out = op(x, p)
        out.sum().backward()
        assert out.device == GPU
        assert {t.device for t in op.state_dict().values()} == {GPU}


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.0, 1.0, 3.0)])
def test_aggregation(how: str, weights: tuple[float, ...] | None) -> None:
    """One client is not finite; the weights may be on either side."""
    if weights is not None and how not in ("mean", "geometric_median", "similarity"):
        weights = None
    updates = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    if how not in ("mean", "median", "trimmed_mean"):
        updates[2, 1, 1] = torch.nan
    expected = aggregate(updates, weights, how)
    assert isinstance(expected, torch.Tensor)
    with PretendGPU():
        there = updates.to(GPU)
        found = aggregate(there, weights, how)
        assert isinstance(found, torch.Tensor)
        assert found.device == GPU
        assert torch.equal(found.cpu(), expected)
        if weights is not None:
            again = aggregate(there, torch.tensor(weights, device=GPU), how)
            assert isinstance(again, torch.Tensor)
            assert torch.equal(again.cpu(), expected)
