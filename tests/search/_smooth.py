"""A supernet without kinks, so that derivatives of any order are what differences show.

One normal cell of skips and average pools; the ReLU in front of them stays on its positive side,
because the stem's batch norm moves its output up. Batch norm and the softmax are smooth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext.nn import supernet_plan
from metadnas_ext.search.cohort import Cohort, ordered
from metadnas_ext.search.training import cohort_of
from metadnas_ext.space import NetworkShape

from ._clients import BATCH, SPLITS, random_rows

SMOOTH = NetworkShape(
    4, 1, nodes=2, classes=3, image_size=7, candidates=("none", "skip_connect", "avg_pool_3x3")
)
PLAN = supernet_plan(SMOOTH)


def smooth_cohort(clients: Sequence[int], dtype: torch.dtype = torch.float64) -> Cohort:
    """Each client at a random state of its own, the same in any cohort."""
    theta = PLAN.initial(1, torch.Generator().manual_seed(1))[0].double()
    theta = theta + 0.1 * random_rows(1, len(theta), 2)[0]
    views = PLAN.parameters.views(theta)
    views["stem.1.weight"].fill_(0.5)
    views["stem.1.bias"].fill_(10.0)
    running = PLAN.initial_running(1)[0].double()
    alpha = torch.zeros(2, 5, 3, dtype=torch.float64)
    splits = ordered([SPLITS[c] for c in clients], BATCH)
    cohort = cohort_of(splits, theta, running, alpha)
    assert cohort.alpha is not None
    for row, split in enumerate(splits):
        cohort.alpha[row] += noise(split.client).view(2, 5, 3)
    cast = (t.to(dtype) for t in (cohort.theta, cohort.running, cohort.alpha))
    return Cohort(splits, *cast)


def noise(client: int) -> Tensor:
    return random_rows(1, 30, client)[0]
