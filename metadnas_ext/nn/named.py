"""Parameters under dotted names: the public DARTS layout without a module class per layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from metadnas_ext.nn.layout import FlatLayout


class Node(nn.Module):
    """A container of parameters, buffers and other nodes; children by attribute or by index."""

    def __getitem__(self, index: int) -> nn.Module:
        child = self._modules.get(str(index))
        if child is None:
            raise IndexError(f"no child {index}")
        return child

    def __iter__(self) -> Iterator[nn.Module]:
        return (child for child in self._modules.values() if child is not None)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        """One line: a supernet has hundreds of nodes, and none says what it computes."""
        parameters = sum(p.numel() for p in self.parameters())
        return f"{parameters:,} parameters in {len(list(self.parameters()))} tensors"


def register_parameters(root: nn.Module, layout: FlatLayout, flat: Tensor) -> None:
    """Registers each slot of `layout` as a parameter below `root`.

    Values are copied: a view would take all of `flat` with it wherever it is pickled.
    """
    for name, view in layout.views(flat).items():
        parent, leaf = _parent(root, name)
        parent.register_parameter(leaf, nn.Parameter(view.clone()))


def register_running(root: nn.Module, layout: FlatLayout, flat: Tensor) -> None:
    """Registers running statistics as buffers, with batch norm's step counter beside each pair."""
    for name, view in layout.views(flat).items():
        parent, leaf = _parent(root, name)
        parent.register_buffer(leaf, view.clone())
        if leaf == "running_var":
            steps = torch.zeros(flat.shape[:-1], dtype=torch.int64, device=flat.device)
            parent.register_buffer("num_batches_tracked", steps)


def gather(module: nn.Module, layout: FlatLayout, clients: int | None) -> Tensor:
    """The tensors that `layout` names, found below `module`, as one flat tensor (G, P)."""
    flat = flatten(layout, clients, [_find(module, name) for name in layout.slots])
    return flat if clients is not None else flat[None]


@torch.no_grad()
def scatter(module: nn.Module, layout: FlatLayout, rows: Tensor) -> None:
    """The inverse of `gather`: copies rows (G, P) into the tensors that `layout` names."""
    for name, view in layout.views(rows).items():
        target = _find(module, name)
        target.copy_(view.view(target.shape))


def flatten(layout: FlatLayout, clients: int | None, tensors: Sequence[Tensor]) -> Tensor:
    """`tensors`, in the order of `layout`, as one: (P), or with `clients` (G, P)."""
    return cast(Tensor, _Flatten.apply(layout, clients, *tensors))  # type: ignore[no-untyped-call]


@torch.no_grad()
def update_running(
    module: nn.Module, layout: FlatLayout, stats: Tensor, momentum: float, clients: int | None
) -> None:
    """running <- (1 - momentum) * running + momentum * stats (G, R), and counts a step on each."""
    buffers = [_find(module, name) for name in layout.slots]
    rows = stats if clients is not None else stats.squeeze(0)
    rows = rows.to(buffers[0].dtype)  # of a model in half precision; they come in float32
    torch._foreach_lerp_(buffers, torch.split(rows, layout.sizes, dim=-1), momentum)
    steps = [
        _find(module, name.replace("running_var", "num_batches_tracked"))
        for name in layout.slots
        if name.endswith("running_var")
    ]
    torch._foreach_add_(steps, 1)


class _Flatten(torch.autograd.Function):
    """Concatenates tensors into a row; its gradient hands each a view of the row's gradient.

    One node of the graph, where a view and a concatenation for each of a supernet's thousand
    parameters take longer than its small layers.
    """

    @staticmethod
    def forward(ctx: Any, layout: FlatLayout, clients: int | None, *tensors: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.shapes = [t.shape for t in tensors]
        return layout.flatten(dict(zip(layout.slots, tensors, strict=True)), clients)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = torch.split(grad, ctx.layout.sizes, dim=-1)
        return None, None, *(p.view(s) for p, s in zip(parts, ctx.shapes, strict=True))


def _find(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a dotted name; looked up each time, as users may swap either."""
    *path, leaf = name.split(".")
    for part in path:
        child = module._modules[part]
        assert child is not None
        module = child
    parameter = module._parameters.get(leaf)
    found = module._buffers[leaf] if parameter is None else parameter
    assert found is not None
    return found


def _parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        child = root._modules.get(part)
        if child is None:
            child = Node()
            root.add_module(part, child)
        root = child
    return root, leaf
