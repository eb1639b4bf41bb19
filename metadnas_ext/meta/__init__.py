"""Meta-learners: from the clients' adapted states to the server's next one."""

from metadnas_ext.meta.fomaml import ServerState, server_step

__all__ = ["ServerState", "server_step"]
