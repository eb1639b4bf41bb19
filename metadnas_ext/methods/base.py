"""What a federated method is to the engine that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.report.result import ClientResult, Kept
from metadnas_ext.space import Architecture


@dataclass(frozen=True)
class RoundFigures:
    """What one round reports, over the clients that were not dropped. Accuracies in 0..1.

    None: the method has no such figure, or every client was dropped. `alpha_entropy` and `skips`
    are the server's; `client_entropy` and `client_skips` are means over the round's clients, of
    their own α and the architecture it gives within their budget; `hessian_eigenvalue` is the
    clients' mean of the largest one of ∇²_α L_val.
    """

    clients: list[int]
    train_loss: float | None
    val_loss: float | None
    val_accuracy: float | None
    bytes_up: int
    bytes_down: int
    alpha_entropy: float | None = None
    expected_cost: float | None = None
    skips: float | None = None
    client_entropy: float | None = None
    client_skips: float | None = None
    hessian_eigenvalue: float | None = None
    budget_use: float | None = None
    """Expected cost over the client's own budget, mean over clients."""
    dropped: list[dict[str, Any]] = field(default_factory=list)
    """Clients whose numbers were not finite, each with `client` and `reason`."""

    @property
    def lost(self) -> bool:
        """Whether no client was left: the state is what it was before."""
        return len(self.dropped) == len(self.clients)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Fallback:
    """A network for a client whose personalisation diverged: theta (P), running (R), as they are.

    `recalibrated`: running statistics are to be taken anew on the client's data.
    """

    genotype: Architecture
    theta: Tensor
    running: Tensor
    kept: Kept
    recalibrated: bool


class Method(ABC):
    """Federated rounds, then one personalised result per client.

    A method's whole state between two calls is `state()`: together with the configuration it
    decides everything that follows, bit for bit.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    training_key: ClassVar[str]  # see `trains_as`

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.config = federation.config

    @classmethod
    def trains_as(cls, config: Config) -> str:
        """Methods of a run with the same key have the same rounds and state."""
        return cls.training_key

    @property
    def rounds(self) -> int:
        """Rounds to run at most."""
        return self.config.server.rounds

    @property
    def round_epochs(self) -> int:
        """Local epochs that a seen client has in all rounds, on average over clients."""
        server, seen = self.config.server, len(self.federation.seen)
        share = min(server.clients_per_round, seen) / seen
        return round(server.rounds * share * self.config.client.epochs)

    def round_lr(self, index: int) -> float:
        """Rate of w in a round."""
        client, last = self.config.client, self.config.server.rounds - 1
        if client.final_lr is None or last < 1:
            return client.lr
        return float(client.lr * (client.final_lr / client.lr) ** (index / last))

    @property
    def final_epochs(self) -> int:
        """Local epochs between the server's state and a client's network, for every method."""
        return self.config.personalise.adapt_epochs + self.config.personalise.finetune_epochs

    @abstractmethod
    def round(self, index: int) -> RoundFigures:
        """Runs one round and updates the state."""

    @abstractmethod
    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        """Final networks and test accuracies of some clients, from the state after all rounds."""

    @property
    @abstractmethod
    def client_rows(self) -> tuple[ClientRows, ...]:
        """What stays on the clients between rounds."""

    @abstractmethod
    def server_state(self) -> dict[str, Tensor]:
        """All tensors of the server that decide what follows."""

    @abstractmethod
    def load_server_state(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `server_state` returned."""

    @abstractmethod
    def shared(self, final: bool) -> dict[str, Tensor]:
        """What the server sends to clients, in a round or, `final`, behind the last one.

        In rounds zeros stand for what stays on the clients.
        """

    @abstractmethod
    def receive(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `shared` returned, on a client."""

    def state(self) -> dict[str, Tensor]:
        """All tensors that decide what follows, of server and clients."""
        state = self.server_state()
        for rows in self.client_rows:
            state |= rows.state()
        return state

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        own = dict(tensors)
        for rows in self.client_rows:
            rows.load_state({name: own.pop(name) for name in rows.names})
        self.load_server_state(own)

    @abstractmethod
    def fallback(self, client: int) -> Fallback:
        """What the client has without training of its own, from the state after all rounds."""

    def shared_genotype(self) -> Architecture | None:
        """The architecture the server stands for, if the method has one."""
        return None

    def converged(self, history: Sequence[RoundFigures]) -> bool:
        """Whether the last `patience` rounds changed neither accuracy nor entropy."""
        patience, tolerance = self.config.server.patience, self.config.server.tolerance
        if patience == 0 or len(history) <= patience:
            return False
        recent = history[-patience - 1 :]
        if any(figures.lost for figures in recent):
            return False
        for values in (
            [figures.val_accuracy or 0.0 for figures in recent],
            [figures.alpha_entropy or 0.0 for figures in recent],
        ):
            if max(values) - min(values) > tolerance:
                return False
        return True


class WithoutRounds(Method):
    """Each client for itself: there is no server, so nothing is learned before personalisation."""

    @property
    def rounds(self) -> int:
        return 0

    def round(self, index: int) -> RoundFigures:
        raise RuntimeError(f"{self.title} has no rounds")

    @property
    def client_rows(self) -> tuple[ClientRows, ...]:
        return ()

    def server_state(self) -> dict[str, Tensor]:
        return {}

    def load_server_state(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            raise ValueError(f"{self.title} has no state")

    def shared(self, final: bool) -> dict[str, Tensor]:
        return {}

    def receive(self, tensors: dict[str, Tensor]) -> None:
        self.load_server_state(tensors)

    def shared_genotype(self) -> Architecture | None:
        return None
