"""The gradient of the cross-entropy on all validation data, of a cohort behind its search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.data import ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.placement import to_device
from metadnas_ext.search.cohort import Cohort, passes
from metadnas_ext.search.finite import FiniteCheck
from metadnas_ext.search.relaxations import Relaxation
from metadnas_ext.search.training import Evaluation


class Validation(NamedTuple):
    """Gradients of α (G, types, E, O) and, if asked for, of w (G, P), and the figures."""

    alpha: Tensor
    theta: Tensor | None
    figures: Evaluation


def validation_gradient(
    plan: NetworkPlan,
    cohort: Cohort,
    alpha: Tensor,
    relaxation: Relaxation,
    store: ImageStore,
    batch_size: int,
    where: str,
    with_theta: bool = False,
) -> Validation:
    """Of the mean over each client's validation images, at alpha (G, types, E, O).

    With the cohort's w and running statistics: a last, small batch would not have good ones of its
    own.
    """
    inputs = [alpha, cohort.theta] if with_theta else [alpha]
    grads = [torch.zeros_like(x) for x in inputs]
    device, check = alpha.device, FiniteCheck(cohort, where)
    images = torch.tensor([len(s.val) for s in cohort.splits], dtype=torch.float64)
    size = to_device(images, device)
    loss, hits = torch.zeros_like(size), torch.zeros_like(size)
    for batch in passes(store, cohort.splits, "val", batch_size, cohort.theta.dtype, device):
        leaves = [x.detach().requires_grad_() for x in inputs]
        theta = leaves[1] if with_theta else cohort.theta
        weights = relaxation.mixture(leaves[0]).weights
        out = plan(theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        check(losses)
        share = (batch.sizes / size).to(losses.dtype)  # (G)
        steps = torch.autograd.grad((losses * share).sum(), leaves)
        for grad, step in zip(grads, steps, strict=True):
            grad += step
        loss += losses.detach() * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
    check.finish()
    figures = Evaluation.of(loss, hits, size)
    return Validation(grads[0], grads[1] if with_theta else None, figures)
