"""`fuse` and `unfuse`: finds, replaces, verifies, reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from metadnas_ext.fuse.expression import PROBE_SIZE
from metadnas_ext.fuse.find import Found, Mixture, cells_of, find, join, methods
from metadnas_ext.fuse.forwards import BlockForward, CandidateForward, Entry
from metadnas_ext.fuse.probes import Arguments, invented, observed
from metadnas_ext.fuse.report import FuseReport
from metadnas_ext.fuse.verify import Outcome, check, detach_all


def fuse(model: nn.Module, *, example: Any = None, verify: bool = True) -> FuseReport:
    """Lets the package's kernels run a foreign model's mixed operations, in place.

    Candidates are recognised by what they compute, whatever their classes are called. Modules,
    parameters and buffers stay the objects they are, with their names: only `forward` of single
    modules is replaced, on the instance. `unfuse` puts it back.

    Args:
        model: any module, on the CPU; a supernet of mixed operations, or cells of fixed operations.
        example: arguments of `model`, a tensor or a tuple, for one run in a copy that shows what
            cells and mixed operations are called with. None: random images are tried, then usual
            arguments of mixed operations.
        verify: whether each converted module is run beside what it was, in train and eval mode, in
            float64, on random numbers: output, gradients of inputs, mixing weights and parameters,
            buffers. What differs is not converted.

    Returns:
        What was converted, and what was left, with the reason.
    """
    unfuse(model)  # raises on what is no module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Conversion(model, find(model), example, verify).report


def unfuse(model: nn.Module) -> None:
    """Undoes `fuse`: every module has its own forward again. Does nothing to any other model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r}, expected a torch.nn.Module")
    detach_all(model)


class _Conversion:
    """One call of `fuse`."""

    def __init__(self, model: nn.Module, found: Found, example: Any, verify: bool) -> None:
        self.model = model
        self.report = FuseReport()
        self._verify = verify
        self._mixtures = [mixture for mixture in found.mixtures if mixture.worthwhile()]
        cells = cells_of(self._mixtures)
        paths = {*cells, *(mixture.path for mixture in self._mixtures)}
        self._seen = observed(model, paths, example) if verify else {}
        for mixture in found.mixtures:
            if not mixture.worthwhile() and len(mixture.candidates) > 1:
                self.report.left[mixture.path] = _nothing_to_fuse(mixture)
        for path, block in found.blocks.items():
            self._block(path, BlockForward(model.get_submodule(path), block))
        for mixture in self._mixtures:
            for path, candidate in mixture.candidates.items():
                CandidateForward(model.get_submodule(path), candidate).attach()
        done: set[str] = set()
        for path, members in cells.items():
            if self._cell(path, members):
                done |= {member.path for member in members}
        for mixture in self._mixtures:
            if mixture.path not in done:
                self._mixture(mixture)

    def _block(self, path: str, replacement: BlockForward) -> None:
        replacement.attach()
        found = replacement.found
        if self._verify:
            probe = Arguments((torch.randn(2, found.channels_in, PROBE_SIZE, PROBE_SIZE),), {})
            problem = check(replacement.module, "forward", [probe], {}).problem
            if problem is not None:
                replacement.detach()
                self.report.left[path] = problem
                return
        self.report.converted[path] = f"{found} in one operator"

    def _cell(self, path: str, members: list[Mixture]) -> bool:
        """Fuses across the mixed operations of a cell; False if that cannot be."""
        module = self.model.get_submodule(path)
        known = self._known(path, module)
        start = len(path) + 1 if path else 0
        entries = [Entry(module, name, [m.path[start:] for m in members]) for name in known]
        entries += [
            Entry(m.module, name) for m in members for name in self._known(m.path, m.module)
        ]
        for entry in entries:
            entry.attach()
        inside = [place for member in members for place in member.candidates]
        outcomes = [self._check(path, module, name, [], inside) for name in known]
        if self._verify and not (outcomes and all(_whole(o, members) for o in outcomes)):
            for entry in entries:
                entry.detach()
            return False
        self.report.converted[path] = f"cell of {len(members)} mixed operations"
        for member in members:
            self._accept(member)
        return True

    def _known(self, path: str, module: nn.Module) -> list[str]:
        """Methods that the model has called; without verification, all."""
        return [n for n in methods(module) if not self._verify or (path, n) in self._seen]

    def _mixture(self, mixture: Mixture) -> None:
        problems: dict[str, str] = {}
        names = list(methods(mixture.module))
        for name in names:
            entry = Entry(mixture.module, name)
            entry.attach()
            usual = invented(mixture, name)
            outcome = self._check(mixture.path, mixture.module, name, usual, mixture.candidates)
            problem = outcome.problem or (_sampled(mixture, outcome) if self._verify else None)
            if problem is not None:
                entry.detach()
                problems[name] = problem
        if len(problems) < len(names):
            ways = {join(mixture.path, f"{name}()"): why for name, why in problems.items()}
            self.report.left.update(ways)
            return self._accept(mixture)
        for path in mixture.candidates:
            detach_all(self.model.get_submodule(path))
        self.report.left[mixture.path] = "; ".join(dict.fromkeys(problems.values()))
        return None

    def _check(
        self,
        path: str,
        module: nn.Module,
        method: str,
        usual: Iterable[Arguments],
        candidates: Iterable[str],
    ) -> Outcome:
        """On what the model called the method with, or else on the usual arguments."""
        if not self._verify:
            return Outcome()
        seen = self._seen.get((path, method))
        start = len(path) + 1 if path else 0
        inside = {place: place[start:] for place in candidates}
        return check(module, method, usual if seen is None else [seen], inside)

    def _accept(self, mixture: Mixture) -> None:
        fused = len(mixture.candidates)
        total = fused + len(mixture.left)
        self.report.converted[mixture.path] = f"{fused} of {total} operations fused"
        self.report.left.update(mixture.left)


def _whole(outcome: Outcome, members: list[Mixture]) -> bool:
    """Whether a cell was made in one call, and is right, and none of its parts is sampled."""
    sampled = any(_sampled(member, outcome) for member in members)
    return outcome.problem is None and outcome.joined and not sampled


def _sampled(mixture: Mixture, outcome: Outcome) -> str | None:
    ran = len(outcome.ran & mixture.candidates.keys())
    if ran > 1:
        return None
    return f"it runs {ran} of its {len(mixture.candidates)} candidates at a time (sampled)"


def _nothing_to_fuse(mixture: Mixture) -> str:
    names = sorted({candidate.primitive for candidate in mixture.candidates.values()})
    others = "; ".join(dict.fromkeys(mixture.left.values()))
    return f"the kernels know only {' and '.join(names)} of its operations ({others})"
