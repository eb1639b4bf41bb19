"""A fused network in the hands of its user: checkpoints, optimisers, copies, modes, precision."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import metadnas_ext
from metadnas_ext.fuse import evaluate

from . import _networks as networks
from ._compare import (
    assert_same,
    assert_twins_agree,
    images,
    randomise,
    results,
    twins,
)


def fused_twins() -> tuple[nn.Module, nn.Module]:
    fused, plain = twins(networks.Standard())
    metadnas_ext.fuse(fused)
    return fused, plain


def test_names_and_tensors_stay() -> None:
    net = networks.Standard()
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    modules = dict(net.named_modules())
    metadnas_ext.fuse(net)
    after = dict(net.named_parameters()) | dict(net.named_buffers())
    assert list(after) == list(before)
    assert all(after[name] is t for name, t in before.items())
    assert all(module is modules[name] for name, module in net.named_modules())
    assert {type(module) for module in net.modules()} == {type(m) for m in modules.values()}


def test_models_that_have_nothing_to_fuse_and_what_is_no_model() -> None:
    report = metadnas_ext.fuse(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert "no mixed operations" in str(report)
    for function in (metadnas_ext.fuse, metadnas_ext.unfuse):
        with pytest.raises(TypeError, match=r"model is 3, expected a torch\.nn\.Module"):
            function(3)


def test_fuse_leaves_state_random_numbers_and_mode_alone() -> None:
    net = randomise(networks.Standard())
    net.cells[0].eval()
    modes = [module.training for module in net.modules()]
    state = {name: t.clone() for name, t in net.state_dict().items()}
    generator = torch.get_rng_state()
    metadnas_ext.fuse(net)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())


def test_checkpoints_load_both_ways() -> None:
    fused, plain = fused_twins()
    randomise(plain, seed=5)
    fused.load_state_dict(plain.state_dict())
    fused.alphas = plain.alphas
    assert_twins_agree(fused, plain)
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(randomise(networks.Standard(), 6).state_dict(), assign=True)
    plain.load_state_dict(fused.state_dict())
    assert_twins_agree(fused, plain)


def test_unfuse_restores() -> None:
    fused, plain = fused_twins()
    metadnas_ext.unfuse(fused)
    assert all(vars(f).keys() == vars(p).keys() for f, p in zip(fused.modules(), plain.modules()))  # noqa: B905
    x = images()
    actual, expected = results(fused, x), results(plain, x)
    assert all(torch.equal(actual[name], t) for name, t in expected.items())
    metadnas_ext.unfuse(fused)  # nothing left to undo


def test_fusing_twice_is_fusing_once() -> None:
    fused, plain = fused_twins()
    assert metadnas_ext.fuse(fused).converted == metadnas_ext.fuse(fused).converted
    assert_twins_agree(fused, plain)


def test_optimisers_made_before_fusing_go_on() -> None:
    """Weights and alpha by turns, as a search does: the same losses, step by step."""
    losses = []
    for fuse in (False, True):
        torch.manual_seed(0)
        net = randomise(networks.Standard())
        weights = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
        alpha = torch.optim.Adam(net.alphas, 3e-3, betas=(0.5, 0.999))
        if fuse:
            metadnas_ext.fuse(net)
        losses.append([])
        for step in range(12):
            for optimiser in (alpha, weights):
                optimiser.zero_grad()
                x = images(6, seed=step % 4)
                loss = F.cross_entropy(net(x), torch.arange(6) % networks.CLASSES)
                loss.backward()
                optimiser.step()
                losses[-1].append(float(loss.detach()))
    plain, fused = losses
    assert fused == pytest.approx(plain, rel=1e-9)  # rounding, after 24 steps
    assert plain[-1] < 0.7 * plain[0]


def test_trains_to_the_same_curve_in_single_precision() -> None:
    losses = []
    for fuse in (False, True):
        torch.manual_seed(0)
        net = networks.Standard()
        if fuse:
            metadnas_ext.fuse(net)
        optimiser = torch.optim.SGD(net.parameters(), 0.025, momentum=0.9)
        losses.append([])
        for step in range(30):
            optimiser.zero_grad()
            x = images(8, seed=step % 5).float()
            loss = F.cross_entropy(net(x), torch.arange(8) % networks.CLASSES)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            losses[-1].append(float(loss.detach()))
    plain, fused = losses
    assert fused[:5] == pytest.approx(plain[:5], rel=1e-4)
    # Rounding grows from step to step; measured: 2e-3 after 30 steps.
    assert fused == pytest.approx(plain, rel=2e-2, abs=2e-2)
    assert plain[-1] < 0.7 * plain[0]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_fused_and_independent(way: str) -> None:
    fused, plain = fused_twins()
    if way == "deepcopy":
        copied = copy.deepcopy(fused)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(fused))
    else:
        stream = io.BytesIO()
        torch.save(fused, stream)
        stream.seek(0)
        copied = torch.load(stream, weights_only=False)
    entries = [module for module in copied.modules() if "forward" in vars(module)]
    assert len(entries) == sum("forward" in vars(module) for module in fused.modules())
    own = set(copied.modules())
    assert all(vars(module)["forward"].module in own for module in entries)
    before = {name: t.clone() for name, t in fused.state_dict().items()}
    assert_twins_agree(copied, copy.deepcopy(plain))
    assert all(torch.equal(t, before[name]) for name, t in fused.state_dict().items())


def test_modes_by_part() -> None:
    """Batch norms frozen one by one, as fine-tuning does."""
    fused, plain = fused_twins()
    for net in (fused, plain):
        net.train()
        net.cells[0]._ops[1]._ops[4].op[3].eval()
        net.cells[1]._ops[0].eval()
        net.cells[2].preprocess0.eval()
    assert_same(results(fused, images()), results(plain, images()))


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", None), ("momentum", 0.3), ("eps", 1e-2), ("track", False)]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_batch_norm_settings(name: str, value: object, when: str) -> None:
    fused, plain = twins(networks.Standard())
    if when == "after":
        metadnas_ext.fuse(fused)
    for net in (fused, plain):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and name == "track":
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
            elif isinstance(module, nn.BatchNorm2d):
                setattr(module, name, value)
    if when == "before":
        assert not metadnas_ext.fuse(fused).left
    assert_twins_agree(fused, plain)


def test_affine_batch_norms() -> None:
    def affine(c: int, stride: int) -> nn.Module:
        op = networks.MixedOp(c, stride)
        names = [n for n, m in op.named_modules() if isinstance(m, nn.BatchNorm2d)]
        for name in names[:-2]:  # all but the last two
            path, _, leaf = name.rpartition(".")
            setattr(op.get_submodule(path), leaf, nn.BatchNorm2d(c))
        return op

    fused, plain = twins(networks.Standard(mixed=affine))
    assert not metadnas_ext.fuse(fused).left
    assert_twins_agree(fused, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype: torch.dtype) -> None:
    fused, plain = fused_twins()
    for net in (fused, plain):
        net.to(dtype).train()
        net.alphas = [alpha.detach().to(dtype).requires_grad_() for alpha in net.alphas]
    x = images().to(dtype)
    actual, expected = results(fused, x), results(plain, x)
    assert all(actual[name].dtype == t.dtype for name, t in expected.items())
    # Rounded to 24 or 8 bits again and again; what is wrong is off by its own size.
    assert_same(
        {"logits": actual["logits"]},
        {"logits": expected["logits"]},
        1e-4 if dtype == torch.float32 else 0.2,
    )


def test_autocast() -> None:
    fused, plain = fused_twins()
    logits = []
    for net in (fused, plain):
        net.float()
        net.alphas = [alpha.detach().float().requires_grad_() for alpha in net.alphas]
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(net(images().float()))
    assert logits[0].dtype == logits[1].dtype == torch.bfloat16
    assert_same({"logits": logits[0]}, {"logits": logits[1]}, 0.2)  # 8 bits


def test_without_gradients() -> None:
    fused, plain = fused_twins()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same({"y": fused(images())}, {"y": plain(images())})
    assert fused(images()).requires_grad


def test_frozen_weights_get_no_gradient() -> None:
    fused, plain = fused_twins()
    for net in (fused, plain):
        net.requires_grad_(False)
    assert_same(results(fused, images()), results(plain, images()))


def test_second_order() -> None:
    """The gradient through a step on the weights, as unrolled DARTS takes it."""
    grads = []
    for net in fused_twins():
        x, y = images(3), torch.arange(3) % networks.CLASSES
        weights = dict(net.named_parameters())
        loss = F.cross_entropy(net(x), y)
        first = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        stepped = {n: w - 0.1 * g for (n, w), g in zip(weights.items(), first, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(net, stepped, (images(3, seed=1),)), y)
        grads.append(torch.autograd.grad(loss, net.alphas))
    fused, plain = grads
    for own, truth in zip(fused, plain, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-8, atol=1e-10)


def test_channels_last_goes_through_without_copies() -> None:
    fused, _ = fused_twins()
    cell = fused.cells[0]
    before = torch.randn(2, 8, 8, 8).double().contiguous(memory_format=torch.channels_last)
    out = cell(before, before, torch.rand(5, 8).double())
    assert out.shape == (2, 8, 8, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value: float) -> None:
    fused, plain = fused_twins()
    x = images()
    x[0, 0, 0, 0] = value
    for training in (True, False):
        outs = [net.train(training)(x).detach().isfinite() for net in (fused, plain)]
        assert not outs[1][0].any()
        assert torch.equal(*outs)


def test_hooks_see_tensors() -> None:
    fused, plain = fused_twins()
    seen = []
    for net in (fused, plain):
        places = ("cells.0._ops.0", "cells.0._ops.1._ops.4", "cells.1._ops.2._ops.4.op.1")
        for place in (*places, "cells.0"):
            net.get_submodule(place).register_forward_hook(
                lambda module, args, out: seen.append(out.detach())
            )
        net(images())
    assert len(seen) == 8
    for own, truth in zip(seen[:4], seen[4:], strict=True):
        torch.testing.assert_close(own, truth)


def test_backward_hooks_see_gradients() -> None:
    fused, plain = fused_twins()
    seen = []
    for net in (fused, plain):
        net.cells[1]._ops[3].register_full_backward_hook(lambda *args: seen.append(args[1:]))
        F.cross_entropy(net(images()), torch.arange(4) % networks.CLASSES).backward()
    torch.testing.assert_close(seen[0], seen[1])
    assert seen[0][0][0].abs().sum() > 0


def test_code_without_gradients_in_between() -> None:
    """A sum that is first looked at under no_grad still has its gradient."""

    class Watching(networks.MixedOp):
        def forward(self, x, weights):
            out = sum(w * op(x) for w, op in zip(weights, self._ops))  # noqa: B905
            with torch.no_grad():
                self.norm = out.norm()
                doubled = 2.0 * out
            return out + doubled

    module = Watching(4, 1)
    assert metadnas_ext.fuse(module).converted[""] == "8 of 8 operations fused"


def test_settings_that_change_afterwards_count() -> None:
    """A drop path with probability 0 is an identity until its probability is set."""
    fused, plain = twins(networks.Standard(mixed=networks.MetaMixedOp))
    assert "8 of 8 operations fused" in metadnas_ext.fuse(fused).converted.values()
    for net in (fused, plain):
        for module in net.modules():
            if hasattr(module, "p"):
                module.p = 0.5
    # Which images are dropped depends on the shape of the mask alone, not on memory.
    assert_twins_agree(fused, plain)


def biased(op: nn.Module) -> None:
    op[2] = nn.Conv2d(4, 4, 1).double()


def longer(op: nn.Module) -> None:
    op.append(nn.Tanh())


def another_activation(op: nn.Module) -> None:
    op[0] = nn.ELU()


def wider(op: nn.Module) -> None:
    op[5].dilation = op[5].padding = (2, 2)


def replaced(op: nn.Module) -> None:
    op[1] = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False).double()


def normed(op: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(op[2])
    with torch.no_grad():
        direction = op[2].parametrizations.weight.original1
        direction.add_(torch.randn_like(direction))


def pruned(op: nn.Module) -> None:
    prune.random_unstructured(op[1], "weight", 0.5)


CHANGES = (biased, longer, another_activation, wider, replaced, normed, pruned)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_layers_that_change_afterwards_count(change: Callable[[nn.Module], None]) -> None:
    fused, plain = fused_twins()
    before = [net(images()) for net in (fused, plain)]
    for net in (fused, plain):
        torch.manual_seed(0)
        change(net.cells[0]._ops[0]._ops[4].op)
    actual, expected = (results(net, images()) for net in (fused, plain))
    assert not torch.allclose(actual["logits"], before[0])
    assert_same(actual, expected)


def test_an_input_changed_in_place_is_refused() -> None:
    class Careless(networks.MixedOp):
        def forward(self, x, weights):
            outs = [op(x) for op in self._ops]
            x.add_(1.0)
            return sum(w * out for w, out in zip(weights, outs))  # noqa: B905

    module = Careless(4, 1)
    report = metadnas_ext.fuse(module)
    assert not report.converted
    assert "modified by an inplace operation" in report.left[""]  # autograd's own words
    metadnas_ext.fuse(module, verify=False)
    with pytest.raises(RuntimeError, match=r"changed in place .* metadnas_ext\.unfuse"):
        module(torch.randn(2, 4, 8, 8), torch.rand(8))


def test_results_that_are_used_twice_or_never() -> None:
    class Wasteful(networks.MixedOp):
        def forward(self, x, weights):
            outs = [op(x) for op in self._ops]
            first = sum(w * out for w, out in zip(weights[:6], outs))  # noqa: B905
            second = sum(w * out for w, out in zip(weights[2:6], outs[2:6]))  # noqa: B905
            return first + 2.0 * second - outs[4] / 3.0 + outs[4].mean()

    module = Wasteful(4, 1)
    report = metadnas_ext.fuse(module)
    assert (
        report.converted[""] == "8 of 8 operations fused"
    )  # verified: outputs, gradients, buffers


def test_distributed_data_parallel(tmp_path) -> None:
    fused, plain = fused_twins()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(fused)
        for net in (wrapped, plain):
            F.cross_entropy(net(images()), torch.arange(4) % networks.CLASSES).backward()
        own = {name: p.grad for name, p in fused.named_parameters()}
        assert_same(own, {name: p.grad for name, p in plain.named_parameters()})
    finally:
        torch.distributed.destroy_process_group()


def test_verification_catches_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = evaluate._stacked
    fused, plain = twins(networks.Standard())
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_stacked", lambda weights, x: right(weights, x).flip(0))
        report = metadnas_ext.fuse(fused)
    mixed = [reason for path, reason in report.left.items() if "_ops" in path]
    assert len(mixed) == 15
    assert all("is off by" in reason for reason in mixed)
    assert not any("operations" in what for what in report.converted.values())
    assert_twins_agree(fused, plain)


def test_without_verification_it_converts_the_same() -> None:
    checked, unchecked = networks.Standard(), networks.Standard()
    expected = metadnas_ext.fuse(checked).converted
    assert metadnas_ext.fuse(unchecked, verify=False).converted == expected


def test_an_example_shows_what_modules_are_called_with() -> None:
    class Odd(networks.Standard):
        def forward(self, x, scale):
            return super().forward(x) * scale

    net = Odd()
    report = metadnas_ext.fuse(net, example=(images().float(), 2.0))
    assert report.converted["cells.1"] == "cell of 5 mixed operations"
    with pytest.raises(TypeError, match="scale"):
        metadnas_ext.fuse(net, example=images().float())


def test_transforms_of_torch_func_see_the_model_as_it_was() -> None:
    grads = []
    for net in fused_twins():
        state = dict(net.named_buffers())
        weights = {name: p.detach() for name, p in net.named_parameters()}

        def loss(weights, net=net, state=state):
            return torch.func.functional_call(net.eval(), (weights, state), (images(),)).sum()

        grads.append(torch.func.grad(loss)(weights))
    assert all(torch.equal(own, grads[1][name]) for name, own in grads[0].items())


def test_compiles() -> None:
    fused, plain = fused_twins()
    op, truth = fused.cells[0]._ops[0], plain.cells[0]._ops[0]
    x, weights = torch.randn(2, 4, 8, 8).double(), torch.rand(8).double()
    torch.testing.assert_close(torch.compile(op, backend="eager")(x, weights), truth(x, weights))
