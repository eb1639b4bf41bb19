"""Load a dataset by name into an `ImageStore`."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.data._torchvision import torchvision_datasets
from metadnas_ext.data.partition import stratified_order
from metadnas_ext.data.store import (
    FolderStore,
    ImageStore,
    MemoryStore,
    channel_statistics,
    decode_files,
    shorter_side,
)
from metadnas_ext.errors import DataError

DATASETS: tuple[str, ...] = ("digits", "cifar10", "cifar100", "imagenet", "imagefolder")

_Statistics = tuple[tuple[float, ...], tuple[float, ...]]
_CIFAR: dict[str, _Statistics] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_IMAGENET: _Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IMAGENET_SIZE = 224
_SPLITS = ("train", "val", "test")
_STATISTICS_SAMPLE = 1024


@dataclass(frozen=True)
class _Request:
    """What a caller asked for, as `load_dataset` documents it."""

    name: str
    image_size: int | None
    max_images: int | None
    seed: int
    limit: int


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    max_images: int | None = None,
    seed: int = 0,
    download: bool = False,
    memory_limit_bytes: int = 2 << 30,
) -> ImageStore:
    """Load a dataset, all its splits pooled: a federation makes its own test sets.

    name:
    - "digits": scikit-learn's 1797 greyscale digits, 8x8; needs no data_dir.
    - "cifar10", "cifar100": torchvision's copy in data_dir, 32x32; `download` fetches it.
    - "imagenet": data_dir/train/<class> and data_dir/val/<class>, read on demand, 224x224.
    - "imagefolder": data_dir/<class>, or data_dir/{train,val,test}/<class> pooled (a split without
      class folders is left out); in memory if it fits memory_limit_bytes, else read on demand;
      by default as large as the shorter side of the first image.

    image_size: height and width in pixels of every image. max_images: keep at most so many, chosen
    by `seed` with the classes' shares kept, before anything is decoded. memory_limit_bytes: for
    all pixels together. Raises DataError if the dataset is unknown, missing, empty or too large
    for its limit, or if a number is out of range.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name.lower(), DATASETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"dataset {name!r} is unknown; expected {', '.join(DATASETS)}{hint}")
    for parameter, value in (("image_size", image_size), ("max_images", max_images)):
        if value is not None and value < 1:
            raise DataError(f"{parameter} is {value}; expected at least 1")
    if seed < 0:
        raise DataError(f"seed is {seed}; expected at least 0")
    request = _Request(name, image_size, max_images, seed, memory_limit_bytes)
    if name == "digits":
        return _load_digits(request)
    if data_dir is None:
        raise DataError(f"{name} needs data_dir (--data-dir): the folder that holds it")
    root = Path(data_dir).expanduser()
    if name in _CIFAR:
        return _load_cifar(request, root, download)
    return _load_folder(request, root)


def _load_digits(request: _Request) -> MemoryStore:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255
    pixels = torch.from_numpy(grey).unsqueeze(-1)  # (n, 8, 8, 1)
    classes = tuple(str(digit) for digit in range(10))
    statistics = channel_statistics(pixels[_statistics_sample(len(pixels))])
    return _in_memory(request, pixels, labels, classes, statistics, "crop")


def _load_cifar(request: _Request, root: Path, download: bool) -> MemoryStore:
    name = request.name
    datasets = torchvision_datasets()
    source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        # torchvision unpickles these files, but only after their md5 sums match its own list.
        halves = [source(str(root), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        remedy = f"the download failed ({error})" if download else "pass --download"
        raise DataError(
            f"{name} not found in {root}: expected an intact folder {root / source.base_folder}; "
            f"{remedy}, name another data_dir, or load image files with the dataset imagefolder"
        ) from error
    pixels = torch.from_numpy(np.concatenate([half.data for half in halves]))  # (n, 32, 32, 3)
    labels = torch.tensor([*halves[0].targets, *halves[1].targets], dtype=torch.int64)
    classes = tuple(halves[0].classes)
    return _in_memory(request, pixels, labels, classes, _CIFAR[name], "crop_flip")


def _in_memory(
    request: _Request,
    pixels: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    statistics: _Statistics,
    augmentation: str,
) -> MemoryStore:
    """A store of the chosen images among `pixels` (uint8 [n, S, S, C]), resized if asked."""
    size = request.image_size or pixels.shape[1]
    kept = _subset(labels, request)
    needed = len(kept) * size * size * pixels.shape[-1]
    if needed > request.limit:
        raise DataError(
            f"{len(kept)} images of {request.name} at image_size {size} need {needed} bytes; "
            f"memory_limit_bytes is {request.limit}: lower image_size or max_images, or raise it"
        )
    return MemoryStore(
        name=request.name,
        labels=labels[kept],
        classes=classes,
        image_size=size,
        mean=statistics[0],
        std=statistics[1],
        augmentation=augmentation,
        pixels=_resize(pixels[kept], size),
    )


def _load_folder(request: _Request, root: Path) -> ImageStore:
    name = request.name
    paths, labels, classes = _scan(root, _class_roots(name, root))
    default = _IMAGENET_SIZE if name == "imagenet" else shorter_side(paths[0])
    size = request.image_size or default
    kept = _subset(labels, request)
    paths, labels = [paths[i] for i in kept.tolist()], labels[kept]
    sample = _statistics_sample(len(paths))
    if name != "imagenet" and len(paths) * size * size * 3 <= request.limit:
        pixels = decode_files(paths, size)
        mean, std = channel_statistics(pixels[sample])
        return MemoryStore(
            name=name,
            labels=labels,
            classes=classes,
            image_size=size,
            mean=mean,
            std=std,
            augmentation="crop_flip",
            pixels=pixels,
        )
    mean, std = _IMAGENET
    if name != "imagenet":
        mean, std = channel_statistics(decode_files([paths[i] for i in sample.tolist()], size))
    return FolderStore(
        name=name,
        labels=labels,
        classes=classes,
        image_size=size,
        mean=mean,
        std=std,
        augmentation="crop_flip",
        paths=tuple(paths),
    )


def _class_roots(name: str, root: Path) -> list[Path]:
    """The folders whose sub-folders are classes: root itself or its splits."""
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data_dir {root} {found}; expected the folder that holds the dataset")
    subfolders = _subfolders(root)
    splits = [split for split in _SPLITS if split in subfolders and _subfolders(root / split)]
    if name == "imagenet":
        present = [split for split in ("train", "val") if split in subfolders]
        missing = [split for split in present if split not in splits]
        if not present or missing:
            expected = ", ".join(f"{root / split}/<class>" for split in missing or ("train", "val"))
            raise DataError(f"imagenet not found in {root}: expected image files in {expected}")
        return [root / split for split in present]
    others = [folder for folder in subfolders if folder not in _SPLITS]
    if splits and others:
        raise DataError(
            f"data_dir {root} holds both splits ({', '.join(splits)}) and other folders "
            f"({', '.join(others[:3])}); expected class folders only, or train, val, test only"
        )
    return [root / split for split in splits] or [root]


def _scan(root: Path, class_roots: Sequence[Path]) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """Image files with their labels int64 [n], pooled over class_roots, and the class names."""
    folder = torchvision_datasets().folder
    classes = sorted({name for class_root in class_roots for name in _subfolders(class_root)})
    if len(classes) < 2:
        found = f"only one, {classes[0]!r}" if classes else "none"
        raise DataError(
            f"data_dir {root} needs at least two class folders with images; found {found}"
        )
    numbered = {name: number for number, name in enumerate(classes)}
    files: list[tuple[str, int]] = []
    for class_root in class_roots:
        files += folder.make_dataset(
            str(class_root), numbered, extensions=folder.IMG_EXTENSIONS, allow_empty=True
        )
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    empty = [name for name, size in zip(classes, sizes, strict=True) if size == 0]
    if empty:
        known = " ".join(folder.IMG_EXTENSIONS)
        raise DataError(
            f"data_dir {root} has class folders without images: {', '.join(empty[:5])}"
            f"{' ...' if len(empty) > 5 else ''}; expected files ending in {known}"
        )
    return [path for path, _ in files], labels, tuple(classes)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 [n, S, S, C] resized to uint8 [n, size, size, C] by antialiased bilinear weights."""
    if pixels.shape[1] == size:
        return pixels
    channels_first = pixels.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def _subset(labels: Tensor, request: _Request) -> Tensor:
    """Sorted indices of at most max_images samples with the classes' shares kept."""
    if request.max_images is None or request.max_images >= len(labels):
        return torch.arange(len(labels))
    order = stratified_order(labels.numpy(), np.random.default_rng(request.seed))
    return torch.from_numpy(np.sort(order[: request.max_images]))


def _statistics_sample(count: int) -> Tensor:
    """The images that mean and std are computed from: at most 1024, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator)[:_STATISTICS_SAMPLE]
