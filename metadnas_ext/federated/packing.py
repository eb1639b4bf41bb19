"""Tensors and JSON values as bytes and back: safetensors with a header, nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

_HEADER = "header"


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """`header` holds JSON values."""
    rows = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, allow_nan=False)
    return safetensors.torch.save(rows, {_HEADER: text})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `pack` was given, tensors on the CPU. ValueError on anything else."""
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEADER])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not packed tensors: {type(error).__name__}: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"the header is a {type(header).__name__}, expected an object")
    return header, tensors
