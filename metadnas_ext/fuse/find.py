"""The parts of a model that may be fused, by its structure: blocks, mixtures, cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from metadnas_ext.fuse.recognise import MOST_MODULES, Block, Candidate, recognise

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@dataclass
class Mixture:
    """A module whose own code runs candidates: a mixed operation, or a cell without such."""

    path: str
    module: nn.Module
    cell: str | None  # path of the nearest module above with code of its own
    candidates: dict[str, Candidate] = field(default_factory=dict)  # by path in the model
    left: dict[str, str] = field(default_factory=dict)  # other operations beside them: why
    lists: dict[str, int] = field(default_factory=dict)  # operations of each list of candidates

    def worthwhile(self) -> bool:
        computing = any(candidate.parts for candidate in self.candidates.values())
        return len(self.candidates) > 1 and computing


@dataclass
class Found:
    mixtures: list[Mixture] = field(default_factory=list)
    blocks: dict[str, Block] = field(default_factory=dict)  # by path in the model


def cells_of(mixtures: list[Mixture]) -> dict[str, list[Mixture]]:
    """Mixtures of every module that has several, by its path."""
    grouped: dict[str, list[Mixture]] = {}
    for mixture in mixtures:
        if mixture.cell is not None:
            grouped.setdefault(mixture.cell, []).append(mixture)
    return {path: members for path, members in grouped.items() if len(members) > 1}


def find(model: nn.Module) -> Found:
    """Runs every small module of the model once in a copy; see `recognise`."""
    found = Found()
    owner = Mixture("", model, None)
    owners = [owner]
    _visit(model, "", owner, owners, found)
    found.mixtures = [mixture for mixture in owners if mixture.candidates]
    for mixture in found.mixtures:
        if not mixture.worthwhile():
            found.blocks |= {
                path: Block(candidate.channels, candidate.channels, candidate.parts, stride=2)
                for path, candidate in mixture.candidates.items()
                if candidate.primitive == "skip_connect" and candidate.channels is not None
            }
    return found


def methods(module: nn.Module) -> Iterator[str]:
    """Names of the module's own forward methods."""
    for name in dir(type(module)):
        own = getattr(type(module), name)
        named = name == "forward" or name.startswith("forward_")
        if named and callable(own) and own is not getattr(nn.Module, name, None):
            yield name


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _visit(
    module: nn.Module, path: str, owner: Mixture, owners: list[Mixture], found: Found
) -> None:
    candidates: dict[str, Candidate] = {}
    unknown: dict[str, str] = {}
    for name, child in module.named_children():
        place = join(path, name)
        what = _look(child)
        if isinstance(what, Block):
            found.blocks[place] = what
        elif isinstance(what, Candidate) and not isinstance(module, nn.Sequential):
            candidates[place] = what
        else:
            if isinstance(what, str):
                unknown[place] = what
            below = owner
            if not isinstance(child, (*CONTAINERS, nn.Sequential)):
                below = Mixture(place, child, owner.path)
                owners.append(below)
            _visit(child, place, below, owners, found)
    if candidates:
        owner.candidates.update(candidates)
        owner.left.update(unknown)
        owner.lists[path] = len(list(module.named_children()))


def _look(child: nn.Module) -> Candidate | Block | str | None:
    """None: a container, or too large for a candidate."""
    if isinstance(child, CONTAINERS):
        return None
    if sum(1 for _ in child.modules()) > MOST_MODULES:
        return None
    return recognise(child)
