"""How sharp a client's validation loss is in α: the sign of a search about to collapse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metadnas_ext.data import ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.architect import EPSILON, norms, per_client, validation_gradient
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.relaxations import Relaxation
from metadnas_ext.seeding import generator


def alpha_hessian_eigenvalue(
    plan: NetworkPlan,
    cohort: Cohort,
    relaxation: Relaxation,
    store: ImageStore,
    batch_size: int,
    where: str,
    seed: int = 0,
    *,
    iterations: int = 20,
    tolerance: float = 0.01,
) -> Tensor:
    """Largest eigenvalue of ∇²_α L_val of each client, float64 (G).

    Zela et al., "Understanding and robustifying DARTS" (ICLR 2020): where it grows, what α chooses
    gets worse when discretised. L_val is the cross-entropy on all validation data, with the
    cohort's w and running statistics and the relaxation at rest. Power iteration from a random
    start keyed by `seed`; Hessian-vector products are central differences of gradients. A client
    stops when its estimate changes by less than `tolerance` of itself; twice as many passes over
    the validation data as `iterations` at most, or four times if the eigenvalue of largest
    magnitude is negative.

    Raises DivergenceError, naming `where` and the client, if a loss is not finite.
    """
    assert cohort.alpha is not None
    alpha = cohort.alpha

    def gradient(at: Tensor) -> Tensor:
        grad, _ = validation_gradient(plan, cohort, at, relaxation, store, batch_size, where)
        return grad.double()

    def product(vector: Tensor) -> Tensor:
        """Hessian times unit vectors (G, 2, E, O)."""
        shift = (EPSILON * vector).to(alpha.dtype)
        return (gradient(alpha + shift) - gradient(alpha - shift)) / (2 * EPSILON)

    rng = generator(seed, "power iteration")
    start = torch.randn(alpha.shape[1:], generator=rng, dtype=torch.float64).expand_as(alpha)
    dominant = _power_iteration(product, start, iterations, tolerance)
    if bool((dominant >= 0).all()):
        return dominant
    # Moved up by the magnitude of the most negative one, the largest eigenvalue is dominant.
    moved = dominant.clamp(max=0).neg()

    def moved_product(vector: Tensor) -> Tensor:
        return product(vector) + per_client(moved, vector) * vector

    largest = _power_iteration(moved_product, start, iterations, tolerance) - moved
    return torch.where(dominant < 0, largest, dominant)


def _power_iteration(
    product: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Rayleigh quotients (G) of the dominant eigenvectors, clients frozen as they converge."""
    vector = _unit(start)
    value = torch.full((len(start),), torch.inf, dtype=torch.float64)
    done = torch.zeros(len(start), dtype=torch.bool)
    for _ in range(iterations):
        image = product(vector)
        pairs = zip(vector, image, strict=True)
        quotient = torch.stack([torch.dot(v.flatten(), h.flatten()) for v, h in pairs])
        settled = (quotient - value).abs() <= tolerance * quotient.abs()
        value = torch.where(done, value, quotient)
        done |= settled
        if bool(done.all()):
            break
        vector = _unit(image)
    return value


def _unit(vectors: Tensor) -> Tensor:
    return vectors / per_client(norms(vectors), vectors)
