"""Small supernets in the manner of public code bases: each differs in what the facts of
`docs/drop-in.md` say of it, and is written anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _parts
from ._parts import NAMES, OPS, FactorizedReduce, ReLUConvBN, with_norm

CLASSES = 3
NODES = 2
EDGES = 5


class Net(nn.Module):
    """Stem, cells of which the second reduces, head. Subclasses say what a cell is given."""

    def __init__(self, cell: Callable[[int, int, int, bool, bool], nn.Module], c: int) -> None:
        super().__init__()
        before = last = 2 * c
        self.stem = nn.Sequential(
            nn.Conv2d(3, last, 3, padding=1, bias=False), nn.BatchNorm2d(last)
        )
        self.cells = nn.ModuleList()
        for index in range(3):
            reduction = index == 1
            c = 2 * c if reduction else c
            self.cells.append(cell(before, last, c, reduction, index == 2))
            before, last = last, NODES * c
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, CLASSES)
        self.alphas: Sequence[Tensor] = [1e-3 * torch.randn(EDGES, self.columns) for _ in range(2)]
        for alpha in self.alphas:
            alpha.requires_grad_()

    columns = len(NAMES)

    def forward(self, x: Tensor) -> Tensor:
        before = last = self.stem(x)
        for index, cell in enumerate(self.cells):
            before, last = last, self.run(cell, before, last, int(index == 1))
        out = self.global_pooling(last)
        return self.classifier(out.view(out.size(0), -1))

    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        return cell(before, last, F.softmax(self.alphas[type], dim=-1))

    def arch_parameters(self) -> Sequence[Tensor]:
        return self.alphas


class Cell(nn.Module):
    """A flat list of mixed operations, one for each edge."""

    def __init__(
        self,
        mixed: Callable[[int, int], nn.Module],
        before: int,
        last: int,
        c: int,
        reduction: bool,
        reduced_before: bool,
    ) -> None:
        super().__init__()
        first = FactorizedReduce if reduced_before else ReLUConvBN
        self.preprocess0 = first(before, c)
        self.preprocess1 = ReLUConvBN(last, c)
        self._ops = nn.ModuleList(mixed(c, stride) for stride in strides(reduction))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            s = sum(self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)
        return torch.cat(states[-NODES:], dim=1)


def strides(reduction: bool) -> Iterator[int]:
    for node in range(NODES):
        for source in range(2 + node):
            yield 2 if reduction and source < 2 else 1


# Standard: the authors' code, FedML, T-NAS, SPIDER.


class MixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(with_norm(name, c, stride) for name in NAMES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops))  # noqa: B905


class Standard(Net):
    def __init__(self, c: int = 4, mixed: Callable[[int, int], nn.Module] = MixedOp) -> None:
        super().__init__(lambda *shape: Cell(mixed, *shape), c)


# FairDARTS: sigmoid weights.


class Fair(Standard):
    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        return cell(before, last, torch.sigmoid(self.alphas[type]))


# Plato: `ops`, and an argument named feature.


class PlatoMixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(with_norm(name, c, stride) for name in NAMES)

    def forward(self, feature: Tensor, weights: Tensor) -> Tensor:
        total = 0.0
        for w, op in zip(weights, self.ops):  # noqa: B905
            total = total + op(feature) * w
        return total


# pt.darts: pools as classes, `none` last, weights as a list per node.


def pt_operation(name: str, c: int, stride: int) -> nn.Module:
    if "pool" in name:
        return _parts.PoolBN(name[:3], c, stride, affine=False)
    return OPS[name](c, stride, False)


class PtMixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        names = [*(name for name in NAMES if name != "none"), "none"]
        self._ops = nn.ModuleList(pt_operation(name, c, stride) for name in names)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops))  # noqa: B905


class PtCell(nn.Module):
    def __init__(self, before: int, last: int, c: int, reduction: bool, reduced: bool) -> None:
        super().__init__()
        first = FactorizedReduce if reduced else ReLUConvBN
        self.preproc0 = first(before, c)
        self.preproc1 = ReLUConvBN(last, c)
        self.dag = nn.ModuleList()
        for node in range(NODES):
            edges = (2 if reduction and source < 2 else 1 for source in range(2 + node))
            self.dag.append(nn.ModuleList(PtMixedOp(c, stride) for stride in edges))

    def forward(self, s0: Tensor, s1: Tensor, w_dag: list[Tensor]) -> Tensor:
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, w_list in zip(self.dag, w_dag):  # noqa: B905
            states.append(sum(edges[i](s, w) for i, (s, w) in enumerate(zip(states, w_list))))  # noqa: B905
        return torch.cat(states[2:], dim=1)


class PtDarts(Net):
    def __init__(self, c: int = 4) -> None:
        super().__init__(PtCell, c)
        self.alphas = [
            nn.ParameterList(1e-3 * torch.randn(2 + n, self.columns) for n in range(NODES))
            for _ in range(2)
        ]
        self.normal, self.reduce = self.alphas

    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        return cell(before, last, [F.softmax(a, dim=-1) for a in (self.normal, self.reduce)[type]])

    def arch_parameters(self) -> Sequence[Tensor]:
        return [*self.normal, *self.reduce]


# MetaNAS: small weights skipped, drop path behind operations.


class MetaMixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        ops = (with_norm(name, c, stride) for name in NAMES)
        self._ops = nn.ModuleList(
            nn.Sequential(op, _parts.DropPath()) if "conv" in name else op
            for name, op in zip(NAMES, ops)  # noqa: B905
        )

    def forward(self, x: Tensor, weights: Tensor, alpha_prune_threshold: float = 0.0) -> Tensor:
        pairs = zip(weights, self._ops)  # noqa: B905
        return sum(w * op(x) for w, op in pairs if w > alpha_prune_threshold)


# PC-DARTS: a share of the channels, a bypass, a shuffle, weights of edges.


class PcMixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        self.mp = nn.MaxPool2d(2, 2)
        self.k = 4
        self._ops.extend(with_norm(name, c // self.k, stride) for name in NAMES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        share = x.shape[1] // self.k
        xtemp, xtemp2 = x[:, :share, :, :], x[:, share:, :, :]
        temp1 = sum(w * op(xtemp) for w, op in zip(weights, self._ops))  # noqa: B905
        same = temp1.shape[2] == x.shape[2]
        ans = torch.cat([temp1, xtemp2 if same else self.mp(xtemp2)], dim=1)
        n, c, height, width = ans.data.size()
        ans = ans.view(n, self.k, c // self.k, height, width)
        return torch.transpose(ans, 1, 2).contiguous().view(n, -1, height, width)


class PcCell(Cell):
    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, weights2: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            s = sum(
                weights2[offset + j] * self._ops[offset + j](h, weights[offset + j])
                for j, h in enumerate(states)
            )
            offset += len(states)
            states.append(s)
        return torch.cat(states[-NODES:], dim=1)


class PcDarts(Net):
    def __init__(self, c: int = 8, mixed: Callable[[int, int], nn.Module] = PcMixedOp) -> None:
        super().__init__(lambda *shape: PcCell(mixed, *shape), c)
        self.betas = [nn.Parameter(1e-3 * torch.randn(EDGES)) for _ in range(2)]
        self.beta_normal, self.beta_reduce = self.betas

    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        betas = (self.beta_normal, self.beta_reduce)[type]
        weights2 = torch.cat([F.softmax(betas[:2], dim=-1), F.softmax(betas[2:], dim=-1)])
        return cell(before, last, F.softmax(self.alphas[type], dim=-1), weights2)


# P-DARTS: pruned lists, dropout behind the identity.


class PMixedOp(nn.Module):
    def __init__(self, c: int, stride: int, switch: Sequence[bool], p: float) -> None:
        super().__init__()
        self.m_ops = nn.ModuleList()
        self.p = p
        for name, on in zip(NAMES, switch):  # noqa: B905
            if on:
                op = with_norm(name, c, stride)
                if isinstance(op, _parts.Identity) and p > 0:
                    op = nn.Sequential(op, nn.Dropout(self.p))
                self.m_ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.m_ops))  # noqa: B905


class PCell(nn.Module):
    def __init__(
        self, p: float, before: int, last: int, c: int, reduction: bool, reduced: bool
    ) -> None:
        super().__init__()
        first = FactorizedReduce if reduced else ReLUConvBN
        self.preprocess0 = first(before, c)
        self.preprocess1 = ReLUConvBN(last, c)
        self.cell_ops = nn.ModuleList()
        for edge, stride in enumerate(strides(reduction)):
            # Five of the eight are left on every edge, not the same.
            switch = [(place + edge) % 8 > 2 for place in range(8)]
            self.cell_ops.append(PMixedOp(c, stride, switch, p))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            s = sum(self.cell_ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)
        return torch.cat(states[-NODES:], dim=1)


class PDarts(Net):
    columns = 5

    def __init__(self, c: int = 4, p: float = 0.0) -> None:
        super().__init__(lambda *shape: PCell(p, *shape), c)


# RobustDARTS: lists of different lengths.

LISTS = [
    ("skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
    ("none", "max_pool_3x3"),
    ("avg_pool_3x3", "sep_conv_5x5"),
    ("skip_connect", "sep_conv_3x3"),
    ("dil_conv_3x3", "none", "skip_connect", "max_pool_3x3"),
]


class RobustMixedOp(nn.Module):
    def __init__(self, c: int, stride: int, names: Sequence[str]) -> None:
        super().__init__()
        self._ops = nn.ModuleList(with_norm(name, c, stride) for name in names)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops))  # noqa: B905


class Robust(Standard):
    def __init__(self, c: int = 4) -> None:
        lists = iter(LISTS * 3)
        super().__init__(c, lambda c, stride: RobustMixedOp(c, stride, next(lists)))


# NNI: named choices, a softmax of its own over a stack, affine batch norms, no `none`.


class NniChoice(nn.Module):
    names = tuple(name for name in NAMES if name != "none")

    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        for name in self.names:
            self.add_module(name, OPS[name](c, stride, True))
        self._arch_alpha = nn.Parameter(1e-3 * torch.randn(len(self.names)))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        results = torch.stack([getattr(self, name)(*args, **kwargs) for name in self.names])
        shape = [-1] + [1] * (len(results.size()) - 1)
        return torch.sum(results * self._arch_alpha.softmax(-1).view(shape), 0)


class NniCell(Cell):
    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            states.append(sum(self._ops[offset + j](h) for j, h in enumerate(states)))
            offset += len(states) - 1
        return torch.cat(states[-NODES:], dim=1)


class Nni(Net):
    def __init__(self, c: int = 4) -> None:
        super().__init__(lambda *shape: NniCell(NniChoice, *shape), c)

    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        return cell(before, last)

    def arch_parameters(self) -> Sequence[Tensor]:
        return []  # they are among the parameters


# NASLib: operations take the edge's data, which holds alpha.


class NaslibOp(nn.Module):
    """Passes on all but the edge's data."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, edge_data: object = None) -> Tensor:
        return self.op(x)


class NaslibMixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self.primitives = [NaslibOp(with_norm(name, c, stride)) for name in NAMES]
        for i, primitive in enumerate(self.primitives):
            self.add_module(f"primitive-{i}", primitive)

    def forward(self, x: Tensor, edge_data: SimpleNamespace) -> Tensor:
        weights = torch.softmax(edge_data.alpha, dim=-1)
        return sum(w * op(x, None) for w, op in zip(weights, self.primitives))  # noqa: B905


class Naslib(Standard):
    def __init__(self, c: int = 4) -> None:
        super().__init__(c, NaslibMixedOp)

    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        return cell(before, last, [SimpleNamespace(alpha=alpha) for alpha in self.alphas[type]])


# AutoDL-Projects: no `forward`; pools without batch norm.


class AutoDlMixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(OPS[name](c, stride, False) for name in NAMES)

    def forward_gdas(self, x: Tensor, weights: Tensor, index: int) -> Tensor:
        return self._ops[index](x) * weights[index]

    def forward_darts(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops))  # noqa: B905


class AutoDlCell(Cell):
    def forward_gdas(self, s0: Tensor, s1: Tensor, weights: Tensor, indices: list[int]) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            edges = range(offset, offset + len(states))
            s = sum(
                self._ops[e].forward_gdas(h, weights[e], indices[e])
                for e, h in zip(edges, states)  # noqa: B905
            )
            offset += len(states)
            states.append(s)
        return torch.cat(states[-NODES:], dim=1)

    def forward_darts(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            s = sum(
                self._ops[offset + j].forward_darts(h, weights[offset + j])
                for j, h in enumerate(states)
            )
            offset += len(states)
            states.append(s)
        return torch.cat(states[-NODES:], dim=1)


class AutoDl(Net):
    """With `sampled`, one operation of each edge at a time (GDAS)."""

    def __init__(self, c: int = 4, sampled: bool = False) -> None:
        super().__init__(lambda *shape: AutoDlCell(AutoDlMixedOp, *shape), c)
        self.sampled = sampled

    def run(self, cell: AutoDlCell, before: Tensor, last: Tensor, type: int) -> Tensor:
        weights = F.softmax(self.alphas[type], dim=-1)
        if not self.sampled:
            return cell.forward_darts(before, last, weights)
        indices = weights.argmax(-1)
        hard = torch.zeros_like(weights).scatter_(-1, indices[:, None], 1.0)
        return cell.forward_gdas(before, last, hard - weights.detach() + weights, indices.tolist())


# NAS-Bench-201: the cell itself sums the operations of its edges.


class Bench201Cell(nn.Module):
    def __init__(self, c: int, darts: bool) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        self.nodes = 3
        for i in range(1, self.nodes):
            for j in range(i):
                ops = self._darts(c) if darts else self._bench(c)
                self.edges[f"{i}<-{j}"] = nn.ModuleList(ops)
        self.edge2index = {key: i for i, key in enumerate(sorted(self.edges.keys()))}

    def _bench(self, c: int) -> Iterator[nn.Module]:
        yield from (_parts.Zero(1), _parts.Identity(), ReLUConvBN(c, c, 1, 0))
        yield from (ReLUConvBN(c, c, 3, 1), _parts.pool("avg", 1))

    def _darts(self, c: int) -> Iterator[nn.Module]:
        for name in ("none", "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "avg_pool_3x3"):
            yield OPS[name](c, 1, False)

    def forward(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.nodes):
            incoming = []
            for j in range(i):
                key = f"{i}<-{j}"
                weights = weightss[self.edge2index[key]]
                pairs = zip(self.edges[key], weights)  # noqa: B905
                incoming.append(sum(layer(nodes[j]) * w for layer, w in pairs))
            nodes.append(sum(incoming))
        return nodes[-1]


class Bench201(nn.Module):
    def __init__(self, c: int = 4, darts: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        self.cells = nn.ModuleList(Bench201Cell(c, darts) for _ in range(2))
        self.lastact = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(c, CLASSES)
        self.arch = nn.Parameter(1e-3 * torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, self.arch.softmax(-1))
        return self.classifier(self.lastact(x).mean((2, 3)))

    def arch_parameters(self) -> Sequence[Tensor]:
        return []


# A derived network: two fixed operations a node.


class DerivedCell(nn.Module):
    def __init__(self, before: int, last: int, c: int, reduction: bool, reduced: bool) -> None:
        super().__init__()
        first = FactorizedReduce if reduced else ReLUConvBN
        self.preprocess0 = first(before, c)
        self.preprocess1 = ReLUConvBN(last, c)
        self.sources = (0, 1, 0, 2)
        names = ("sep_conv_3x3", "skip_connect", "max_pool_3x3", "dil_conv_5x5")
        self._ops = nn.ModuleList(
            with_norm(name, c, 2 if reduction and source < 2 else 1)
            for name, source in zip(names, self.sources)  # noqa: B905
        )

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(NODES):
            first, second = 2 * node, 2 * node + 1
            h1, h2 = self.sources[first], self.sources[second]
            states.append(self._ops[first](states[h1]) + self._ops[second](states[h2]))
        return torch.cat(states[2:], dim=1)


class Derived(Net):
    def __init__(self, c: int = 4) -> None:
        super().__init__(DerivedCell, c)

    def run(self, cell: nn.Module, before: Tensor, last: Tensor, type: int) -> Tensor:
        return cell(before, last)

    def arch_parameters(self) -> Sequence[Tensor]:
        return []
