"""The outer objective of meta-learning: a client's loss at its adapted point, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.meta.base import Adapted, MetaGradient
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.search import objective
from metadnas_ext.search.cohort import passes
from metadnas_ext.search.training import Evaluation, check_finite


def outer_gradient(adapted: Adapted, with_theta: bool) -> tuple[MetaGradient, Evaluation]:
    """Gradient with respect to the adapted α, and w if asked, and the validation figures.

    The loss is the client's own objective, cross-entropy on all its validation data plus its
    complexity penalty, without the terms that only guide the local search.
    """
    cohort = adapted.cohort
    assert cohort.alpha is not None
    inputs = [cohort.alpha, cohort.theta] if with_theta else [cohort.alpha]
    grads = [torch.zeros_like(x) for x in inputs]
    size = torch.tensor([len(s.val) for s in cohort.splits], dtype=torch.float64)
    loss, hits = torch.zeros_like(size), torch.zeros_like(size)
    width = adapted.config.batch_size
    for batch in passes(adapted.store, cohort.splits, "val", width, cohort.theta.dtype):
        alpha, *rest = (x.detach().requires_grad_() for x in inputs)
        theta = rest[0] if with_theta else cohort.theta
        weights = objective.mixing_weights(alpha)
        # Running statistics: a last, small batch would not have good ones of its own.
        out = adapted.plan(theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        check_finite(losses, cohort, adapted.where)
        share = (batch.sizes / size).to(losses.dtype)  # (G)
        for grad, part in zip(
            grads, torch.autograd.grad((losses * share).sum(), [alpha, *rest]), strict=True
        ):
            grad += part
        loss += losses.detach() * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
    grads[0] += _penalty_gradient(adapted, cohort.alpha)
    by_theta = grads[1] if with_theta else None
    return MetaGradient(by_theta, grads[0]), Evaluation(loss / size, hits / size, size)


def _penalty_gradient(adapted: Adapted, alpha: Tensor) -> Tensor:
    """Of the complexity penalty; dual ascent's multiplier guides the local search only."""
    config = adapted.config
    alpha = alpha.detach().requires_grad_()
    weights = objective.mixing_weights(alpha)
    _, excess = objective.cost_ratio(weights, adapted.costs, adapted.budgets)
    kind = "linear" if config.penalty_kind == "dual" else config.penalty_kind
    (grad,) = torch.autograd.grad(objective.penalty(excess, kind, config.penalty).sum(), alpha)
    return grad
