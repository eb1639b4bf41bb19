"""Relaxations of the choice of one candidate on each edge: from α to mixing weights.

α is (G, types, E, O): clients, cell types, edges, candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.placement import to_device

if TYPE_CHECKING:
    from metadnas_ext.config import ClientConfig
    from metadnas_ext.nn.stages import Weights

Generators = Callable[[], Sequence[torch.Generator]]
"""Makes one generator a client; called only by relaxations that draw."""


class Mixing(NamedTuple):
    """What a relaxation makes of α: both for each cell type, (G, E, O).

    weights: of the candidates in the network. chances: that each candidate is the one kept, what
    the expected cost is taken over; they sum to 1 over candidates.
    """

    weights: Weights
    chances: Weights


@dataclass(frozen=True)
class Relaxation(ABC):
    """How α becomes mixing weights during one search, whose temperature goes from `begin` to `end`.

    The temperature falls (or rises) geometrically over each client's own steps.
    """

    begin: float = 1.0
    end: float = 1.0

    stochastic: ClassVar[bool] = False
    """Whether the weights of a training step are drawn."""
    relative: ClassVar[bool] = True
    """Whether a constant on all candidates of an edge changes nothing."""

    @abstractmethod
    def mixture(self, alpha: Tensor) -> Mixing:
        """At rest, behind the search: deterministic. Of evaluation, costs and meta-gradients."""

    @abstractmethod
    def sample(self, alpha: Tensor, progress: Tensor, generators: Generators) -> Mixing:
        """For a training step. progress (G): share of its steps that each client has done."""

    def stopped(self, share: float) -> Relaxation:
        """A search of the same start that ends at this share of the steps."""
        return replace(self, end=self.begin * (self.end / self.begin) ** share)

    def log_chances(self, alpha: Tensor) -> Tensor:
        """Log of the chance of each candidate on its edge, at temperature 1: (..., E, O)."""
        return alpha.log_softmax(-1)

    @abstractmethod
    def log_scores(self, alpha: Tensor) -> Tensor:
        """What a discrete architecture maximises the sum of: (types, E, O).

        Logs of the mixture at rest: which edges a node keeps depends on how sharp it has become.
        """

    def _scaled(self, alpha: Tensor, progress: Tensor | None = None) -> Tensor:
        """α / T; without progress at the end of the search."""
        if progress is None or self.begin == self.end:
            return alpha if self.end == 1.0 else alpha / self.end
        # One by one: a vectorised power rounds differently in its last, scalar elements.
        powers = torch.stack([(self.end / self.begin) ** share for share in progress])
        return alpha / (self.begin * powers)[:, None, None, None]


@dataclass(frozen=True)
class Softmax(Relaxation):
    """softmax(α / T): Liu et al., "DARTS" (ICLR 2019), equation 2."""

    def mixture(self, alpha: Tensor) -> Mixing:
        return _same(self._scaled(alpha).softmax(-1))

    def sample(self, alpha: Tensor, progress: Tensor, generators: Generators) -> Mixing:
        return _same(self._scaled(alpha, progress).softmax(-1))

    def log_scores(self, alpha: Tensor) -> Tensor:
        return self._scaled(alpha).log_softmax(-1)


@dataclass(frozen=True)
class Gumbel(Relaxation):
    """softmax((α + Gumbel noise) / T): Xie et al., "SNAS" (ICLR 2019); Jang et al. (ICLR 2017).

    At rest softmax(α), whatever T: the chance that a candidate's noisy logit is the largest.
    """

    stochastic: ClassVar[bool] = True

    def mixture(self, alpha: Tensor) -> Mixing:
        return _same(alpha.softmax(-1))

    def sample(self, alpha: Tensor, progress: Tensor, generators: Generators) -> Mixing:
        noisy = alpha + gumbel_noise(alpha, generators())
        return Mixing(self._weights(noisy, progress).unbind(1), alpha.softmax(-1).unbind(1))

    def log_scores(self, alpha: Tensor) -> Tensor:
        return alpha.log_softmax(-1)

    def _weights(self, noisy: Tensor, progress: Tensor) -> Tensor:
        return self._scaled(noisy, progress).softmax(-1)


@dataclass(frozen=True)
class GDAS(Gumbel):
    """One candidate an edge, drawn by Gumbel noise: Dong and Yang, "GDAS" (CVPR 2019).

    Forward the one-hot weights, backward the gradient of Gumbel's (straight through). All
    candidates are computed, so that each gets its true share of that gradient.
    """

    def _weights(self, noisy: Tensor, progress: Tensor) -> Tensor:
        soft = super()._weights(noisy, progress)
        hard = torch.zeros_like(soft).scatter_(-1, noisy.argmax(-1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())  # exactly one-hot: the difference is 0


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """sigmoid(α / T), candidates independent: Chu et al., "Fair DARTS" (ECCV 2020).

    An edge keeps one candidate here as elsewhere: chances are the weights' shares, scores log σ(α).
    """

    relative: ClassVar[bool] = False

    def mixture(self, alpha: Tensor) -> Mixing:
        return self._mixing(self._scaled(alpha))

    def sample(self, alpha: Tensor, progress: Tensor, generators: Generators) -> Mixing:
        return self._mixing(self._scaled(alpha, progress))

    def log_chances(self, alpha: Tensor) -> Tensor:
        return each(F.logsigmoid, alpha).log_softmax(-1)

    def log_scores(self, alpha: Tensor) -> Tensor:
        return each(F.logsigmoid, self._scaled(alpha))

    def _mixing(self, scaled: Tensor) -> Mixing:
        weights = each(torch.sigmoid, scaled)
        return Mixing(weights.unbind(1), self.log_chances(scaled).exp().unbind(1))


RELAXATIONS: dict[str, type[Relaxation]] = {
    "softmax": Softmax,
    "gumbel": Gumbel,
    "gdas": GDAS,
    "sigmoid": Sigmoid,
}
"""By the name of `client.relaxation`."""

SOFTMAX = Softmax()
"""At temperature 1."""


def relaxation_of(
    config: ClientConfig, begin: float, end: float, annealed: float = 1.0
) -> Relaxation:
    """The relaxation of a search that covers the part [begin, end] of all rounds.

    0 is the start of the first round, 1 the end of the last. `annealed` multiplies the temperature
    at the end of the search.
    """
    first = config.temperature
    last = first if config.final_temperature is None else config.final_temperature
    at_begin, at_end = (first * (last / first) ** share for share in (begin, end))
    return RELAXATIONS[config.relaxation](at_begin, at_end * annealed)


def gumbel_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard Gumbel noise of the shape and type of `like` (G, ...), each row by its generator."""
    shape, tiny = like.shape[1:], torch.finfo(torch.float64).tiny
    rows = [torch.empty(shape, dtype=torch.float64).exponential_(generator=g) for g in generators]
    noise = torch.stack([-row.clamp(min=tiny).log() for row in rows])
    return to_device(noise.to(like.dtype), like.device)


def each(function: Callable[[Tensor], Tensor], alpha: Tensor) -> Tensor:
    """An elementwise function, client by client.

    torch's sigmoid rounds differently in the last, scalar elements of a tensor than in the others,
    and which those are must not depend on the cohort.
    """
    return torch.stack([function(client) for client in alpha])


def _same(p: Tensor) -> Mixing:
    """Weights that are the chances: (G, types, E, O)."""
    weights = p.unbind(1)
    return Mixing(weights, weights)
