"""The server's part of nvflare_job.py."""

from __future__ import annotations

import federation
import torch

from metadnas_ext import aggregate

try:
    from nvflare.app_common.abstract.fl_model import FLModel
    from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

    HOST = "NVFlare"
except ImportError:
    from nvflare_shape import FLModel, ModelAggregator

    HOST = "NVFlare's shape"


class AveragingAggregator(ModelAggregator):
    """w, α and batch norms' statistics of a round's clients; reports behind the last round."""

    def __init__(self):
        super().__init__()
        self.reset_stats()

    def accept_model(self, model: FLModel):
        self._models.append(model)

    def aggregate_model(self) -> FLModel:
        states = [
            {name: torch.as_tensor(value) for name, value in model.params.items()}
            for model in self._models
        ]
        merged = aggregate(states, [m.meta["NUM_STEPS_CURRENT_ROUND"] for m in self._models])
        judged = [model.metrics for model in self._models if model.metrics]
        if judged:
            federation.report(HOST, merged, judged)
        return FLModel(params={name: t.numpy() for name, t in merged.items()})

    def reset_stats(self):
        self._models: list[FLModel] = []
