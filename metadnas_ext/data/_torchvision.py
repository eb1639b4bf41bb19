"""The one place that imports torchvision: lazily, and past its operator-registration trap."""

import functools
import importlib
from types import ModuleType

import torch

_TRAP = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# A torch.library.Library withdraws its operators when it is collected, so it is kept here.
_kept: list[torch.library.Library] = []


@functools.cache
def torchvision_datasets() -> ModuleType:
    """The module `torchvision.datasets`, imported on the first call.

    torchvision 0.28.0's wheel is built for CUDA: under a CPU-only torch its operator library does
    not load, and its import fails while it registers fakes for the missing `nms` and `qnms`. Only
    then are these two schemas defined (without kernels; nothing here calls them) and the import
    tried again. Every other error of the import is passed on.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if _TRAP not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
    _kept.append(library)
    return importlib.import_module("torchvision.datasets")
