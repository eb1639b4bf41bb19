"""Writing a network as a torch.export program or as ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from metadnas_ext.errors import ConfigError, MetadnasError, RunError
from metadnas_ext.export.plain import PlainNet
from metadnas_ext.extras import require
from metadnas_ext.files import write_atomic
from metadnas_ext.models import Card
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space.candidates import registered

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
CARD = "card.json"
"""Name of the card, as JSON, inside both formats: classes, normalisation, architecture."""


def export_model(net: DerivedNet, card: Card, path: str | Path, kind: str) -> Path:
    """Writes the network for other programs, atomically; any batch size, the card's image size.

    Args:
        net: a network without client axis; it is exported in eval mode.
        card: what the network is; goes into the file.
        kind: one of FORMATS. "torch": a program for `torch.export.load`. "onnx": for ONNX
            runtimes, with input "images" (batch, channels, size, size), output "logits" (batch,
            classes).

    Raises ConfigError on another kind, a name that does not end as the format's do, or a network
    with a registered primitive that PyTorch cannot export, ExtraError if `onnx` or `onnxscript` is
    missing, RunError if the file cannot be written.
    """
    target = Path(path)
    if kind not in FORMATS:
        raise ConfigError(f"the format is {kind!r}, expected one of {', '.join(FORMATS)}")
    if target.suffix != SUFFIXES[kind]:
        raise ConfigError(f"a file of format {kind} ends in {SUFFIXES[kind]}, got {target.name!r}")
    plain = PlainNet.of(net).eval()
    shape = card.shape
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, shape.image_channels, shape.image_size, shape.image_size)
    with _blaming(card):
        data = FORMATS[kind](plain, example.to(net.flat().dtype), json.dumps(card.to_json()))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from None
    return target


def _torch(net: PlainNet, example: Tensor, card: str) -> bytes:
    shapes = {"x": {0: Dim(BATCH)}}
    with torch.no_grad():
        program = torch.export.export(net, (example,), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CARD: card})
    return buffer.getvalue()


def _onnx(net: PlainNet, example: Tensor, card: str) -> bytes:
    require("onnx", "onnx", "onnxscript")
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x": {0: Dim(BATCH)}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[CARD] = card
    data: bytes = program.model_proto.SerializeToString()
    return data


@contextlib.contextmanager
def _blaming(card: Card) -> Iterator[None]:
    """What fails in a network with registered primitives fails because of them: ConfigError."""
    try:
        yield
    except MetadnasError:
        raise
    except Exception as error:
        own = sorted(registered().keys() & set(card.genotype.operations()))
        if not own:
            raise
        raise ConfigError(
            f"PyTorch cannot export this network with {', '.join(own)}: {error}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about its own versions of operators."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


FORMATS: dict[str, Callable[[PlainNet, Tensor, str], bytes]] = {"torch": _torch, "onnx": _onnx}
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
