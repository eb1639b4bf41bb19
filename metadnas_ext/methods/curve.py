"""How fast clients get there: test accuracy after the first steps from the server's state."""

from __future__ import annotations

from copy import deepcopy

from metadnas_ext.federated.federation import Federation
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import Cohort, steps_per_epoch
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation
from metadnas_ext.search.training import Watch, evaluate


class AdaptationCurve:
    """Test accuracies of `personalise.curve_for` after `personalise.curve_steps` steps on w.

    Steps count from the state that the server sent, on through every phase of personalisation;
    step 0 is that state as it came. Measuring draws no random number and writes to no tensor of the
    training, and no training reads what was measured.
    """

    def __init__(self, federation: Federation) -> None:
        settings = federation.config.personalise
        everyone = range(len(federation.splits))
        chosen = {"none": (), "unseen": federation.unseen, "all": everyone}[settings.curve_for]
        self._federation = federation
        self._points: dict[int, dict[int, float]] = {client: {} for client in chosen}

    def copy(self) -> AdaptationCurve:
        """The same points, to go on with another network."""
        result = AdaptationCurve(self._federation)
        result._points = deepcopy(self._points)
        return result

    def follow(
        self,
        plan: NetworkPlan,
        cohort: Cohort,
        before: int,
        epochs: int,
        relaxation: Relaxation = SOFTMAX,
    ) -> Watch:
        """Measures the cohort now and, told of each step, along a phase of training.

        `before`: local epochs before the phase; `epochs`: of the phase. A supernet mixes as
        `relaxation` does at rest, at the temperature it has reached.
        """
        clients, size = cohort.clients, self._federation.config.client.batch_size
        per_epoch = [steps_per_epoch(split, size) for split in cohort.splits]

        def watch(done: int) -> None:
            at = [before * steps + done for steps in per_epoch]  # since the server's state
            rows = [
                row
                for row, steps in enumerate(per_epoch)
                if done <= epochs * steps and self._lacks(clients[row], at[row])
            ]
            if not rows:
                return
            for row in rows:
                share = done / max(epochs * per_epoch[row], 1)
                reached = evaluate(
                    *(plan, _row(cohort, row), self._federation.store, "test", size, None),
                    relaxation.stopped(share),
                )
                self._points[clients[row]][at[row]] = float(reached.accuracy)

        watch(0)
        return watch

    def points(self, client: int, final: float) -> dict[str, float] | None:
        """Accuracy by step, as text for JSON; `final` where a client has fewer steps in all."""
        if client not in self._points:
            return None
        wanted, measured = self._federation.config.personalise.curve_steps, self._points[client]
        return {str(step): measured.get(step, final) for step in wanted}

    def _lacks(self, client: int, step: int) -> bool:
        """Whether a point is wanted and not there: a phase starts where the one before ended."""
        wanted = self._federation.config.personalise.curve_steps
        return client in self._points and step in wanted and step not in self._points[client]


def _row(cohort: Cohort, row: int) -> Cohort:
    """One client of the cohort."""
    alpha = None if cohort.alpha is None else cohort.alpha[row : row + 1]
    here = slice(row, row + 1)
    return Cohort([cohort.splits[row]], cohort.theta[here], cohort.running[here], alpha)
