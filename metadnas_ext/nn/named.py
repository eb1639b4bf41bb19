"""Parameters under dotted names: the public DARTS layout without a module class per layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
            steps = torch.zeros(flat.shape[:-1], dtype=torch.int64)
            parent.register_buffer("num_batches_tracked", steps)


def gather(module: nn.Module, layout: FlatLayout, clients: int | None) -> Tensor:
    """The tensors that `layout` names, found below `module`, as one flat tensor (G, P)."""
    found: Mapping[str, Tensor] = {
        **dict(module.named_parameters()),
        **dict(module.named_buffers()),
    }
    flat = layout.flatten(found, clients)
    return flat if clients is not None else flat[None]


@torch.no_grad()
def write_running(module: nn.Module, layout: FlatLayout, flat: Tensor) -> None:
    """Copies flat (G, R) running statistics into the buffers and counts one step on each."""
    buffers = dict(module.named_buffers())
    for name, view in layout.views(flat).items():
        buffers[name].copy_(view.view(buffers[name].shape))
        if name.endswith("running_var"):
            buffers[name.replace("running_var", "num_batches_tracked")].add_(1)


def _parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        child = root._modules.get(part)
        if child is None:
            child = Node()
            root.add_module(part, child)
        root = child
    return root, leaf
