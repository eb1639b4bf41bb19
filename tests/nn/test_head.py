"""`fc`, the head as codebases of personalised federated learning read, replace and copy it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from metadnas_ext.nn import DerivedNet, NASBench201Supernet, Supernet
from metadnas_ext.nn.classifier import ClientLinear
from metadnas_ext.space import DARTS_V2, Genotype, NetworkShape

from ._helpers import (
    CLASSES,
    assert_close,
    assert_identical,
    assert_same,
    buffers,
    gradients,
    images,
    labels,
    randomise,
    tiny_supernet,
)

GENOTYPE = Genotype.of(
    normal=(("sep_conv_3x3", 1), ("skip_connect", 0), ("avg_pool_3x3", 2), ("sep_conv_3x3", 1)),
    reduce=(("skip_connect", 1), ("avg_pool_3x3", 0), ("skip_connect", 2), ("sep_conv_3x3", 0)),
)


def bench201() -> NASBench201Supernet:
    return NASBench201Supernet(4, CLASSES, 1, image_size=8)


def derived() -> DerivedNet:
    return DerivedNet(NetworkShape(4, 3, 2, CLASSES, image_size=8), GENOTYPE)


NETWORKS = {"supernet": tiny_supernet, "bench201": bench201, "derived": derived}
every_network = pytest.mark.parametrize("kind", NETWORKS)


class Split(nn.Module):
    """A body and a head as attributes of their own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = copy.deepcopy(model.fc)
        model.fc = nn.Identity()
        self.base = model

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x))


def network(kind: str) -> nn.Module:
    net = NETWORKS[kind]().double()
    randomise(net)
    return net


@every_network
def test_fc_is_the_classifier_under_one_name(kind: str) -> None:
    net = network(kind)
    assert net.fc is net.classifier
    assert type(net.fc) is nn.Linear
    assert net.fc.weight is net.get_parameter("classifier.weight")
    assert (net.fc.in_features, net.fc.out_features) == (net.shape.head_channels, CLASSES)
    names = [*net.state_dict(), *(name for name, _ in net.named_modules())]
    assert not any(part == "fc" for name in names for part in name.split("."))
    assert "fc" not in repr(net)
    other = copy.deepcopy(net)
    assert other.fc is not net.fc
    assert other.fc is other.classifier


@every_network
@pytest.mark.parametrize("training", [True, False])
def test_body_and_head_apart_are_the_same_function(kind: str, training: bool) -> None:
    whole = network(kind).train(training)
    split = Split(copy.deepcopy(whole)).train(training)
    x, y = images(4, 3, 8, 8), labels(4)
    out, truth = split(x), whole(x)
    assert torch.equal(out, truth)
    assert_close(split.head(split.base.eval()(x)), whole.eval()(x))
    names = {f"base.{name}": name for name in whole.state_dict() if "classifier" not in name}
    names |= {f"head.{leaf}": f"classifier.{leaf}" for leaf in ("weight", "bias")}
    assert set(split.state_dict()) == set(names)
    grads = gradients(split, nn.functional.cross_entropy(out, y))
    expected = gradients(whole, nn.functional.cross_entropy(truth, y))
    assert_same({names[name]: grad for name, grad in grads.items()}, expected)
    after = buffers(whole)
    assert_identical({names[name]: b for name, b in buffers(split).items()}, after)


def test_features_are_the_pooled_last_cell() -> None:
    net = network("supernet").eval()
    logits, head = net(images()), net.fc
    net.fc = nn.Identity()
    features = net(images())
    assert features.shape == (4, net.shape.head_channels)
    assert_close(features @ head.weight.T + head.bias, logits)


def test_another_number_of_classes() -> None:
    net = network("supernet")
    net.fc = nn.Linear(net.shape.head_channels, 7).double()
    assert net(images()).shape == (4, 7)
    assert {id(p) for p in net.fc.parameters()} < {id(p) for p in net.parameters()}
    with pytest.raises(ValueError, match=r"replaced by Linear.*weight of \(3, 32\)"):
        net.flat()
    small = net.derive(GENOTYPE)
    assert small(images()).shape == (4, 7)
    assert_identical(small.fc.state_dict(), net.fc.state_dict())
    with pytest.raises(ValueError, match="replaced by Linear"):
        small.load_flat(torch.zeros(1, 1), torch.zeros(1, 1))


def test_a_split_supernet_derives_a_split_network() -> None:
    whole = network("supernet").eval()
    split = Split(copy.deepcopy(whole))
    body = split.base.derive(GENOTYPE).eval()
    assert isinstance(body.fc, nn.Identity)
    assert_close(split.head(body(images())), whole.derive(GENOTYPE).eval()(images()))


def test_heads_of_many_clients() -> None:
    cohort = tiny_supernet(clients=2).eval()
    assert isinstance(cohort.fc, ClientLinear)
    x = images(2, 4, 3, 8, 8)
    logits, head = cohort(x), copy.deepcopy(cohort.fc)
    assert cohort.derive(GENOTYPE, 1).fc.weight.equal(cohort.fc.weight[1])
    cohort.fc = nn.Identity()
    features = cohort(x)
    assert torch.equal(head(features), logits)
    for client in range(2):
        assert_close(head.client(client)(features[client]), logits[client])


def test_building_a_network_draws_as_many_random_numbers_as_before() -> None:
    """The classifier's start is the plan's: a second one would shift every draw after it."""
    torch.manual_seed(0)
    net = Supernet(4, 10, 2, nodes=1, image_size=8)
    torch.manual_seed(0)
    row = net.plan.initial(1)[0]
    alphas = [1e-3 * torch.randn_like(alpha) for alpha in net.arch_parameters()]
    assert torch.equal(net.flat()[0], row)
    for drawn, alpha in zip(alphas, net.arch_parameters(), strict=True):
        assert torch.equal(drawn, alpha)


def test_published_architecture_keeps_its_public_names() -> None:
    state = DerivedNet(NetworkShape(channels=4, layers=3, image_size=8), DARTS_V2).state_dict()
    assert list(state)[-2:] == ["classifier.weight", "classifier.bias"]
