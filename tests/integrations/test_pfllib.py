"""The PFLlib pair on base classes of PFLlib's shape (those of the example)."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from metadnas_ext import aggregate
from metadnas_ext.integrations import pfllib
from metadnas_ext.nn import DerivedNet, Supernet
from metadnas_ext.space import genotype_cost

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's `Client` and `Server`."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("pfllib_pair")


def arguments(shape: ModuleType, **changes: Any) -> SimpleNamespace:
    fixed = {
        "model": shape.federation.make_supernet(),
        "device": "cpu",
        "batch_size": 16,
        "local_learning_rate": 0.05,
        "learning_rate_decay": False,
        "learning_rate_decay_gamma": 0.5,
        "local_epochs": 1,
        "global_rounds": 0,
        "eval_gap": 1,
        "num_clients": 2,
        "num_new_clients": 0,
    }
    return SimpleNamespace(**{**fixed, **changes})


def server(shape: ModuleType, settings: pfllib.PairSettings | None = None, **changes: Any) -> Any:
    client = pfllib.client_class(shape.Client, settings)
    return pfllib.server_class(shape.Server, client)(arguments(shape, **changes), 0)


def after_a_round(shape: ModuleType, how: str = "mean") -> Any:
    one = server(shape, pfllib.PairSettings(how=how))
    one.selected_clients = one.clients
    one.send_models()
    for client in one.clients:
        client.train()
    one.receive_models()
    return one


@pytest.mark.parametrize("how", ["mean", "median"])
def test_a_round_averages_everything_and_sends_it(shape: ModuleType, how: str) -> None:
    one = after_a_round(shape, how)
    before = copy.deepcopy(one.global_model.state_dict())
    states = [copy.deepcopy(client.model.state_dict()) for client in one.clients]
    order = [one.clients.index(client) for client in one.selected_clients]
    one.uploaded_weights = weights = [0.2, 0.8]
    one.aggregate_parameters()
    after = one.global_model.state_dict()
    sent = [states[index] for index in order]
    center = () if how == "mean" else ("alphas_normal", "alphas_reduce")
    expected = aggregate(sent, weights if how == "mean" else None, how, center=center)
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, expected[name])
        assert tensor.dtype == before[name].dtype
    for name in ("alphas_normal", "stem.0.weight", "stem.1.running_mean", "classifier.weight"):
        assert not after[name].equal(before[name]), name
    one.send_models()
    for client in one.clients:
        for name, tensor in client.model.state_dict().items():
            assert tensor.equal(after[name]), name
            assert tensor.data_ptr() != after[name].data_ptr()


@pytest.mark.parametrize("how", ["mean", "median", "krum", "geometric_median"])
def test_a_constant_on_an_edge_of_alpha_reaches_no_result(how: str) -> None:
    """Clients that add one to their α, which changes none of their networks, are told apart by
    nothing."""
    model = torch.nn.Sequential(Supernet(4, 3, 3, nodes=2, image_size=8, image_channels=1))
    models = [copy.deepcopy(model) for _ in range(5)]
    for one in models:
        for parameter in one.parameters():
            torch.nn.init.normal_(parameter)
    weights = [0.1, 0.3, 0.2, 0.25, 0.15]
    found = []
    for constant in (0.0, 100.0):
        for index, one in enumerate(models):
            with torch.no_grad():
                one[0].alphas_normal += constant * torch.randn(5, 1) * (index - 2)
        pair = pfllib.client_class(object, pfllib.PairSettings(how=how))
        host = SimpleNamespace(
            client_class=pair,
            uploaded_weights=weights,
            uploaded_models=models,
            global_model=copy.deepcopy(model),
        )
        pfllib._AveragingServer.aggregate_parameters(host)
        supernet = host.global_model[0]
        found.append((supernet.mixing_weights()[0], supernet.stem[0].weight.detach()))
    (mixing, stem), (shifted_mixing, shifted_stem) = found
    torch.testing.assert_close(shifted_mixing, mixing, atol=1e-4, rtol=0)
    torch.testing.assert_close(shifted_stem, stem, atol=1e-4, rtol=0)


def test_alpha_sees_other_images_than_w(shape: ModuleType) -> None:
    client = server(shape).clients[0]
    train, validation = (loader.dataset.indices for loader in client._parts())
    assert sorted([*train, *validation]) == list(range(client.train_samples))
    assert len(validation) == round(0.3 * client.train_samples)
    assert client._parts()[1].dataset.indices == validation


def test_optimisers_hold_what_they_should(shape: ModuleType) -> None:
    client = server(shape).clients[0]
    held = {id(p) for group in client.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in client.model.weight_parameters()}
    client.learning_rate_decay = True
    client.train()
    assert client.optimizer.param_groups[0]["lr"] == 0.05 * 0.5
    assert client.train_time_cost["num_rounds"] == 1
    assert client.train_time_cost["total_cost"] > 0


def test_clients_end_with_networks_within_their_budgets(shape: ModuleType) -> None:
    settings = pfllib.PairSettings(budgets=(0.3, 0.8), unit="params", finetune_epochs=1)
    one = server(shape, settings, num_new_clients=1)
    one.train()
    shares = []
    for client in [*one.clients, *one.new_clients]:
        assert isinstance(client.model, DerivedNet)
        cost = genotype_cost(client.budget.costs, client.model.genotype)
        assert cost == sum(p.numel() for p in client.model.parameters()) <= client.budget.limit
        shares.append(client.budget.limit)
    assert shares == pytest.approx([shares[0], shares[0] * 0.8 / 0.3, shares[0]])
    assert isinstance(one.global_model, Supernet)
    assert len(one.rs_test_acc) == 3  # round 0, own networks, new clients' own networks


def test_what_is_refused(shape: ModuleType) -> None:
    with pytest.raises(TypeError, match="client is Client, expected what client_class returned"):
        pfllib.server_class(shape.Server, shape.Client)
    similar = pfllib.client_class(shape.Client, pfllib.PairSettings(how="similarity"))
    with pytest.raises(ValueError, match="how='similarity' makes a model for each client"):
        pfllib.server_class(shape.Server, similar)
    with pytest.raises(ValueError, match="model is Linear without a Supernet"):
        server(shape, model=torch.nn.Linear(2, 2))
