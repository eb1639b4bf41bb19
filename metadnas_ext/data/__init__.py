"""Datasets, their partition over clients, and batches."""

from metadnas_ext.data.batches import Cycle, epoch_batches, prepare
from metadnas_ext.data.datasets import DATASETS, load_dataset
from metadnas_ext.data.partition import SCHEMES, ClientSplit, partition, split_clients
from metadnas_ext.data.store import FolderStore, ImageStore, MemoryStore

__all__ = [
    "DATASETS",
    "SCHEMES",
    "ClientSplit",
    "Cycle",
    "FolderStore",
    "ImageStore",
    "MemoryStore",
    "epoch_batches",
    "load_dataset",
    "partition",
    "prepare",
    "split_clients",
]
