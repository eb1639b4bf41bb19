"""Drop-in use: fuses the mixed operations of other codebases' models, in place."""

from metadnas_ext.fuse.convert import fuse, unfuse
from metadnas_ext.fuse.report import FuseReport

__all__ = ["FuseReport", "fuse", "unfuse"]
