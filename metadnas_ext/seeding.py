"""Random numbers that depend on what they are for, not on what was drawn before.

Every draw comes from a generator keyed by (seed, purpose, round, client, ...). A resumed run,
another cohort size or another order of clients therefore draws the same numbers, and nothing needs
saving.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed for `key` under `seed`."""
    text = "/".join([str(seed), *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator for `key` under `seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *key))
