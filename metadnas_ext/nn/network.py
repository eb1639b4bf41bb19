"""Supernet and derived network as ordinary modules around `NetworkPlan`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadnas_ext.errors import ConfigError
from metadnas_ext.nn.architectures import derived_plan, inherit_indices, supernet_plan
from metadnas_ext.nn.functional import MOMENTUM, check_images
from metadnas_ext.nn.named import gather, register_parameters, register_running, update_running
from metadnas_ext.nn.plan import NetworkPlan, Weights
from metadnas_ext.ops.mixed_op import check_keep
from metadnas_ext.search.discretize import discretize
from metadnas_ext.space import CostTable, Genotype, NetworkShape, cost_table, edges
from metadnas_ext.space.primitives import PRIMITIVES


class _Network(nn.Module):
    """Parameters and running statistics of a plan, as modules see them."""

    def __init__(self, plan: NetworkPlan, clients: int | None, keep: str) -> None:
        super().__init__()
        check_keep(keep)
        self.keep = keep
        self.shape = plan.shape
        self.plan = plan
        self.clients = clients
        row = plan.initial(clients or 1)
        running = plan.initial_running(clients or 1)
        single = clients is None
        register_parameters(self, plan.parameters, row[0] if single else row)
        register_running(self, plan.running, running[0] if single else running)

    def flat(self) -> Tensor:
        """All parameters but α as one tensor (G, P), differentiable; G = 1 without client axis."""
        return gather(self, self.plan.parameters, self.clients)

    def flat_running(self) -> Tensor:
        """All running statistics as one tensor (G, R)."""
        return gather(self, self.plan.running, self.clients)

    def _run(self, x: Tensor, weights: Weights | None) -> Tensor:
        single = self.clients is None
        check_images(x, self.shape.image_channels, self.clients)
        x = (x[None] if single else x).permute(0, 1, 3, 4, 2).contiguous()  # (G, N, H, W, C)
        running = None if self.training else self.flat_running()
        out = self.plan(self.flat(), weights, x, running=running, keep=self.keep)
        if self.training:
            counts = torch.full((x.shape[0],), x.shape[1])
            stats = self.plan.unbiased(out.stats, counts, size=(x.shape[2], x.shape[3]))
            update_running(self, self.plan.running, stats, MOMENTUM, self.clients)
        return out.logits[0] if single else out.logits


class Supernet(_Network):
    """The DARTS supernet, optionally for G clients at once, each with its own w and α.

    Parameters and buffers carry the public DARTS names; `alphas_normal` and `alphas_reduce` are
    parameters [edges, candidates] beside them. A state dict without α (public DARTS code does not
    save it) loads and leaves α as it is.

    Args:
        C: channels of the first cells. num_classes, layers, nodes, stem_multiplier: as in DARTS.
        image_size, image_channels: of the images; the size is used for costs only.
        candidates: distinct names from `PRIMITIVES`.
        clients: None for an ordinary module; G for a leading client axis on everything.
        keep: what stays in memory for the backward pass, "all", "middle" or "input"; see
            `ops.mixed_op`.

    Shape: (N, channels, H, W) -> (N, num_classes); with clients (G, N, ...) -> (G, N, num_classes).
    """

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
        )
        super().__init__(supernet_plan(shape), clients, keep)
        lead = () if clients is None else (clients,)
        size = (*lead, len(edges(nodes)), len(candidates))
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(size))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.mixing_weights())

    def mixing_weights(self) -> Weights:
        """softmax of α for both cell types, (G, edges, candidates)."""
        normal, reduce = (a.softmax(-1) for a in self.arch_parameters())
        return (normal, reduce) if self.clients is not None else (normal[None], reduce[None])

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but α."""
        arch = {id(a) for a in self.arch_parameters()}
        return [p for p in self.parameters() if id(p) not in arch]

    def genotype(
        self, costs: CostTable | None = None, budget: float | None = None, client: int = 0
    ) -> Genotype:
        """The discrete architecture of (one client's) α, within a budget if given.

        Errors as `search.discretize`, and ValueError if `costs` are of other candidates.
        """
        if costs is None:
            if budget is not None:
                raise ConfigError("a budget needs a cost table")
            costs = cost_table(self.shape)  # names the candidates
        if costs.candidates != self.shape.candidates:
            raise ValueError(
                f"the costs are of {costs.candidates}, the candidates {self.shape.candidates}"
            )
        normal, reduce = (a.detach() for a in self.arch_parameters())
        if self.clients is not None:
            normal, reduce = normal[client], reduce[client]
        return discretize((normal, reduce), costs, budget)

    def derive(self, genotype: Genotype, client: int = 0) -> DerivedNet:
        """The discrete network of `genotype` with (one client's) weights and statistics."""
        net = DerivedNet(self.shape, genotype).to(self.alphas_normal)
        index, running_index = inherit_indices(self.plan, net.plan, genotype)
        with torch.no_grad():
            net.load_flat(
                self.flat()[client, index][None], self.flat_running()[client, running_index][None]
            )
        return net

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        for name in ("alphas_normal", "alphas_reduce"):
            state_dict.setdefault(prefix + name, getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *args)


class DerivedNet(_Network):
    """A discrete architecture: two edges a node, one operation each.

    Args:
        shape: geometry, usually `supernet.shape`.
        genotype: the architecture.
        clients: None, or G clients that share the architecture but not the weights.
        keep: as of `Supernet`.
    """

    def __init__(
        self,
        shape: NetworkShape,
        genotype: Genotype,
        clients: int | None = None,
        keep: str = "all",
    ) -> None:
        super().__init__(derived_plan(shape, genotype), clients, keep)
        self.genotype = genotype

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None)

    @torch.no_grad()
    def load_flat(self, theta: Tensor, running: Tensor) -> None:
        """Takes parameters (G, P) and running statistics (G, R) from flat tensors."""
        for source, layout, targets in (
            (theta, self.plan.parameters, dict(self.named_parameters())),
            (running, self.plan.running, dict(self.named_buffers())),
        ):
            for name, view in layout.views(source).items():
                targets[name].copy_(view.view(targets[name].shape))
