"""The outer objective of meta-learning: a client's loss at its adapted point, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.meta.base import Adapted, MetaGradient
from metadnas_ext.search.objective import CostPenalty
from metadnas_ext.search.training import Evaluation
from metadnas_ext.search.validation import validation_gradient


def outer_gradient(adapted: Adapted, with_theta: bool) -> tuple[MetaGradient, Evaluation]:
    """Gradient with respect to the adapted α, and w if asked, and the validation figures.

    The loss is the client's own objective, cross-entropy on all its validation data plus its
    complexity penalty, without the terms that only guide the local search, at the relaxation's
    rest.
    """
    cohort = adapted.cohort
    assert cohort.alpha is not None
    found = validation_gradient(
        adapted.plan,
        cohort,
        cohort.alpha,
        adapted.relaxation,
        adapted.store,
        adapted.config.batch_size,
        adapted.where,
        with_theta,
    )
    alpha = found.alpha + _penalty_gradient(adapted, cohort.alpha)
    return MetaGradient(found.theta, alpha), found.figures


def _penalty_gradient(adapted: Adapted, alpha: Tensor) -> Tensor:
    """Of the complexity penalty; dual ascent's multiplier guides the local search only."""
    config = adapted.config
    kind = "linear" if config.penalty_kind == "dual" else config.penalty_kind
    penalty = CostPenalty(adapted.costs, adapted.budgets, kind, config.penalty)
    alpha = alpha.detach().requires_grad_()
    terms = penalty(alpha, adapted.relaxation.mixture(alpha).chances, slice(None))
    (grad,) = torch.autograd.grad(terms.sum(), alpha)
    return grad
