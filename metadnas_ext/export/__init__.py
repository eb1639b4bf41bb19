"""Finished networks for programs that know nothing of this package: torch.export and ONNX."""

from metadnas_ext.export.formats import FORMATS, SUFFIXES, export_model
from metadnas_ext.export.plain import PlainNet

__all__ = ["FORMATS", "SUFFIXES", "PlainNet", "export_model"]
