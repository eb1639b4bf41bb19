"""What any nn.Module is expected to survive: copies, files, dtypes, optimisers, compilation."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from metadnas_ext.nn import DerivedNet, MixedOp, Supernet
from metadnas_ext.space import DARTS_V2, PRIMITIVES, NASBench201Shape, NetworkShape, cost_table

from ._helpers import (
    ALPHAS,
    FEW,
    assert_close,
    assert_identical,
    buffers,
    gradients,
    images,
    mixture,
    randomise,
    tiny_supernet,
)


class Mixed(nn.Module):
    """A `MixedOp` in a user's module, called with images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.op = MixedOp(3, 1)
        self.weights = nn.Parameter(mixture(len(PRIMITIVES)).detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, self.weights)


def _derived() -> DerivedNet:
    return DerivedNet(NetworkShape(4, 3, image_size=8), DARTS_V2)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mixed": Mixed,
    "supernet": tiny_supernet,
    "cohort": lambda: tiny_supernet(clients=2),
    "derived": _derived,
}


def build(kind: str) -> tuple[nn.Module, Tensor]:
    """A random module in float64 and images for it."""
    module = MODULES[kind]().double()
    randomise(module)
    return module, images(2, 4, 3, 8, 8) if kind == "cohort" else images(4, 3, 8, 8)


def through_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "file": through_file,
}

every_module = pytest.mark.parametrize("kind", MODULES)


@every_module
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_apart(kind: str, way: str) -> None:
    module, x = build(kind)
    other = COPIES[way](module)
    assert repr(other) == repr(module)
    assert_identical(other.state_dict(), module.state_dict())
    out, again = module(x), other(x)
    assert torch.equal(out, again)
    assert_identical(gradients(module, out.sum()), gradients(other, again.sum()))
    assert_identical(buffers(other), buffers(module))
    before = copy.deepcopy(module.state_dict())
    randomise(other, 1)
    assert_identical(module.state_dict(), before)
    assert not torch.equal(other.eval()(x), module.eval()(x))


@pytest.mark.parametrize(
    "module",
    [MixedOp(8, 2), Supernet(4, layers=3), Supernet(4, layers=3, clients=2), _derived()],
    ids=MODULES,
)
def test_no_tensor_holds_more_memory_than_its_own(module: nn.Module) -> None:
    """As built: a conversion of the dtype would hide views of one large tensor."""
    state = module.state_dict()
    for name, t in state.items():
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size(), name
    own = sum(t.numel() * t.element_size() for t in state.values())
    assert len(pickle.dumps(module)) < own + 1500 * len(state) + 100_000


@every_module
def test_state_dict_round_trips(kind: str, tmp_path: Path) -> None:
    module, x = build(kind)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "state.safetensors")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    states = [
        safetensors.torch.load_file(tmp_path / "state.safetensors"),
        torch.load(tmp_path / "state.pt", weights_only=True),
    ]
    out = module.eval()(x)
    for state in states:
        for assign in (False, True):
            other, _ = build(kind)
            randomise(other, 1)
            other.load_state_dict(state, strict=True, assign=assign)
            assert_identical(other.state_dict(), module.state_dict())
            assert torch.equal(other.eval()(x), out)


@every_module
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_optimisers_step_every_parameter(kind: str, optimiser: type[torch.optim.Optimizer]) -> None:
    module, x = build(kind)
    before = copy.deepcopy(dict(module.named_parameters()))
    steps = optimiser(module.parameters(), lr=1e-3)
    out = module(x)
    (out * images(*out.shape, seed=3)).sum().backward()
    steps.step()
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not move"


@every_module
def test_dtypes(kind: str) -> None:
    module, x = build(kind)
    module.eval()
    double = module(x)
    assert double.dtype == torch.float64
    single = module.float()(x.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), double, tolerance=1e-4)
    randomise(module.double())
    assert torch.equal(module(x), double)


@every_module
def test_functional_call_and_frozen_parameters(kind: str) -> None:
    module, x = build(kind)
    module.eval()
    expected = module(x)
    other, _ = build(kind)
    randomise(other, 1)
    other.eval().requires_grad_(False)
    leaves = {n: t.detach().requires_grad_() for n, t in module.named_parameters()}
    given = leaves | dict(module.named_buffers())
    out = torch.func.functional_call(other, given, (x,))
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.sum(), list(leaves.values()), materialize_grads=True)
    assert_identical(dict(zip(leaves, grads, strict=True)), gradients(module, expected.sum()))
    assert not other(x).requires_grad


def test_alphas_are_ordinary_parameters() -> None:
    net = tiny_supernet()
    assert set(ALPHAS) < {name for name, _ in net.named_parameters()}
    assert set(ALPHAS) < set(net.state_dict())
    inside = nn.Sequential(net)
    state = inside.state_dict()
    for name in ALPHAS:
        del state[f"0.{name}"]
    inside.load_state_dict(state, strict=True)
    assert f"0.{ALPHAS[0]}" in inside.state_dict()


def test_public_modules_can_be_walked() -> None:
    net = tiny_supernet()
    assert len(net.cells) == 3
    assert len(net.cells[1]._ops) == 5
    assert [len(list(cell._ops)) for cell in net.cells] == [5, 5, 5]
    first = net.cells[0]._ops[2]._ops[FEW.index("sep_conv_3x3")].op[1]
    assert first.weight is net.get_parameter("cells.0._ops.2._ops.2.op.1.weight")


def test_supernet_compiles_in_one_graph() -> None:
    net = Supernet(
        4, 3, 1, nodes=1, image_size=8, candidates=("skip_connect", "sep_conv_3x3")
    ).double()
    randomise(net)
    plain = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    out, truth = compiled(images()), plain(images())
    assert_close(out, truth)
    grads, expected = gradients(net, out.square().sum()), gradients(plain, truth.square().sum())
    for name, grad in grads.items():
        assert_close(grad, expected[name], name)
    for name, buffer in net.named_buffers():
        assert_close(buffer, plain.get_buffer(name), name)


@pytest.mark.parametrize("kind", list(MODULES))
def test_less_in_memory_is_the_same_function(kind: str) -> None:
    module, x = build(kind)
    results = []
    for keep in ("all", "middle", "input"):
        for part in module.modules():
            if isinstance(part, MixedOp | Supernet | DerivedNet):
                part.keep = keep
        results.append(gradients(module, module(x).square().sum()))
    for other in results[1:]:
        for name, grad in results[0].items():
            torch.testing.assert_close(other[name], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [lambda **o: MixedOp(4, 1, **o), lambda **o: Supernet(4, **o)])
def test_keep_is_checked_when_built(make: Callable[..., nn.Module]) -> None:
    assert make(keep="middle").keep == "middle"
    with pytest.raises(ValueError, match="keep='none' is unknown; known: all, middle, input"):
        make(keep="none")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_module
def test_whole_models_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    """As in float32, with what the model keeps rounded: statistics too, in training and eval."""
    module, x = build(kind)
    half, x = module.to(dtype), x.to(dtype)
    plain = copy.deepcopy(half).float()
    for training in (True, False):
        out, truth = half.train(training)(x), plain.train(training)(x.float())
        assert out.dtype == dtype
        assert_close(out.float(), truth, tolerance=5e-2)
        for name, buffer in half.named_buffers():
            assert_close(buffer.float(), plain.get_buffer(name).float(), name, 2e-2)
    out.sum().backward()


@pytest.mark.parametrize(
    "module",
    [MixedOp(8, 2), Supernet(4, layers=3), Supernet(4, layers=3, clients=2), _derived()],
    ids=MODULES,
)
def test_repr_is_short_and_says_what_it_is(module: nn.Module) -> None:
    text = repr(nn.Sequential(module, nn.Linear(1, 2)))
    assert len(text) < 1200
    assert text.count("\n") < 16
    assert type(module).__name__ in text
    if isinstance(module, MixedOp):
        assert f"(_ops): {sum(p.numel() for p in module.parameters()):,} parameters" in text
    else:
        assert "layers=3" in text
        assert "(classifier): " in text
    if isinstance(module, Supernet):
        assert f"alphas_normal {list(module.alphas_normal.shape)}" in text
    if isinstance(module, DerivedNet):
        assert str(module.genotype) in text


def test_misuse_is_told() -> None:
    net = tiny_supernet()
    with pytest.raises(IndexError, match="client is 1, expected 0 to 0"):
        net.genotype(client=1)
    with pytest.raises(IndexError, match="client is 2, expected 0 to 1"):
        tiny_supernet(clients=2).derive(net.genotype(), client=2)
    with pytest.raises(ValueError, match=r"the costs are of .*nodes=4.* the network of .*nodes=2"):
        net.genotype(cost_table(NetworkShape(4, 3, candidates=FEW)))
    with pytest.raises(ValueError, match="None is not a genotype of DARTS cells"):
        DerivedNet(net.shape, None)
    with pytest.raises(ValueError, match="None is not a NAS-Bench-201 architecture"):
        DerivedNet(NASBench201Shape(4, 3), None)
    for make in (lambda: tiny_supernet(clients=0), lambda: MixedOp(4, 1, clients=0)):
        with pytest.raises(ValueError, match="clients is 0, expected None or at least 1"):
            make()
