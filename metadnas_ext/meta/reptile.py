"""Reptile."""

from __future__ import annotations

from metadnas_ext.meta.base import Adapted, MetaGradient, MetaLearner
from metadnas_ext.search.training import Evaluation, evaluate


class Reptile(MetaLearner):
    """The way back from the adapted point to the start, θ - θ_K.

    Nichol et al., "On First-Order Meta-Learning Algorithms" (2018), equation 2.
    """

    name = "reptile"

    def __call__(self, adapted: Adapted) -> tuple[MetaGradient, Evaluation]:
        cohort = adapted.cohort
        assert cohort.alpha is not None
        val = evaluate(
            adapted.plan,
            cohort,
            adapted.store,
            "val",
            adapted.config.batch_size,
            adapted.where,
            adapted.relaxation,
        )
        way = (adapted.theta - cohort.theta, adapted.alpha - cohort.alpha)
        return self._own(adapted, *way), val
