"""Second-order MAML: the exact gradient through the local search, up to finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.meta.base import Adapted, MetaGradient, MetaLearner
from metadnas_ext.meta.outer import outer_gradient
from metadnas_ext.search.optimizers import per_client, row_norms
from metadnas_ext.search.training import Evaluation
from metadnas_ext.search.trajectory import State, Step, Trajectory

RADIUS = 1e-5  # of a central difference; about the cube root of float64's epsilon


class MAML(MetaLearner):
    """The outer gradient, carried back through every step on w and on α.

    Finn et al., "MAML" (ICML 2017), equation 1, by the adjoint method: from the last step to the
    first, the adjoint of the optimiser's step gives the direction v of a gradient's adjoint, and
    the Hessian-vector product of the step's loss with v is a central difference of two gradients.
    A step on α reads w and the other way round, so every product has both parts; the pull of the
    local search to the server's α adds a third, since that α is the start. Constants are the
    multipliers of dual ascent and batch norm's running statistics.

    Differences are taken in float64, however the search ran: in float32 a step long enough to rise
    above rounding crosses so many kinks of ReLU and pools that the product is of no use.
    """

    name = "maml"

    def trajectory(self) -> Trajectory | None:
        return Trajectory(self._window)

    def __call__(self, adapted: Adapted) -> tuple[MetaGradient, Evaluation]:
        assert adapted.trajectory is not None
        grad, val = outer_gradient(adapted, with_theta=True)
        grad = through(adapted.trajectory, grad, adapted.alpha)
        return self._own(adapted, *grad), val


def through(trajectory: Trajectory, grad: MetaGradient, server: Tensor) -> MetaGradient:
    """The gradient at the end of a trajectory carried back to its start.

    `server`: α (types, E, O) that the local search was drawn to; it counts as part of the start.
    """
    assert grad.theta is not None
    assert grad.alpha is not None
    adjoints = {
        name: [torch.zeros_like(tensor, dtype=torch.float64) for tensor in tensors]
        for name, tensors in trajectory.start.items()
    }
    adjoints["theta"][0] += grad.theta
    adjoints["alpha"][0] += grad.alpha
    to_server = torch.zeros_like(adjoints["alpha"][0])
    for state, step in trajectory.reversed():
        direction = step.optimizer.adjoint(
            state[step.name], adjoints[step.name], step.grad.double(), step.clients, step.done
        )
        by_theta, by_alpha, by_server = hessian_products(step, state, server, direction)
        adjoints["theta"][0][step.clients] += by_theta
        adjoints["alpha"][0][step.clients] += by_alpha
        to_server[step.clients] += by_server
    return MetaGradient(
        adjoints["theta"][0].to(grad.theta.dtype),
        (adjoints["alpha"][0] + to_server).to(grad.alpha.dtype),
    )


def hessian_products(
    step: Step, state: State, server: Tensor, direction: Tensor
) -> tuple[Tensor, ...]:
    """Second derivatives of a step's losses, by its own variable along `direction` (k, ...) and by
    w, α and the server's α: (k, P), (k, types, E, O), (k, types, E, O).

    (∇L(θ + εv) - ∇L(θ - εv)) / 2ε with ε = RADIUS / ‖v‖, for each client its own.
    """
    point = {name: state[name][0][step.clients].double() for name in ("theta", "alpha")}
    point["server"] = server.double().expand_as(point["alpha"])
    norms = row_norms(direction)
    # Of a direction of 0 the product is 0, whatever the scale.
    scale = torch.where(norms > 0, RADIUS / norms, 1.0)  # (k)

    def gradients(sign: int) -> tuple[Tensor, ...]:
        moved = point[step.name] + sign * per_client(scale, direction) * direction
        leaves = [t.detach().requires_grad_() for t in {**point, step.name: moved}.values()]
        return torch.autograd.grad(step.losses(*leaves).sum(), leaves, materialize_grads=True)

    return tuple(
        (plus - minus) / (2 * per_client(scale, plus))
        for plus, minus in zip(gradients(1), gradients(-1), strict=True)
    )
