"""What networks take on this machine: `metadnas profile`."""
