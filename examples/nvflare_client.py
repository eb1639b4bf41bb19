"""The client script of nvflare_job.py: receives the model, searches, sends it back."""

from __future__ import annotations

import re

import federation
import torch

try:
    import nvflare.client as flare
except ImportError:
    import nvflare_shape as flare


def main() -> None:
    flare.init()
    client = int(re.findall(r"\d+", flare.get_site_name())[-1]) - 1  # site-1, site-2, ...
    data, model = federation.make_clients()[client], federation.make_supernet()
    budget = federation.make_budgets(model)[client]
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict({name: torch.as_tensor(v) for name, v in received.params.items()})
        federation.search(model, data, budget)
        params = {name: t.detach().clone() for name, t in model.state_dict().items()}
        metrics = None
        if received.current_round == received.total_rounds - 1:
            # Nothing is sent behind the last round: the client goes on from its own search.
            net = federation.own_network(model, data, budget)
            metrics = federation.judge(net, data, budget)
        meta = {"NUM_STEPS_CURRENT_ROUND": data.size}  # the weight, by the name NVFlare gives it
        flare.send(flare.FLModel(params=params, metrics=metrics, meta=meta))


if __name__ == "__main__":
    main()
