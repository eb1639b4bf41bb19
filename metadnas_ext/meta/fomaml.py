"""First-order MAML."""

from __future__ import annotations

from metadnas_ext.meta.base import Adapted, MetaGradient, MetaLearner
from metadnas_ext.meta.outer import outer_gradient
from metadnas_ext.search.training import Evaluation


class FOMAML(MetaLearner):
    """The outer gradient at the adapted point, taken for that at the start.

    Finn et al., "MAML" (ICML 2017), section 5.2.
    """

    name = "fomaml"

    def __call__(self, adapted: Adapted) -> tuple[MetaGradient, Evaluation]:
        grad, val = outer_gradient(adapted, with_theta="theta" in self.learned)
        return self._own(adapted, *grad), val
