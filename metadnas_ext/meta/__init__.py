"""Meta-learners: from the clients' adapted states to the server's next one."""

from metadnas_ext.config import ServerConfig
from metadnas_ext.meta.base import LEARNED, Adapted, MetaGradient, MetaLearner
from metadnas_ext.meta.fomaml import FOMAML
from metadnas_ext.meta.maml import MAML
from metadnas_ext.meta.outer import outer_gradient
from metadnas_ext.meta.reptile import Reptile
from metadnas_ext.meta.server import ServerState, Update, server_step

LEARNERS: dict[str, type[MetaLearner]] = {
    learner.name: learner for learner in (FOMAML, Reptile, MAML)
}
"""By the value of `server.meta`."""


def meta_learner(config: ServerConfig) -> MetaLearner:
    return LEARNERS[config.meta](config.meta_on, config.maml_steps)


__all__ = [
    "FOMAML",
    "LEARNED",
    "LEARNERS",
    "MAML",
    "Adapted",
    "MetaGradient",
    "MetaLearner",
    "Reptile",
    "ServerState",
    "Update",
    "meta_learner",
    "outer_gradient",
    "server_step",
]
