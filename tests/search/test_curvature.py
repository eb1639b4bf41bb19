"""The largest eigenvalue of the Hessian in alpha against the whole Hessian by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metadnas_ext.nn import NetworkPlan, supernet_plan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.search.cohort import Cohort, passes
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation, Sigmoid

from . import _smooth
from ._clients import BATCH, SHAPE, STORE, fresh_cohort, random_rows

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


def eigenvalues(
    plan: NetworkPlan, cohort: Cohort, relaxation: Relaxation = SOFTMAX, **options: float
) -> Tensor:
    return alpha_hessian_eigenvalue(plan, cohort, relaxation, STORE, BATCH, "here", 7, **options)


def exact_spectra(plan: NetworkPlan, cohort: Cohort, relaxation: Relaxation) -> list[Tensor]:
    """All eigenvalues of each client, rising: of the loss on the whole validation part at once."""
    alpha = cohort.alpha
    assert alpha is not None
    (batch,) = passes(STORE, cohort.splits, "val", 64, torch.float64)

    leaf = alpha.clone().requires_grad_()
    weights = relaxation.mixture(leaf).weights
    out = plan(cohort.theta, weights, batch.x, running=cohort.running, counts=batch.counts)
    losses = cross_entropy(out.logits, batch.labels, batch.counts)
    (grad,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
    columns = [  # of all clients at once: they do not know each other
        torch.autograd.grad(entry.sum(), leaf, retain_graph=True)[0].flatten(1)
        for entry in grad[:, 0].flatten(1).T  # the network has no reduction cell
    ]
    hessian = torch.stack(columns, 1)[:, :, : len(columns)]  # (G, D, D)
    return list(torch.linalg.eigvalsh(hessian))


@pytest.mark.parametrize("relaxation", [SOFTMAX, Sigmoid()], ids=["softmax", "sigmoid"])
def test_eigenvalue_is_the_largest_of_the_exact_hessian(relaxation: Relaxation) -> None:
    """Also where a negative one is larger in magnitude."""
    cohort = _smooth.smooth_cohort([0, 1, 2, 3])
    exact = exact_spectra(_smooth.PLAN, cohort, relaxation)
    found = eigenvalues(
        _smooth.PLAN, cohort, relaxation, epsilon=1e-4, iterations=40, tolerance=1e-4
    )
    default = eigenvalues(_smooth.PLAN, cohort, relaxation)
    for row, spectrum in enumerate(exact):
        assert float(found[row]) == pytest.approx(float(spectrum[-1]), rel=1e-5)
        assert float(default[row]) == pytest.approx(float(spectrum[-1]), rel=0.02)
    if relaxation == SOFTMAX:
        assert {bool(-spectrum[0] > spectrum[-1]) for spectrum in exact} == {False, True}


def test_clients_do_not_change_each_other() -> None:
    """To the bit, in single precision: also where others go on."""
    clients = [0, 1, 2, 3]
    together = _smooth.smooth_cohort(clients, torch.float32)
    for client, value in zip(together.clients, eigenvalues(_smooth.PLAN, together), strict=True):
        alone = _smooth.smooth_cohort([client], torch.float32)
        assert eigenvalues(_smooth.PLAN, alone).tolist() == [float(value)]


def test_single_precision_is_enough() -> None:
    for plan, made in ((PLAN, adapted_cohort), (_smooth.PLAN, _smooth.smooth_cohort)):
        single, double = (
            eigenvalues(plan, made([0, 1], dtype)) for dtype in (torch.float32, torch.float64)
        )
        assert single.dtype == torch.float64
        torch.testing.assert_close(single, double, rtol=1e-2, atol=1e-4)
