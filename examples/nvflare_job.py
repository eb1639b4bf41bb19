"""Meta-DNAS as an NVFlare job: a client script and a model aggregator.

With NVFlare installed it runs in NVFlare's simulator, else in a loop of its shape.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import federation
import nvflare_client
from nvflare_aggregator import AveragingAggregator

try:
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv
except ImportError:
    FedAvgRecipe = None
    from nvflare_shape import simulate


def main() -> None:
    sites = len(federation.LEVELS)
    if FedAvgRecipe is None:
        start = federation.make_supernet().state_dict()
        params = {name: t.numpy() for name, t in start.items()}
        simulate(nvflare_client.main, params, AveragingAggregator(), sites, federation.ROUNDS)
        return
    recipe = FedAvgRecipe(
        name="meta-dnas",
        min_clients=sites,
        num_rounds=federation.ROUNDS,
        model={"class_path": "metadnas_ext.nn.Supernet", "args": federation.SUPERNET},
        aggregator=AveragingAggregator(),
        train_script=str(Path(nvflare_client.__file__)),
    )
    with tempfile.TemporaryDirectory() as folder:
        recipe.execute(SimEnv(num_clients=sites, workspace_root=folder))


if __name__ == "__main__":
    main()
