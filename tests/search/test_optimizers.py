"""Row optimisers against torch's own, one ordinary optimiser per client."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metadnas_ext.search.optimizers import RowAdam, RowOptimizer, RowSGD

STEPS = [7, 4, 4, 1]
"""Of each client; most first, as in a cohort."""
WIDTH = 37  # not a whole number of vector registers


def random_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def gradients(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """One gradient (4, WIDTH) a step, of very different sizes."""
    return [
        random_rows(len(STEPS), WIDTH, seed=s + 1, dtype=dtype) * 10.0 ** (s - 3) for s in range(7)
    ]


def run_rows(optimizer: RowOptimizer, grads: list[Tensor]) -> None:
    for step, grad in enumerate(grads):
        active = sum(total > step for total in STEPS)
        optimizer.step(grad[:active].clone(), active)


def run_alone(
    start: Tensor, grads: list[Tensor], client: int, kind: str, **options: float
) -> Tensor:
    """The client's row after its own number of steps with torch's optimiser."""
    row = start[client].clone().requires_grad_()
    schedule = None
    if kind == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([row], **options)
    else:
        optimizer = torch.optim.SGD([row], **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS[client])
    for grad in grads[: STEPS[client]]:
        row.grad = grad[client].clone()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return row.detach()


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.999)])
def test_adam_is_torchs_for_each_client(betas: tuple[float, float], decay: float) -> None:
    start = random_rows(len(STEPS), WIDTH)
    rows = start.clone()
    run_rows(RowAdam(rows, 0.05, betas=betas, weight_decay=decay), gradients())
    for client in range(len(STEPS)):
        expected = run_alone(
            start, gradients(), client, "adam", lr=0.05, betas=betas, weight_decay=decay
        )
        torch.testing.assert_close(rows[client], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_sgd_with_cosine_is_torchs_for_each_client(momentum: float, decay: float) -> None:
    start = random_rows(len(STEPS), WIDTH)
    rows = start.clone()
    run_rows(RowSGD(rows, 0.05, momentum, decay, STEPS), gradients())
    for client in range(len(STEPS)):
        expected = run_alone(
            start, gradients(), client, "sgd", lr=0.05, momentum=momentum, weight_decay=decay
        )
        torch.testing.assert_close(rows[client], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_the_others(kind: str, dtype: torch.dtype) -> None:
    """To the bit, at a width that leaves a rest in every vector register."""

    def optimizer(rows: Tensor, steps: list[int]) -> RowOptimizer:
        if kind == "adam":
            return RowAdam(rows, 0.05, weight_decay=3e-4)
        return RowSGD(rows, 0.05, 0.9, 3e-4, steps)

    start = random_rows(len(STEPS), WIDTH, dtype=dtype)
    rows = start.clone()
    run_rows(optimizer(rows, STEPS), gradients(dtype))
    for client, steps in enumerate(STEPS):
        row = start[client : client + 1].clone()
        alone = optimizer(row, [steps])
        for grad in gradients(dtype)[:steps]:
            alone.step(grad[client : client + 1].clone(), 1)
        assert torch.equal(rows[client], row[0])


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_rows_that_finished_stay_as_they_are(kind: str) -> None:
    rows = random_rows(3, 2, 5)
    before = rows.clone()
    optimizer = RowAdam(rows, 0.1) if kind == "adam" else RowSGD(rows, 0.1, 0.9, 0.0, [3, 1, 1])
    optimizer.step(torch.ones(3, 2, 5, dtype=torch.float64), 3)
    middle = rows.clone()
    assert (middle != before).all()
    optimizer.step(torch.ones(1, 2, 5, dtype=torch.float64), 1)
    assert (rows[0] != middle[0]).all()
    assert torch.equal(rows[1:], middle[1:])


def test_adam_goes_on_from_given_moments_and_updates_them() -> None:
    start, grads = random_rows(1, WIDTH), gradients()[:4]
    whole = start.clone()
    optimizer = RowAdam(whole, 0.1)
    for grad in grads:
        optimizer.step(grad[:1], 1)

    pieces, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    steps = torch.zeros(1)
    for grad in grads:  # a new optimiser each time, as the server has
        optimizer = RowAdam(pieces, 0.1)
        optimizer.load(mean, square, steps)
        optimizer.step(grad[:1], 1)
    assert torch.equal(pieces, whole)
    assert steps.tolist() == [4]


@pytest.mark.parametrize("limit", [0.0, 0.5, 5.0, 1e9])
def test_clip_is_torchs_clip_of_each_row(limit: float) -> None:
    start = random_rows(4, WIDTH)
    grads = random_rows(4, WIDTH, seed=1) * torch.tensor([[0.0], [0.01], [1.0], [100.0]])
    rows = start.clone()
    RowSGD(rows, 0.1, 0.0, 0.03, [1] * 4, clip=limit).step(grads, 4)
    for client in range(4):
        parameter = start[client].clone().requires_grad_()
        parameter.grad = grads[client].clone()
        torch.nn.utils.clip_grad_norm_([parameter], limit or torch.inf)
        torch.optim.SGD([parameter], 0.1, weight_decay=0.03).step()
        torch.testing.assert_close(rows[client], parameter.detach(), rtol=1e-13, atol=1e-15)


def test_adam_clips_too() -> None:
    """The first moment after one step is a tenth of the clipped gradient."""
    grads = random_rows(2, WIDTH) * 100
    rows, mean = torch.zeros_like(grads), torch.zeros_like(grads)
    optimizer = RowAdam(rows, 0.1, clip=2.0)
    optimizer.load(mean, torch.zeros_like(grads), torch.zeros(2))
    optimizer.step(grads, 2)
    torch.testing.assert_close((mean * 10).norm(dim=1), torch.full((2,), 2.0).double())


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("done", [0, 3])
def test_adjoint_is_autograd_through_torchs_step(kind: str, done: int, limit: float) -> None:
    """One step of torch's differentiable optimisers of a random scalar of all that it changes."""
    clients, decay = slice(1, 3), 0.03
    rows = random_rows(len(STEPS), WIDTH)
    optimizer: RowOptimizer
    if kind == "adam":
        optimizer = RowAdam(rows, 0.05, betas=(0.5, 0.999), weight_decay=decay, clip=limit)
    else:
        optimizer = RowSGD(rows, 0.05, 0.9, decay, STEPS, clip=limit)
    for tensor in optimizer.tensors[1:]:  # the moments of `done` steps
        moments = random_rows(*tensor.shape, seed=7).abs() * (done > 0)
        tensor.copy_(moments if tensor.dim() > 1 else torch.full_like(tensor, done))
    grad = random_rows(2, WIDTH, seed=8)
    after = [random_rows(*t.shape, seed=9 + k) for k, t in enumerate(optimizer.tensors)]

    adjoints = [tensor.clone() for tensor in after]
    to_grad = optimizer.adjoint(optimizer.tensors, adjoints, grad, clients, done)
    for row, client in enumerate((1, 2)):
        before = [t[client].clone() for t in optimizer.tensors if t.dim() > 1]
        leaves = [t.requires_grad_() for t in (grad[row].clone(), *before)]
        changed = differentiable_step(kind, leaves, client, done, decay, limit)
        scalar = torch.stack([(c * a[client]).sum() for c, a in zip(changed, after, strict=False)])
        expected = torch.autograd.grad(scalar.sum(), leaves)
        torch.testing.assert_close(to_grad[row], expected[0], rtol=1e-9, atol=1e-10)
        for mine, other in zip(adjoints, expected[1:], strict=False):
            torch.testing.assert_close(mine[client], other, rtol=1e-9, atol=1e-10)
    for mine, other in zip(adjoints, after, strict=True):  # the other clients'
        assert torch.equal(mine[[0, 3]], other[[0, 3]])


def differentiable_step(
    kind: str, leaves: list[Tensor], client: int, done: int, decay: float, limit: float
) -> list[Tensor]:
    """The parameter and its moments after one step of torch's optimiser, with their history."""
    grad, parameter, *moments = (leaf.clone() for leaf in leaves)
    optimizer: torch.optim.Optimizer
    if kind == "adam":
        optimizer = torch.optim.Adam(
            [parameter], 0.05, betas=(0.5, 0.999), weight_decay=decay, differentiable=True
        )
        names = ("exp_avg", "exp_avg_sq")
        optimizer.state[parameter]["step"] = torch.tensor(float(done)).double()
    else:
        rate = 0.05 * (1 + math.cos(math.pi * done / STEPS[client])) / 2
        optimizer = torch.optim.SGD([parameter], rate, 0.9, weight_decay=decay, differentiable=True)
        names = ("momentum_buffer",)
    optimizer.state[parameter] |= dict(zip(names, moments, strict=True))
    if limit > 0:
        grad = grad * (limit / (grad.norm() + 1e-6)).clamp(max=1.0)
    parameter.grad = grad
    optimizer.step()
    return [parameter, *(optimizer.state[parameter][name] for name in names)]


def test_adjoint_where_no_gradient_was_ever_seen() -> None:
    """The root of the second moment has no derivative at 0; the step's own there is finite."""
    rows = torch.zeros(1, 2, dtype=torch.float64)
    optimizer = RowAdam(rows, 0.05)
    adjoints = [torch.ones(1, 2).double(), *(torch.zeros(1, 2).double() for _ in range(2))]
    grad = torch.tensor([[0.0, 1.0]]).double()
    to_grad = optimizer.adjoint(
        optimizer.tensors, [*adjoints, torch.zeros(1)], grad, slice(0, 1), 0
    )
    assert float(to_grad[0, 0]) == pytest.approx(-0.05 / 1e-8)  # θ - lr g / eps
    assert abs(float(to_grad[0, 1])) < 1e-6
