"""Named configurations."""

from __future__ import annotations

from metadnas_ext.config import (
    ClientConfig,
    Config,
    DataConfig,
    PersonaliseConfig,
    ServerConfig,
    SpaceConfig,
)

QUICK = Config()
"""Ten clients on scikit-learn's digits: two minutes on a laptop, nothing to download."""

PAPER = Config(
    data=DataConfig(dataset="cifar10", clients=100),
    space=SpaceConfig(channels=16, layers=8),
    client=ClientConfig(epochs=10, batch_size=64),
    server=ServerConfig(rounds=50, clients_per_round=10, cohort=10),
    personalise=PersonaliseConfig(adapt_epochs=10, finetune_epochs=5),
)
"""The paper's values where it gives them: 100 clients, 10 local epochs, Adam 1e-2 on the client and
1e-3 on the server. The rest is DARTS' (16 channels, 8 cells, batch 64)."""

PRESETS = {"quick": QUICK, "paper": PAPER}
