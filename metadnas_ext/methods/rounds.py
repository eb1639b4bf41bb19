"""A round cut in two: what clients compute, what the server makes of their replies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from metadnas_ext.methods.base import Method, RoundFigures
from metadnas_ext.methods.exchange import Form, Part, Reply
from metadnas_ext.methods.survivors import without_diverged
from metadnas_ext.space import Architecture


class Rounds(Method):
    """A method with rounds. `round` runs clients and server in one process.

    An engine that sends messages calls the same parts: on a client `receive`, `work` and `keep`, on
    the server `step` and `figures`; `collected` once it has the clients' rows.
    """

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        parts, dropped = without_diverged(
            self.federation.cohorts(sampled), lambda group: self.work(index, group)
        )
        replies = sorted((r for part in parts for r in part.replies), key=lambda r: r.client)
        if replies:
            self.step(index, replies)
            for part in parts:
                self.keep(part)
            self.collected()
        return self.figures(index, sampled, replies, dropped)

    @abstractmethod
    def work(self, index: int, clients: Sequence[int]) -> Part:
        """Some clients' part of a round, from the server's state and their own rows.

        Changes nothing. Raises DivergenceError naming those whose numbers are not finite.
        """

    def keep(self, part: Part) -> None:
        """Leaves on the clients what is theirs."""
        for rows in self.client_rows:
            if rows.name in part.kept:
                rows.put(part.clients, part.kept[rows.name])

    @abstractmethod
    def form(self, index: int, client: int, architecture: Architecture | None) -> Form:
        """What a client's reply must look like. ValueError if `architecture` cannot be its own."""

    @abstractmethod
    def step(self, index: int, replies: Sequence[Reply]) -> None:
        """The server's next state, from at least one reply; ordered by client."""

    @abstractmethod
    def collected(self) -> None:
        """Makes of what clients have kept the start of those that never train."""

    @abstractmethod
    def figures(
        self,
        index: int,
        sampled: list[int],
        replies: Sequence[Reply],
        dropped: Mapping[int, str],
    ) -> RoundFigures:
        """Of a round, behind the server's step; `replies` of the clients that were not dropped."""
