"""Supernet and derived network as ordinary modules around `NetworkPlan`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from metadnas_ext.errors import ConfigError
from metadnas_ext.nn.architectures import derived_plan, inherit_indices, supernet_plan
from metadnas_ext.nn.classifier import ClientLinear, linear_of
from metadnas_ext.nn.functional import MOMENTUM, check_clients, check_images
from metadnas_ext.nn.named import (
    gather,
    register_parameters,
    register_running,
    scatter,
    update_running,
)
from metadnas_ext.nn.plan import NetworkPlan
from metadnas_ext.nn.stages import Weights
from metadnas_ext.ops.mixed_op import check_keep
from metadnas_ext.placement import to_device
from metadnas_ext.search.discretize import discretize
from metadnas_ext.space import (
    Architecture,
    CostTable,
    NASBench201Shape,
    NetworkShape,
    Shape,
    cost_table,
)
from metadnas_ext.space.candidates import NAS_BENCH_201
from metadnas_ext.space.primitives import PRIMITIVES


class _Network(nn.Module):
    """Parameters and running statistics of a plan, as modules see them.

    `fc` is another name of `classifier`, the head as personalised federated learning calls it. It
    may be replaced by any module on features (N, C); state dicts know it as `classifier` alone.
    """

    classifier: nn.Module

    def __init__(self, plan: NetworkPlan, clients: int | None, keep: str) -> None:
        super().__init__()
        check_keep(keep)
        check_clients(clients)
        self.keep = keep
        self.shape = plan.shape
        self.plan = plan
        self.clients = clients
        row = plan.initial(clients or 1)
        running = plan.initial_running(clients or 1)
        single = clients is None
        register_parameters(self, plan.parameters, row[0] if single else row)
        register_running(self, plan.running, running[0] if single else running)
        head = plan.head_shapes  # a container so far: a module that can be called takes its place
        self.classifier = linear_of(*(self.get_parameter(name).detach() for name in head))

    @property
    def fc(self) -> nn.Module:
        return self.classifier

    def __setattr__(self, name: str, value: Any) -> None:
        # Not a property's setter: modules are registered before one would be asked.
        super().__setattr__("classifier" if name == "fc" else name, value)

    def flat(self) -> Tensor:
        """All parameters but α as one tensor (G, P), differentiable; G = 1 without client axis.

        Raises ValueError if the classifier was replaced by one of other parameters.
        """
        self._check_own_classifier()
        return gather(self, self.plan.parameters, self.clients)

    def flat_running(self) -> Tensor:
        """All running statistics as one tensor (G, R)."""
        return gather(self, self.plan.running, self.clients)

    def extra_repr(self) -> str:
        return f"{self.shape}, clients={self.clients}"

    def _run(self, x: Tensor, weights: Weights | None) -> Tensor:
        single = self.clients is None
        check_images(x, self.shape.image_channels, self.clients)
        x = (x[None] if single else x).permute(0, 1, 3, 4, 2).contiguous()  # (G, N, H, W, C)
        running = None if self.training else self.flat_running()
        body = gather(self, self.plan.body, self.clients)
        out = self.plan.features(body, weights, x, running=running, keep=self.keep)
        if self.training:
            counts = torch.full((x.shape[0],), x.shape[1], device=x.device)
            stats = self.plan.unbiased(out.stats, counts, size=(x.shape[2], x.shape[3]))
            update_running(self, self.plan.running, stats, MOMENTUM, self.clients)
        logits: Tensor = self.classifier(out.features[0] if single else out.features)
        return logits

    def _check_client(self, client: int) -> None:
        if not 0 <= client < (self.clients or 1):
            raise IndexError(f"client is {client}, expected 0 to {(self.clients or 1) - 1}")

    def _check_own_classifier(self) -> None:
        shape = self.plan.head_shapes["classifier.weight"]
        head = self.classifier
        if not isinstance(head, nn.Linear) or head.weight.shape[-2:] != shape or head.bias is None:
            raise ValueError(
                f"the classifier was replaced by {head}, expected a linear layer with a "
                f"weight of {shape}"
            )


class _Supernet(_Network):
    """A supernet of any space; α of each cell type is a parameter `alphas_<type>`.

    With edge normalisation β is one too, `betas_<type>`.
    """

    def __init__(
        self, shape: Shape, clients: int | None, keep: str, normalised: bool = False
    ) -> None:
        super().__init__(supernet_plan(shape), clients, keep)
        lead = () if clients is None else (clients,)
        types = shape.space.types
        _, edges, candidates = shape.space.alpha_shape
        self._alphas = tuple(f"alphas_{name}" for name in types)
        self._betas = tuple(f"betas_{name}" for name in types) if normalised else ()
        for names, size in ((self._alphas, (edges, candidates)), (self._betas, (edges,))):
            for name in names:
                start = nn.Parameter(1e-3 * torch.randn((*lead, *size)))
                self.register_parameter(name, start)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.mixing_weights())

    def extra_repr(self) -> str:
        names = (*self._alphas, *self._betas)
        arch = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in names)
        return f"{super().extra_repr()}\n{arch}"

    def mixing_weights(self) -> Weights:
        """softmax of α for each cell type, (G, edges, candidates); β's as a last column."""
        weights = tuple(getattr(self, name).softmax(-1) for name in self._alphas)
        if self._betas:
            logs = (self.shape.space.edge_log_weights(getattr(self, b)) for b in self._betas)
            weights = tuple(
                torch.cat([w, log.exp()[..., None]], -1)
                for w, log in zip(weights, logs, strict=True)
            )
        return weights if self.clients is not None else tuple(w[None] for w in weights)

    def arch_parameters(self) -> list[nn.Parameter]:
        """α, then β if there is any."""
        return [getattr(self, name) for name in (*self._alphas, *self._betas)]  # may be swapped

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but α."""
        arch = {id(a) for a in self.arch_parameters()}
        return [p for p in self.parameters() if id(p) not in arch]

    def genotype(
        self, costs: CostTable | None = None, budget: float | None = None, client: int = 0
    ) -> Architecture:
        """The discrete architecture of (one client's) α, within a budget if given.

        Errors as `search.discretize`, ValueError if `costs` are of another space, and IndexError
        on a client that is not there.
        """
        self._check_client(client)
        if costs is None:
            if budget is not None:
                raise ConfigError("a budget needs a cost table")
            costs = cost_table(self.shape)  # names the candidates
        if costs.space != self.shape.space:
            raise ValueError(f"the costs are of {costs.space}, the network of {self.shape.space}")

        def own(names: tuple[str, ...]) -> list[Tensor]:
            tensors = [getattr(self, name).detach() for name in names]
            return tensors if self.clients is None else [t[client] for t in tensors]

        return discretize(own(self._alphas), costs, budget, beta=own(self._betas) or None)

    def derive(self, genotype: Architecture, client: int = 0) -> DerivedNet:
        """The discrete network of `genotype`: (one client's) weights, statistics and classifier.

        Raises ValueError as `DerivedNet`, and IndexError on a client that is not there.
        """
        self._check_client(client)
        alpha = self.arch_parameters()[0]
        net = DerivedNet(self.shape, genotype).to(alpha.device, alpha.dtype)
        index, running_index = (
            to_device(i, alpha.device) for i in inherit_indices(self.plan, net.plan, genotype)
        )
        body = gather(self, self.plan.body, self.clients)[client]
        scatter(net, net.plan.body, body[index[: net.plan.body.size]][None])
        scatter(net, net.plan.running, self.flat_running()[client, running_index][None])
        head = self.classifier
        net.classifier = (
            head.client(client) if isinstance(head, ClientLinear) else copy.deepcopy(head)
        )
        return net

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        for name in (*self._alphas, *self._betas):
            state_dict.setdefault(prefix + name, getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *args)


class Supernet(_Supernet):
    """The DARTS supernet, optionally for G clients at once, each with its own w and α.

    Parameters and buffers carry the public DARTS names; `alphas_normal` and `alphas_reduce` are
    parameters [edges, candidates] beside them. A state dict without α (public DARTS code does not
    save it) loads and leaves α as it is.

    Args:
        C: channels of the first cells. num_classes, layers, nodes, stem_multiplier: as in DARTS.
        image_size, image_channels: of the images; the size is used for costs only.
        candidates: distinct names from `PRIMITIVES`, or registered ones.
        partial: K of PC-DARTS (Xu et al., ICLR 2020): candidates work on 1 / K of the channels, and
            edges are normalised by `betas_normal` and `betas_reduce` [edges]. 1: plain DARTS.
        clients: None for an ordinary module; G for a leading client axis on everything.
        keep: what stays in memory for the backward pass, "all", "middle" or "input"; see
            `ops.mixed_op`.

    Shape: (N, channels, H, W) -> (N, num_classes); with clients (G, N, ...) -> (G, N, num_classes).
    """

    alphas_normal: nn.Parameter
    alphas_reduce: nn.Parameter

    def __init__(
        self,
        C: int = 16,
        num_classes: int = 10,
        layers: int = 8,
        *,
        nodes: int = 4,
        stem_multiplier: int = 3,
        image_size: int = 32,
        image_channels: int = 3,
        candidates: tuple[str, ...] = PRIMITIVES,
        partial: int = 1,
        clients: int | None = None,
        keep: str = "all",
    ) -> None:
        shape = NetworkShape(
            channels=C,
            layers=layers,
            nodes=nodes,
            classes=num_classes,
            image_size=image_size,
            image_channels=image_channels,
            stem_multiplier=stem_multiplier,
            candidates=candidates,
            partial=partial,
        )
        super().__init__(shape, clients, keep, normalised=partial > 1)


class NASBench201Supernet(_Supernet):
    """The supernet of NAS-Bench-201, optionally for G clients at once.

    Parameters and buffers carry the names of the benchmark's public search code; `alphas_cell`
    [6, candidates] is a parameter beside them, and may be missing in a state dict that is loaded.

    Args:
        C: channels of the first stage. N: cells of each of the three stages.
        num_classes, image_size, image_channels, clients, keep: as of `Supernet`.
        candidates: distinct names from the benchmark's five, or registered ones.

    Shape: as of `Supernet`.
    """

    alphas_cell: nn.Parameter

    def __init__(
        self,
        C: int = 16,
        num_classes: int = 10,
        N: int = 5,
        *,
        image_size: int = 32,
        image_channels: int = 3,
        candidates: tuple[str, ...] = tuple(NAS_BENCH_201),
        clients: int | None = None,
        keep: str = "all",
    ) -> None:
        shape = NASBench201Shape(C, 3 * N, num_classes, image_size, image_channels, candidates)
        super().__init__(shape, clients, keep)


class DerivedNet(_Network):
    """A discrete architecture: one operation on each edge that it keeps.

    Args:
        shape: geometry, usually `supernet.shape`; `NASBench201Shape()` for one of that space.
        genotype: the architecture.
        clients: None, or G clients that share the architecture but not the weights.
        keep: as of `Supernet`.
    """

    def __init__(
        self,
        shape: Shape,
        genotype: Architecture,
        clients: int | None = None,
        keep: str = "all",
    ) -> None:
        super().__init__(derived_plan(shape, genotype), clients, keep)
        self.genotype = genotype

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}\n{self.genotype}"

    def load_flat(self, theta: Tensor, running: Tensor) -> None:
        """Takes parameters (G, P) and running statistics (G, R) from flat tensors.

        Raises ValueError as `flat`.
        """
        self._check_own_classifier()
        scatter(self, self.plan.parameters, theta)
        scatter(self, self.plan.running, running)
