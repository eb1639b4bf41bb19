"""How sharp a client's validation loss is in α: the sign of a search about to collapse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metadnas_ext.data import ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.placement import to_device
from metadnas_ext.search.architect import TINY
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.finite import check_finite
from metadnas_ext.search.optimizers import per_client, row_norms
from metadnas_ext.search.relaxations import Relaxation
from metadnas_ext.search.validation import validation_gradient
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
    epsilon: float = 0.01,
    iterations: int = 20,
    tolerance: float = 0.01,
) -> Tensor:
    """Largest eigenvalue of ∇²_α L_val of each client, float64 (G) on the CPU.

    Zela et al., "Understanding and robustifying DARTS" (ICLR 2020): where it grows, what α chooses
    gets worse when discretised. L_val is the cross-entropy on all validation data, with the
    cohort's w and running statistics and the relaxation at rest. Lanczos' method, which finds it
    also beside negative ones of larger magnitude, from a random start keyed by `seed`.
    Hessian-vector products are central differences of gradients over 2 `epsilon`, about what α
    moves in a step, which averages over the kinks of ReLUs within; each takes two passes over the
    validation data. A client stops after `iterations` of them, or when its approximate eigenvector
    is off by less than `tolerance` of the eigenvalue.

    Raises DivergenceError, naming `where` and the client, if a loss or a gradient is not finite.
    """
    assert cohort.alpha is not None
    alpha = cohort.alpha

    def gradient(at: Tensor) -> Tensor:
        grad = validation_gradient(plan, cohort, at, relaxation, store, batch_size, where).alpha
        check_finite(grad, cohort, where, "gradient in alpha")
        return grad.double().cpu()

    def product(vectors: Tensor) -> Tensor:
        """Hessian of each client times its unit vector: (G, D) -> (G, D), both on the CPU."""
        shift = to_device((epsilon * vectors).to(alpha.dtype), alpha.device).view_as(alpha)
        return (gradient(alpha + shift) - gradient(alpha - shift)).flatten(1) / (2 * epsilon)

    rng = generator(seed, "hessian")
    start = torch.randn(alpha[0].numel(), generator=rng, dtype=torch.float64)
    return _largest_eigenvalue(product, start.expand(len(alpha), -1), iterations, tolerance)


def _largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Of each client's symmetric operator, on the Krylov space of its start (G, D): (G).

    A client is frozen as it converges: its result is that of running alone.
    """
    clients = len(start)
    basis = _unit(start)[:, None]  # (G, k, D), orthonormal
    images = basis[:, :0]  # what the operator makes of it
    value = torch.zeros(clients, dtype=torch.float64)
    done = [False] * clients
    for _ in range(iterations):
        image = product(basis[:, -1])
        images = torch.cat([images, image[:, None]], 1)
        for g in range(clients):
            if not done[g]:
                value[g], residual = _ritz(basis[g], images[g])
                done[g] = residual <= tolerance * float(value[g].abs())
        if all(done):
            break
        rests = [_orthogonal(vectors, v) for vectors, v in zip(basis, image, strict=True)]
        basis = torch.cat([basis, _unit(torch.stack(rests))[:, None]], 1)
    return value


def _ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, float]:
    """Largest eigenvalue of an operator on a subspace (k, D), and by how much it misses there."""
    projected = basis @ images.T  # (k, k); differences are symmetric only nearly
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    vector = vectors[:, -1]
    return values[-1], float((vector @ images - values[-1] * (vector @ basis)).norm())


def _orthogonal(basis: Tensor, vector: Tensor) -> Tensor:
    """What of a vector (D) is not in the space of `basis` (k, D); twice, against rounding."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _unit(vectors: Tensor) -> Tensor:
    return vectors / per_client(row_norms(vectors, TINY), vectors)
