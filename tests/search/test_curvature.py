"""The largest eigenvalue of the Hessian in alpha against the whole Hessian by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.nn import supernet_plan
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation, Sigmoid

from ._clients import BATCH, SHAPE, SPLITS, STORE, fresh_cohort, images, random_rows, supernet_at

PLAN = supernet_plan(SHAPE)


def adapted_cohort(clients: list[int], dtype: torch.dtype = torch.float64) -> Cohort:
    """At random states, each client's as in any cohort."""
    cohort = fresh_cohort(clients, dtype)
    assert cohort.alpha is not None
    for row, client in enumerate(cohort.clients):
        cohort.theta[row] += 0.3 * random_rows(1, cohort.theta.shape[1], client)[0].to(dtype)
        noise = random_rows(1, cohort.alpha[row].numel(), client).to(dtype)
        cohort.alpha[row] += noise.view_as(cohort.alpha[row])
    return cohort


def eigenvalues(cohort: Cohort, relaxation: Relaxation = SOFTMAX, **options: float) -> Tensor:
    return alpha_hessian_eigenvalue(PLAN, cohort, relaxation, STORE, BATCH, "here", 7, **options)


def exact_spectrum(cohort: Cohort, row: int, sigmoid: bool) -> Tensor:
    """All eigenvalues, rising: the Hessian of a module's loss on the whole validation part."""
    assert cohort.alpha is not None
    state = (t[row : row + 1] for t in (cohort.theta, cohort.running, cohort.alpha))
    net = supernet_at(*state).eval()
    x, y = images(SPLITS[cohort.clients[row]].val)

    def loss(flat: Tensor) -> Tensor:
        alpha = flat.view(cohort.alpha[row].shape)
        weights = torch.sigmoid(alpha) if sigmoid else alpha.softmax(-1)
        return F.cross_entropy(net._run(x, (weights[:1], weights[1:])), y)

    hessian = torch.autograd.functional.hessian(loss, cohort.alpha[row].flatten())
    assert isinstance(hessian, Tensor)
    return torch.linalg.eigvalsh(hessian)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_eigenvalue_is_the_largest_of_the_exact_hessian(sigmoid: bool) -> None:
    cohort = adapted_cohort([0, 1, 2, 3])
    relaxation = Sigmoid() if sigmoid else SOFTMAX
    found = eigenvalues(cohort, relaxation, iterations=300, tolerance=1e-7)
    default = eigenvalues(cohort, relaxation)
    for row in range(4):
        spectrum = exact_spectrum(cohort, row, sigmoid)
        assert float(found[row]) == pytest.approx(float(spectrum[-1]), rel=1e-2)
        assert float(default[row]) == pytest.approx(float(spectrum[-1]), rel=0.2)


def test_clients_do_not_change_each_other() -> None:
    """To the bit, in single precision: also where others go on, or need the second iteration."""
    together = adapted_cohort([0, 1, 2, 3], torch.float32)
    for client, value in zip(together.clients, eigenvalues(together), strict=True):
        alone = adapted_cohort([client], torch.float32)
        assert eigenvalues(alone).tolist() == [float(value)]


def test_single_precision_is_enough() -> None:
    single, double = (
        eigenvalues(adapted_cohort([0, 1, 2, 3], dtype)) for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, double, rtol=1e-2, atol=1e-4)
